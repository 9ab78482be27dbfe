"""The database: one SQLite file, the truth from which every index and artefact can be rebuilt.

House rules (each paid for by a known failure):
* WAL with `synchronous=FULL`: an acknowledged vote survives power loss.
* every write transaction is `BEGIN IMMEDIATE`: `busy_timeout` does not cover a read transaction that
  upgrades to a write, which then fails at once with "database is locked". A snapshot cannot write at all.
* no transaction is held across a model call.
* a newer schema is refused instead of guessed at; an older one is backed up, then migrated in one go.
"""

from __future__ import annotations

import secrets
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from urllib.parse import quote

from core.errors import ConflictError, StorageError
from core.files import atomic_path, make_folder
from core.schema import MIGRATIONS

BUSY_TIMEOUT_MS = 15_000
BACKUP_PAGES = 4096  # copied at once, 16 MB: the time between two looks at whether to stop


def now_ms() -> int:
    """Milliseconds since the epoch, UTC."""
    return time.time_ns() // 1_000_000


def new_id() -> str:
    """A random 16-digit hex id."""
    return secrets.token_hex(8)


class _Connection(sqlite3.Connection):
    """One that weak references can point to."""


class Database:
    """One SQLite file; connections are per thread, write transactions are one at a time per process."""

    def __init__(self, path: Path) -> None:
        """Open, and create or migrate, the database at `path`.

        Raises StorageError when its folder cannot be made, or the file is not a database, is damaged, or has
        a newer schema.
        """
        self.path = path
        self._local = threading.local()
        # weak: a connection closes with its thread, and every rerun of a page is a thread of its own
        self._connections: weakref.WeakSet[_Connection] = weakref.WeakSet()
        self._write_lock = threading.RLock()
        make_folder(path.parent)
        try:
            self._migrate()
        except (sqlite3.Error, OSError) as error:
            self.close()
            raise StorageError(
                f"The database {path} cannot be used: {error}.",
                "Restore a backup with `understudy restore`; this file was left as it is.",
            ) from error
        except StorageError:
            self.close()
            raise

    def _connection(self) -> sqlite3.Connection:
        connection: _Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            # check_same_thread=False only so that close() may run from another thread
            connection = sqlite3.connect(
                self.path,
                timeout=BUSY_TIMEOUT_MS / 1000,
                isolation_level=None,
                check_same_thread=False,
                factory=_Connection,
            )
            connection.row_factory = sqlite3.Row
            # SQLite's own lower() knows ASCII alone
            connection.create_function("casefold", 1, str.casefold, deterministic=True)
            _enter_wal(connection)
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute("PRAGMA foreign_keys=ON")
            connection.execute("PRAGMA mmap_size=0")
            self._local.connection = connection
            self._connections.add(connection)
        return connection

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """A connection for SELECTs, each seeing the latest commit."""
        yield self._connection()

    @contextmanager
    def snapshot(self) -> Iterator[sqlite3.Connection]:
        """As `read`, but all SELECTs of this thread in the block see the same commit; it cannot write."""
        connection = self._connection()
        connection.execute("PRAGMA query_only=ON")  # else a write here would fail only where others write
        connection.execute("BEGIN")
        try:
            yield connection
        finally:
            connection.execute("COMMIT")
            connection.execute("PRAGMA query_only=OFF")

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """A write transaction: committed when the block ends, rolled back when it raises.

        Not re-entrant across stores: do not open one inside another.
        Raises StorageError when the disk is full.
        """
        connection = self._connection()
        with self._write_lock:
            try:
                connection.execute("BEGIN IMMEDIATE")
                yield connection
                connection.execute("COMMIT")
            except BaseException as error:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                if isinstance(error, sqlite3.OperationalError):
                    raise StorageError(
                        f"Could not write to {self.path}: {error}.",
                        "Nothing was changed. Check the disk's free space and permissions.",
                    ) from error
                raise

    @contextmanager
    def relaxed(self) -> Iterator[None]:
        """Commits of this thread in the block are on the disk with the next one after it, not each at once.

        A process that is killed loses nothing. A power cut may lose the latest of them, never one in the
        middle, so this is only for what the next run would do again by itself.
        """
        connection = self._connection()
        connection.execute("PRAGMA synchronous=NORMAL")  # sqlite.org/pragma.html: in WAL no sync at a commit
        try:
            yield
        finally:
            connection.execute("PRAGMA synchronous=FULL")

    def _migrate(self) -> None:
        connection = self._connection()
        if connection.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
            raise sqlite3.DatabaseError("it is damaged")
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version == len(MIGRATIONS):
            return
        if version > len(MIGRATIONS):
            raise StorageError(
                f"The database {self.path} was written by a newer version (schema {version}).",
                "Install that version, or point data_dir somewhere else.",
            )
        if version:
            self.backup(self.path.with_name(f"{self.path.name}.schema{version}.backup"))
        with self.write() as transaction:
            # another process may have migrated while this one waited for the lock
            version = transaction.execute("PRAGMA user_version").fetchone()[0]
            for number in range(version, len(MIGRATIONS)):
                for statement in _statements(MIGRATIONS[number]):
                    transaction.execute(statement)
                transaction.execute(f"PRAGMA user_version = {number + 1}")

    def backup(self, target: Path, tell: Callable[[float], None] = lambda _done: None) -> None:
        """Copy the live database to `target` with SQLite's online backup; others read and write meanwhile.

        The copy is of one moment: the beginning of this thread's `snapshot` where it is in one, else now.
        `tell` gets the share that is done. Raises StorageError when it cannot be written; nothing half is
        left.
        """
        connection = self._connection()

        def report(_status: int, left: int, total: int) -> None:
            tell(1 - left / max(1, total))

        # without a snapshot the copy would begin again with every commit of another process
        with nullcontext() if connection.in_transaction else self.snapshot(), atomic_path(target) as partial:
            try:
                with closing(sqlite3.connect(partial)) as copy:
                    copy.execute("PRAGMA synchronous=OFF")  # the whole file is synced when it is complete
                    connection.backup(copy, pages=BACKUP_PAGES, progress=report)
            except sqlite3.Error as error:
                raise StorageError(
                    f"The database could not be copied to {target}: {error}.", "Check the disk's free space."
                ) from error

    def close(self) -> None:
        """Close every thread's connection."""
        for connection in list(self._connections):
            connection.close()
        self._connections.clear()
        self._local = threading.local()


def _enter_wal(connection: sqlite3.Connection) -> None:
    """Switch to WAL, waiting for other processes that create the same file.

    SQLite calls no busy handler for this change (two upgrading readers would wait for each other), so the
    connection's timeout does not cover it.
    """
    deadline = time.monotonic() + BUSY_TIMEOUT_MS / 1000
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            # the low byte is the primary code; the rest says which kind of busy
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def schema_of(path: Path) -> int:
    """The schema version of a database that nobody has open, once every page was checked; changes nothing.

    Raises StorageError when it is damaged or no database.
    """
    try:
        # immutable: no lock and no file beside it, so a backup may lie on a medium that cannot be written
        with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro&immutable=1", uri=True)) as connection:
            found = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
            version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    except sqlite3.Error as error:
        raise StorageError(f"The database {path} cannot be read: {error}.") from error
    if found != "ok":
        raise StorageError(f"The database {path} is damaged: {found}.")
    return version


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Hold a database that nobody else has open: all it holds is in the one file, and nobody can write.

    A process that begins to wait for it meanwhile cannot write into it afterwards either where another file
    has taken its place: to do so it has to leave rollback mode, and SQLite refuses that to a file that was
    moved (SQLITE_READONLY_DBMOVED). What is damaged is not held; nobody can use it.
    Raises ConflictError when another process has it open.
    """
    with closing(sqlite3.connect(path, timeout=1, isolation_level=None)) as connection:
        try:
            connection.execute("PRAGMA journal_mode=DELETE")  # needs that nobody else has it open
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.DatabaseError as error:
            code = error.sqlite_errorcode & 0xFF
            if code not in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                raise ConflictError(
                    f"The database {path} cannot be held: {error}.",
                    "Stop `understudy serve` and every other command, then try again.",
                ) from error
        yield


def _statements(script: str) -> Iterator[str]:
    """Split a script into statements (executescript would commit the open transaction first)."""
    pending = ""
    for line in script.splitlines():
        pending += line + "\n"
        if sqlite3.complete_statement(pending):
            yield pending
            pending = ""


def audit(connection: sqlite3.Connection, actor: str, action: str, detail: str) -> None:
    """Append to the audit log inside the caller's transaction."""
    connection.execute(
        "INSERT INTO audit (actor, action, detail, created_at) VALUES (?, ?, ?, ?)",
        (actor, action, detail, now_ms()),
    )
