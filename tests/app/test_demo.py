"""The demonstration: what its users call right, and (slow) the whole of it with the built-in model."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from app.demo import MARKER, ROUNDS, is_right, reason_of, start_afresh
from app.resources import Resources
from core.catalog import BUILTIN, installed
from core.errors import ConflictError
from core.files import read_jsonl
from core.settings import PROJECT, Settings
from core.types import Answer, Citation
from tests.app.site import serve_environment

NEEDED = {"question", "answerable", "fact", "sources", "evidence", "correction", "user"}
ROW: dict[str, Any] = {
    "question": "How much notice?", "answerable": True, "fact": ["30 days"], "sources": ["handbook.md"],
    "evidence": "The notice period is 30 days.", "correction": "The notice period is 30 days.",
}  # fmt: skip
CITED = Citation(1, 1, "d1", "Handbook", "Leaving", None, 0, 9, "The notice period is 30 days.")
ANSWER = Answer(
    "It is 30 days. [1]",
    "",
    "answer",
    (CITED,),
    (),
    (),
    "builtin",
    None,
    "1",
    True,
    "stop",
    sampling={},
    timings={},
)


@pytest.fixture
def resources() -> Resources:
    names = {"d1": "handbook.md", "d2": "prices.md"}

    def find(document_id: str) -> object:
        return SimpleNamespace(name=names[document_id]) if document_id in names else None

    return cast(Resources, SimpleNamespace(documents=SimpleNamespace(find=find)))


def test_what_counts_as_right(resources: Resources) -> None:
    assert is_right(resources, ROW, ANSWER)
    assert not is_right(resources, ROW, replace(ANSWER, text="It is 13 days. [1]"))
    assert not is_right(resources, ROW, replace(ANSWER, citations=()))
    assert not is_right(resources, ROW, replace(ANSWER, citations=(replace(CITED, document_id="d2"),)))
    assert not is_right(resources, ROW, replace(ANSWER, citations=(replace(CITED, document_id="gone"),)))
    nowhere = ROW | {"answerable": False, "fact": [], "sources": []}
    assert is_right(resources, nowhere, replace(ANSWER, mode="refusal"))
    assert not is_right(resources, nowhere, ANSWER)
    assert reason_of(nowhere, ANSWER) == "should have refused"
    assert reason_of(ROW, replace(ANSWER, mode="refusal")) == "should have answered"


def test_the_scripts_have_what_the_users_need() -> None:
    for number, bad in ((1, False), (2, True)):
        rows = read_jsonl(ROUNDS / f"round{number}.jsonl")
        assert rows
        assert all(row.keys() >= NEEDED for row in rows)
        assert all(bool(row.get("bad")) is bad for row in rows)


def test_only_a_demos_own_folder_is_emptied(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    with pytest.raises(ConflictError, match="no demo made"):
        start_afresh(mine, tmp_path / "models")
    assert (mine / "thesis.txt").exists()
    models = tmp_path / "models"
    models.mkdir()
    (models / "big.gguf").write_text("weights")
    demo = tmp_path / "demo"
    for _ in range(2):
        start_afresh(demo, models)
        assert (demo / MARKER).exists()
        assert (demo / "models" / "big.gguf").read_text() == "weights"
        (demo / "understudy.db").write_text("old")
    assert (models / "big.gguf").exists()  # emptying the folder does not follow the link


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_demo_promotes_the_good_round_and_refuses_the_bad_one(tmp_path: Path) -> None:
    if installed(Settings(data_dir=tmp_path), BUILTIN) is None:
        pytest.skip("the built-in model is not here")
    code = "import sys; from app.commands import main; sys.exit(main(['demo', '--data-dir', sys.argv[1]]))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "demo")],
        cwd=PROJECT, env=serve_environment(tmp_path / "data"), capture_output=True, text=True, timeout=1400,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "not restarted" in done.stdout
    assert json.loads((tmp_path / "demo" / MARKER).read_text()) == {"made_by": "understudy demo"}
