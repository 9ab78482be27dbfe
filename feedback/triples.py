"""Votes as lessons for the embedder: a question, a passage that answers it, passages that do not.

The right passages of a question are those that a liked answer cited, and those that hold an approved
correction. Wrong ones were retrieved and not cited, or cited by an answer whose source a reader blamed: hard
negatives in the sense of Karpukhin et al., "Dense Passage Retrieval", EMNLP 2020.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from core.db import Database
from core.types import Passage
from feedback.pairs import Cite
from feedback.questions import Excluded, question_key
from feedback.records import Correction, Exchange, Vote
from feedback.store import FeedbackStore

WRONG_SOURCE = "wrong source"
FEWEST = 24  # questions: two thirds of them train each embedder that is judged
_LABEL = re.compile(r"\[(\d+)\]")

Place = tuple[str, int]
"""Document id and start of a passage in its text."""


@dataclass(frozen=True)
class Lesson:
    """A question with its right and wrong passages, each known by its place."""

    question: str
    right: tuple[Passage, ...]
    wrong: tuple[Passage, ...]


def lessons(database: Database, cite: Cite, *, exclude: Iterable[str] = ()) -> list[Lesson]:
    """A lesson for each question whose right passages votes or corrections name, in order.

    Questions close to one of `exclude` (the evaluation's) are left out.
    """
    excluded = Excluded(exclude)
    rights: dict[str, dict[Place, Passage]] = {}
    wrongs: dict[str, dict[Place, Passage]] = {}
    questions: dict[str, str] = {}
    for exchange, votes, corrections in FeedbackStore(database).judged():
        key = question_key(exchange.question)
        if not key or excluded.reason(exchange.question, ""):
            continue
        questions.setdefault(key, exchange.question)
        right, wrong = _sorted_out(exchange, votes, corrections, cite)
        rights.setdefault(key, {}).update(right)
        wrongs.setdefault(key, {}).update(wrong)
    return [
        Lesson(question, tuple(rights[key].values()), tuple(
            passage for place, passage in wrongs[key].items() if place not in rights[key]
        ))
        for key, question in questions.items() if rights[key]
    ]  # fmt: skip


def _sorted_out(
    exchange: Exchange, votes: list[Vote], corrections: list[Correction], cite: Cite
) -> tuple[dict[Place, Passage], dict[Place, Passage]]:
    """The right and the wrong passages of one exchange; both empty when nobody said anything about them."""
    shown = {_place(passage): passage for passage in exchange.answer.passages}
    cited = {
        place: passage
        for place, passage in shown.items()
        for citation in exchange.answer.citations
        if citation.document_id == passage.document_id and passage.start <= citation.start < passage.end
    }
    right: dict[Place, Passage] = {}
    if sum(vote.value for vote in votes) > 0:
        right |= cited
    for correction in corrections:
        if correction.status == "approved":
            right |= _holding(correction.text, exchange, cite)
    blamed = any(vote.value < 0 and vote.reason == WRONG_SOURCE for vote in votes)
    wrong: dict[Place, Passage] = {}
    if right:
        wrong |= {place: passage for place, passage in shown.items() if place not in cited}
    if blamed:
        wrong |= cited
    return right, {place: passage for place, passage in wrong.items() if place not in right}


def _holding(text: str, exchange: Exchange, cite: Cite) -> dict[Place, Passage]:
    """The passages whose units hold a correction's sentences."""
    numbers = {int(number) for number in _LABEL.findall(cite(text, exchange.units))}
    return {
        _place(passage): passage
        for passage in exchange.answer.passages
        if numbers & {unit.number for unit in passage.units}
    }


def _place(passage: Passage) -> Place:
    return passage.document_id, passage.start
