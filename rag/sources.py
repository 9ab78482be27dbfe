"""What synchronised folders and sites held when they were last looked at: one row per file or page.

A site's root is its address, `https://example.org/docs/`, and its paths are whole addresses.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

from core.db import Database
from rag.access import READABLE
from rag.documents import SYNCED


@dataclass(frozen=True)
class Source:
    """A file below a synchronised folder; `stamp` is (bytes, time of the last change in ns, inode).

    A page has the ETag and Last-Modified of the version that is stored instead of a time and an inode.
    """

    path: str
    stamp: tuple[int, int, int]
    hash: str
    documents: tuple[str, ...]
    error: str
    reader: str
    etag: str = ""
    modified: str = ""


@dataclass(frozen=True)
class Site:
    """A crawled site: its address, how many pages were seen, and how many of them are documents."""

    address: str
    pages: int
    documents: int


Sources = dict[str, Source]
Addresses = dict[str, str]


class SourceStore:
    """Reads and writes the rows of one folder; `root` is its absolute path."""

    def __init__(self, database: Database, root: str) -> None:
        self.database = database
        self.root = root

    def all(self) -> Sources:
        """Every file known below the folder, by its path there."""
        with self.database.read() as connection:
            rows = connection.execute("SELECT * FROM sources WHERE root = ?", (self.root,)).fetchall()
        return {
            row["path"]: Source(
                row["path"],
                (row["bytes"], row["modified_ns"], row["inode"]),
                row["hash"],
                tuple(json.loads(row["documents"])),
                row["error"],
                row["reader"],
                row["etag"],
                row["last_modified"],
            )
            for row in rows
        }

    def documents(self, path: str) -> tuple[str, ...]:
        """Ids of the documents that a file was when it was last read."""
        with self.database.read() as connection:
            row = connection.execute(
                "SELECT documents FROM sources WHERE root = ? AND path = ?", (self.root, path)
            ).fetchone()
        return tuple(json.loads(row["documents"])) if row is not None else ()

    def put(self, source: Source) -> None:
        """Add or replace a file's row."""
        with self.database.write() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO sources (root, path, bytes, modified_ns, inode, hash, documents,"
                " error, reader, etag, last_modified) VALUES (?,?,?,?,?,?,?,?,?,?,?)",
                (
                    *(self.root, source.path, *source.stamp, source.hash, json.dumps(source.documents)),
                    *(source.error, source.reader, source.etag, source.modified),
                ),
            )

    def remove(self, paths: list[str]) -> None:
        """Forget files that are gone."""
        with self.database.write() as connection:
            connection.executemany(
                "DELETE FROM sources WHERE root = ? AND path = ?", [(self.root, path) for path in paths]
            )

    def orphans(self) -> list[str]:
        """Ids of documents that came from a folder and that no folder's file stands for any more."""
        with self.database.read() as connection:
            rows = connection.execute(
                "SELECT id FROM documents WHERE origin = ? AND id NOT IN"
                " (SELECT entry.value FROM sources, json_each(sources.documents) AS entry)",
                (SYNCED,),
            ).fetchall()
        return [str(row["id"]) for row in rows]


def sites(database: Database) -> list[Site]:
    """Every crawled site, by its address."""
    with database.read() as connection:
        rows = connection.execute(
            "SELECT root AS address, COUNT(*) AS pages, SUM(documents != '[]') AS documents FROM sources"
            " WHERE root GLOB 'http*://*' GROUP BY root ORDER BY root"
        ).fetchall()
    return [Site(**dict(row)) for row in rows]


def paths(database: Database) -> dict[str, list[str]]:
    """The paths of documents that a folder or site holds, by their ids: whole, and below their root."""
    found: dict[str, list[str]] = {}
    with database.read() as connection:
        rows = connection.execute(
            "SELECT entry.value AS id, sources.root AS root, sources.path AS path"
            " FROM sources, json_each(sources.documents) AS entry"
        )
        for row in rows:
            whole = row["path"] if "://" in row["root"] else f"{row['root'].rstrip('/')}/{row['path']}"
            found.setdefault(row["id"], []).extend(dict.fromkeys([row["path"], whole]))
    return found


@dataclass(frozen=True)
class Provenance:
    """Where a document comes from: its name, who loaded it, when (UTC milliseconds), its quality report."""

    name: str
    owner: str
    created_at: int
    quality: str


def provenances(database: Database, ids: Iterable[str], viewer: str) -> dict[str, Provenance]:
    """Of those documents that are there and that the viewer may read."""
    with database.read() as connection:
        rows = connection.execute(
            "SELECT id, name, owner, created_at, quality FROM documents"
            " JOIN document_access AS access ON access.document_id = documents.id"
            f" WHERE {READABLE} AND id IN (SELECT value FROM json_each(?2))",
            (viewer, json.dumps(list(ids))),
        ).fetchall()
    return {
        row["id"]: Provenance(row["name"], row["owner"], row["created_at"], row["quality"]) for row in rows
    }


def web_addresses(database: Database, ids: Iterable[str]) -> Addresses:
    """Where on the web documents came from, by their ids; those that were not crawled are left out."""
    wanted = json.dumps(list(ids))
    with database.read() as connection:
        rows = connection.execute(
            "SELECT entry.value AS id, MIN(sources.path) AS address"
            " FROM sources, json_each(sources.documents) AS entry WHERE sources.root GLOB 'http*://*'"
            " AND entry.value IN (SELECT value FROM json_each(?)) GROUP BY entry.value",
            (wanted,),
        ).fetchall()
    return {str(row["id"]): str(row["address"]) for row in rows}


def web_address(database: Database, document_id: str) -> str:
    """Where on the web a document came from; "" for one that was not crawled."""
    return web_addresses(database, [document_id]).get(document_id, "")
