"""The votes as retrieval sees them: who said what about which passage.

Read from the votes themselves, never kept as counters: taking a vote back takes its effect back with the next
question. A vote speaks for the places that its answer cited, and the chunk that holds such a place today
inherits it, so a document that was cut anew keeps its votes. Down votes count where their reason blames the
source; whoever was answered wrongly from the right passage says nothing against it. An approved correction
speaks for the passages that hold its sentences.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from core.db import Database, now_ms
from core.types import Unit, to_passages
from rag.chunks import units
from rag.priors import Said, prior
from rag.prompt import best_unit

BLAMES_THE_SOURCE = "wrong source"
"""The reason of a down vote that speaks against the passages; a test keeps it one of `feedback.store`'s."""


class _Word(NamedTuple):
    document: str
    start: int  # of the place, in the document's text
    voter: str
    sign: int
    at: int


class Votes:
    """Priors of passages, by chunk id; safe in threads."""

    def __init__(self, database: Database, half_life: float) -> None:
        self.database = database
        self.half_life = half_life  # days
        self._lock = threading.Lock()
        self._stamp = ""
        self._said: dict[int, list[Said]] = {}

    def priors(self, ids: Iterable[int], now: int | None = None) -> dict[int, float]:
        """The priors of those of `ids` that votes speak of, as they are at `now` (UTC ms)."""
        said, now = self.said(), now_ms() if now is None else now
        return {i: prior(said[i], now, self.half_life) for i in ids if i in said}

    def said(self) -> Mapping[int, list[Said]]:
        """Every voter's newest word on each passage, read anew when a vote, correction or chunk changed."""
        with self._lock:
            stamp = self._current_stamp()
            if stamp != self._stamp:
                self._said, self._stamp = self._read(), stamp
            return self._said

    def _current_stamp(self) -> str:
        """Changes with every vote, decision and chunk: a changed vote also gets a new time."""
        with self.database.read() as connection:
            row = connection.execute(
                "SELECT (SELECT COUNT(*) || ',' || TOTAL(created_at) || ',' || TOTAL(value * length(reason))"
                " || ',' || TOTAL(value) FROM votes) AS votes,"
                " (SELECT COUNT(*) || ',' || TOTAL(reviewed_at) FROM corrections WHERE status = 'approved')"
                " AS corrections, (SELECT value FROM meta WHERE key = 'chunks_version') AS version"
            ).fetchone()
        return f"{row['votes']} {row['corrections']} {row['version']}"

    def _read(self) -> dict[int, list[Said]]:
        newest: dict[tuple[int, str], Said] = {}
        spans: dict[str, list[tuple[int, int, int]]] = {}
        for word in self._words():
            if word.document not in spans:
                spans[word.document] = self._chunks(word.document)
            for chunk_id, start, end in spans[word.document]:
                known = newest.get((chunk_id, word.voter))
                if start <= word.start < end and (known is None or word.at >= known.at):
                    newest[chunk_id, word.voter] = Said(word.sign, word.at)
        found: dict[int, list[Said]] = {}
        for (chunk_id, _), said in newest.items():
            found.setdefault(chunk_id, []).append(said)
        return found

    def _chunks(self, document_id: str) -> list[tuple[int, int, int]]:
        with self.database.read() as connection:
            rows = connection.execute(
                'SELECT id, start, "end" AS stop FROM chunks WHERE document_id = ? ORDER BY ordinal',
                (document_id,),
            ).fetchall()
        return [(row["id"], row["start"], row["stop"]) for row in rows]

    def _words(self) -> Iterator[_Word]:
        with self.database.read() as connection:
            votes = connection.execute(
                "SELECT v.user_id AS voter, v.value AS value, v.created_at AS at, e.citations AS citations"
                " FROM votes v JOIN exchanges e ON e.id = v.exchange_id"
                " WHERE e.status = 'complete' AND (v.value = 1 OR v.reason = ?)",
                (BLAMES_THE_SOURCE,),
            ).fetchall()
            corrections = connection.execute(
                "SELECT c.user_id AS voter, c.text AS text, c.created_at AS at, e.passages AS passages"
                " FROM corrections c JOIN exchanges e ON e.id = c.exchange_id WHERE c.status = 'approved'"
            ).fetchall()
        for row in votes:
            for cited in json.loads(row["citations"]):
                yield _Word(cited["document_id"], cited["start"], row["voter"], row["value"], row["at"])
        for row in corrections:
            yield from _corrected(row)


def _corrected(row: Any) -> Iterator[_Word]:
    """The places that hold a correction's sentences, of the passages that were shown."""
    places = {
        unit.number: (passage.document_id, unit)
        for passage in to_passages(json.loads(row["passages"]))
        for unit in passage.units
    }
    shown: list[Unit] = [unit for _, unit in places.values()]
    for start, end in units(row["text"]):
        number = best_unit(row["text"][start:end], shown)
        if number is not None:
            document, unit = places[number]
            yield _Word(document, unit.start, row["voter"], 1, row["at"])
