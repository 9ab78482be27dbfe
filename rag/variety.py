"""Of ranked passages, those that each say something new, without one source crowding out the others.

Little is lost by it: a passage is left out only when one before it under the same heading already holds all
its words, nearly all in the same order, and the same negations; and what is over a document's share comes
after the others' passages.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from core.types import Passage, Why
from rag.words import content

SAID = 0.95  # share of a passage's word triples that another must hold
PER_DOCUMENT = 0.5  # of the passages shown, before other documents' passages come
PER_SOURCE = 0.4  # of the passages shown, for an account's passages that are alike
ALIKE = 0.5  # share of a passage's word triples from which it is much like another
WINDOW = 2  # times as many passages are looked at as are shown: what ranks below is rarely worth a place

_NEGATIONS = frozenset(
    {"not", "never", "no", "none", "cannot", "isn't", "aren't", "don't", "doesn't", "won't"}
)


Source = Callable[[Passage], str]
"""Whose a passage is, where that has a share; "" where it has none."""


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


def choose(ranked: Iterable[Passage], k: int, limited: Source = lambda _: "") -> Choice:
    """At most `k` passages, in their order but for those over their document's share, which come last.

    So does what is over the share of a source that `limited` names, see `Shares`, but only where nobody else
    has anything; past it, others are looked for further down. Otherwise `ranked` is read no further than
    needed.
    """
    most = max(1, int(k * PER_DOCUMENT))
    shares = Shares(k, limited)
    taken: list[Passage] = []
    spare: list[tuple[Passage, Why]] = []
    over: list[tuple[Passage, Why]] = []
    repeats: list[tuple[Passage, Why]] = []
    per_document: Counter[str] = Counter()
    looked_at = 0
    for passage, said in _distinct(ranked, repeats):
        if not shares.admits(passage, said):
            over.append((passage, "owner"))
            continue
        per_document[passage.document_id] += 1
        if per_document[passage.document_id] <= most:
            taken.append(passage)
        else:
            spare.append((passage, "document"))
        looked_at += 1
        if len(taken) == k or looked_at == WINDOW * k:
            break
    room = k - len(taken)
    chosen = [*taken, *(passage for passage, _ in spare[:room])]
    fill = k - len(chosen) if shares.alone(chosen) else 0
    chosen += [passage for passage, _ in over[:fill]]
    return Choice(chosen, [*repeats, *spare[room:], *over[fill:]])


def fair(passages: Sequence[Passage], k: int, limited: Source) -> Choice:
    """The first `k` that `Shares` admit, filled with others only where all are of one source."""
    shares = Shares(k, limited)
    admitted: list[tuple[Passage, Why]] = []
    over: list[tuple[Passage, Why]] = []
    for passage in passages:
        if shares.admits(passage, _said(passage)):
            admitted.append((passage, "rank"))
        else:
            over.append((passage, "owner"))
    chosen = [passage for passage, _ in admitted[:k]]
    fill = k - len(chosen) if shares.alone(chosen) else 0
    return Choice([*chosen, *(passage for passage, _ in over[:fill])], [*admitted[k:], *over[fill:]])


class Shares:
    """How many of `k` passages an account may have that are much alike: who says one thing 500 times is heard
    three times, and others beside him. What differs is never limited, nor an account that `limited` calls "".
    """

    def __init__(self, k: int, limited: Source) -> None:
        self._most = max(1, int(k * PER_SOURCE))
        self._limited = limited
        self._said: dict[str, list[_Said]] = {}

    def admits(self, passage: Passage, own: _Said) -> bool:
        """Whether it is within its source's share, to which it is then counted."""
        source = self._limited(passage)
        if not source:
            return True
        said = self._said.setdefault(source, [])
        alike = sum(len(own.triples & other.triples) >= ALIKE * len(own.triples) for other in said)
        if alike >= self._most:
            return False
        said.append(own)
        return True

    def alone(self, passages: Sequence[Passage]) -> bool:
        """Whether all passages come from one source that has a share."""
        sources = {self._limited(passage) for passage in passages}
        return len(sources) == 1 and sources != {""}


def _distinct(
    ranked: Iterable[Passage], repeats: list[tuple[Passage, Why]]
) -> Iterable[tuple[Passage, _Said]]:
    """The passages in order, without those whose words another before them holds; those go into `repeats`."""
    said: list[_Said] = []
    for passage in ranked:
        own = _said(passage)
        if any(_repeats(own, other) for other in said):
            repeats.append((passage, "repeat"))
        else:
            said.append(own)
            yield passage, own


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
