"""What synchronised folders held when they were last looked at: one row per file, in the database."""

from __future__ import annotations

import json
from dataclasses import dataclass

from core.db import Database
from rag.documents import SYNCED


@dataclass(frozen=True)
class Source:
    """A file below a synchronised folder; `stamp` is (bytes, modification time in ns, inode)."""

    path: str
    stamp: tuple[int, int, int]
    hash: str
    documents: tuple[str, ...]
    error: str
    reader: str


Sources = dict[str, Source]


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
                "INSERT OR REPLACE INTO sources VALUES (?,?,?,?,?,?,?,?,?)",
                (
                    *(self.root, source.path, *source.stamp, source.hash),
                    *(json.dumps(source.documents), source.error, source.reader),
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
