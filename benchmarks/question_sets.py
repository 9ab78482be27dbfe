"""Public question sets as cases: what the product would show the reader, and the replies of two baselines.

A question is put to five passages of its article (to its one passage where the set has no more); the
product's focus chooses the units shown. The baselines see every sentence of these passages.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from core.catalog import CatalogModel
from core.types import Passage
from evaluation.cases import Case
from finetune.base_qa import QuestionSet, clapnq, pubmedqa, xquad
from finetune.base_shelf import Shelf, Vectors, passage
from rag.citations import Likelihood
from rag.embed import Embedder
from rag.focus import focus
from rag.prompt import build, question_line

RETRIEVED = 5
SETS: dict[str, Callable[[Path], QuestionSet]] = {
    "xquad": lambda folder: xquad(folder, "heldout"),
    "clapnq": lambda folder: clapnq(folder, "heldout"),
    "pubmedqa": lambda folder: pubmedqa(folder, "heldout"),
}


@dataclass(frozen=True)
class SetCase:
    """A case with the baselines' replies: the most similar sentence, and the first of the top passage."""

    case: Case
    gold: tuple[str, ...]
    similar: str
    first: str


def load(
    name: str,
    folder: Path,
    model: CatalogModel,
    embedder: Embedder,
    limit: int | None,
    answers: Likelihood | None = None,
) -> list[SetCase]:
    """The held-out cases of a set; with a `limit`, that many spread over it. Empty when it is not there."""
    questions = SETS[name](folder)
    vectors = Vectors(embedder)
    groups: dict[str, list[int]] = defaultdict(list)
    for number, context in enumerate(questions.contexts):
        groups[context.group].append(number)
    step = 1 if limit is None else max(1, len(questions.questions) // limit)
    chosen = questions.questions[::step]
    vectors.add(question_line(question.text) for question in chosen)
    shelves: dict[str, Shelf] = {}
    cases = []
    for at, question in enumerate(chosen):
        group = questions.contexts[question.context].group
        if group not in shelves:
            shelves[group] = Shelf([_passage(questions, n) for n in groups[group]], vectors)
        shelf, home = shelves[group], groups[group].index(question.context)
        line = question_line(question.text)
        found = shelf.nearest(line, len(shelf.passages))
        found = [n for n in found if n == home or n in [m for m in found if m != home][: RETRIEVED - 1]]
        passages = [shelf.passages[n] for n in found]
        shown = focus(line, passages, model.units, shelf.similarity, answers) if model.units else passages
        prompt = build(line, shown, model)
        case = Case(
            f"{name}-{at}", line, bool(question.gold) or name == "pubmedqa", question.facts,
            (str(question.context),), question.gold[0] if question.gold else "", "", "golden", name,
            prompt.messages, prompt.passages,
        )  # fmt: skip
        cases.append(SetCase(case, question.gold, *_baselines(shelf, line, passages)))
    return cases


def _passage(questions: QuestionSet, number: int) -> Passage:
    context = questions.contexts[number]
    made = passage(context.heading.replace(" > ", " - "), context.sentences)
    return replace(made, chunk_id=number, document_id=str(number))


def _baselines(shelf: Shelf, line: str, passages: Sequence[Passage]) -> tuple[str, str]:
    sentences = [text for part in passages for text in part.text.split("\n")]
    close = shelf.similarity(line, sentences)
    return sentences[max(range(len(sentences)), key=lambda i: close[i])], passages[0].text.split("\n")[0]
