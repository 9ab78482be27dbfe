"""Questions made by rules from running text, and the questions people wrote about it.

A question made from a sentence keeps two to six of its content words, some inflected, replaced by a synonym
or dropped, behind a question word for what was left out (a number, a date, a name). The written ones stand in
`base_questions.tsv`: the paragraph's key (the start of its SHA-256), the number of the answering sentence (0:
the paragraph does not answer it) and the question. The paragraphs themselves are in the text corpus.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from math import log
from pathlib import Path

from core.types import Passage
from finetune.base_shelf import Asked, Exercise
from rag.chunks import units
from rag.words import STOP, stem

GREETING = "Hello! I am the small built-in reader. Ask me a question about the loaded documents."


def word_lists() -> dict[str, list[str]]:
    """The lists of `base_words.txt` by name."""
    lines = Path(__file__).with_name("base_words.txt").read_text("utf-8").splitlines()
    pairs = [line.split(": ", 1) for line in lines if not line.startswith("#")]
    return {name: items.split("|") for name, items in pairs}


WORDS = word_lists()
_SYN: dict[str, list[str]] = {}
for _group in map(str.split, WORDS["synonyms"]):
    for _w in _group:
        _SYN.setdefault(_w, []).extend(x for x in _group if x != _w)
_WORD = re.compile(r"[A-Za-z][A-Za-z'’-]*|\d[\d,.:/-]*\d|\d")
_MONTH = "January|February|March|April|May|June|July|August|September|October|November|December"


def content(text: str) -> list[str]:
    """Its words without function words."""
    return [w for w in _WORD.findall(text) if w.lower() not in STOP]


def inflect(word: str, rng: random.Random) -> str:
    """Another form of the same word: plural, gerund, past, or the bare stem."""
    w = word.lower()
    if len(w) < 4 or not w.isalpha() or word[0].isupper():
        return word
    root = next((w[: -len(e)] for e in ("ing", "ed", "es", "s") if w.endswith(e) and len(w) - len(e) >= 3), w)
    if root == w:
        return w + rng.choice(["s", "ing", "ed"]) if w[-1] not in "ey" else w + "s"
    return rng.choice([root, root + "s", root + "e" if w.endswith(("ing", "ed")) else root])


class Rarity:
    """Inverse document frequency by stem, learned from the documents themselves."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.n = max(1, len(texts))
        self.df = Counter(s for t in texts for s in {stem(w) for w in content(t)})

    def __call__(self, word: str) -> float:
        """The rarity of a word, about 0 to 12."""
        return log((self.n + 1) / (self.df.get(stem(word), 0) + 0.5)) + 0.1

    def overlap(self, words: Sequence[str], text: str) -> float:
        """Rarity-weighted share of `words` that stand in `text`."""
        have = {stem(w) for w in content(text)}
        total = sum(self(w) for w in words) or 1.0
        return sum(self(w) for w in words if stem(w) in have) / total


def documents(path: Path) -> Iterator[list[tuple[str, str]]]:
    """The documents of a corpus file, each as (heading, paragraph) pairs in order."""
    for doc in path.read_text("utf-8").split("\f"):
        title = heading = ""
        paragraphs = []
        for part in doc.split("\n\n"):
            text = " ".join(part.split())
            if text.startswith("# "):
                name = text[2:].strip()[:60]
                title = title or name
                heading = name if name == title else f"{title} > {name}"
            elif text:
                paragraphs.append((heading, text))
        yield paragraphs


def sentences(paragraph: str) -> list[str]:
    """Its units, as the product splits them."""
    return [paragraph[a:b] for a, b in units(paragraph)]


def readable(paragraph: str) -> bool:
    """Whether a paragraph is plain prose of a size that fits on a shelf."""
    parts = sentences(paragraph)
    return (
        2 <= len(parts) <= 10
        and 30 <= len(paragraph.split()) <= 190
        and max(map(len, parts)) < 330
        and not re.search(r"[{}<>|\\]|\(;|\( ", paragraph)
    )


def key(paragraph: str) -> str:
    """The key of a paragraph in `base_questions.tsv`."""
    return hashlib.sha256(paragraph.encode()).hexdigest()[:12]


def written() -> dict[str, list[tuple[int, str]]]:
    """The written questions by paragraph key: (number of the answering sentence or 0, question)."""
    out: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for line in Path(__file__).with_name("base_questions.tsv").read_text("utf-8").splitlines():
        where, number, question = line.split("\t")
        out[where].append((int(number), question))
    return out


_ASK = {
    "number": ["How many", "How much", "How many", "What is the number of", "What"],
    "date": ["When did", "When was", "In what year", "When", "What date"],
    "name": ["Who", "Who was", "Which", "What", "Where", "Where is", "Who is"],
    "thing": [
        "What",
        "What is",
        "What does",
        "How",
        "How does",
        "How do I",
        "Why",
        "Which",
        "What are",
        "Is",
        "Can",
        "Does",
        "What happens",
        "Tell me about",
        "Where",
        "Explain",
    ],
}


def question(
    sentence: str, heading: str, rarity: Rarity, rng: random.Random, disguise: float = 1.0
) -> tuple[str, list[str]] | None:
    """A question this sentence answers, and the words of the sentence or heading it rests on."""
    words = _WORD.findall(sentence)
    kind, gone = _wanted(sentence, rng)
    kept = [i for i, w in enumerate(words) if w.lower() not in STOP and w not in gone and len(w) > 1]
    if len(kept) < 2:
        return None
    size = min(len(kept), rng.choice([2, 2, 3, 3, 4, 4, 5, 6]))
    weight = sorted(kept, key=lambda i: -rarity(words[i]) * rng.uniform(0.3, 1.0))
    chosen = sorted(weight[:size])
    used = [words[i] for i in chosen]
    if rng.random() < 0.15:
        rng.shuffle(chosen)
    glue, out = rng.random(), []
    for a, i in enumerate(chosen):
        if a and glue < 0.6 and chosen[a - 1] < i <= chosen[a - 1] + 4:
            out += [w for w in words[chosen[a - 1] + 1 : i] if w.lower() in STOP]
        out.append(_disguise(words[i], rng) if rng.random() < disguise else words[i])
    if heading and rng.random() < 0.15:
        extra = rng.sample(content(heading), min(2, len(content(heading))))
        used, out = used + extra, out + rng.choice([["in"], ["for"], ["of"], []]) + extra
    text = " ".join([rng.choice(_ASK[kind]), *out])
    style = rng.random()
    if style < 0.06:
        return " ".join(out), used
    return (text.lower() if style < 0.2 else text) + ("?" if style > 0.1 else ""), used


def _wanted(sentence: str, rng: random.Random) -> tuple[str, set[str]]:
    """What the question asks for and the words it must therefore not contain."""
    dates = re.findall(rf"(?:{_MONTH}) \d+|\b1\d\d\d\b|\b20\d\d\b", sentence)
    numbers = re.findall(r"\b\d[\d,.]*\b", sentence)
    names = re.findall(r"(?<=[a-z,] )[A-Z][a-z]+(?: [A-Z][a-z]+)*", sentence)
    options: list[tuple[str, set[str]]] = [("thing", set())]
    if dates:
        options += [("date", set(_WORD.findall(dates[0])))] * 3
    if numbers and not dates:
        options += [("number", {numbers[0].rstrip(".,")})] * 3
    if names:
        options += [("name", set(rng.choice(names).split()))] * 2
    return rng.choice(options)


def _disguise(word: str, rng: random.Random) -> str:
    dice = rng.random()
    if dice < 0.25 and word.lower() in _SYN:
        return rng.choice(_SYN[word.lower()])
    if dice < 0.4:
        return inflect(word, rng)
    return word.lower() if dice < 0.47 else word


def made(
    part: Passage, home: int, rarity: Rarity, rng: random.Random, disguise: float
) -> tuple[Asked, list[str]] | None:
    """A question by rule to one sentence of a passage, and the words it rests on; None: unsuitable."""
    lines = [line for line in part.text.split("\n") if len(line) >= 25]
    if not lines:
        return None
    target = rng.choice(lines)
    asked = question(target, part.heading or part.document, rarity, rng, disguise)
    return asked and (Asked(asked[0], home, (target,), "text"), asked[1])


def clear(exercise: Exercise, words: Sequence[str], rarity: Rarity) -> bool:
    """Whether the answering unit holds clearly more of the question's words than every other unit.

    For a refusal: whether no unit holds most of them.
    """
    score = [rarity.overlap(words, unit) for unit in exercise.shown]
    if not exercise.labels:
        return max(score) <= 0.6
    answer = exercise.labels[0] - 1
    rest = [value for at, value in enumerate(score) if at != answer]
    return score[answer] >= max(rest, default=0.0) + 0.15
