"""Versions of a synchronised file: the earlier one answers until its successor does, then leads to it.

Each document that a file, or a crawled page, was before has a row in `replaced`. While it is stored it goes
on answering: until its `successor` is ready, where that is '' until nothing of the file is pending any more,
and with an `error` until the file can be read. The commit that makes a successor ready removes what it stands
for, so no moment has both or neither. Then the row stays, for citations to find the successor; it goes with
its file, or when no citation names the document. Uploads that replace another have the root '' (see
`rag.namesakes`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from core.db import Database, audit
from rag.chunk_carry import drop_edits, pass_on
from rag.documents import SYNCED, DocumentStore, remove
from rag.intake import Taken
from rag.passages import bump_version

# `r` is a row of `replaced`, `d` its document. What is not ready never answered, so nothing is lost with it.
_HELD = """(r.error != '' OR d.status = 'ready' AND CASE r.successor
    WHEN '' THEN EXISTS (SELECT 1 FROM sources AS s, json_each(s.documents) AS e JOIN documents AS n
        ON n.id = e.value WHERE s.root = r.root AND s.path = r.path AND n.status = 'pending')
    ELSE NOT EXISTS (SELECT 1 FROM documents AS n WHERE n.id = r.successor AND n.status = 'ready') END)"""
ORPHANS = f"""SELECT d.id AS id, d.name AS name FROM documents AS d WHERE (d.origin = '{SYNCED}'
    OR d.id IN (SELECT document_id FROM replaced WHERE root = ''))
    AND d.id NOT IN (SELECT e.value FROM sources, json_each(sources.documents) AS e)
    AND NOT EXISTS (SELECT 1 FROM replaced AS r WHERE r.document_id = d.id AND {_HELD})"""
_ROWS = "SELECT d.id AS id FROM replaced AS r JOIN documents AS d ON d.id = r.document_id"


@dataclass(frozen=True)
class Version:
    """A stored document that a file is or was; `created_at` in UTC milliseconds."""

    id: str
    name: str
    created_at: int

    @property
    def date(self) -> str:
        """The day on which it came."""
        return datetime.fromtimestamp(self.created_at / 1000, UTC).strftime("%d %b %Y")


@dataclass(frozen=True)
class Earlier:
    """A version that goes on answering until `successor` is ready; with an `error`, until one can be read."""

    version: Version
    successor: str = ""
    error: str = ""


Versions = list[Version]
Place = tuple[str, str]  # a file's root and path, as in `sources`


def succession(versions: Iterable[Version], taken: Sequence[Taken], name: str) -> list[Earlier]:
    """What becomes of a file's versions when it was read anew as `taken`; `name` is the file's own.

    Members of an archive are told by their names. A refused one keeps every version that has its name, and
    one that has neither a name in the archive nor the same bytes waits for all that was read.
    """
    came = {one.document.id for one in taken if one.document is not None}
    return [_heir(version, taken, name) for version in versions if version.id not in came]


def _heir(version: Version, taken: Sequence[Taken], name: str) -> Earlier:
    if len(taken) == 1 and taken[0].name == name:  # no archive, or one that was refused as a whole
        same, whole = list(taken), None
    else:
        same = [one for one in taken if one.name == version.name]
        whole = next((one for one in taken if one.error is not None and one.name == name), None)
    refused = next((one for one in same if one.error is not None), whole if not same else None)
    if refused is not None:
        return Earlier(version, error=str(refused.error))
    heirs = {one.document.id for one in same if one.document is not None}
    return Earlier(version, successor=heirs.pop() if len(heirs) == 1 else "")


def current(connection: Any, where: Place) -> Versions:
    """The stored documents that a file is, and those that go on answering for it."""
    rows = connection.execute(
        "SELECT id, name, created_at FROM documents WHERE id IN (SELECT e.value FROM sources AS s,"
        " json_each(s.documents) AS e WHERE s.root = ?1 AND s.path = ?2"
        f" UNION {_ROWS} WHERE r.root = ?1 AND r.path = ?2 AND {_HELD}) ORDER BY created_at, id",
        where,
    )
    return [Version(**dict(row)) for row in rows]


def put_earlier(connection: Any, where: Place, ids: Sequence[str], earlier: Sequence[Earlier]) -> None:
    """Note what a file's earlier versions are, inside the transaction that says that it is `ids` now."""
    connection.execute(
        "DELETE FROM replaced WHERE root = ? AND path = ?"
        " AND (document_id IN (SELECT value FROM json_each(?)) OR document_id NOT IN"
        " (SELECT id FROM documents UNION ALL SELECT document_id FROM citations))",
        (*where, json.dumps(list(ids))),
    )
    for one in earlier:
        if one.successor:  # whoever was led to it is led on
            connection.execute(
                "UPDATE replaced SET successor = ? WHERE root = ? AND path = ? AND successor = ?",
                (one.successor, *where, one.version.id),
            )
        connection.execute(
            "INSERT OR REPLACE INTO replaced VALUES (?,?,?,?,?,?)",
            (one.version.id, *where, one.version.name, one.successor, one.error),
        )


def hand_on(connection: Any, ids: Sequence[str]) -> None:
    """Give documents that are about to be ready what was done to those before them since they were read.

    These are edits, and decisions to show them to fewer people.
    """
    rows = connection.execute(
        "SELECT r.document_id AS old, r.successor AS new FROM replaced AS r JOIN documents AS d"
        " ON d.id = r.document_id WHERE r.error = '' AND (d.origin = ? OR r.root = '')"  # else it stays
        " AND r.successor IN (SELECT value FROM json_each(?))",
        (SYNCED, json.dumps(list(ids))),
    ).fetchall()
    for row in rows:
        pass_on(connection, row["old"], [row["new"]])
        _narrow(connection, row["old"], row["new"])


def _narrow(connection: Any, old: str, new: str) -> None:
    """Show a version to nobody to whom its owner no longer shows the one before it."""
    kept = (
        "EXISTS (SELECT 1 FROM document_access AS mine JOIN document_access AS before USING (owner)"
        " WHERE mine.document_id = ?2 AND before.document_id = ?1 AND before.visibility = 'owner')"
    )
    given = "SELECT group_name FROM document_groups WHERE document_id = ?1"
    closed = connection.execute(
        "UPDATE document_access SET visibility = 'owner'"
        f" WHERE document_id = ?2 AND visibility = 'everybody' AND {kept}",
        (old, new),
    )
    if closed.rowcount:
        connection.execute(f"INSERT INTO document_groups SELECT ?2, group_name FROM ({given})", (old, new))
    connection.execute(
        f"DELETE FROM document_groups WHERE document_id = ?2 AND group_name NOT IN ({given}) AND {kept}",
        (old, new),
    )


def retire(connection: Any, ready: Sequence[str] | None = None) -> list[str]:
    """Remove the versions whose successors are ready, inside the caller's transaction; returns their ids.

    With `ready` only those that these documents stand for. A document that a cancelled upload or archive
    brought stays from then on: what it replaced is gone. The bytes go with `DocumentStore.unlink`.
    """
    rows = connection.execute(
        f"{_ROWS} WHERE r.error = '' AND (?1 IS NULL OR r.successor IN (SELECT value FROM json_each(?1))"
        " OR r.successor = '')",
        (None if ready is None else json.dumps(list(ready)),),
    ).fetchall()
    if not rows:
        return []
    named = json.dumps([row["id"] for row in rows])
    gone = connection.execute(f"{ORPHANS} AND d.id IN (SELECT value FROM json_each(?))", (named,)).fetchall()
    for row in gone:
        heirs, others = _heirs(connection, row["id"])
        drop_edits(connection, row["id"], [*heirs, *others])
        _stay(connection, heirs or others)
        remove(connection, row["id"])
        audit(connection, "sync", "document.replace", f"{row['id']} {row['name']}")
    if gone:
        bump_version(connection)
    return [str(row["id"]) for row in gone]


def retire_all(store: DocumentStore) -> list[str]:
    """`retire` in a commit of its own, and remove the bytes; returns the ids."""
    with store.database.write() as connection:
        gone = retire(connection)
    store.unlink(gone)
    return gone


def _heirs(connection: Any, document_id: str) -> tuple[list[str], list[str]]:
    """Its successors, and what else its files hold."""
    rows = connection.execute(
        "SELECT id, MAX(heir) AS heir FROM (SELECT successor AS id, 1 AS heir FROM replaced"
        " WHERE document_id = ?1 UNION ALL SELECT e.value, 0 FROM replaced AS r"
        " JOIN sources AS s USING (root, path), json_each(s.documents) AS e WHERE r.document_id = ?1)"
        " WHERE id IN (SELECT id FROM documents) GROUP BY id",
        (document_id,),
    ).fetchall()
    heirs = [str(row["id"]) for row in rows if row["heir"]]
    return heirs, [str(row["id"]) for row in rows if not row["heir"]]


def _stay(connection: Any, ids: Sequence[str]) -> None:
    """Cancelling what brought these documents no longer removes them."""
    connection.execute(
        "UPDATE intake SET added = (SELECT json_group_array(value) FROM json_each(added)"
        " WHERE value NOT IN (SELECT value FROM json_each(?))) WHERE status = 'embedding' AND added != '[]'",
        (json.dumps(list(ids)),),
    )


def take_back(connection: Any, where: Place) -> list[str]:
    """The versions that go on answering for a file are what it is again; returns their ids.

    Inside the transaction in which what should have replaced them goes.
    """
    rows = connection.execute(
        f"{_ROWS} WHERE r.root = ? AND r.path = ? AND d.status = 'ready' AND {_HELD}", where
    ).fetchall()
    ids = [str(row["id"]) for row in rows]
    connection.execute(
        "DELETE FROM replaced WHERE root = ? AND path = ?"
        " AND document_id IN (SELECT value FROM json_each(?))",
        (*where, json.dumps(ids)),
    )
    return ids


def later(database: Database, document_id: str) -> str | None:
    """The version of its file that answers in the place of a document that was replaced."""
    with database.read() as connection:
        row = connection.execute(
            "SELECT d.id AS id FROM documents AS d JOIN (SELECT r.successor AS id, '' AS name, 1 AS heir"
            " FROM replaced AS r WHERE r.document_id = ?1"
            " UNION ALL SELECT e.value, r.name, 0 FROM replaced AS r JOIN sources AS s USING (root, path),"
            " json_each(s.documents) AS e WHERE r.document_id = ?1"
            " UNION ALL SELECT o.document_id, r.name, 0 FROM replaced AS r"
            " JOIN replaced AS o USING (root, path) WHERE r.document_id = ?1) AS one ON one.id = d.id"
            " WHERE d.status = 'ready' AND d.id != ?1 AND (one.heir OR one.name = d.name)"
            " ORDER BY one.heir DESC, d.created_at DESC, d.id LIMIT 1",
            (document_id,),
        ).fetchone()
    return str(row["id"]) if row is not None else None


def why_kept(database: Database, ids: Iterable[str]) -> dict[str, str]:
    """Of those documents that are an earlier version of a file, why they still answer; a sentence each."""
    with database.read() as connection:
        rows = connection.execute(
            "SELECT d.id AS id, d.name AS name, d.created_at AS created_at, r.error AS error,"
            " (SELECT error FROM documents AS n WHERE n.id = r.successor AND n.status = 'failed') AS failed"
            " FROM replaced AS r JOIN documents AS d ON d.id = r.document_id"
            f" WHERE d.id IN (SELECT value FROM json_each(?)) AND {_HELD} ORDER BY r.error DESC",
            (json.dumps(list(ids)),),
        ).fetchall()
    found: dict[str, str] = {}
    for row in rows:
        version = Version(row["id"], row["name"], row["created_at"])
        reason = row["error"] or row["failed"]
        found.setdefault(version.id, unread(version, reason) if reason else WAITS)
    return found


WAITS = "A newer version is being prepared; this one answers until that is ready."


def unread(version: Version, reason: str) -> str:
    """That a version goes on answering, since the one after it could not be read."""
    return f"The new version could not be read: {reason} The version of {version.date} goes on answering."
