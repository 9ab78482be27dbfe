"""Chunks as retrieval sees them: of ready documents the viewer may find, but those that are switched off."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from core.db import Database
from core.types import Passage
from rag.access import AUDIENCE, FINDABLE, NOBODY, OWN, SHARED, UNSHARED
from rag.embed import DIMENSIONS, Vectors

_VERSION = "chunks_version"
_FROM = (
    "FROM chunks JOIN documents"
    " ON documents.id = chunks.document_id AND documents.status = 'ready' AND NOT chunks.off"
)
_ALL = f"{_FROM} JOIN document_access AS access ON access.document_id = chunks.document_id"
_READY = f"{_ALL} AND {FINDABLE}"
_STEP = 500  # SQLite's limit of variables is far above; small steps keep the memory flat


def bump_version(connection: Any) -> None:
    """Note inside the caller's transaction that the set of ready chunks changed."""
    connection.execute(
        "INSERT INTO meta VALUES (?, '1') ON CONFLICT(key) DO UPDATE SET value = CAST(value AS INTEGER) + 1",
        (_VERSION,),
    )


def put_notes(connection: Any, notes: Mapping[str, str]) -> None:
    """Set several notes inside the caller's transaction."""
    connection.executemany(
        "INSERT INTO meta VALUES (?, ?) ON CONFLICT(key) DO UPDATE SET value = excluded.value",
        list(notes.items()),
    )


class PassageStore:
    """Reads ready chunks and keeps small notes (the `meta` table)."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def version(self) -> int:
        """Grows whenever the set of ready chunks changes."""
        return int(self.note(_VERSION) or 0)

    def note(self, key: str) -> str:
        """The value noted under `key`, or an empty string."""
        with self.database.read() as connection:
            row = connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return str(row["value"]) if row is not None else ""

    def put_note(self, **notes: str) -> None:
        """Set several notes in one commit."""
        with self.database.write() as connection:
            put_notes(connection, notes)

    def counts(self, viewer: str = NOBODY) -> tuple[int, int]:
        """How many documents and chunks the viewer may find."""
        with self.database.read() as connection:
            row = connection.execute(
                f"SELECT COUNT(DISTINCT chunks.document_id) AS d, COUNT(*) AS c {_READY}", (viewer,)
            ).fetchone()
        return int(row["d"]), int(row["c"])

    def ready_ids(self) -> set[int]:
        """Ids of every ready chunk that everybody may find: what the index holds."""
        with self.database.read() as connection:
            rows = connection.execute(f"SELECT chunks.id AS id {_ALL} AND {SHARED}")
            return {int(row["id"]) for row in rows}

    def hidden_ids(self, viewer: str) -> list[int]:
        """Ids of every chunk, ready or not, that the viewer may not find."""
        with self.database.read() as connection:
            rows = connection.execute(
                "SELECT chunks.id AS id FROM document_access AS access"
                " JOIN chunks ON chunks.document_id = access.document_id"
                f" WHERE {UNSHARED} AND NOT {FINDABLE}",
                (viewer,),
            )
            return [int(row["id"]) for row in rows]

    def own(self, viewer: str) -> dict[str, list[int]]:
        """Ids, in order, of ready chunks the viewer may find that the index does not hold.

        By what tells who else may find them: those of one owner and the same groups are together.
        """
        found: dict[str, list[int]] = {}
        with self.database.read() as connection:
            rows = connection.execute(
                f"SELECT chunks.id AS id, {AUDIENCE} AS audience {_READY} AND {OWN} ORDER BY chunks.id",
                (viewer, viewer),
            )
            for row in rows:
                found.setdefault(row["audience"], []).append(int(row["id"]))
        return found

    def vectors(self, ids: Sequence[int]) -> Vectors:
        """Stored vectors in the order of `ids`, shape (len(ids), 384)."""
        found = self._stored("FROM chunks WHERE", ids)
        return _matrix(found[i] for i in ids)

    def ready_vectors(self, ids: Sequence[int]) -> tuple[list[int], Vectors]:
        """Those of `ids` that are ready, whoever may find them, in their order, with vectors as `vectors`."""
        found = self._stored(f"{_FROM} WHERE", ids)
        kept = [i for i in ids if i in found]
        return kept, _matrix(found[i] for i in kept)

    def _stored(self, source: str, ids: Sequence[int]) -> dict[int, bytes]:
        """The stored vectors of those of `ids` that `source`, ours, holds."""
        found: dict[int, bytes] = {}
        for step in steps(ids):
            marks = ",".join("?" * len(step))
            with self.database.read() as connection:
                rows = connection.execute(
                    f"SELECT chunks.id AS id, vector {source} chunks.id IN ({marks})", step
                )
                found.update((int(row["id"]), row["vector"]) for row in rows)
        return found

    def get(self, ids: Iterable[int], viewer: str = NOBODY) -> dict[int, Passage]:
        """Those of `ids` that the viewer may find, as passages; `document` is the document's title."""
        found: dict[int, Passage] = {}
        for step in steps(list(ids)):
            marks = ",".join("?" * len(step))
            with self.database.read() as connection:
                rows = connection.execute(
                    "SELECT chunks.id AS id, chunks.document_id AS document_id, heading, page, start,"
                    ' "end" AS stop, chunks.text AS text, chunks.edited AS edited,'
                    " substr(documents.text, 1, instr(documents.text || char(10), char(10)) - 1) AS title"
                    f" {_READY} WHERE chunks.id IN ({marks})",
                    (viewer, *step),
                ).fetchall()
            for row in rows:
                found[int(row["id"])] = Passage(
                    chunk_id=int(row["id"]),
                    document_id=row["document_id"],
                    document=row["title"],
                    heading=row["heading"],
                    page=row["page"],
                    start=row["start"],
                    end=row["stop"],
                    text=row["text"],
                    edited=bool(row["edited"]),
                )
        return found

    def busiest(self, ids: Iterable[int]) -> tuple[str, int]:
        """The account that loaded most of the chunks `ids`, and how many; ("", 0) where there are none."""
        with self.database.read() as connection:
            row = connection.execute(
                # without `documents`, whose rows are long; the chunks were just found
                "SELECT access.owner AS owner, COUNT(*) AS passages FROM json_each(?) AS one"
                " JOIN chunks ON chunks.id = one.value"
                " JOIN document_access AS access ON access.document_id = chunks.document_id"
                " GROUP BY access.owner ORDER BY passages DESC, owner LIMIT 1",
                (json.dumps(list(ids)),),
            ).fetchone()
            return (str(row["owner"]), int(row["passages"])) if row is not None else ("", 0)

    def loaded_by(self, owner: str, most: int) -> list[int]:
        """Ids of ready chunks of the documents that an account loaded, `most` of them."""
        with self.database.read() as connection:
            rows = connection.execute(
                f"SELECT chunks.id AS id {_ALL} WHERE access.owner = ? LIMIT ?", (owner, most)
            )
            return [int(row["id"]) for row in rows]

    def owners(self, ids: Iterable[str]) -> dict[str, str]:
        """The accounts that loaded the documents `ids`."""
        with self.database.read() as connection:
            rows = connection.execute(
                "SELECT document_id, owner FROM document_access"
                " WHERE document_id IN (SELECT value FROM json_each(?))",
                (json.dumps(list(ids)),),
            )
            return {str(row["document_id"]): str(row["owner"]) for row in rows}


def _matrix(stored: Iterable[bytes]) -> Vectors:
    flat = np.frombuffer(b"".join(stored), "<f4")
    return flat.reshape(-1, DIMENSIONS).astype(np.float32)


def steps(ids: Sequence[int]) -> Iterable[Sequence[int]]:
    """The ids in pieces that a query's variables hold."""
    return (ids[at : at + _STEP] for at in range(0, len(ids), _STEP))
