"""Public question sets with their passages, and which part of each may be trained on.

The benchmark of the reader measures on the held-out part; the recipe trains on the other. The sets are not
part of the project: a folder that lacks one gives none of its questions. Layouts: SQuAD (XQuAD, COVID-QA),
CLAPNQ, PubMedQA.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from finetune.base_data import sentences

Part = Literal["train", "heldout"]
NGRAM = 13
# As a tokeniser writes them, and as people do.
SPACED = (
    *((f" {mark}", mark) for mark in (",", ".", ";", ":", "?", "!", ")", "'s", "n't", "%")),
    ("( ", "("), (" '", "'"), ("`` ", '"'), (" ''", '"'), (" - ", "-"), ("$ ", "$"),
)  # fmt: skip


@dataclass(frozen=True)
class Context:
    """A passage of a question set: its sentences under a heading. `group`: article or document."""

    group: str
    heading: str
    sentences: tuple[str, ...]


@dataclass(frozen=True)
class Question:
    """A question; `gold` are the sentences that answer it, `facts` the strings a right answer holds.

    Both are empty when the context does not answer it. `context` is an index into the set's contexts.
    """

    text: str
    context: int
    gold: tuple[str, ...]
    facts: tuple[str, ...]


@dataclass(frozen=True)
class QuestionSet:
    """Contexts and the questions on them."""

    name: str
    contexts: tuple[Context, ...]
    questions: tuple[Question, ...]


def _in_part(index: int, part: Part) -> bool:
    return (index % 2 == 0) == (part == "heldout")


def xquad(folder: Path, part: Part) -> QuestionSet:
    """XQuAD, English (Artetxe et al. 2020): every other article is held out."""
    articles = _read(folder, "xquad-en.dev.json.gz", {"data": []})["data"]
    return _squad("xquad", [a for i, a in enumerate(articles) if _in_part(i, part)])


def covidqa(folder: Path, part: Part) -> QuestionSet:
    """COVID-QA (Moeller et al. 2020): long papers cut into paragraphs; all of it is for training."""
    papers = _read(folder, "covidqa_200423.offsets-repaired.json.gz", {"data": []})["data"]
    return _squad("covidqa", papers if part == "train" else [])


def _squad(name: str, articles: list[dict[str, Any]]) -> QuestionSet:
    contexts: list[Context] = []
    questions: list[Question] = []
    for number, article in enumerate(articles):
        title = article.get("title", "").replace("_", " ")
        for paragraph in article["paragraphs"]:
            blocks = _blocks(paragraph["context"])
            first = len(contexts)
            contexts += [
                Context(f"{name}-{number}", title or "Paper", tuple(sentences(text))) for _, text in blocks
            ]
            for asked in paragraph["qas"]:
                answer = asked["answers"][0]
                at = max(i for i, (start, _) in enumerate(blocks) if start <= answer["answer_start"])
                inside = answer["answer_start"] - blocks[at][0]
                gold = _sentence_at(blocks[at][1], inside, contexts[first + at].sentences)
                if gold:
                    facts = tuple(dict.fromkeys(a["text"].strip() for a in asked["answers"]))
                    questions.append(Question(asked["question"].strip(), first + at, (gold,), facts))
    return QuestionSet(name, tuple(contexts), tuple(questions))


def _blocks(text: str, longest: int = 1200) -> list[tuple[int, str]]:
    """(offset, paragraph) pairs; paragraphs over `longest` characters are cut after a sentence."""
    out, at = [], 0
    for part in text.split("\n\n"):
        start = 0
        while len(part) - start > longest:
            stop = part.rfind(". ", start, start + longest) + 1 or start + longest
            out.append((at + start, part[start:stop]))
            start = stop
        out.append((at + start, part[start:]))
        at += len(part) + 2
    return [(offset, block) for offset, block in out if block.strip()]


def _sentence_at(text: str, inside: int, parts: tuple[str, ...]) -> str:
    at = 0
    for sentence in parts:
        at = text.find(sentence, at)
        if at <= inside < at + len(sentence):
            return sentence
    return ""


def clapnq(folder: Path, part: Part) -> QuestionSet:
    """CLAPNQ (Rosenthal et al. 2024): search questions on one Wikipedia passage, half without an answer."""
    contexts: list[Context] = []
    questions: list[Question] = []
    for name in ("answerable", "unanswerable"):
        lines = _lines(folder, f"clapnq_{name}.dev.jsonl.gz")
        for row in (json.loads(line) for i, line in enumerate(lines) if _in_part(i, part)):
            passage = row["passages"][0]
            said = [tidy(s) for s in row["output"][0].get("selected_sentences") or ()]
            shown = tuple(s for sentence in passage["sentences"] for s in sentences(tidy(sentence)))
            gold = tuple(s for s in shown if any(s in whole for whole in said))
            if name == "unanswerable" or gold:
                questions.append(Question(row["input"].strip(), len(contexts), gold, gold))
                contexts.append(Context(f"clapnq-{row['id']}", passage["title"], shown))
    return QuestionSet("clapnq", tuple(contexts), tuple(questions))


def pubmedqa(folder: Path, part: Part) -> QuestionSet:
    """PubMedQA (Jin et al. 2019): questions on an abstract; `facts` is the paper's own conclusion.

    No sentence is marked as the answer, so none is trained on.
    """
    rows = list(_read(folder, "pubmedqa_pqal.train500.json.gz", {}).values())
    contexts: list[Context] = []
    questions: list[Question] = []
    for row in rows if part == "heldout" else []:
        parts = tuple(s for text in row["CONTEXTS"] for s in sentences(text))
        questions.append(Question(row["QUESTION"], len(contexts), (), (row["LONG_ANSWER"],)))
        contexts.append(Context(f"pubmedqa-{len(contexts)}", "Abstract", parts))
    return QuestionSet("pubmedqa", tuple(contexts), tuple(questions))


def tidy(text: str) -> str:
    """Undo the spaces that a tokenised text has before punctuation and inside quotes and brackets."""
    for spaced, plain in SPACED:
        text = text.replace(spaced, plain)
    return " ".join(text.split())


def grams(text: str, n: int = NGRAM) -> set[tuple[str, ...]]:
    """The word n-grams of a text, lower case, punctuation aside."""
    plain = "".join(c if c.isalnum() else " " for c in text.casefold()).split()
    return {tuple(plain[i : i + n]) for i in range(len(plain) - n + 1)}


def held_out_grams(folder: Path) -> set[tuple[str, ...]]:
    """13-grams of everything that the benchmark measures on: nothing that shares one is trained on."""
    found: set[tuple[str, ...]] = set()
    for load in (xquad, clapnq, pubmedqa):
        part = load(folder, "heldout")
        for text in (*(" ".join(c.sentences) for c in part.contexts), *(q.text for q in part.questions)):
            found |= grams(text)
    return found


def _lines(folder: Path, name: str) -> Iterator[str]:
    path = folder / name
    if path.exists():
        with gzip.open(path, "rt", encoding="utf-8") as file:
            yield from file


def _read(folder: Path, name: str, default: dict[str, Any]) -> dict[str, Any]:
    text = "".join(_lines(folder, name))
    value: dict[str, Any] = json.loads(text) if text else default
    return value
