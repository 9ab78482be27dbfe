"""How long the Documents page waits for its list in a library of 10,000 documents, beside reading all rows.

Documents of 3,000 words with 20 passages each are written straight into a database, a third of them by
another user, some waiting, some with warnings. Each row is the median of nine turns; the reference reads
every row, as `DocumentStore.list` does.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from benchmarks.table import Row, main
from core.db import Database
from core.settings import load_settings
from rag.access import OPERATOR
from rag.documents import DocumentStore
from rag.listing import Listing

DOCUMENTS, QUICK, PASSAGES, TURNS = 10_000, 1_000, 20, 9
GOAL_MS = 200.0  # of one redraw: totals, counts and a page


def measure(options: argparse.Namespace) -> list[Row]:
    """Fill a database and time what a redraw asks it."""
    count = QUICK if options.quick else DOCUMENTS
    with tempfile.TemporaryDirectory() as folder:
        settings = load_settings({}, data_dir=folder)
        database = Database(Path(folder) / "listing.db")
        _fill(database, count)
        listing, store = Listing(database), DocumentStore(database, settings)
        ways: dict[str, Callable[[], object]] = {
            "totals": lambda: listing.totals(OPERATOR),
            "counts of all filters": lambda: listing.counts(OPERATOR),
            "counts with a name": lambda: listing.counts(OPERATOR, "title 77"),
            "the first page": lambda: listing.page(OPERATOR),
            "the last page": lambda: listing.page(OPERATOR, offset=count - 100),
            "a page of what waits": lambda: listing.page(OPERATOR, "waiting"),
            "a page of problems": lambda: listing.page(OPERATOR, "problems"),
        }
        reference = _ms(lambda: store.list(OPERATOR))
        times = {name: _ms(way) for name, way in ways.items()}
        database.close()
    redraw = sum(times[name] for name in ("totals", "counts of all filters", "the first page"))
    return [
        *(Row(name, value, "ms", reference) for name, value in times.items()),
        Row("one redraw", redraw, "ms", reference, f"<= {GOAL_MS:g}", redraw <= GOAL_MS),
    ]


def _ms(way: Callable[[], object]) -> float:
    found = []
    for _ in range(TURNS):
        began = time.perf_counter()
        way()
        found.append(1000 * (time.perf_counter() - began))
    return median(found)


def _fill(database: Database, count: int) -> None:
    with database.write() as connection:
        for number in range(count):
            identity = f"{number:032x}"
            text = f"Title {number}\n" + f"word {number} " * 3000
            quality = json.dumps({"pages": 3, "white": 2} if number % 50 == 0 else {"pages": 3})
            others = number % 3 == 0
            connection.execute(
                "INSERT INTO documents (id, name, kind, bytes, origin, status, text, created_at, updated_at,"
                " quality, text_hash) VALUES (?,?,'markdown',9,'upload','ready',?,?,0,?,?)",
                (identity, f"file {number}.md", text, number, quality, f"hash {number}"),
            )
            connection.execute(
                "INSERT INTO document_access VALUES (?,?,'everybody',?)",
                (
                    identity,
                    "api:anna" if others else OPERATOR,
                    "waiting" if number % 21 == 0 else "approved",
                ),
            )
            connection.executemany(
                'INSERT INTO chunks (document_id, ordinal, heading, start, "end", text, vector)'
                " VALUES (?, ?, '', 0, 1, 'x', x'')",
                [(identity, ordinal) for ordinal in range(PASSAGES)],
            )


if __name__ == "__main__":
    sys.exit(main("listing", (__doc__ or "").splitlines()[0], measure))
