"""Lexical retrieval: SQLite FTS5 with BM25 (Robertson and Zaragoza, 2009) over headings and text."""

from __future__ import annotations

from collections import Counter

from core.db import Database
from rag.access import FINDABLE, NOBODY
from rag.words import STOP, words

HEADING_WEIGHT = 1.0
TEXT_WEIGHT = 1.0
MAX_TERMS = 64
MAX_REPEATS = 3


def match_expression(question: str) -> str:
    """The question's content words as quoted FTS5 strings joined by OR; empty when there are none.

    Quoting makes every operator of the query language plain text, whatever a user types. A word that the
    question says again stands again, so that it weighs more, as in BM25 with query term frequencies.
    """
    all_words = [word.lower() for word in words(question)]
    kept = [word for word in all_words if word not in STOP] or all_words
    counts = Counter(kept)  # in the order of first use
    repeated = [word for word, count in counts.items() for _ in range(min(count, MAX_REPEATS))]
    return " OR ".join(f'"{word}"' for word in repeated[:MAX_TERMS])


def search(database: Database, question: str, limit: int, viewer: str = NOBODY) -> list[tuple[int, float]]:
    """(chunk id, score) of chunks the viewer may find, best first; higher is better, ties by lower id."""
    expression = match_expression(question)
    if not expression:
        return []
    with database.read() as connection:
        rows = connection.execute(
            "SELECT chunks.id AS id, -bm25(chunks_fts, ?, ?) AS score FROM chunks_fts"
            " JOIN chunks ON chunks.id = chunks_fts.rowid"
            " JOIN documents ON documents.id = chunks.document_id AND documents.status = 'ready'"
            " JOIN document_access AS access ON access.document_id = chunks.document_id"
            f" AND {FINDABLE}"
            " WHERE chunks_fts MATCH ? ORDER BY score DESC, id LIMIT ?",
            (HEADING_WEIGHT, TEXT_WEIGHT, viewer, expression, limit),
        ).fetchall()
    return [(int(row["id"]), float(row["score"])) for row in rows]
