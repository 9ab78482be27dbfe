"""Cases are frozen once and are the same for every model afterwards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from core.catalog import BUILTIN
from core.errors import StorageError
from core.settings import PROJECT
from evaluation.cases import freeze_cases, load_cases, read_golden
from evaluation.metrics import fact_match
from feedback.dataset import freeze
from rag import prompt
from tests.evaluation.made import HANDBOOK, PRICES, passage
from tests.feedback.made import House, cite

GOLDEN = [
    {"id": "g1", "question": "What is the notice period?", "answerable": True, "fact": ["30 days"],
     "sources": ["handbook.md"], "evidence": "The notice period is 30 days.", "kind": "policy"},
    {"id": "g2", "question": "Who founded it?", "answerable": False, "fact": [], "sources": [],
     "kind": "name"},
]  # fmt: skip
NAMES = {"id-handbook": "handbook.md", "id-prices": "prices.csv"}


class Asked:
    """Retrieval and prompt in one, counting how often it is asked."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, question: str) -> prompt.Prompt:
        self.count += 1
        return prompt.build(question, [passage("handbook", HANDBOOK), passage("prices", PRICES)], BUILTIN)


def test_cases_are_built_once_and_read_afterwards(tmp_path: Path) -> None:
    ask = Asked()
    cases = freeze_cases(GOLDEN, [], ask, NAMES, tmp_path)
    assert [case.id for case in cases] == ["g1", "g2"]
    assert cases[0].sources == ("id-handbook",)
    assert cases[0].passages[0].units[0].number == 1
    assert cases[0].messages[-1]["content"].startswith("Question: What is the notice period?")
    assert cases == freeze_cases([], [], ask, {}, tmp_path) == load_cases(tmp_path)
    assert ask.count == 2


def test_held_out_rows_of_a_dataset_become_cases(tmp_path: Path) -> None:
    house = House(tmp_path)
    for number in range(30):
        house.corrected(
            f"What is rule {number} on leaving?", "The notice period is 30 days.", raw="[2] No idea."
        )
    rows = freeze(house.database, tmp_path / "datasets", cite=cite).heldout()
    cases = freeze_cases(GOLDEN, rows, Asked(), NAMES, tmp_path / "cases")
    held = [case for case in cases if case.origin == "heldout"]
    assert len(held) == len(rows) > 0
    assert held[0].facts == ("The notice period is 30 days.",)
    assert held[0].completion == "[1] The notice period is 30 days."
    assert list(held[0].messages) == rows[0]["messages"]
    assert held[0].passages[0].units
    house.database.close()


def test_a_changed_case_is_noticed(tmp_path: Path) -> None:
    freeze_cases(GOLDEN, [], Asked(), NAMES, tmp_path)
    path = tmp_path / "cases.jsonl"
    path.write_text(path.read_text("utf-8").replace("30 days", "31 days"), "utf-8")
    with pytest.raises(StorageError, match="not what was frozen"):
        load_cases(tmp_path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"question": None}, "Row 2 .* lacks question"),
        ({"answerable": True}, "Row 2 .* lacks fact, sources"),
        ({"id": "g1"}, "Row 2 .* repeats the id g1"),
    ],
)
def test_a_bad_golden_row_is_named(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    second = {key: value for key, value in (GOLDEN[1] | change).items() if value is not None}
    path = tmp_path / "golden.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in [GOLDEN[0], second]))
    with pytest.raises(StorageError, match=says):
        read_golden(path)


def test_the_shipped_golden_questions_are_sound() -> None:
    rows = read_golden(PROJECT / "data" / "eval" / "golden.jsonl")
    assert len(rows) >= 40
    assert sum(not row["answerable"] for row in rows) >= 5
    assert {"id", "question", "kind"} <= set(rows[0])
    for row in rows:
        held = fact_match(row["evidence"], tuple(row["fact"]), row["evidence"])
        assert held == row["answerable"], row["id"]
