"""The queue of files: what was uploaded or found in a synchronised folder, until it can be searched.

    waiting -> reading -> embedding -> ready
                  └-> failed, with the reason; cancelled at any time before ready

A row is written after the bytes it names and outlives every process. Whoever holds the ingest lock works on
the rows (`rag.queue_work`, `rag.drain`), so what is `reading` when the lock is taken was left by a process
that died. From `embedding` on, the documents themselves say how far it is: pending, then ready.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from core.db import Database, audit, new_id, now_ms
from core.errors import ConflictError, DocumentError, NotFoundError, QuotaError
from core.files import inside, require_space, write_bytes
from core.settings import Settings
from rag.access import OPERATOR, new_access
from rag.documents import SYNCED, Document, DocumentStore, remove
from rag.passages import bump_version
from rag.versions import take_back
from rag.words import display_name

ACTIVE = ("waiting", "reading", "embedding")
DONE = ("ready", "failed", "cancelled")
_MINE = "(?1 = 'local' OR owner = ?1)"  # the operator may act on everybody's files
STAY = "they were here before, came from elsewhere too, or have replaced an earlier version"
_FINISHED = "(status IN ('failed', 'cancelled') OR status = 'ready' AND error != '')"


@dataclass(frozen=True)
class Entry:
    """One file in the queue. `root` and `path` say where a folder's file lies; times are UTC milliseconds.

    `error` and `next_step` say why it failed or, when it is ready, what of an archive was refused and which
    documents were known and are now found by others. `again` is the failed document that is read once more,
    `approval` what was decided about it.
    """

    seq: int
    id: str
    name: str
    bytes: int
    hash: str
    origin: str
    root: str
    path: str
    owner: str
    status: str
    error: str
    next_step: str
    documents: tuple[str, ...]
    deaths: int
    created_at: int
    updated_at: int
    visibility: str  # of its documents, see `rag.access`
    group_names: tuple[str, ...] = ()  # to which they are given
    added: tuple[str, ...] = ()  # those of the documents that were not there before
    again: str = ""
    approval: str = ""

    @property
    def active(self) -> bool:
        """Whether something is still to be done."""
        return self.status in ACTIVE


Entries = list[Entry]


class Queue:
    """Reads and writes the `intake` table and the waiting bytes in `data/queue`."""

    def __init__(self, database: Database, documents: DocumentStore, settings: Settings) -> None:
        self.database = database
        self.documents = documents
        self.settings = settings
        self.folder = settings.data_dir / "queue"

    def put(
        self,
        name: str,
        data: bytes,
        owner: str = OPERATOR,
        visibility: str = "everybody",
        groups: Sequence[str] = (),
    ) -> Entry:
        """Queue an upload; bytes that the same user has in the queue already are not queued twice.

        Raises DocumentError when it is empty or too large, QuotaError when too many files of this user wait.
        """
        self.documents.check_size(len(data))
        new_access(self.settings, owner, visibility)
        return self._put(data, (display_name(name), "upload", owner, visibility), groups)

    def read_again(self, document_id: str, actor: str = OPERATOR) -> Entry:
        """Queue the stored bytes of a failed document, which stays until they are read (raises as `put`).

        Raises NotFoundError when there is no such document that the actor may read.
        """
        try:
            data = self.documents.original(document_id, actor)
        except FileNotFoundError:
            raise DocumentError("The stored file is gone.", "Add it again.") from None
        document = self.documents.get(document_id)
        row = (document.name, document.origin, document.owner, document.visibility)
        return self._put(data, row, document.access.groups, document)

    def _put(
        self,
        data: bytes,
        row: tuple[str, str, str, str],
        groups: Sequence[str],
        again: Document | None = None,
    ) -> Entry:
        """Queue bytes; `row` holds name, origin, owner and visibility."""
        name, origin, owner, visibility = row
        digest = hashlib.sha256(data).hexdigest()
        given = json.dumps(sorted(groups))
        known = self._same(owner, digest, visibility, given)
        if known is not None and known.active:
            return known
        require_space(self.folder, 2 * len(data) + (1 << 20))
        entry_id = known.id if known is not None else new_id()
        # the bytes first, outside the transaction: megabytes must not keep others from writing
        write_bytes(inside(self.folder, entry_id), data)
        with self.database.write() as connection:
            try:
                self._require_room(connection, owner)
            except QuotaError:
                if known is None:
                    inside(self.folder, entry_id).unlink()
                raise
            values = (name, len(data), digest, origin, "", "", owner, visibility, given)
            _insert(connection, entry_id, values)
            connection.execute(
                "UPDATE intake SET origin = ?, again = ?, approval = ? WHERE id = ?",
                (origin, *((again.id, again.approval) if again else ("", "")), entry_id),
            )
        return self.get(entry_id)

    def put_files(self, root: str, files: Sequence[tuple[str, int]], present: Iterable[str]) -> Entries:
        """Queue files of a synchronised folder, as (path below it, bytes); the bytes stay where they are.

        What waits and is not `present` in the folder any more is forgotten.
        """
        if not files and not self._rows("WHERE root = ? LIMIT 1", root):
            return []
        with self.database.write() as connection:
            connection.execute(
                "DELETE FROM intake WHERE root = ? AND status != 'embedding'"
                " AND path NOT IN (SELECT value FROM json_each(?))",
                (root, json.dumps(list(present))),
            )
            for path, size in files:
                known = connection.execute(
                    "SELECT id FROM intake WHERE owner = ? AND hash = '' AND root = ? AND path = ?",
                    (OPERATOR, root, path),
                ).fetchone()
                row = (display_name(path), size, "", SYNCED, root, path, OPERATOR, "everybody", "[]")
                _insert(connection, known["id"] if known else new_id(), row)
        wanted = {path for path, _ in files}
        return [entry for entry in self._rows("WHERE root = ? ORDER BY seq", root) if entry.path in wanted]

    def _same(self, *same: str) -> Entry | None:
        """The row with this owner, hash, visibility and groups, unless it is long done."""
        condition = (
            "WHERE owner = ? AND hash = ? AND visibility = ? AND group_names = ? AND status != 'ready'"
        )
        return next(iter(self._rows(f"{condition} ORDER BY seq DESC", *same)), None)

    def _require_room(self, connection: Any, owner: str) -> None:
        waiting = connection.execute(
            "SELECT COUNT(*) AS n FROM intake WHERE owner = ? AND root = '' AND status = 'waiting'", (owner,)
        ).fetchone()["n"]
        if waiting >= self.settings.waiting_files:
            raise QuotaError(
                f"{waiting} of your files wait already, and more than {self.settings.waiting_files} may not.",
                "Add it when some of them are read, or cancel some.",
            )

    def get(self, entry_id: str) -> Entry:
        """The entry with this id (raises NotFoundError)."""
        found = self._rows("WHERE id = ?", entry_id)
        if not found:
            raise NotFoundError("That file is not in the queue (any more).", "Look at the Documents page.")
        return found[0]

    def list(self, limit: int = 50, actor: str = OPERATOR) -> Entries:
        """What is at work and what waits, in order, then what failed, was cancelled or needs a word.

        Of this user; the operator sees everybody's.
        """
        return self._rows(
            f"WHERE {_MINE} AND (status != 'ready' OR error != '') ORDER BY CASE status WHEN 'reading' THEN 0"
            " WHEN 'embedding' THEN 0 WHEN 'waiting' THEN 1 ELSE 2 END, seq LIMIT ?2",
            *(actor, limit),
        )

    def being_read_again(self) -> set[str]:
        """The ids of failed documents that wait to be read once more."""
        return {entry.again for entry in self._rows("WHERE again != '' AND status IN ('waiting', 'reading')")}

    def counts(self) -> dict[str, int]:
        """How many files have each status; `done` are those settled since the oldest active one came.

        `finished` are those at rest that `list` shows and `clear` forgets.
        """
        with self.database.read() as connection:
            rows = connection.execute("SELECT status, COUNT(*) AS n FROM intake GROUP BY status").fetchall()
            done = connection.execute(
                "SELECT COUNT(*) AS n FROM intake WHERE status IN ('ready', 'failed') AND updated_at >="
                " (SELECT MIN(created_at) FROM intake WHERE status IN ('waiting', 'reading', 'embedding'))"
            ).fetchone()
            rest = connection.execute(f"SELECT COUNT(*) AS n FROM intake WHERE {_FINISHED}").fetchone()
        counts = dict.fromkeys((*ACTIVE, *DONE), 0) | {row["status"]: row["n"] for row in rows}
        return counts | {"done": done["n"], "finished": rest["n"]}

    def active(self) -> int:
        """How many files are not done."""
        counts = self.counts()
        return sum(counts[status] for status in ACTIVE)

    def data(self, entry: Entry) -> bytes:
        """The waiting bytes of an upload (raises DocumentError when they are gone)."""
        try:
            return inside(self.folder, entry.id).read_bytes()
        except FileNotFoundError:
            raise DocumentError("The waiting file is gone.", "Add it again.") from None

    def kept(self) -> set[str]:
        """The ids of uploads whose bytes are still needed: of those that wait, failed or were cancelled."""
        with self.database.read() as connection:
            rows = connection.execute("SELECT id FROM intake WHERE root = '' AND status != 'ready'")
            return {str(row["id"]) for row in rows}

    def retry(self, entry_id: str, actor: str = OPERATOR) -> None:
        """Let a failed or cancelled file wait again, at the end of the queue.

        Raises ConflictError when it is neither, NotFoundError when it is somebody else's.
        """
        entry = self.own(entry_id, actor)
        with self.database.write() as connection:
            changed = connection.execute(
                "UPDATE intake SET status = 'waiting', error = '', next_step = '', deaths = 0,"
                " updated_at = ?, seq = (SELECT MAX(seq) + 1 FROM intake)"
                " WHERE id = ? AND status IN ('failed', 'cancelled')",
                (now_ms(), entry_id),
            ).rowcount
        if not changed:
            raise ConflictError(f"{entry.name} did not fail, so there is nothing to try again.")

    def cancel(self, entry_id: str, actor: str = OPERATOR) -> None:
        """Stop a file that is not ready; what was stored of it is removed (see `drop`).

        Raises ConflictError when it is done, NotFoundError when it is somebody else's.
        """
        entry = self.own(entry_id, actor)
        with self.database.write() as connection:
            row = connection.execute(
                "UPDATE intake SET status = 'cancelled', updated_at = ? WHERE id = ?"
                " AND status IN ('waiting', 'reading', 'embedding') RETURNING documents, added",
                (now_ms(), entry_id),
            ).fetchone()
            if row is not None:
                drop(connection, entry, json.loads(row["documents"]), json.loads(row["added"]))
                audit(connection, actor, "queue.cancel", f"{entry_id} {entry.name}")
        if row is None:
            raise ConflictError(f"{entry.name} is done, so it cannot be cancelled.", "Delete its document.")

    def cancel_waiting(self, actor: str = OPERATOR) -> int:
        """Cancel every waiting file (of this user; the operator cancels everybody's); returns how many."""
        with self.database.write() as connection:
            count: int = connection.execute(
                "UPDATE intake SET status = 'cancelled', updated_at = ?2"
                f" WHERE status = 'waiting' AND {_MINE}",
                (actor, now_ms()),
            ).rowcount
            audit(connection, actor, "queue.cancel", f"{count} waiting files")
        return count

    def clear(self, actor: str = OPERATOR, entry_id: str | None = None) -> None:
        """Forget what failed, was cancelled or is ready with a word, and the bytes that were kept of it.

        With an id only that entry, which may also be ready without a word.
        """
        with self.database.write() as connection:
            rows = connection.execute(
                f"DELETE FROM intake WHERE {_MINE} AND (?2 IS NULL AND {_FINISHED}"
                " OR id = ?2 AND status IN ('ready', 'failed', 'cancelled')) RETURNING id",
                (actor, entry_id),
            ).fetchall()
        for row in rows:
            inside(self.folder, row["id"]).unlink(missing_ok=True)

    def own(self, entry_id: str, actor: str) -> Entry:
        """The actor's entry with this id (raises NotFoundError, also for somebody else's)."""
        entry = self.get(entry_id)
        if actor not in (OPERATOR, entry.owner):
            raise NotFoundError("That file is not in the queue (any more).", "Look at the Documents page.")
        return entry

    def _rows(self, condition: str, *values: object) -> Entries:
        with self.database.read() as connection:
            return [entry_of(row) for row in connection.execute(f"SELECT * FROM intake {condition}", values)]


def drop(connection: Any, entry: Entry, documents: Sequence[str], added: Sequence[str]) -> None:
    """Remove a cancelled entry's documents that it `added` or that are pending, unless others name them.

    Others are sources and entries that are being embedded. The entry's own source is again what it was, and
    is read again by its next run. A document that was read `again` is failed, as before, with its bytes. The
    row says how many of its documents stay: they were there before, came another way since, or have replaced
    what they were.
    """
    named = json.dumps(list(documents))
    theirs = connection.execute(
        "SELECT entry.value AS id FROM sources, json_each(sources.documents) AS entry"
        " WHERE entry.value IN (SELECT value FROM json_each(?1)) AND (sources.root, sources.path) != (?2, ?3)"
        " UNION SELECT entry.value FROM intake, json_each(intake.documents) AS entry"
        " WHERE entry.value IN (SELECT value FROM json_each(?1)) AND status = 'embedding'",
        (named, entry.root, entry.path),
    ).fetchall()
    there = connection.execute(
        "SELECT id, status FROM documents WHERE id IN (SELECT value FROM json_each(?))", (named,)
    ).fetchall()
    mine = {row["id"] for row in there if row["status"] == "pending" or row["id"] in added}
    mine -= {row["id"] for row in theirs}
    for document_id in mine - {entry.again}:
        remove(connection, document_id)
    if entry.again in mine:
        connection.execute(
            "UPDATE documents SET status = 'failed', error = 'Reading it again was cancelled.'"
            " WHERE id = ? AND status = 'pending'",
            (entry.again,),
        )
    if mine:
        bump_version(connection)
        back = take_back(connection, (entry.root, entry.path))
        connection.execute(
            "UPDATE sources SET bytes = -1, hash = '', documents = (SELECT json_group_array(value) FROM"
            " (SELECT value FROM json_each(sources.documents) UNION SELECT value FROM json_each(?1))"
            " WHERE value IN (SELECT id FROM documents)) WHERE (root, path) = (?2, ?3)",
            (json.dumps(back), entry.root, entry.path),
        )
    stay = len(there) - len(mine)
    said = f"Of its documents {stay} stay: {STAY}." if stay else ""
    connection.execute(
        "UPDATE intake SET documents = '[]', added = '[]', error = ? WHERE id = ? AND status = 'cancelled'",
        (said, entry.id),
    )


def _insert(connection: Any, entry_id: str, row: tuple[object, ...]) -> None:
    """Let an entry wait, again if it was there; what is being read already stays so."""
    connection.execute(
        "INSERT INTO intake (id, name, bytes, hash, origin, root, path, owner, visibility,"
        " group_names, status, created_at, updated_at) VALUES (?,?,?,?,?,?,?,?,?,?,'waiting',?,?)"
        " ON CONFLICT(id) DO UPDATE SET status = 'waiting', error = '', next_step = '',"
        " documents = '[]', added = '[]', deaths = 0, bytes = excluded.bytes,"
        " created_at = excluded.created_at, updated_at = excluded.updated_at,"
        " seq = (SELECT MAX(seq) + 1 FROM intake) WHERE status NOT IN ('waiting', 'reading')",
        (entry_id, *row, now_ms(), now_ms()),
    )


def entry_of(row: Any) -> Entry:
    """A row of the table as an entry."""
    lists = {name: tuple(json.loads(row[name])) for name in ("documents", "group_names", "added")}
    return Entry(**(dict(row) | lists))
