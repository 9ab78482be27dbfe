"""Vectors of passages by embedders that are not in service: one that is tried, and the one before.

`chunks.vector` holds those in service. A switch exchanges the two in one commit, so no reader ever sees
vectors of two embedders, and going back needs only what was added since.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from core.db import Database
from core.types import Passage
from rag.embed import Vectors
from rag.passages import PassageStore, steps


class StagedVectors(PassageStore):
    """The passages with the vectors of the embedder `embedder` (its key) instead of those in service."""

    def __init__(self, database: Database, embedder: str) -> None:
        super().__init__(database)
        self.embedder = embedder

    def lacking(self) -> list[str]:
        """Ids of ready documents that have a passage without a vector of this embedder."""
        with self.database.read() as connection:
            rows = connection.execute(
                "SELECT DISTINCT document_id FROM chunks"
                " JOIN documents ON documents.id = chunks.document_id AND documents.status = 'ready'"
                " WHERE NOT EXISTS (SELECT 1 FROM vectors WHERE chunk_id = chunks.id AND embedder = ?)"
                " ORDER BY document_id",
                (self.embedder,),
            ).fetchall()
        return [row["document_id"] for row in rows]

    def save(self, ids: Sequence[int], vectors: Vectors) -> None:
        """Keep vectors of shape (len(ids), 384); those of chunks deleted meanwhile are left out."""
        with self.database.write() as connection:
            connection.executemany(
                "INSERT OR REPLACE INTO vectors (chunk_id, embedder, vector)"
                " SELECT id, ?, ? FROM chunks WHERE id = ?",
                [
                    (self.embedder, vector.astype("<f4").tobytes(), i)
                    for i, vector in zip(ids, vectors, strict=True)
                ],
            )

    def drop(self) -> None:
        """Forget this embedder's vectors."""
        with self.database.write() as connection:
            connection.execute("DELETE FROM vectors WHERE embedder = ?", (self.embedder,))

    def exchange(self, connection: Any, serving: str) -> None:
        """Inside the caller's transaction: put these vectors in service and keep those of `serving` aside.

        Pass an empty `serving` when those in service are of no further use.
        """
        connection.execute("DELETE FROM vectors WHERE embedder != ?", (self.embedder,))
        if serving:
            connection.execute(
                "INSERT INTO vectors (chunk_id, embedder, vector)"
                " SELECT id, ?, vector FROM chunks WHERE length(vector) > 0",
                (serving,),
            )
        connection.execute(
            "UPDATE chunks SET vector ="
            " (SELECT vector FROM vectors WHERE chunk_id = chunks.id AND embedder = ?1)"
            " WHERE id IN (SELECT chunk_id FROM vectors WHERE embedder = ?1)",
            (self.embedder,),
        )
        connection.execute("DELETE FROM vectors WHERE embedder = ?", (self.embedder,))

    def _stored(self, source: str, ids: Sequence[int]) -> dict[int, bytes]:
        found: dict[int, bytes] = {}
        for step in steps(ids):
            marks = ",".join("?" * len(step))
            with self.database.read() as connection:
                rows = connection.execute(
                    "SELECT chunk_id AS id, vector FROM vectors WHERE embedder = ?"
                    f" AND chunk_id IN (SELECT chunks.id {source} chunks.id IN ({marks}))",
                    (self.embedder, *step),
                )
                found.update((int(row["id"]), row["vector"]) for row in rows)
        return found


def forget(database: Database, names: str) -> None:
    """Drop the vectors of all embedders whose key begins with `names`: what a killed process left."""
    with database.write() as connection:
        connection.execute("DELETE FROM vectors WHERE substr(embedder, 1, ?) = ?", (len(names), names))


def headed(passage: Passage) -> str:
    """A passage as embedders read it: title and heading first (as `DocumentStore.chunk_texts`)."""
    place = f"{passage.document} > {passage.heading}" if passage.heading else passage.document
    return f"{place}\n{passage.text}"
