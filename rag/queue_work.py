"""The queue as its worker sees it: claim a file, say what came of it, put back what a dead process left.

Only for the holder of the ingest lock, so one claim never meets another; cancelling may come at any time.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress

from core.db import now_ms
from core.errors import DocumentError, UnderstudyError
from core.files import inside
from rag.documents import Document, remove
from rag.queue import Entry, Queue, drop, entry_of

log = logging.getLogger("understudy.queue")
MAX_DEATHS = 3
DAY_MS = 24 * 3600 * 1000
KEPT_MS = {"ready": DAY_MS, "failed": 30 * DAY_MS, "cancelled": 30 * DAY_MS}
LEFT_S = 3600.0  # bytes without a row are removed when they are older: a younger row may be on its way


class QueueWork:
    """Moves entries from waiting to ready or failed."""

    def __init__(self, queue: Queue) -> None:
        self.queue = queue

    def claim(self, entry_id: str | None = None) -> Entry | None:
        """Begin to read the named, or else the oldest, waiting entry; None when it does not wait.

        Only for the holder of the ingest lock.
        """
        with self.queue.database.write() as connection:
            connection.execute(  # failed documents that were to be read again, but were deleted or came anew
                "DELETE FROM intake INDEXED BY intake_again"
                " WHERE again != '' AND status = 'waiting' AND NOT EXISTS"
                " (SELECT 1 FROM documents WHERE id = intake.again AND status != 'ready')"
            )
            row = connection.execute(
                "UPDATE intake SET status = 'reading', error = '', next_step = '', updated_at = ?1"
                " WHERE seq = (SELECT MIN(seq) FROM intake WHERE status = 'waiting'"
                " AND (?2 IS NULL OR id = ?2)) RETURNING *",
                (now_ms(), entry_id),
            ).fetchone()
        return entry_of(row) if row is not None else None

    @contextmanager
    def at_work(self, entry: Entry) -> Iterator[None]:
        """While a claimed entry is read: one bad file must not stop the others, so it fails alone.

        When reading is interrupted, or the disk is full, it waits again.
        """
        try:
            yield
        except DocumentError as error:
            self.fail(entry, error)
        except Exception as error:
            if isinstance(error, UnderstudyError):
                self._set(entry, "waiting")
                raise
            log.exception("Reading %s failed", entry.id)
            reason = f"Reading this file failed ({type(error).__name__})."
            self.fail(entry, UnderstudyError(reason, "The log says more; try it again, or leave it out."))
        except BaseException:
            self._set(entry, "waiting")
            raise

    def read(
        self, entry: Entry, documents: Sequence[str], refused: str = "", added: Sequence[str] = ()
    ) -> bool:
        """The entry was read into these documents, of which those `added` came with it (see `came_since`).

        False when it was cancelled; then they are dropped.
        """
        if not self._set(entry, "embedding", refused, documents=documents, added=added):
            with self.queue.database.write() as connection:
                drop(connection, entry, documents, added)
            return False
        if entry.again:  # the same bytes of the same owner: what was decided about them stands
            with self.queue.database.write() as connection:
                connection.execute(
                    "UPDATE document_access SET approval = ? WHERE owner = ?"
                    " AND document_id IN (SELECT value FROM json_each(?))",
                    (entry.approval, entry.owner, json.dumps(list(documents))),
                )
        return True

    def fail(self, entry: Entry, error: UnderstudyError) -> None:
        """The entry cannot be read; it can be tried again."""
        self._set(entry, "failed", error.message, error.next_step)

    def _set(
        self,
        entry: Entry,
        status: str,
        error: str = "",
        next_step: str = "",
        documents: Sequence[str] = (),
        added: Sequence[str] = (),
    ) -> bool:
        with self.queue.database.write() as connection:
            return bool(
                connection.execute(
                    "UPDATE intake SET status = ?, error = ?, next_step = ?, documents = ?, added = ?,"
                    " updated_at = ? WHERE id = ? AND status = 'reading'",
                    (
                        *(status, error, next_step, json.dumps(list(documents)), json.dumps(list(added))),
                        *(now_ms(), entry.id),
                    ),
                ).rowcount
            )

    def settle(self) -> int:
        """Close the entries whose documents are all done; returns how many."""
        now = now_ms()
        with self.queue.database.write() as connection:
            connection.execute(  # what holds no text has failed, and its document says so
                "UPDATE intake SET status = 'failed', updated_at = ?, error = (SELECT error FROM documents"
                " WHERE id = json_extract(intake.documents, '$[0]')) WHERE status = 'embedding'"
                " AND documents != '[]' AND NOT EXISTS (SELECT 1 FROM json_each(intake.documents) AS entry"
                " LEFT JOIN documents ON documents.id = entry.value WHERE documents.status IS NOT 'failed')",
                (now,),
            )
            rows = connection.execute(
                "UPDATE intake SET status = 'ready', updated_at = ? WHERE status = 'embedding' AND NOT EXISTS"
                " (SELECT 1 FROM json_each(intake.documents) AS entry JOIN documents"
                " ON documents.id = entry.value WHERE documents.status = 'pending')"
                " RETURNING id, root, again",
                (now,),
            ).fetchall()
            for row in rows:  # read anew under another id, since it is for others than before
                failed = "SELECT 1 FROM documents WHERE id = ? AND status = 'failed'"
                if row["again"] and connection.execute(failed, (row["again"],)).fetchone():
                    remove(connection, row["again"])
        for row in rows:
            if not row["root"]:
                inside(self.queue.folder, row["id"]).unlink(missing_ok=True)
        return len(rows)

    def recover(self) -> None:
        """Put back what a dead process was reading, and forget what is long done; for the lock's holder."""
        with self.queue.database.write() as connection:
            connection.execute(
                "UPDATE intake SET deaths = deaths + 1, updated_at = ?1, status = CASE WHEN deaths + 1 < ?2"
                " THEN 'waiting' ELSE 'failed' END, error = CASE WHEN deaths + 1 < ?2 THEN '' ELSE"
                " 'The process died ' || (deaths + 1) || ' times while reading this file.' END,"
                " next_step = CASE WHEN deaths + 1 < ?2 THEN '' ELSE 'Try it alone, or leave it out.' END"
                " WHERE status = 'reading'",
                (now_ms(), MAX_DEATHS),
            )
            for status, kept in KEPT_MS.items():
                connection.execute(
                    "DELETE FROM intake WHERE status = ? AND updated_at < ?", (status, now_ms() - kept)
                )
        self._sweep()

    def _sweep(self) -> None:
        """Remove the bytes of what is ready, and bytes that no row names."""
        with self.queue.database.read() as connection:
            rows = connection.execute("SELECT id, status FROM intake WHERE root = ''").fetchall()
        statuses = {row["id"]: row["status"] for row in rows}
        for path in self.queue.folder.glob("*") if self.queue.folder.exists() else ():
            with suppress(FileNotFoundError):  # a file in the making gets its name now
                old = path.stat().st_mtime < time.time() - LEFT_S
                if statuses.get(path.name) == "ready" or (old and path.name not in statuses):
                    path.unlink()


def came_since(began: int, documents: Iterable[Document]) -> list[str]:
    """Ids of the documents that an entry brought whose reading began then (UTC milliseconds).

    One of the very same time is left out: it may be the last one of the entry before.
    """
    return [document.id for document in documents if document.created_at > began]
