"""The database survives crowds, kills and versions it does not know."""

from __future__ import annotations

import gc
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import core.db
from core.db import Database, audit, schema_of
from core.errors import StorageError
from core.schema import MIGRATIONS
from core.settings import PROJECT

CHILD = {**os.environ, "PYTHONPATH": str(PROJECT)}


def rows(database: Database) -> list[str]:
    with database.read() as connection:
        return [row["detail"] for row in connection.execute("SELECT detail FROM audit ORDER BY seq")]


def write(database: Database, detail: str) -> None:
    """Read, then write, in one transaction: what fails at once when it begins as a read."""
    with database.write() as connection:
        connection.execute("SELECT COUNT(*) FROM audit").fetchone()
        audit(connection, "test", "write", detail)


CROWD = """
import sys
from pathlib import Path
from core.db import Database
from tests.core.test_db import write
database = Database(Path(sys.argv[1]))
for turn in range(600):
    write(database, f"{sys.argv[2]} {turn}")
"""


def test_a_crowd_of_writers_meets_no_lock(tmp_path: Path) -> None:
    """R05, quick: eight threads and two processes write at once; nothing is refused, nothing is lost."""
    database = Database(tmp_path / "d.db")
    children = [
        subprocess.Popen(
            [sys.executable, "-c", CROWD, str(database.path), f"process {number}"], cwd=PROJECT, env=CHILD
        )
        for number in range(2)
    ]
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(200):
                write(database, f"thread {number} {turn}")
                if turn % 20 == 0:
                    rows(database)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [child.wait() for child in children] == [0, 0]
    assert errors == []
    found = rows(database)
    assert len(found) == len(set(found)) == 8 * 200 + 2 * 600


KILLED = """
import sys
from pathlib import Path
from core.db import Database
from tests.core.test_db import write
database = Database(Path(sys.argv[1]))
for turn in range(100_000):
    write(database, f"{sys.argv[2]} {turn}")
    print(turn, flush=True)
"""


def test_what_was_acknowledged_survives_a_kill(tmp_path: Path) -> None:
    """G2, quick: kill -9 while writing, at several moments, into one and the same file."""
    path = tmp_path / "d.db"
    Database(path).close()
    expected: list[str] = []
    for number, delay in enumerate((0.0, 0.01, 0.05, 0.1, 0.2)):
        child = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(path), str(number)],
            cwd=PROJECT,
            env=CHILD,
            stdout=subprocess.PIPE,
        )
        assert child.stdout is not None
        first = child.stdout.readline()
        time.sleep(delay)
        child.send_signal(signal.SIGKILL)
        said = (first + child.stdout.read()).split(b"\n")[:-1]
        child.stdout.close()
        child.wait()
        expected += [f"{number} {int(line)}" for line in said]
        database = Database(path)  # checks the file
        assert set(expected) <= set(rows(database))
        database.close()


def test_an_error_rolls_everything_back(tmp_path: Path) -> None:
    database = Database(tmp_path / "d.db")

    def fail() -> None:
        with database.write() as connection:
            audit(connection, "test", "write", "half")
            raise KeyError("x")

    with pytest.raises(KeyError):
        fail()
    assert rows(database) == []
    write(database, "whole")
    assert rows(database) == ["whole"]


def test_the_promised_pragmas_hold(tmp_path: Path) -> None:
    database = Database(tmp_path / "d.db")
    with database.read() as connection:
        values = {
            name: connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("journal_mode", "synchronous", "foreign_keys", "mmap_size", "busy_timeout")
        }
    assert values == {
        "journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "mmap_size": 0, "busy_timeout": 15_000
    }  # fmt: skip


def test_relaxed_commits_wait_for_no_disk_and_only_there(tmp_path: Path) -> None:
    database = Database(tmp_path / "a.db")

    def level() -> int:
        with database.read() as connection:
            return int(connection.execute("PRAGMA synchronous").fetchone()[0])

    def stop() -> None:
        with database.relaxed():
            assert level() == 1
            raise ValueError("stop")

    assert level() == 2
    with pytest.raises(ValueError, match="stop"):
        stop()
    assert level() == 2
    database.close()


def test_a_snapshot_sees_one_commit_and_writes_nothing(tmp_path: Path) -> None:
    database = Database(tmp_path / "d.db")
    other = Database(tmp_path / "d.db")

    def value() -> str:
        with database.read() as connection:
            row = connection.execute("SELECT value FROM meta WHERE key = 'k'").fetchone()
        return str(row["value"])

    def put(into: Database, new: str) -> None:
        with into.write() as connection:
            connection.execute("INSERT OR REPLACE INTO meta VALUES ('k', ?)", (new,))

    put(database, "1")
    with database.snapshot() as connection:
        assert value() == "1"
        put(other, "2")
        assert value() == "1"
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            connection.execute("DELETE FROM meta")
    assert value() == "2"
    put(database, "3")
    with pytest.raises(ZeroDivisionError), database.snapshot():
        raise ZeroDivisionError
    put(database, "4")
    assert value() == "4"


def test_connections_end_with_their_threads(tmp_path: Path) -> None:
    """R14: a page's rerun is a new thread; a thousand of them must not use up the file handles."""
    database = Database(tmp_path / "d.db")
    write(database, "first")

    before = len(os.listdir("/proc/self/fd"))
    for _ in range(300):
        thread = threading.Thread(target=rows, args=(database,))
        thread.start()
        thread.join()
    gc.collect()  # a connection and its statements are a cycle
    # SQLite keeps some closed handles for the next connection; a leak would be two for each thread
    assert len(os.listdir("/proc/self/fd")) < before + 200
    database.close()


def test_a_newer_schema_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "d.db"
    database = Database(path)
    with database.write() as connection:
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    database.close()
    before = path.read_bytes()
    with pytest.raises(StorageError, match="newer version"):
        Database(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("damage", ["text", "page", "short"])
def test_a_damaged_file_is_refused_and_left_alone(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "d.db"
    database = Database(path)
    for number in range(50):
        write(database, "x" * 200 + str(number))
    database.close()
    data = bytearray(path.read_bytes())
    if damage == "text":
        data = bytearray(b"This is a letter, not a database. " * 100)
    elif damage == "page":
        data[4096:12288] = b"\xff" * 8192
    else:
        data = data[: len(data) // 2]
    path.write_bytes(bytes(data))
    with pytest.raises(StorageError, match="cannot be used") as caught:
        Database(path)
    assert "backup" in caught.value.next_step
    assert path.read_bytes() == bytes(data)


def test_an_older_schema_is_backed_up_and_migrated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "d.db"
    old = Database(path)
    write(old, "kept")
    old.close()
    monkeypatch.setattr(core.db, "MIGRATIONS", (*MIGRATIONS, "CREATE TABLE later (x TEXT);"))
    database = Database(path)
    assert rows(database) == ["kept"]
    with database.read() as connection:
        assert connection.execute("SELECT COUNT(*) FROM later").fetchone()[0] == 0
    database.close()
    with sqlite3.connect(path.with_name(f"d.db.schema{len(MIGRATIONS)}.backup")) as copy:
        assert copy.execute("SELECT detail FROM audit").fetchall() == [("kept",)]
    copy.close()


def test_a_migration_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """R16: all of a migration or none of it."""
    path = tmp_path / "d.db"
    old = Database(path)
    write(old, "kept")
    old.close()
    monkeypatch.setattr(
        core.db, "MIGRATIONS", (*MIGRATIONS, "CREATE TABLE later (x TEXT);\nCREATE NONSENSE;\n")
    )
    with pytest.raises(StorageError):
        Database(path)
    monkeypatch.undo()
    database = Database(path)
    assert rows(database) == ["kept"]
    with database.read() as connection:
        assert connection.execute("SELECT * FROM sqlite_master WHERE name = 'later'").fetchone() is None
    database.close()


def test_processes_that_start_together_migrate_once(tmp_path: Path) -> None:
    # at the same instant, many times: one start in three failed before the switch to WAL was retried
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom core.db import Database\n"
        "print(flush=True)\nstart = float(sys.stdin.readline())\n"
        "for number in range(20):\n"
        "    while time.time() < start + number * 0.12: pass\n"
        "    Database(Path(sys.argv[1]) / str(number) / 'd.db').close()\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    pipe = subprocess.PIPE
    children = [subprocess.Popen(command, cwd=PROJECT, stdin=pipe, stdout=pipe, text=True) for _ in range(2)]
    for child in children:
        assert child.stdout is not None
        child.stdout.readline()  # imported and ready
    start = f"{time.time() + 0.05}\n"
    for child in children:
        assert child.stdin is not None
        child.stdin.write(start)
        child.stdin.close()
    assert [child.wait(60) for child in children] == [0, 0]


def test_a_backup_of_a_busy_database_is_whole(tmp_path: Path) -> None:
    database = Database(tmp_path / "d.db")
    for number in range(20):
        write(database, str(number))
    database.backup(tmp_path / "copy.db")
    copy = Database(tmp_path / "copy.db")
    assert rows(copy) == rows(database)


def test_a_folder_that_cannot_be_written_is_said_plainly(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="cannot be made") as caught:
        Database(tmp_path / "file" / "d.db")
    assert "backup" not in caught.value.next_step  # nothing is broken, the setting is wrong


def test_a_backup_is_of_the_snapshots_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core.db, "BACKUP_PAGES", 4)  # in many steps, between which others commit
    database, other = Database(tmp_path / "d.db"), Database(tmp_path / "d.db")
    write(database, "before")
    with database.snapshot() as connection:
        connection.execute("SELECT COUNT(*) FROM audit").fetchone()
        write(other, "after")
        database.backup(tmp_path / "then.db", lambda _done: write(other, "meanwhile"))
    assert rows(Database(tmp_path / "then.db")) == ["before"]
    assert len(rows(other)) > 10
    database.backup(tmp_path / "now.db")
    assert schema_of(tmp_path / "now.db") == len(MIGRATIONS)
    assert rows(Database(tmp_path / "now.db")) == rows(other)
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(StorageError, match="Could not write"):
        database.backup(tmp_path / "file" / "x.db")
