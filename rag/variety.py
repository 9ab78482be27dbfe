"""Of ranked passages, those that each say something new, without one document crowding out the others.

Little is lost by it: a passage is left out only when one before it under the same heading already holds all
its words, nearly all in the same order, and the same negations; and what is over a document's share comes
after the others' passages.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

from core.types import Passage, Why
from rag.words import content

SAID = 0.95  # share of a passage's word triples that another must hold
PER_DOCUMENT = 0.5  # of the passages shown, before other documents' passages come
WINDOW = 2  # times as many passages are looked at as are shown: what ranks below is rarely worth a place

_NEGATIONS = frozenset(
    {"not", "never", "no", "none", "cannot", "isn't", "aren't", "don't", "doesn't", "won't"}
)


@dataclass(frozen=True)
class _Said:
    heading: str
    stems: tuple[str, ...]
    words: frozenset[str]
    triples: frozenset[tuple[str, ...]]


@dataclass
class Choice:
    """Passages that were chosen, and the others that were looked at with why they were not."""

    chosen: list[Passage]
    left_out: list[tuple[Passage, Why]]


def varied(ranked: Iterable[Passage], k: int) -> list[Passage]:
    """The passages of `choose`."""
    return choose(ranked, k).chosen


def choose(ranked: Iterable[Passage], k: int) -> Choice:
    """At most `k` passages, in their order but for those over their document's share, which come last.

    `ranked` is read no further than needed.
    """
    most = max(1, int(k * PER_DOCUMENT))
    taken: list[Passage] = []
    spare: list[Passage] = []
    repeats: list[tuple[Passage, Why]] = []
    per_document: dict[str, int] = {}
    for passage in islice(distinct(ranked, repeats), WINDOW * k):
        count = per_document[passage.document_id] = per_document.get(passage.document_id, 0) + 1
        (taken if count <= most else spare).append(passage)
        if len(taken) == k:
            break
    room = k - len(taken)
    return Choice([*taken, *spare[:room]], [*repeats, *((passage, "document") for passage in spare[room:])])


def distinct(
    ranked: Iterable[Passage], repeats: list[tuple[Passage, Why]] | None = None
) -> Iterable[Passage]:
    """The passages in order, without those whose words another before them holds; those go into `repeats`."""
    said: list[_Said] = []
    for passage in ranked:
        own = _said(passage)
        if not any(_repeats(own, other) for other in said):
            said.append(own)
            yield passage
        elif repeats is not None:
            repeats.append((passage, "repeat"))


def _said(passage: Passage) -> _Said:
    stems = tuple(content(passage.text))
    triples = frozenset(stems[at : at + 3] for at in range(max(1, len(stems) - 2)))
    return _Said(passage.heading, stems, frozenset(stems), triples)


def _repeats(own: _Said, other: _Said) -> bool:
    if own.stems == other.stems:
        return True
    return (
        own.heading == other.heading  # under another one the same words may be about something else
        and own.words <= other.words
        and own.words & _NEGATIONS == other.words & _NEGATIONS
        and len(own.triples & other.triples) >= SAID * len(own.triples)
    )
