"""The swaps under load, with a model so small that they take no time."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import swaps
from benchmarks.load import Heard, Server
from benchmarks.shapes import Shape, random_gguf
from tests.engine.serving import engine

SMALL = Shape("test", 256, 2, 4, 2, 64, 512, 512)
WORDS = {"one": {"x"}, "two": {"y"}}


@pytest.mark.parametrize(
    ("text", "named", "mixed"),
    [
        ("x x", "one", False),
        ("x z", "one", False),  # a word that nobody said alone
        ("x y", "one", True),
        ("y", "one", True),
        ("y", "two", False),
        ("x", "base", True),
        ("x", "", True),
    ],
)
def test_a_word_of_another_adapter_makes_a_reply_mixed(text: str, named: str, mixed: bool) -> None:
    heard = Heard(0, text=text, fingerprint=f"model@{named}" if named else "")
    assert swaps.is_mixed(heard, WORDS) is mixed


def test_swaps_load_files_and_nothing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swaps, "QUIET_SECONDS", 1.0)
    model = random_gguf(SMALL, "Q8_0")
    with engine(tmp_path, model, adapters_aside=swaps.ASIDE, slots=8) as running:
        key = str(running.client.headers["authorization"]).removeprefix("Bearer ")
        server = Server(str(running.client.base_url), key)
        rows = swaps.measure_swaps("small", model, SMALL, server, tmp_path, running.process.pid, True)
        server.close()
    found = {row.measure.partition(", ")[2]: row for row in rows}
    assert 0 < found["files loaded"].value <= 4  # one that still answers is there already
    assert found["adapters known by their words"].met
    assert (found["failed"].value, found["mixed"].value) == (0, 0)
    assert (found["mixed"].reference or 0) >= 2 * swaps.STREAMS
