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
from core.types import Passage, Unit
from feedback.pairs import Cite
from feedback.questions import Excluded, as_put, question_key
from feedback.records import Correction, Exchange, Vote
from feedback.store import FeedbackStore

WRONG_SOURCE = "wrong source"
FEWEST = 24  # questions: two thirds of them train each embedder that is judged
_LABEL = re.compile(r"\[(\d+)\]")

Place = tuple[str, int]
"""Document id and start of a passage in its text."""

Span = tuple[str, int, int]
"""Document id, start and end of a line in its text."""


@dataclass(frozen=True)
class Lesson:
    """A question with its right and wrong passages, each known by its place.

    `facts` are the lines that made passages right: those that liked answers cited or that hold corrections.
    """

    question: str
    right: tuple[Passage, ...]
    wrong: tuple[Passage, ...]
    facts: tuple[Span, ...] = ()


def lessons(database: Database, cite: Cite, *, exclude: Iterable[str] = ()) -> list[Lesson]:
    """A lesson for each question whose right passages votes or corrections name, in order.

    Questions close to one of `exclude` (the evaluation's) are left out.
    """
    excluded = Excluded(exclude)
    rights: dict[str, dict[Place, Passage]] = {}
    wrongs: dict[str, dict[Place, Passage]] = {}
    facts: dict[str, set[Span]] = {}
    questions: dict[str, str] = {}
    for exchange, votes, corrections in FeedbackStore(database).judged():
        put = as_put(exchange.question, exchange.answer.messages)
        key = question_key(put)
        if not key or excluded.reason(put, ""):
            continue
        questions.setdefault(key, put)
        right, wrong, lines = _sorted_out(exchange, votes, corrections, cite)
        rights.setdefault(key, {}).update(right)
        wrongs.setdefault(key, {}).update(wrong)
        facts.setdefault(key, set()).update(lines)
    found = []
    for key, question in questions.items():
        if right := rights[key]:
            wrong = {place: passage for place, passage in wrongs[key].items() if place not in right}
            found.append(
                Lesson(question, tuple(right.values()), tuple(wrong.values()), tuple(sorted(facts[key])))
            )
    return found


def _sorted_out(
    exchange: Exchange, votes: list[Vote], corrections: list[Correction], cite: Cite
) -> tuple[dict[Place, Passage], dict[Place, Passage], set[Span]]:
    """The right and the wrong passages of one exchange and the lines that make passages right.

    All are empty when nobody said anything about them.
    """
    shown = {_place(passage): passage for passage in exchange.answer.passages}
    cited = {
        place: passage
        for place, passage in shown.items()
        for citation in exchange.answer.citations
        if citation.document_id == passage.document_id and passage.start <= citation.start < passage.end
    }
    right: dict[Place, Passage] = {}
    lines: set[Span] = set()
    if sum(vote.value for vote in votes) > 0:
        right |= cited
        lines |= {(one.document_id, one.start, one.end) for one in exchange.answer.citations}
    for correction in corrections:
        if correction.status == "approved":
            for passage, unit in _holding(correction.text, exchange, cite):
                right[_place(passage)] = passage
                lines.add((passage.document_id, unit.start, unit.end))
    blamed = any(vote.value < 0 and vote.reason == WRONG_SOURCE for vote in votes)
    wrong: dict[Place, Passage] = {}
    if right:
        wrong |= {place: passage for place, passage in shown.items() if place not in cited}
    if blamed:
        wrong |= cited
    return right, {place: passage for place, passage in wrong.items() if place not in right}, lines


def _holding(text: str, exchange: Exchange, cite: Cite) -> list[tuple[Passage, Unit]]:
    """The units that hold a correction's sentences, with their passages."""
    numbers = {int(number) for number in _LABEL.findall(cite(text, exchange.units))}
    return [
        (passage, unit)
        for passage in exchange.answer.passages
        for unit in passage.units
        if unit.number in numbers
    ]


def _place(passage: Passage) -> Place:
    return passage.document_id, passage.start
