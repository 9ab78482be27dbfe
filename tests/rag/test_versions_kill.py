"""kill -9 while a synchronised file's new version is read: one version answers whenever it comes (row R01).

The run is killed before and after each of its commits, each time on a copy of the same data folder. Vectors
as in `tests.rag.test_kill`.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from core.db import Database
from rag.ingest import Ingestor
from tests.rag.files import archive
from tests.rag.test_kill import problems
from tests.rag.test_queue_kill import make
from tests.rag.test_versions import EDITED, NEW, OLD, edit, edits, quiet, ready

MOST = 400
BEFORE = ["Apples are red.", "Old c.", "Old d."]
AFTER = ["Apples are green.", "New c.", "New d."]


def synced(data: str, folder: Path) -> Ingestor:
    ingestor = make(data)
    ingestor.index.open()
    ingestor.sync(folder, quiet)
    return ingestor


def work(data: str, folder: Path, moment: int) -> None:
    """Synchronise, and die at the given moment: 2n before the commit with number n, 2n + 1 after it."""
    ingestor = make(data)
    ingestor.index.open()
    real, commits = Database.write, 0

    @contextmanager
    def write(self: Database) -> Iterator[Any]:
        nonlocal commits
        with real(self) as connection:
            yield connection
            if moment == 2 * commits:
                os.kill(os.getpid(), signal.SIGKILL)
        if moment == 2 * commits + 1:
            os.kill(os.getpid(), signal.SIGKILL)
        commits += 1

    Database.write = write  # type: ignore[method-assign]
    ingestor.sync(folder, quiet)


def check(tmp_path: Path, step: int) -> int:
    """Kill at every `step`-th moment until a run ends by itself; returns how many kills there were."""
    folder, first = tmp_path / "in", tmp_path / "first"
    folder.mkdir()
    (folder / "a.md").write_text(OLD)
    (folder / "all.zip").write_bytes(archive({"c.md": b"# C\n\nOld c.", "d.md": b"# D\n\nOld d."}))
    ingestor = synced(str(first), folder)
    edit(ingestor)
    ingestor.index.close()
    ingestor.passages.database.close()
    (folder / "a.md").write_text(NEW)
    (folder / "all.zip").write_bytes(archive({"c.md": b"# C\n\nNew c.", "d.md": b"# D\n\nNew d."}))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["chromadb", "rag.ingest", "rag.index"])
    for kills, moment in enumerate(range(0, MOST, step)):
        data = tmp_path / f"data{moment}"
        shutil.copytree(first, data)
        child = context.Process(target=work, args=(str(data), folder, moment))
        child.start()
        child.join(120)
        left = make(str(data))
        found = ready(left)
        assert all(
            [old in found, new in found].count(True) == 1 for old, new in zip(BEFORE, AFTER, strict=True)
        ), f"{found} at moment {moment}"
        assert EDITED in edits(left)
        if child.exitcode == 0:
            assert found == AFTER
            return kills
        assert child.exitcode == -signal.SIGKILL
        left.passages.database.close()
        again = synced(str(data), folder)
        assert ready(again) == AFTER
        assert edits(again) == [EDITED]
        again.drain()  # sweeps bytes whose row went as the process died
        assert problems(again.settings, again) == []
        again.index.close()
        again.passages.database.close()
        shutil.rmtree(data)
    raise AssertionError("the run never ended")


def test_a_kill_leaves_one_version_that_answers(tmp_path: Path) -> None:
    assert check(tmp_path, 7) > 3


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_kill_at_any_commit_leaves_one_version_that_answers(tmp_path: Path) -> None:
    assert check(tmp_path, 1) > 30
