"""Frozen datasets: reproducible, split by question, complete or absent."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from core.errors import NotFoundError, StorageError, TrainingError
from core.settings import PROJECT
from feedback.dataset import HELD_OUT_SHARE, Dataset, freeze, is_held_out, load
from feedback.questions import question_key
from tests.feedback.made import House, cite


def fill(house: House, count: int = 30) -> None:
    for number in range(count):
        house.corrected(
            f"What is rule {number} on leaving?", "The notice period is 30 days.", raw="[2] No idea."
        )


def frozen(house: House, tmp_path: Path, **options: object) -> Dataset:
    return freeze(house.database, tmp_path / "datasets", cite=cite, **options)  # type: ignore[arg-type]


def questions(rows: list[dict[str, object]], part: str = "messages") -> set[str]:
    found = set()
    for row in rows:
        user = next(m["content"] for m in row[part] if m["role"] == "user")  # type: ignore[attr-defined]
        found.add(user.splitlines()[0].removeprefix("Question: "))
    return found


def test_a_dataset_holds_rows_card_and_database_row(house: House, tmp_path: Path) -> None:
    fill(house)
    dataset = frozen(house, tmp_path)
    counts = dataset.card["counts"]
    assert counts["sft"] + counts["heldout"] == 30
    assert counts["heldout"] > 0
    assert counts["preference"] == counts["sft"] == len(dataset.sft()) == len(dataset.preference())
    assert len(dataset.heldout()) == counts["heldout"]
    assert dataset.card["users"] == {house.store.pseudonym("ann"): 1.0}
    assert dataset.card["kinds"] == {"correction": counts["sft"]}
    assert dataset.folder.name == dataset.version == dataset.card["version"]
    assert house.store.datasets() == [json.loads((dataset.folder / "card.json").read_text())]
    case = dataset.heldout()[0]
    assert case["reference"] == "The notice period is 30 days."
    assert case["completion"] == "[1] The notice period is 30 days."
    assert case["answerable"]
    assert case["passages"][0]["units"][0]["number"] == 1
    assert case["messages"][-1]["role"] == "user"


def test_no_held_out_question_is_trained_on(house: House, tmp_path: Path) -> None:
    fill(house)
    dataset = frozen(house, tmp_path)
    held = {row["question"] for row in dataset.heldout()}
    assert not held & questions(dataset.sft())
    assert not held & questions(dataset.preference(), "prompt")


def test_a_held_out_question_stays_held_out(house: House, tmp_path: Path) -> None:
    fill(house, 20)
    before = frozen(house, tmp_path)
    fill(house, 40)
    after = frozen(house, tmp_path)
    assert before.version != after.version
    held_before, held_after = ({row["question"] for row in d.heldout()} for d in (before, after))
    assert held_before < held_after
    assert all(is_held_out(question_key(question), HELD_OUT_SHARE, 7) for question in held_before)


def test_the_share_is_about_a_quarter() -> None:
    held = sum(is_held_out(f"question {number}", HELD_OUT_SHARE, 7) for number in range(2_000))
    assert 430 < held < 570
    assert not is_held_out("anything", 0.0, 7)
    assert is_held_out("anything", 1.0, 7)


def test_equal_feedback_is_the_same_version_and_not_written_again(house: House, tmp_path: Path) -> None:
    fill(house)
    first = frozen(house, tmp_path)
    stamps = {path: path.stat().st_mtime_ns for path in first.folder.iterdir()}
    assert frozen(house, tmp_path) == first
    assert {path: path.stat().st_mtime_ns for path in first.folder.iterdir()} == stamps
    assert len(house.store.datasets()) == 1


def test_evaluation_questions_are_dropped_and_named(house: House, tmp_path: Path) -> None:
    fill(house)
    dataset = frozen(house, tmp_path, exclude=["what is RULE 3 on leaving", "What is rule 4 on leaving?"])
    everything = questions(dataset.sft()) | {row["question"] for row in dataset.heldout()}
    assert not everything & {"What is rule 3 on leaving?", "What is rule 4 on leaving?"}
    assert dataset.card["dropped_reasons"] == {"is an evaluation question": 2}


def test_too_little_feedback_says_how_much_is_missing(house: House, tmp_path: Path) -> None:
    house.store.correct(house.ask("What is the notice period?"), "ann", "The notice period is 30 days.")
    with pytest.raises(
        TrainingError, match=r"There are 0 rows to train on and 8 are needed.*wait for review \(1\)"
    ):
        frozen(house, tmp_path)
    assert not (tmp_path / "datasets").exists()
    assert house.store.datasets() == []


def test_a_changed_file_is_noticed(house: House, tmp_path: Path) -> None:
    fill(house)
    dataset = frozen(house, tmp_path)
    assert load(tmp_path / "datasets", dataset.version) == dataset
    with (dataset.folder / "sft.jsonl").open("a") as file:
        file.write("{}\n")
    with pytest.raises(StorageError, match=r"sft\.jsonl"):
        load(tmp_path / "datasets", dataset.version)
    with pytest.raises(NotFoundError):
        load(tmp_path / "datasets", "0" * 16)
    with pytest.raises(StorageError):
        load(tmp_path / "datasets", "../../etc")


def test_a_folder_without_card_is_finished(house: House, tmp_path: Path) -> None:
    fill(house)
    dataset = frozen(house, tmp_path)
    (dataset.folder / "card.json").unlink()
    (dataset.folder / "heldout.jsonl").unlink()
    (dataset.folder / "sft.jsonl").write_text("half a li")
    with pytest.raises(NotFoundError):
        load(tmp_path / "datasets", dataset.version)
    assert frozen(house, tmp_path).version == dataset.version


FREEZE = """
import sys
from pathlib import Path
from core.db import Database
from feedback.dataset import freeze
from tests.feedback.made import cite
print("ready", flush=True)
for turn in range(10_000):
    freeze(Database(Path(sys.argv[1])), Path(sys.argv[2]) / str(turn), cite=cite)
"""


def test_killed_while_freezing_no_folder_looks_complete(house: House, tmp_path: Path) -> None:
    fill(house)
    for delay in (0.01, 0.05, 0.11, 0.2):
        out = tmp_path / f"out{delay}"
        child = subprocess.Popen(
            [sys.executable, "-c", FREEZE, str(house.database.path), str(out)],
            cwd=PROJECT, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(PROJECT)},
        )  # fmt: skip
        assert child.stdout is not None
        with child.stdout:
            child.stdout.readline()
            time.sleep(delay)
            child.send_signal(signal.SIGKILL)
            child.wait()
        for card in out.rglob("card.json"):
            load(card.parent.parent, card.parent.name)  # raises when a file is missing or short
        frozen(house, tmp_path)
