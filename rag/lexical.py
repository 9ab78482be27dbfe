"""Lexical retrieval: SQLite FTS5 with BM25 (Robertson and Zaragoza, 2009) over headings and text.

In a large library time goes into scoring passages, and most that hold a word of the question hold only one
that stands nearly everywhere. So a passage is scored when it holds one of the rarer words: as many of these,
rarest first, as stand in SCORED passages together, more for a long question. Its score is that of BM25 with
all words. What is left out holds common words alone; in a small library nothing is. MaxScore (Turtle and
Flood, "Query evaluation: strategies and optimizations", 1995) divides the words in the same way, by a bound
instead of a budget.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set

from core.db import Database
from rag.access import NOBODY
from rag.unshared import hidden
from rag.words import STOP, words

HEADING_WEIGHT = 1.0
TEXT_WEIGHT = 1.0
MAX_TERMS = 64
MAX_REPEATS = 3
SCORED, PER_WORD = 6_000, 1_000  # passages: the greater of the two; the rarest word's are scored in any case

# chunks_fts holds what is ready; the blob marks what the viewer may not find of it, see `rag.unshared`
_FINDABLE = "substr(?, chunks_fts.rowid + 1, 1) IS NOT x'01'"
_COUNTS = (
    "SELECT value AS term, (SELECT COUNT(*) FROM chunks_fts"
    f" WHERE chunks_fts MATCH value AND {_FINDABLE}) AS passages FROM json_each(?)"
)
_BEST = (
    "SELECT rowid AS id, -bm25(chunks_fts, ?, ?) AS score FROM chunks_fts"
    f" WHERE chunks_fts MATCH ? AND {_FINDABLE} ORDER BY score DESC, id LIMIT ?"
)


def match_terms(question: str) -> list[str]:
    """The question's content words as quoted FTS5 strings; every word of it when no other is left.

    Quoting makes every operator of the query language plain text, whatever a user types. A word that the
    question says again stands again, so that it weighs more, as in BM25 with query term frequencies.
    """
    all_words = [word.lower() for word in words(question)]
    kept = [word for word in all_words if word not in STOP] or all_words
    counts = Counter(kept)  # in the order of first use
    repeated = [word for word, count in counts.items() for _ in range(min(count, MAX_REPEATS))]
    return [f'"{word}"' for word in repeated[:MAX_TERMS]]


def search(
    database: Database, question: str, limit: int, viewer: str = NOBODY, without: Iterable[int] = ()
) -> list[tuple[int, float]]:
    """(chunk id, score) of chunks the viewer may find, best first; higher is better, ties by lower id.

    The chunks `without` are passed over; the scores are the same as with them.
    """
    terms = match_terms(question)
    if not terms:
        return []
    with database.snapshot() as connection:
        unseen = hidden(database, viewer)
        known = {term: unseen.counts.get(term) for term in terms}
        new = sorted(term for term, passages in known.items() if passages is None)
        rows = connection.execute(_COUNTS, (unseen.marks, json.dumps(new))) if new else ()
        counted = {row["term"]: row["passages"] for row in rows}
        unseen.keep(counted)
        rarer = rarest({term: counted[term] if n is None else n for term, n in known.items()})
        marks = _marked(unseen.marks, without)
        found: list[tuple[int, float]] = []
        for expression in _expressions(terms, rarer):
            rows = connection.execute(_BEST, (HEADING_WEIGHT, TEXT_WEIGHT, expression, marks, limit))
            found += [(int(row["id"]), float(row["score"])) for row in rows]
    return sorted(found, key=lambda pair: (-pair[1], pair[0]))[:limit]


def _marked(marks: bytes, ids: Iterable[int]) -> bytes:
    """The marks with those of `ids` set, too."""
    wanted = list(ids)
    if not wanted:
        return marks
    longer = bytearray(marks.ljust(max(wanted) + 1, b"\0"))
    for one in wanted:
        longer[one] = 1
    return bytes(longer)


def rarest(passages: Mapping[str, int]) -> set[str]:
    """The words to look for, given how many passages hold each: at least the rarest that any holds."""
    most = max(SCORED, PER_WORD * len(passages))
    taken: set[str] = set()
    total = 0
    for term in sorted(passages, key=lambda term: (passages[term], term)):
        if total and total + passages[term] > most:
            break
        taken.add(term)
        total += passages[term]
    return taken


def _expressions(terms: Sequence[str], rarer: Set[str]) -> list[str]:
    """FTS5 expressions that match each passage with a rarer word once, with all its words of the question."""
    rare = " OR ".join(term for term in terms if term in rarer)
    common = " OR ".join(term for term in terms if term not in rarer)
    return [f"({rare}) AND ({common})", f"({rare}) NOT ({common})"] if common else [rare]
