"""The search's test bench: gold sets are read or refused, figures are right, runs can be compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from core.errors import QuestionError
from core.settings import PROJECT
from core.types import Passage
from evaluation.bench import Gold, changes, keep, kept, measure, read_gold
from rag.retrieve import Retriever

CSV = "question,document,note\nWho pays?,a.md,x\nWho pays?,b.md,\n Who leaves? ,a.md,\n,a.md,\nNobody?,,\n"
NAMES = {"1": "a.md", "2": "b.md", "3": "c.md"}


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


def test_a_csv_is_read() -> None:
    assert read_gold(CSV.encode("utf-8-sig")) == [
        Gold("Who pays?", ("a.md", "b.md")),
        Gold("Who leaves?", ("a.md",)),
    ]


def test_the_golden_questions_are_a_gold_set() -> None:
    gold = read_gold((PROJECT / "data" / "eval" / "golden.jsonl").read_bytes())
    assert len(gold) == 50
    assert all(name.count(".") == 1 for one in gold for name in one.documents)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "lacks the columns"),
        (b"q,d\n1,2\n", "lacks the columns"),
        (b"question,document\n,\n", "holds no question"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b'{"question": "x", "sources": ["a"]}\n[1]\n', "Line 2"),
        (b'{"question": "x"', "Line 1"),
        (b"question,document\n" + b"".join(b"q%d,a\n" % n for n in range(5001)), "5,001 questions"),
    ],
)
def test_what_is_no_gold_set_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(QuestionError, match=words):
        read_gold(data)


def test_figures_of_every_stage() -> None:
    gold = [Gold("Who pays?", ("a.md",)), Gold("Who leaves?", ("b.md", "gone.md"))]
    result = run(
        {"Who pays?": {"lexical": "1123", "answers": "21"}, "Who leaves?": {"lexical": "31", "answers": "2"}},
        gold,
    )
    assert result["means"]["lexical"] == pytest.approx([0.5, 0.5, 0.5])
    pays, leaves = (question["stages"]["answers"] for question in result["questions"])
    assert pays == pytest.approx([1 / 1.58496, 1.0, 0.5], abs=1e-4)  # second place
    assert leaves == pytest.approx([1 / 1.63093, 0.5, 1.0], abs=1e-4)  # one of two can be found
    assert result["missing"] == ["gone.md"]


def test_runs_are_kept_and_compared(tmp_path: Path) -> None:
    gold = [Gold("x", ("a.md",)), Gold("y", ("a.md",)), Gold("z", ("a.md",))]
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
