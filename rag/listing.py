"""The list of documents, counted, filtered and paged in SQL: a library may hold tens of thousands.

A document's row holds its whole text, so what decides about the list is read from indices alone
(`documents_listed`, `documents_problems`, `chunks_off`); the rows of one page are read in full.
"""

from __future__ import annotations

from dataclasses import dataclass

from core.db import Database
from rag.access import OFFERED, READABLE
from rag.documents import SELECT, TWIN, Document, Documents

_TITLE = "substr(text, 1, instr(substr(text, 1, 200) || char(10), char(10)) - 1)"  # as the index has it
_PROBLEMS = "status = 'failed' OR json_remove(quality, '$.pages', '$.tables') != '{}'"  # as the index has it
FILTERS = {
    "all": "1",
    "waiting": f"access.approval = 'waiting' AND {OFFERED}",
    "problems": f"(documents.id IN (SELECT id FROM documents WHERE {_PROBLEMS}) OR documents.id IN ("
    "SELECT document_id FROM replaced WHERE error != '') OR documents.id IN ("
    "SELECT documents.id FROM documents JOIN document_access AS access ON access.document_id = documents.id"
    " WHERE text_hash IN (SELECT text_hash FROM documents GROUP BY text_hash HAVING COUNT(*) > 1)"
    f" AND EXISTS (SELECT 1 FROM {TWIN})))",
    "rejected": f"access.approval = 'rejected' AND {OFFERED}",
    "off": "documents.id IN (SELECT document_id FROM chunks WHERE off)",
}
"""What the list may be narrowed to: documents that wait for approval, that failed or have warnings (see
`rag.quality`) or whose file has a newer version that cannot be read, that were rejected, and that have
passages which were switched off by hand."""

_FROM = (  # the order of the tables is that of the loops: the index first
    "FROM documents INDEXED BY documents_listed"
    " CROSS JOIN document_access AS access ON access.document_id = documents.id"
    f" WHERE {READABLE} AND (?2 = '' OR instr(casefold(name || ' ' || {_TITLE}), ?2))"
)
_ORDER = "ORDER BY created_at DESC, name, id"


@dataclass(frozen=True)
class Totals:
    """How many documents somebody may read, how many of them are ready, and their passages."""

    documents: int
    ready: int
    passages: int


class Listing:
    """Reads which documents there are. `viewer` is who asks: only what he may read is counted and shown.

    `wanted` is looked for in names and in the first 200 characters of titles, whatever the case.
    """

    def __init__(self, database: Database) -> None:
        self.database = database

    def totals(self, viewer: str) -> Totals:
        """What there is altogether."""
        with self.database.snapshot() as connection:
            row = connection.execute(
                f"SELECT COUNT(*) AS documents, COALESCE(SUM(status = 'ready'), 0) AS ready {_FROM}",
                (viewer, ""),
            ).fetchone()
            passages = connection.execute(
                "SELECT COUNT(*) AS passages FROM chunks WHERE document_id IN"
                f" (SELECT documents.id {_FROM} AND status = 'ready')",
                (viewer, ""),
            ).fetchone()
        return Totals(**dict(row), **dict(passages))

    def counts(self, viewer: str, wanted: str = "") -> dict[str, int]:
        """How many documents with these words in their names each filter has."""
        sums = ", ".join(f"COALESCE(SUM({condition}), 0)" for condition in FILTERS.values())
        with self.database.read() as connection:
            row = connection.execute(f"SELECT {sums} {_FROM}", (viewer, wanted.casefold())).fetchone()
        return dict(zip(FILTERS, tuple(row), strict=True))

    def page(
        self, viewer: str, choice: str = "all", wanted: str = "", limit: int = 100, offset: int = 0
    ) -> Documents:
        """Documents of a filter, newest first."""
        return self._rows(
            f"SELECT documents.id {_FROM} AND {FILTERS[choice]} {_ORDER} LIMIT ?3 OFFSET ?4",
            *(viewer, wanted.casefold(), limit, offset),
        )

    def after(self, viewer: str, document_id: str, limit: int) -> Documents:
        """The documents that follow this one, newest first; none when it is gone."""
        return self._rows(
            f"SELECT documents.id {_FROM} AND (-created_at, name, documents.id) >"
            " (SELECT -created_at, name, id FROM documents WHERE id = ?3)"
            f" {_ORDER} LIMIT ?4",
            *(viewer, "", document_id, limit),
        )

    def readable(self, viewer: str, document_id: str) -> Document | None:
        """The document, unless it does not exist or the viewer may not read it."""
        with self.database.read() as connection:
            row = connection.execute(f"{SELECT} WHERE {READABLE} AND id = ?2", (viewer, document_id))
            found = row.fetchone()
        return Document(**dict(found)) if found is not None else None

    def _rows(self, ids: str, *values: object) -> Documents:
        with self.database.read() as connection:
            rows = connection.execute(f"{SELECT} WHERE documents.id IN ({ids}) {_ORDER}", values).fetchall()
        return [Document(**dict(row)) for row in rows]
