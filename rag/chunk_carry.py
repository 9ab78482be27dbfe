"""Edits of chunks when their file changes: kept where the passage is still the same, else dropped and said.

A file's new version is a new document. A chunk of the old one that was edited or switched off passes that
on to the chunk of the new one that has the same heading and words in the source. Otherwise the source has
moved on, and an old correction over new words would be wrong without anybody noticing: the edit goes with the
old document, its text into the audit log, and the new document's quality report counts it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from core.db import Database, audit
from rag.chunk_edits import Chunks, StoredChunk, remember, replace_chunk, select
from rag.passages import bump_version

ACTOR = "sync"


def carry(database: Database, old_ids: Sequence[str], new_ids: Sequence[str]) -> int:
    """Pass the edits of a file's earlier documents on to its new version's; returns how many find no place.

    Safe to repeat. A new document that is ready already waits for its vectors again.
    """
    with database.write() as connection:
        return sum(pass_on(connection, old, new_ids) for old in old_ids if old not in new_ids)


def pass_on(connection: Any, old_id: str, new_ids: Sequence[str]) -> int:
    """`carry` for one document inside the caller's transaction."""
    return sum(not _pass_on(connection, chunk, new_ids) for chunk in _edits(connection, old_id))


def drop_edits(connection: Any, old_id: str, new_ids: Sequence[str]) -> None:
    """Note, before a replaced document is removed, which of its edits have no place in the new ones."""
    lost = [chunk for chunk in _edits(connection, old_id) if not _same(connection, chunk, new_ids)]
    for chunk in lost:
        text = "switched off" if chunk.off and not chunk.edited else chunk.text
        audit(connection, ACTOR, "chunk.drop", f"{chunk.document_id} {chunk.ordinal + 1}: {text}")
    if new_ids and lost:
        _count(connection, new_ids[0], len(lost))


def _edits(connection: Any, document_id: str) -> Chunks:
    return select(connection, "document_id = ? AND (edited OR off) ORDER BY ordinal", document_id)


def _same(connection: Any, old: StoredChunk, new_ids: Sequence[str]) -> Chunks:
    """The chunks with the same heading and source, of the first document that has any."""
    for document_id in new_ids:
        chunks = select(connection, "document_id = ?", document_id)
        if same := [one for one in chunks if (one.heading, one.source) == (old.heading, old.source)]:
            return same
    return []


def _pass_on(connection: Any, old: StoredChunk, new_ids: Sequence[str]) -> bool:
    """Whether a chunk of the new documents has the same source, and now the edit."""
    same = _same(connection, old, new_ids)
    if not same:
        return False
    target = min(same, key=lambda chunk: (chunk.edited or chunk.off, abs(chunk.ordinal - old.ordinal)))
    if not (target.edited or target.off):  # else done before, or edited by somebody since
        remember(connection, target, ACTOR)
        connection.execute("DELETE FROM chunks_fts WHERE rowid = ?", (target.id,))
        replace_chunk(connection, target, old.text, old.off, None)
        _await_vectors(connection, target.document_id)
    return True


def _await_vectors(connection: Any, document_id: str) -> None:
    """Make a ready document pending: its new chunks have no vectors yet."""
    done = connection.execute(
        "UPDATE documents SET status = 'pending' WHERE id = ? AND status = 'ready'", (document_id,)
    )
    if done.rowcount:
        connection.execute(
            "DELETE FROM chunks_fts WHERE rowid IN (SELECT id FROM chunks WHERE document_id = ?)",
            (document_id,),
        )
        bump_version(connection)


def _count(connection: Any, document_id: str, number: int) -> None:
    row = connection.execute("SELECT quality FROM documents WHERE id = ?", (document_id,)).fetchone()
    if row is None:
        return
    report = json.loads(row["quality"] or "{}")
    report["lost_edits"] = report.get("lost_edits", 0) + number
    connection.execute("UPDATE documents SET quality = ? WHERE id = ?", (json.dumps(report), document_id))
