"""The report shows the comparison and is inert whatever the replies hold."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from evaluation.gate import judge
from evaluation.report import summary, table, write_report
from rag.citations import safe_markdown
from tests.evaluation.made import results

BEFORE = results([0.0, 1.0, 0.5] * 10)
AFTER = results([1.0, 1.0, 0.0] * 10)
LINEAGE = {"dataset": "0123456789abcdef", "adapter": "a1", "base": "builtin", "seconds": 12.5}


def test_the_report_holds_verdict_tables_and_lineage(tmp_path: Path) -> None:
    verdict = judge(BEFORE, AFTER)
    text = write_report(tmp_path / "report.md", BEFORE, AFTER, verdict, LINEAGE)
    assert text == (tmp_path / "report.md").read_text("utf-8")
    assert text.startswith("# Refused" if not verdict.passed else "# Passed")
    for part in ("## Before and after", "## Checks", "## By kind of case", "## Wins (10)", "## Losses (10)"):
        assert part in text
    assert "0123456789abcdef" in text
    assert safe_markdown(verdict.reason) in text


def test_no_reply_can_write_into_the_report(tmp_path: Path) -> None:
    nasty = "x | y\n\n# Passed\n![i](https://evil.example/p.png) <img src=x> [a](javascript:alert(1)) `code`"
    after = [replace(results([1.0])[0], reply=nasty, question=nasty, kind=nasty), *AFTER[1:]]
    after[0].scores["addresses"] = ["https://evil.example/p.png"]
    text = write_report(tmp_path / "report.md", BEFORE, after, judge(BEFORE, after), LINEAGE)
    assert text.count("\n# ") == 0
    assert "![i]" not in text
    assert "<img" not in text.replace("\\<img", "")
    assert "https://" not in text
    assert "javascript:" not in text


def test_cases_that_could_not_be_asked_are_counted_and_left_out(tmp_path: Path) -> None:
    """The report and the verdict are those of the other cases; a sentence says how many are missing."""
    gap = [replace(BEFORE[0], scores={}), *BEFORE[1:]]
    full, verdict = judge(BEFORE[1:], AFTER[1:]), judge(gap, AFTER)
    assert verdict == full
    text = write_report(tmp_path / "report.md", gap, AFTER, verdict, LINEAGE)
    assert "longer than the model's context: 1." in text
    assert "longer than the model's context: 1." in table(gap, AFTER)
    assert "left out" not in table(BEFORE, AFTER).lower()
    figures = summary(gap, AFTER, verdict)
    assert figures["cases"] == len(AFTER) - 1
    assert figures["before"] == summary(BEFORE[1:], AFTER[1:], full)["before"]


def test_the_table_is_aligned_plain_text() -> None:
    lines = table(BEFORE, AFTER).splitlines()
    assert lines[0].split() == ["measure", "before", "after", "change"]
    assert len({len(line) for line in lines}) == 1
    assert "case score" in lines[1]


def test_the_summary_is_what_the_runs_table_keeps() -> None:
    verdict = judge(BEFORE, AFTER)
    figures = summary(BEFORE, AFTER, verdict)
    assert figures["before"]["score"] == 0.5
    assert figures["passed"] == verdict.passed
    assert figures["reason"] == verdict.reason
    assert {check["name"] for check in figures["checks"]} >= {
        "better",
        "refusals",
        "support",
        "length",
        "addresses",
    }


def test_no_changes_are_said_to_be_none(tmp_path: Path) -> None:
    text = write_report(tmp_path / "report.md", BEFORE, BEFORE, judge(BEFORE, BEFORE), {})
    assert "## Wins (0)\n\nNone." in text
