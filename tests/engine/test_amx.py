"""Whether AMX may be used is tried in another process, which may give wrong numbers, die, or hang."""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine import amx, amx_trial

REPORT = b"AVX512 = 1 | AMX_INT8 = 1 | "


@pytest.fixture(autouse=True)
def untried() -> Iterator[None]:
    amx.usable.cache_clear()
    yield
    amx.usable.cache_clear()


@pytest.mark.parametrize(
    ("trial", "usable"),
    [
        ("pass", True),
        ("raise SystemExit(1)", False),
        ("import os, signal; os.kill(os.getpid(), signal.SIGILL)", False),
        ("import time; time.sleep(60)", False),
    ],
)
def test_only_a_trial_that_ends_well_allows_it(
    trial: str, usable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "engine"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "amx_trial.py").write_text(trial)
    monkeypatch.setattr(amx, "PROJECT", tmp_path)
    monkeypatch.setattr(amx, "SECONDS", 3.0 if "sleep" in trial else 30.0)
    assert amx.usable(REPORT) is usable


def test_nothing_is_tried_on_a_processor_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(amx, "PROJECT", tmp_path / "missing")
    assert not amx.usable(b"AVX512 = 1 | ")


def test_a_wrong_product_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    zeros = bytes(4 * amx_trial.ROWS * amx_trial.COLUMNS)
    monkeypatch.setattr(amx_trial, "_multiply", lambda *_: zeros)
    assert amx_trial.main() == 1


def test_a_mapped_file_leaves_memory_and_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "a model.gguf"
    path.write_bytes(b"weights!" * 4096)

    def resident() -> int:
        smaps = Path("/proc/self/smaps").read_text()
        (rss,) = re.findall(rf"{re.escape(str(path))}\n(?:.*\n)*?Rss: +(\d+) kB", smaps)
        return int(rss)

    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        whole = mapped[:]
        assert resident() == 32
        amx.forget_pages(path)
        assert resident() == 0
        assert mapped[:] == whole
