"""A backup comes back whole, or nothing changes; what was there before is kept either way."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import app.restore
from app.backup import backup
from app.manifest import MANIFEST, verify
from app.restore import main, restore
from core.db import Database
from core.errors import ConflictError, StorageError
from core.files import owner_lock, read_json, sha256_of, write_json
from core.schema import MIGRATIONS
from core.settings import PROJECT, load_settings
from rag.reader import Reader
from tests.app.backups import add_adapter, files, fill, installed, quiet, rows, wrong
from tests.app.site import Site
from tests.rag.test_kill import HashedVectors, problems


@pytest.fixture(scope="session")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    house = installed(tmp_path_factory.mktemp("reader"))
    with Reader(house.settings) as reader:
        yield reader
    house.close()


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory, reader: Reader) -> Path:
    """A folder with a backup in `b`, and in `data` what became of the installation since."""
    root = tmp_path_factory.mktemp("made")
    house = installed(root / "data")
    fill(house, reader)
    backup(house.settings, root / "b", quiet)
    first, second = sorted(house.ingestor.documents.ids())[:2]
    house.ingestor.documents.delete(first)
    house.ingestor.documents.add("new.md", b"# New\n\nIt came later.\n", "upload", reader)
    house.ingestor.process_pending()
    (house.data / "documents" / second).write_text("damaged since")
    add_adapter(house, "second")
    (house.data / "adapters" / "first" / "taught.npy").unlink()
    (house.data / "runs" / "r1" / "report.md").write_text("Another one.\n")
    house.close()
    return root


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Path:
    """Copies of both that a test may spoil."""
    for name in ("b", "data"):
        shutil.copytree(made / name, tmp_path / name)
    return tmp_path


@pytest.fixture
def data(copied: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The data folder that the settings name."""
    monkeypatch.setenv("UNDERSTUDY_DATA_DIR", str(copied / "data"))
    return copied / "data"


def test_the_way_back(copied: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    was, had = rows(data / "understudy.db"), files(data)
    assert main([str(copied / "b")]) == 0
    said = capsys.readouterr().out
    [aside] = data.glob("before-restore-*")
    assert str(aside) in said
    assert "The vector index was built anew." in said
    assert rows(data / "understudy.db") == rows(copied / "b" / "understudy.db")
    assert files(data) == files(copied / "b")
    assert wrong(data) == []
    assert rows(aside / "understudy.db") == was
    assert files(aside) == had
    assert (data / "engine.key").read_text() == "secret"
    assert (data / "models" / "pulled" / "model.gguf").read_text() == "weights"
    assert not (data / "restore.partial").exists()
    house = installed(data)
    assert [p for p in problems(house.settings, house.ingestor) if "ready" not in p] == []
    assert len(house.ingestor.index.query(HashedVectors().encode(["x"])[0], 9)) == 4  # and not Anna's
    house.ingestor.drain()  # what waited in the queue is read now
    assert {document.name for document in house.ingestor.documents.list()} > {"waiting.md", "hers.md"}
    house.close()
    old = installed(aside)  # a data folder like any other
    assert "new.md" in {document.name for document in old.ingestor.documents.list()}
    old.close()


def test_into_an_empty_folder(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDERSTUDY_DATA_DIR", str(copied / "new" / "data"))
    assert main([str(copied / "b")]) == 0
    assert files(copied / "new" / "data") == files(copied / "b")
    assert not list((copied / "new" / "data").glob("before-restore-*"))


def test_what_an_operator_prepared_is_kept(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder without a database may hold his questions already."""
    monkeypatch.setenv("UNDERSTUDY_DATA_DIR", str(copied / "new"))
    (copied / "new" / "eval").mkdir(parents=True)
    (copied / "new" / "eval" / "golden.jsonl").write_text("his own")
    assert main([str(copied / "b")]) == 0
    [aside] = (copied / "new").glob("before-restore-*")
    assert (aside / "eval" / "golden.jsonl").read_text() == "his own"


def test_verify_changes_nothing(copied: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (copied / "b").rglob("*"):
        path.chmod(0o500 if path.is_dir() else 0o400)  # as on a medium that cannot be written
    (copied / "b").chmod(0o500)
    before = sorted(copied.rglob("*"))
    assert main([str(copied / "b"), "--verify"]) == 0
    assert "The backup is sound" in capsys.readouterr().out
    assert sorted(copied.rglob("*")) == before


def edit(change: Callable[[dict[str, object]], object]) -> Callable[[Path], None]:
    """Spoils the manifest of a backup."""

    def spoil(folder: Path) -> None:
        found = read_json(folder / MANIFEST)
        change(found)
        write_json(folder / MANIFEST, found)

    return spoil


def rename_entry(new: str) -> Callable[[Path], None]:
    """Gives one document another name in the manifest."""

    def change(found: dict[str, object]) -> None:
        entries = found["files"]
        assert isinstance(entries, dict)
        name = next(name for name in entries if name.startswith("documents/"))
        entries[new] = entries.pop(name)

    return edit(change)


def document(folder: Path) -> Path:
    return sorted((folder / "documents").iterdir())[0]


def flip(folder: Path) -> None:
    changed = bytearray(document(folder).read_bytes())
    changed[3] ^= 1
    document(folder).write_bytes(changed)


def link(folder: Path) -> None:
    shutil.move(document(folder), folder.parent / "outside")
    (folder / "documents" / "x").symlink_to(folder.parent / "outside")
    rename_entry("documents/x")(folder)


def pipe(folder: Path) -> None:
    rename_entry("documents/x")(folder)
    os.mkfifo(folder / "documents" / "x")


def link_folder(folder: Path) -> None:
    shutil.move(folder / "documents", folder.parent / "outside")
    (folder / "documents").symlink_to(folder.parent / "outside")


def rewrite_database(content: bytes) -> Callable[[Path], None]:
    """Another database, its hash mended: only looking into it tells."""

    def spoil(folder: Path) -> None:
        (folder / "understudy.db").write_bytes(content or shred((folder / "understudy.db").read_bytes()))
        path = folder / "understudy.db"
        stored = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        edit(lambda found: found["files"].update({"understudy.db": stored}))(folder)  # type: ignore[attr-defined]

    return spoil


def shred(content: bytes) -> bytes:
    """A database whose header is right and whose later pages are not."""
    return content[: 4096 * 4] + b"\xff" * (len(content) - 4096 * 4)


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (shutil.rmtree, "is no backup"),
    "no manifest": (lambda b: (b / MANIFEST).unlink(), "is no backup"),
    "an empty manifest": (lambda b: (b / MANIFEST).write_text(""), "manifest.json is damaged"),
    "a deep manifest": (lambda b: (b / MANIFEST).write_text("[" * 100_000), "manifest.json is damaged"),
    "a foreign manifest": (lambda b: (b / MANIFEST).write_text("{}"), "not the manifest of a backup"),
    "half a manifest": (edit(lambda found: found.pop("files")), "manifest.json is damaged"),
    "files that are none": (edit(lambda found: found.update(files=[1])), "manifest.json is damaged"),
    "a date that is none": (edit(lambda found: found.update(created_at=10**30)), "manifest.json is damaged"),
    "a later format": (edit(lambda found: found.update(format=2)), "has the format 2"),
    "a later schema": (edit(lambda found: found.update(schema=len(MIGRATIONS) + 1)), "another version"),
    "a wrong schema": (edit(lambda found: found.update(schema=1)), "its manifest says 1"),
    "a damaged file": (flip, "is damaged: it is not what was backed up"),
    "a cut file": (lambda b: os.truncate(document(b), 3), "(3 bytes, "),
    "a missing file": (lambda b: document(b).unlink(), "is missing from the backup"),
    "a missing database": (lambda b: (b / "understudy.db").unlink(), "is missing from the backup"),
    "a cut database": (lambda b: os.truncate(b / "understudy.db", 4096), "understudy.db is damaged"),
    "no database": (rewrite_database(b"x" * 9999), "file is not a database"),
    "a shredded database": (rewrite_database(b""), "malformed"),
    "a database not named": (edit(lambda f: f["files"].pop("understudy.db")), "holds no database"),  # type: ignore[attr-defined]
    "the way out": (rename_entry("documents/../../escaped"), "which no backup holds"),
    "an absolute name": (rename_entry("/tmp/escaped"), "which no backup holds"),
    "an empty part": (rename_entry("documents//x"), "which no backup holds"),
    "a NUL": (rename_entry("documents/x\0y"), "which no backup holds"),
    "a very long name": (rename_entry(f"documents/{'x' * 5000}"), "cannot be read"),
    "another folder": (rename_entry("models/builtin/model.gguf"), "which no backup holds"),
    "the key": (rename_entry("engine.key"), "which no backup holds"),
    "a folder's name": (rename_entry("documents"), "which no backup holds"),
    "a link": (link, "is a link"),
    "a linked folder": (link_folder, "is a link"),
    "a pipe": (pipe, "is missing"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_backup_changes_nothing(kind: str, copied: Path, data: Path) -> None:
    spoil, sentence = BAD[kind]
    spoil(copied / "b")
    before = {path: path.stat().st_mtime_ns for path in data.rglob("*")}
    with pytest.raises(StorageError) as refused:
        main([str(copied / "b")])
    assert sentence in refused.value.message
    assert refused.value.next_step
    assert {path: path.stat().st_mtime_ns for path in data.rglob("*")} == before
    assert not list(copied.rglob("*escaped*"))


def test_a_file_that_changes_after_it_was_verified(copied: Path, data: Path) -> None:
    settings = load_settings({}, data_dir=str(data))
    manifest = verify(copied / "b", quiet)
    flip(copied / "b")
    was = rows(data / "understudy.db")
    with pytest.raises(StorageError, match="is damaged"):
        restore(settings, copied / "b", manifest, quiet)
    assert rows(data / "understudy.db") == was
    assert not list(data.glob("*restore*"))


def test_a_manifest_that_leaves_something_out(copied: Path, data: Path) -> None:
    was = rows(data / "understudy.db")
    edit(lambda found: found["files"].pop(f"documents/{document(copied / 'b').name}"))(copied / "b")  # type: ignore[attr-defined]
    with pytest.raises(StorageError, match="which the backup does not hold"):
        main([str(copied / "b")])
    assert rows(data / "understudy.db") == was
    assert not list(data.glob("*restore*"))


def test_a_product_at_work_is_not_disturbed(copied: Path, data: Path) -> None:
    was = rows(data / "understudy.db")
    for name in app.restore.LOCKS:
        with owner_lock(data / name, "It"), pytest.raises(ConflictError, match="already in use by process"):
            main([str(copied / "b")])
    open_one = Database(data / "understudy.db")
    with pytest.raises(ConflictError, match="cannot be held"):
        main([str(copied / "b")])
    open_one.close()
    assert rows(data / "understudy.db") == was
    assert not list(data.glob("*restore*"))


def test_a_running_installation(running: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`understudy serve` is backed up while it runs, and not restored."""
    environment = {**os.environ, "UNDERSTUDY_DATA_DIR": str(running.data_dir)}

    def understudy(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "app.commands", *arguments]
        return subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True)

    done = understudy("backup", str(tmp_path / "b"))
    assert (done.returncode, done.stdout.count("files")) == (0, 1), done.stderr
    assert understudy("restore", str(tmp_path / "b"), "--verify").returncode == 0
    done = understudy("restore", str(tmp_path / "b"))
    assert done.returncode == 3
    assert f"is already in use by process {running.process.pid}" in done.stderr
    monkeypatch.setattr(app.restore, "LOCKS", ())  # even then its processes have the database open
    manifest = verify(tmp_path / "b", quiet)
    with pytest.raises(ConflictError, match="cannot be held"):
        restore(load_settings({}, data_dir=str(running.data_dir)), tmp_path / "b", manifest, quiet)
    assert not list(running.data_dir.glob("*restore*"))


def test_too_small_a_disk(copied: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app.restore, "SPARE", 1 << 60)
    with pytest.raises(StorageError, match="Not enough disk space"):
        main([str(copied / "b")])
    assert not list(data.glob("*restore*"))


@pytest.mark.parametrize("content", [b"", b"not a database" * 999, b"shred"])
def test_a_damaged_database_is_replaced_and_kept(content: bytes, copied: Path, data: Path) -> None:
    path = data / "understudy.db"
    content = shred(path.read_bytes()) if content == b"shred" else content
    path.write_bytes(content)
    (data / "understudy.db-wal").write_bytes(b"left by a crash" * 99)
    assert main([str(copied / "b")]) == 0
    [aside] = data.glob("before-restore-*")
    assert content in ((aside / "understudy.db").read_bytes(), b"")  # an empty file is a database
    assert rows(path) == rows(copied / "b" / "understudy.db")
    assert wrong(data) == []


def test_an_older_schema_is_brought_up_to_date(copied: Path, data: Path) -> None:
    """A backup of the first version has few tables; restoring migrates it before it comes into force."""
    import sqlite3
    from contextlib import closing

    path = copied / "b" / "understudy.db"
    path.unlink()
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(MIGRATIONS[0])
        connection.execute("PRAGMA user_version = 1")
    rewrite_database(path.read_bytes())(copied / "b")
    edit(lambda found: found.update(schema=1))(copied / "b")
    assert main([str(copied / "b")]) == 0
    database = Database(data / "understudy.db")
    with database.read() as connection:
        assert connection.execute("PRAGMA user_version").fetchone()[0] == len(MIGRATIONS)
    database.close()


def test_the_projects_own_golden_questions_stay(
    copied: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the project's data folder, eval/ is tracked: no backup may put another one there."""
    (data / "eval" / "golden.jsonl").write_text("tracked")
    monkeypatch.setattr("app.manifest.PROJECT", copied)
    assert main([str(copied / "b")]) == 0
    assert (data / "eval" / "golden.jsonl").read_text() == "tracked"
    house = installed(data)
    assert not any(name.startswith("eval/") for name in backup(house.settings, copied / "c", quiet).files)
    house.close()


WAITS = """
import sys
from pathlib import Path
from core.db import Database, audit
print("begun", flush=True)
database = Database(Path(sys.argv[1]))
with database.write() as connection:
    audit(connection, "test", "late", "vote")
"""


def test_a_command_that_waits_meanwhile_spoils_neither_database(
    copied: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It opened the old file and gets its turn when the new one is in force."""
    children: list[subprocess.Popen[str]] = []

    def listen(what: str, done: float) -> None:
        if what == "Keeping what is there" and not children:
            children.append(
                subprocess.Popen(
                    [sys.executable, "-c", WAITS, str(data / "understudy.db")],
                    cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                )
            )  # fmt: skip
            assert children[0].stdout is not None
            assert children[0].stdout.readline() == "begun\n"
            with pytest.raises(subprocess.TimeoutExpired):
                children[0].wait(0.5)  # it has the file open and waits

    settings = load_settings({}, data_dir=str(data))
    restore(settings, copied / "b", verify(copied / "b", quiet), listen)
    _, said = children[0].communicate()
    assert children[0].returncode == 1
    assert "attempt to write a readonly database" in said  # SQLITE_READONLY_DBMOVED
    assert not (data / "understudy.db-wal").exists()
    assert rows(data / "understudy.db") == rows(copied / "b" / "understudy.db")
    [aside] = data.glob("before-restore-*")
    assert not any("late" in row for row in rows(aside / "understudy.db")["audit"])
