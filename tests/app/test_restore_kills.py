"""kill -9 in the midst of a backup or a restore: the old state, or the new one, is whole and usable.

A child is killed at its n-th operation on files (Python's audit events: open, rename, link, remove, …), for
many n, so nothing depends on how quick the machine is.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from app.backup import backup
from app.manifest import verify
from app.restore import main, restore
from core.settings import Settings, load_settings
from tests.app.backups import Installation, add_adapter, files, fill, installed, quiet, rows, wrong

WATCHED = ("open", "os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "sqlite3.connect")


def die_at(number: int) -> None:
    """Kill this process at its `number`-th operation on files from now on."""
    left = number

    def count(event: str, _arguments: object) -> None:
        nonlocal left
        if event in WATCHED:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


def die_in_force(database: Path) -> None:
    """Kill this process at its first operation after another file took the database's name."""
    in_force = False

    def look(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal in_force
        if in_force and event in WATCHED:
            os.kill(os.getpid(), signal.SIGKILL)
        in_force = in_force or (event == "os.rename" and str(arguments[1]) == str(database))

    sys.addaudithook(look)


def backing_up(number: int, data: str, target: str) -> None:
    settings = load_settings({}, data_dir=data)
    die_at(number)
    backup(settings, Path(target), quiet)


def restoring(number: int, data: str, source: str) -> None:
    settings = load_settings({}, data_dir=data)
    manifest = verify(Path(source), quiet)
    if number:
        die_at(number)
    else:
        die_in_force(settings.database)
    restore(settings, Path(source), manifest, quiet)


def survives(work: Callable[[int, str, str], None], number: int, data: Path, other: Path) -> bool:
    """Whether the work came to its end before its `number`-th operation."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["app.backup", "app.restore", "tests.app.backups"])
    child = context.Process(target=work, args=(number, str(data), str(other)))
    child.start()
    child.join()
    assert child.exitcode in (0, -signal.SIGKILL)
    return child.exitcode == 0


def test_a_killed_backup_is_none(tmp_path: Path) -> None:
    house = installed(tmp_path / "data")
    fill(house)
    number = kills = 0
    while not survives(backing_up, number := number + 29, house.data, tmp_path / "b"):
        kills += 1
        assert not (tmp_path / "b").exists()
        house.ingestor.queue.put(f"{kills}.md", f"# On\n\nNumber {kills}.\n".encode())
    assert kills > 5
    assert verify(tmp_path / "b", quiet).lacking == wrong(tmp_path / "b") == []
    assert rows(tmp_path / "b" / "understudy.db") == rows(house.settings.database)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "b",
        "data",
    ]  # what the killed ones left is gone
    house.close()


def stale(house: Installation) -> None:
    """Other documents and adapters than in the backup."""
    house.ingestor.documents.delete(min(house.ingestor.documents.ids()))
    house.ingestor.documents.add("new.md", b"# New\n\nIt came later.\n", "upload")
    add_adapter(house, "second")


def kill_restores(tmp_path: Path, step: int) -> tuple[int, int]:
    """Kill a restore at every `step`-th operation; how often the old and the new state was in force then."""
    house = installed(tmp_path / "made")
    fill(house)
    backup(house.settings, tmp_path / "b", quiet)
    stale(house)
    house.close()
    old, new = (rows(folder / "understudy.db") for folder in (house.data, tmp_path / "b"))
    had = files(house.data)
    seen = [0, 0]
    number = 0
    while True:
        data = tmp_path / f"data-{number}"
        shutil.copytree(house.data, data)
        done = survives(restoring, number := number + step, data, tmp_path / "b")
        assert wrong(data) == [], number
        found = rows(data / "understudy.db")
        assert found in (old, new), number
        seen[found == new] += 1
        if found == old:
            assert had.items() <= files(data).items(), number
        else:
            asides = list(data.glob("before-restore-*"))
            assert len(asides) == 1
            assert rows(asides[0] / "understudy.db") == old
            kept = had.items() - files(asides[0]).items()
            assert kept <= files(data).items(), number  # nothing is lost: it is aside, or still in its place
        if done:
            return seen[0], seen[1]
        again(load_settings({}, data_dir=str(data)), tmp_path / "b")
        assert rows(data / "understudy.db") == new
        assert files(data) == files(tmp_path / "b"), number
        shutil.rmtree(data)


def again(settings: Settings, source: Path) -> None:
    restore(settings, source, verify(source, quiet), quiet)
    assert not list(settings.data_dir.glob("*.partial"))


def test_a_killed_restore_leaves_one_state_whole(tmp_path: Path) -> None:
    old, new = kill_restores(tmp_path, 13)
    assert old > 3
    assert new > 3


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_restore_killed_at_every_operation(tmp_path: Path) -> None:
    """`python -m pytest tests/app/test_restore_kills.py -m slow`."""
    old, new = kill_restores(tmp_path, 1)
    assert old + new > 100


def test_a_restore_after_all_that_searches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed right after the new database came into force: an old index is not taken for its own."""
    house = installed(tmp_path / "data")
    fill(house)
    backup(house.settings, tmp_path / "b", quiet)
    stale(house)
    house.ingestor.process_pending()
    house.close()
    assert not survives(restoring, 0, house.data, tmp_path / "b")
    assert rows(house.settings.database) == rows(tmp_path / "b" / "understudy.db")
    assert wrong(house.data) == []
    assert (house.data / "index" / "1").exists()  # of the database before
    opened = installed(house.data)
    opened.ingestor.index.open()
    assert opened.ingestor.index.ids() == opened.ingestor.passages.ready_ids()
    assert opened.ingestor.index.status().generation == 2
    opened.close()
    monkeypatch.setenv("UNDERSTUDY_DATA_DIR", str(house.data))
    assert main([str(tmp_path / "b")]) == 0
