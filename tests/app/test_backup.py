"""A backup is whole, of one moment and private, whatever happens meanwhile; or it is not there."""

from __future__ import annotations

import fcntl
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pytest

import app.backup
from app.backup import backup, main, rotate
from app.manifest import Stored, verify
from core.db import Database
from core.errors import ConflictError, NotFoundError, SettingsError, StorageError
from core.settings import Settings
from rag.documents import DocumentStore
from tests.app.backups import Installation, files, fill, installed, quiet, rows, wrong


@pytest.fixture
def house(tmp_path: Path) -> Iterator[Installation]:
    house = installed(tmp_path / "data")
    fill(house)
    yield house
    house.close()


def test_everything_that_cannot_be_made_again_is_in_it(house: Installation, tmp_path: Path) -> None:
    target = tmp_path / "backups" / "today"
    manifest = backup(house.settings, target, quiet)
    assert verify(target, quiet) == manifest
    assert manifest.lacking == []
    assert rows(target / "understudy.db") == rows(house.settings.database)
    left_out = {
        "embedders/at-work/plan.json", "embedders/refused/work/plan.json", "bench/half.json.partial",
        "runs/r1/1-sft/checkpoint-1/optimizer.pt",
    }  # fmt: skip
    live = files(house.data)
    assert left_out < set(live)
    assert files(target) == {name: digest for name, digest in live.items() if name not in left_out}
    assert not list(target.glob("engine.key")) + list(target.glob("models"))
    assert wrong(target) == []
    assert stat.S_IMODE(target.stat().st_mode) == 0o700
    for path in target.rglob("*"):
        if path.is_file():
            assert (stat.S_IMODE(path.stat().st_mode), path.stat().st_nlink) == (0o600, 1), path
    assert sorted(path.name for path in target.parent.iterdir()) == ["today"]


def test_it_is_of_one_moment(house: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Documents come and go in the midst of it: while the bulk is copied, and after the snapshot."""
    monkeypatch.setattr(app.backup, "AT_ONCE", 3)
    store, said = house.ingestor.documents, []
    gone_early, gone_late = sorted(store.ids())[:2]

    def meddle(what: str, _done: float) -> None:
        if what not in said:
            said.append(what)
            if what == "Copying files":
                store.add("new.md", b"# New\n\nIt came while files were copied.\n", "upload")
                store.delete(gone_early)
            else:
                store.add("late.md", b"# Late\n\nIt came after the snapshot.\n", "upload")
                store.delete(gone_late)
                house.ingestor.drain()  # the waiting file is read and its bytes go

    manifest = backup(house.settings, tmp_path / "b", meddle)
    assert said == ["Copying files", "Copying the database"]
    verify(tmp_path / "b", quiet)
    assert wrong(tmp_path / "b") == manifest.lacking == []
    stored = DocumentStore(installed(tmp_path / "b").database, Settings(data_dir=tmp_path / "b"))
    names = {document.name for document in stored.list()}
    assert "new.md" in names
    assert "late.md" not in names
    assert gone_late in stored.ids()
    assert f"documents/{gone_late}" in manifest.files
    assert f"documents/{gone_early}" not in manifest.files  # deleted is deleted
    assert not (tmp_path / "b" / "documents" / gone_early).exists()
    assert sum(name.startswith("queue/") for name in manifest.files) == 2


def test_nothing_is_removed_between_the_names_and_the_opening(
    house: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody deletes as soon as the names are known: he waits until the files are open, not longer."""
    victim = min(house.ingestor.documents.ids())
    other = threading.Thread(target=house.ingestor.documents.delete, args=(victim,))
    original_named, original_copy = app.backup.named, app.backup._copy

    def named(settings: Settings, database: Database) -> dict[str, bool]:
        names = original_named(settings, database)
        other.start()
        other.join(0.3)
        assert other.is_alive()  # it waits
        return names

    def copy(source: BinaryIO, target: Path) -> Stored:
        other.join(10)
        assert not (house.data / "documents" / victim).exists()  # and then it need not
        return original_copy(source, target)

    monkeypatch.setattr(app.backup, "named", named)
    monkeypatch.setattr(app.backup, "_copy", copy)
    manifest = backup(house.settings, tmp_path / "b", quiet)
    assert f"documents/{victim}" in manifest.files
    assert manifest.lacking == wrong(tmp_path / "b") == []


def test_what_the_data_folder_lost_already_is_told(house: Installation, tmp_path: Path) -> None:
    victim = sorted(house.ingestor.documents.ids())[0]
    (house.data / "documents" / victim).unlink()
    manifest = backup(house.settings, tmp_path / "b", quiet)
    assert manifest.lacking == [f"documents/{victim}"]
    verify(tmp_path / "b", quiet)


def test_bad_targets_are_refused(
    house: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "data")
    with pytest.raises(ConflictError, match="is there already"):
        backup(house.settings, tmp_path / "there", quiet)
    for target in (house.data, house.data / "b", tmp_path / "link" / "deep" / "b"):
        with pytest.raises(StorageError, match="in the data folder itself"):
            backup(house.settings, target, quiet)
    with pytest.raises(NotFoundError, match="nothing to back up"):
        backup(Settings(data_dir=tmp_path / "elsewhere"), tmp_path / "b", quiet)
    assert not (tmp_path / "elsewhere").exists()
    monkeypatch.setattr(app.backup, "SPARE", 1 << 60)
    with pytest.raises(StorageError, match="Not enough disk space"):
        backup(house.settings, tmp_path / "b", quiet)
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(StorageError, match="could not be written"):
        backup(house.settings, tmp_path / "file" / "b", quiet)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "file", "link", "there"]


@pytest.mark.parametrize("moment", ["Copying files", "Copying the database"])
def test_ctrl_c_leaves_nothing(
    house: Installation, tmp_path: Path, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app.backup, "AT_ONCE", 3)

    def stop(what: str, _done: float) -> None:
        if what == moment:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        backup(house.settings, tmp_path / "b", stop)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    house.ingestor.documents.add("on.md", b"# On\n\nWriting goes on.\n", "upload")


def test_dated_backups_rotate(
    house: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("UNDERSTUDY_DATA_DIR", str(house.data))
    shelf = tmp_path / "shelf"
    foreign = shelf / "understudy-20200101-000000"  # not a backup: it has no manifest
    killed = shelf / "understudy-20200102-000000.partial"
    for folder in (foreign, killed / "documents"):
        folder.mkdir(parents=True)
    (shelf / "notes.txt").write_text("mine")
    for day in (3, 4):
        backup(house.settings, shelf / f"understudy-2020010{day}-000000", quiet)
    busy = shelf / "understudy-20200105-000000.partial"
    busy.mkdir()
    held = os.open(busy, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    assert main([str(shelf), "--keep", "2"]) == 0
    os.close(held)
    said = capsys.readouterr()
    assert f"Removed {shelf / 'understudy-20200103-000000'}." in said.out
    assert "Copying the database: 100%" in said.err
    names = sorted(path.name for path in shelf.iterdir())
    assert names[:4] == ["notes.txt", foreign.name, "understudy-20200104-000000", busy.name]
    assert len(names) == 5
    verify(shelf / names[4], quiet)
    with pytest.raises(SettingsError):
        main([str(shelf), "--keep", "0"])


def test_two_backups_into_one_folder_do_not_mix(house: Installation, tmp_path: Path) -> None:
    def second(what: str, _done: float) -> None:
        if what == "Copying the database":
            with pytest.raises(ConflictError, match="another backup"):
                backup(house.settings, tmp_path / "b", quiet)

    backup(house.settings, tmp_path / "b", second)
    verify(tmp_path / "b", quiet)


def test_a_folder_of_somebody_else_is_not_emptied(house: Installation, tmp_path: Path) -> None:
    (tmp_path / "b.partial").mkdir()
    (tmp_path / "b.partial" / "thesis.txt").write_text("mine")
    with pytest.raises(StorageError, match="no part of a backup"):
        backup(house.settings, tmp_path / "b", quiet)
    assert (tmp_path / "b.partial" / "thesis.txt").read_text() == "mine"


def test_rotating_keeps_what_is_there(tmp_path: Path) -> None:
    assert rotate(tmp_path, 1) == []
