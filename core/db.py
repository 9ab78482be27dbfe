"""The database: one SQLite file, the truth from which every index and artefact can be rebuilt.

House rules (each paid for by a known failure):
* WAL with `synchronous=FULL`: an acknowledged vote survives power loss.
* every write transaction is `BEGIN IMMEDIATE`: `busy_timeout` does not cover a read transaction that
  upgrades to a write, which then fails at once with "database is locked".
* no transaction is held across a model call.
* a newer schema is refused instead of guessed at; an older one is backed up, then migrated in one go.
"""

from __future__ import annotations

import secrets
import sqlite3
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from core.errors import StorageError
from core.files import make_folder

BUSY_TIMEOUT_MS = 15_000

MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);

    CREATE TABLE documents (
        id TEXT PRIMARY KEY,                 -- from the sha256 of the bytes, see rag/documents.py
        name TEXT NOT NULL,                  -- display text only, never a path
        kind TEXT NOT NULL,                  -- markdown, html, pdf, docx, csv, text
        bytes INTEGER NOT NULL,
        origin TEXT NOT NULL,                -- sample, upload, folder
        status TEXT NOT NULL CHECK (status IN ('pending', 'ready', 'failed')),
        error TEXT NOT NULL DEFAULT '',
        text TEXT NOT NULL DEFAULT '',       -- extracted text; chunk and citation offsets point into it
        created_at INTEGER NOT NULL,
        updated_at INTEGER NOT NULL
    );
    CREATE TABLE chunks (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        document_id TEXT NOT NULL REFERENCES documents(id) ON DELETE CASCADE,
        ordinal INTEGER NOT NULL,
        heading TEXT NOT NULL,
        page INTEGER,
        start INTEGER NOT NULL,
        "end" INTEGER NOT NULL,
        text TEXT NOT NULL,
        vector BLOB NOT NULL                 -- float32, little endian, unit length
    );
    CREATE INDEX chunks_document ON chunks(document_id, ordinal);
    CREATE VIRTUAL TABLE chunks_fts USING fts5(heading, text, tokenize = 'porter unicode61');

    CREATE TABLE conversations (
        id TEXT PRIMARY KEY, user_id TEXT NOT NULL, title TEXT NOT NULL, created_at INTEGER NOT NULL
    );
    CREATE TABLE exchanges (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        conversation_id TEXT NOT NULL REFERENCES conversations(id),
        user_id TEXT NOT NULL,
        question TEXT NOT NULL,
        answer TEXT NOT NULL,                -- as shown
        raw TEXT NOT NULL,                   -- as generated
        mode TEXT NOT NULL,
        status TEXT NOT NULL CHECK (status IN ('complete', 'interrupted', 'failed')),
        messages TEXT NOT NULL,              -- JSON, exactly as sent to the model
        passages TEXT NOT NULL,              -- JSON, with scores
        citations TEXT NOT NULL,             -- JSON
        model TEXT NOT NULL,
        adapter_id TEXT,
        prompt_version TEXT NOT NULL,
        supported INTEGER NOT NULL,
        finish_reason TEXT NOT NULL,
        sampling TEXT NOT NULL,              -- JSON
        timings TEXT NOT NULL,               -- JSON
        created_at INTEGER NOT NULL
    );
    CREATE INDEX exchanges_conversation ON exchanges(conversation_id, seq);
    CREATE TABLE votes (
        exchange_id TEXT NOT NULL REFERENCES exchanges(id),
        user_id TEXT NOT NULL,
        value INTEGER NOT NULL CHECK (value IN (-1, 1)),
        reason TEXT NOT NULL DEFAULT '',
        comment TEXT NOT NULL DEFAULT '',
        created_at INTEGER NOT NULL,
        PRIMARY KEY (exchange_id, user_id)
    );
    CREATE TABLE corrections (
        id TEXT PRIMARY KEY,
        exchange_id TEXT NOT NULL REFERENCES exchanges(id),
        user_id TEXT NOT NULL,
        question_key TEXT NOT NULL,          -- normalised question, for the instant lookup
        text TEXT NOT NULL,
        status TEXT NOT NULL CHECK (status IN ('pending', 'approved', 'rejected')),
        reviewer TEXT,
        reviewed_at INTEGER,
        created_at INTEGER NOT NULL,
        UNIQUE (exchange_id, user_id)
    );
    CREATE INDEX corrections_key ON corrections(question_key, status);

    CREATE TABLE datasets (
        version TEXT PRIMARY KEY,            -- first 16 hex digits of the content hash
        card TEXT NOT NULL,                  -- JSON, the same as the card on disk
        created_at INTEGER NOT NULL
    );
    CREATE TABLE runs (
        id TEXT PRIMARY KEY,
        status TEXT NOT NULL CHECK (status IN ('running', 'promoted', 'refused', 'failed', 'cancelled')),
        stage TEXT NOT NULL,
        options TEXT NOT NULL,               -- JSON
        dataset_version TEXT,
        adapter_id TEXT,
        report TEXT NOT NULL DEFAULT '{}',   -- JSON: metrics before and after, gate verdict
        error TEXT NOT NULL DEFAULT '',
        created_at INTEGER NOT NULL,
        updated_at INTEGER NOT NULL
    );
    CREATE TABLE adapters (
        id TEXT PRIMARY KEY,
        base TEXT NOT NULL,                  -- catalog id
        base_sha256 TEXT NOT NULL,           -- of the base GGUF it was made for
        sha256 TEXT NOT NULL,                -- of adapter.gguf
        run_id TEXT,
        dataset_version TEXT,
        parent_id TEXT,
        method TEXT NOT NULL,
        verdict TEXT NOT NULL CHECK (verdict IN ('passed', 'refused', 'unjudged')),
        metrics TEXT NOT NULL,               -- JSON
        created_at INTEGER NOT NULL
    );
    CREATE TABLE promotions (                -- append-only: the last row per base names who is on stage
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        base TEXT NOT NULL,
        adapter_id TEXT,                     -- NULL: the bare base model
        action TEXT NOT NULL CHECK (action IN ('promote', 'rollback')),
        actor TEXT NOT NULL,
        reason TEXT NOT NULL,
        created_at INTEGER NOT NULL
    );
    CREATE TABLE jobs (
        id TEXT PRIMARY KEY,
        kind TEXT NOT NULL,
        payload TEXT NOT NULL,               -- JSON
        status TEXT NOT NULL CHECK (status IN ('queued', 'running', 'done', 'failed', 'cancelled')),
        progress REAL NOT NULL DEFAULT 0,
        message TEXT NOT NULL DEFAULT '',
        result TEXT NOT NULL DEFAULT '{}',
        attempts INTEGER NOT NULL DEFAULT 0,
        token INTEGER NOT NULL DEFAULT 0,    -- fencing: grows with every lease
        lease_until INTEGER NOT NULL DEFAULT 0,
        cancel_requested INTEGER NOT NULL DEFAULT 0,
        created_at INTEGER NOT NULL,
        updated_at INTEGER NOT NULL
    );
    CREATE INDEX jobs_status ON jobs(status, created_at);
    CREATE TABLE audit (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        actor TEXT NOT NULL, action TEXT NOT NULL, detail TEXT NOT NULL, created_at INTEGER NOT NULL
    );
    """,
    """
    ALTER TABLE documents ADD COLUMN quality TEXT NOT NULL DEFAULT '{}';   -- JSON: counts of rag.quality
    ALTER TABLE documents ADD COLUMN text_hash TEXT NOT NULL DEFAULT '';   -- alike where the text is
    CREATE INDEX documents_text_hash ON documents(text_hash);
    CREATE TABLE sources (                   -- what a synchronised folder held when it was last looked at
        root TEXT NOT NULL,                  -- the folder, absolute
        path TEXT NOT NULL,                  -- the file below it
        bytes INTEGER NOT NULL,
        modified_ns INTEGER NOT NULL,
        inode INTEGER NOT NULL,
        hash TEXT NOT NULL,                  -- sha256 of the bytes; '' when they could not be read
        documents TEXT NOT NULL,             -- JSON: ids; a ZIP archive has several
        error TEXT NOT NULL DEFAULT '',      -- why the file was refused
        reader TEXT NOT NULL,                -- what read it: a refusal is tried again by another reader
        PRIMARY KEY (root, path)
    );
    """,
    """
    CREATE TABLE intake (                    -- files on their way to being documents, in the order they came
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,             -- names the waiting bytes of an upload in data/queue
        name TEXT NOT NULL,                  -- display text only, never a path
        bytes INTEGER NOT NULL,
        hash TEXT NOT NULL,                  -- sha256 of an upload's bytes; '' for a folder's file
        origin TEXT NOT NULL,                -- upload, sync
        root TEXT NOT NULL DEFAULT '',       -- a folder's file: the folder, absolute
        path TEXT NOT NULL DEFAULT '',       -- and the file below it
        owner TEXT NOT NULL,                 -- who queued it
        status TEXT NOT NULL
            CHECK (status IN ('waiting', 'reading', 'embedding', 'ready', 'failed', 'cancelled')),
        error TEXT NOT NULL DEFAULT '',
        next_step TEXT NOT NULL DEFAULT '',
        documents TEXT NOT NULL DEFAULT '[]',  -- JSON: ids of what came of it; a ZIP archive has several
        deaths INTEGER NOT NULL DEFAULT 0,   -- how often a process died while reading it
        created_at INTEGER NOT NULL,
        updated_at INTEGER NOT NULL
    );
    CREATE INDEX intake_status ON intake(status, seq);
    CREATE INDEX intake_same ON intake(owner, hash, root, path);
    """,
    """
    ALTER TABLE intake ADD COLUMN visibility TEXT NOT NULL DEFAULT 'everybody';  -- of its documents
    CREATE TABLE document_access (           -- beside documents, whose rows are long: every query asks it
        document_id TEXT PRIMARY KEY,        -- stays when a document is deleted that not everybody might see
        owner TEXT NOT NULL,                 -- the account that loaded it
        visibility TEXT NOT NULL CHECK (visibility IN ('everybody', 'owner')),
        approval TEXT NOT NULL CHECK (approval IN ('approved', 'waiting', 'rejected'))
    ) WITHOUT ROWID;
    CREATE INDEX document_access_unshared ON document_access(owner)
        WHERE (visibility != 'everybody' OR approval != 'approved');
    INSERT INTO document_access SELECT id, 'local', 'everybody', 'approved' FROM documents;
    """,
)


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
                "Restore it from a backup; it was left as it is.",
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

    def backup(self, target: Path) -> None:
        """Copy the live database to `target` with SQLite's online backup."""
        with sqlite3.connect(target) as copy:
            self._connection().backup(copy)
        copy.close()

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
