"""The search's test bench: figures are right, runs can be compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from core.types import Passage
from evaluation.bench import changes, keep, kept, measure
from evaluation.gold import Gold, Names, Wanted
from rag.retrieve import Retriever

NAMES = Names([("1", ["a.md"]), ("2", ["b.md"]), ("3", ["c.md"])], [("1", ["Apples"])])


def wants(question: str, *names: str) -> Gold:
    return Gold(question, tuple(Wanted(name, 1, line) for line, name in enumerate(names, 2)))


class Stages:
    """Stands for the retriever: fixed orders of documents by question."""

    def __init__(self, orders: dict[str, dict[str, str]]) -> None:
        self.orders = orders

    def stages(self, question: str, _k: int) -> dict[str, list[Passage]]:
        def passages(ids: str) -> list[Passage]:
            return [Passage(n, one, one, "", None, 0, 1, "x") for n, one in enumerate(ids)]

        return {stage: passages(ids) for stage, ids in self.orders[question].items()}


def run(orders: dict[str, dict[str, str]], gold: list[Gold]) -> dict[str, Any]:
    told: list[float] = []
    result = measure(cast(Retriever, Stages(orders)), gold, NAMES, told.append)
    assert told == sorted(told)
    assert told[-1] == 1.0
    return result


def test_figures_of_every_stage() -> None:
    gold = [wants("Who pays?", "a.md"), wants("Who leaves?", "b.md", "gone.md")]
    result = run(
        {"Who pays?": {"lexical": "1123", "answers": "21"}, "Who leaves?": {"lexical": "31", "answers": "2"}},
        gold,
    )
    assert result["means"]["lexical"] == pytest.approx([0.5, 0.5, 0.5, 0.5])
    pays, leaves = (question["stages"]["answers"] for question in result["questions"])
    assert pays == pytest.approx([1 / 1.58496, 1.0, 0.5, 1.0], abs=1e-4)  # second place
    assert leaves == pytest.approx([1 / 1.63093, 0.5, 1.0, 0.5], abs=1e-4)  # one of two can be found
    assert result["unknown"] == [{"line": 3, "document": "gone.md", "question": "Who leaves?"}]


def test_grades_count_and_two_names_of_a_document_are_one() -> None:
    gold = Gold("x", (Wanted("a.md", 1), Wanted("Apples", 3), Wanted("b.md", 1)))
    result = run({"x": {"l": "213"}}, [gold])
    best, second = 3 + 1 / 1.58496, 1 + 3 / 1.58496
    assert result["means"]["l"] == pytest.approx([second / best, 1.0, 1.0, 1.0], abs=1e-4)


def test_runs_are_kept_and_compared(tmp_path: Path) -> None:
    gold = [wants("x", "a.md"), wants("y", "a.md"), wants("z", "a.md")]
    before = run({"x": {"l": "1"}, "y": {"l": "21"}, "z": {"l": "1"}}, gold)
    after = run({"x": {"l": "21"}, "y": {"l": "1"}, "z": {"l": "1"}}, gold)
    found = changes(before, after)
    assert [change.question for change in found] == ["x", "y"]  # losses first
    assert (found[0].question, found[0].before) == ("x", 1.0)
    assert found[0].after == pytest.approx(0.63093, abs=1e-4)
    for number in range(25):
        keep(tmp_path, before | {"at": 1_000_000_000_000 + number})
    (tmp_path / "9999999999999.json").write_text("{", "utf-8")
    results = kept(tmp_path)
    assert [result["at"] % 100 for result in results][:2] == [24, 23]
    assert len(results) == 20
