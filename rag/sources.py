"""What synchronised folders and sites held when they were last looked at: one row per file or page.

A site's root is its address, `https://example.org/docs/`, and its paths are whole addresses.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from core.db import Database
from rag.access import READABLE
from rag.versions import ORPHANS, Earlier, Versions, current, put_earlier


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

    def current(self, path: str) -> Versions:
        """The documents that a file was when it was last read, and earlier ones that go on answering."""
        with self.database.read() as connection:
            return current(connection, (self.root, path))

    def put(self, source: Source) -> None:
        """Add or replace a file's row; its earlier versions stay as they are."""
        with self.database.write() as connection:
            _put(connection, self.root, source)

    def replace(self, source: Source, earlier: Sequence[Earlier]) -> bool:
        """Note that a file was read anew and what becomes of its `earlier` versions.

        False, and nothing is noted, when one of the documents is not there any more.
        """
        ids = json.dumps(source.documents)
        with self.database.write() as connection:
            there = connection.execute(
                "SELECT COUNT(*) AS n FROM documents WHERE id IN (SELECT value FROM json_each(?))", (ids,)
            ).fetchone()
            if there["n"] < len(set(source.documents)):
                return False
            _put(connection, self.root, source)
            put_earlier(connection, (self.root, source.path), source.documents, earlier)
        return True

    def remove(self, paths: list[str]) -> None:
        """Forget files that are gone, with their earlier versions."""
        gone = [(self.root, path) for path in paths]
        with self.database.write() as connection:
            connection.executemany("DELETE FROM sources WHERE root = ? AND path = ?", gone)
            connection.executemany("DELETE FROM replaced WHERE root = ? AND path = ?", gone)

    def mounts(self) -> set[str]:
        """The mount points that earlier runs met below the folder (see `rag.mounts`)."""
        with self.database.read() as connection:
            rows = connection.execute("SELECT path FROM mounts WHERE root = ?", (self.root,))
            return {str(row["path"]) for row in rows}

    def put_mounts(self, paths: set[str]) -> None:
        """Remember these and no others."""
        if paths == self.mounts():
            return
        with self.database.write() as connection:
            connection.execute("DELETE FROM mounts WHERE root = ?", (self.root,))
            connection.executemany(
                "INSERT INTO mounts VALUES (?,?)", [(self.root, path) for path in sorted(paths)]
            )

    def orphans(self) -> list[str]:
        """Ids of documents that came from a folder and that no folder's file stands for any more.

        An earlier version that goes on answering is none (see `rag.versions`).
        """
        with self.database.read() as connection:
            return [str(row["id"]) for row in connection.execute(ORPHANS)]


def _put(connection: Any, root: str, source: Source) -> None:
    connection.execute(
        "INSERT OR REPLACE INTO sources (root, path, bytes, modified_ns, inode, hash, documents,"
        " error, reader, etag, last_modified) VALUES (?,?,?,?,?,?,?,?,?,?,?)",
        (
            *(root, source.path, *source.stamp, source.hash, json.dumps(source.documents)),
            *(source.error, source.reader, source.etag, source.modified),
        ),
    )


def sites(database: Database) -> list[Site]:
    """Every crawled site, by its address."""
    with database.read() as connection:
        rows = connection.execute(
            "SELECT root AS address, COUNT(*) AS pages, SUM(documents != '[]' OR EXISTS (SELECT 1 FROM"
            " replaced AS r WHERE r.root = sources.root AND r.path = sources.path AND r.error != ''))"
            " AS documents FROM sources"
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
            "SELECT id, MIN(path) AS address FROM (SELECT entry.value AS id, sources.root, sources.path"
            " FROM sources, json_each(sources.documents) AS entry"
            " UNION ALL SELECT document_id, root, path FROM replaced)"
            " WHERE root GLOB 'http*://*' AND id IN (SELECT value FROM json_each(?)) GROUP BY id",
            (wanted,),
        ).fetchall()
    return {str(row["id"]): str(row["address"]) for row in rows}


def web_address(database: Database, document_id: str) -> str:
    """Where on the web a document came from; "" for one that was not crawled."""
    return web_addresses(database, [document_id]).get(document_id, "")
