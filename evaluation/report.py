"""The report of one comparison: what changed, whether the gate let it pass, and every win and loss."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from core.files import write_text
from evaluation.gate import Verdict
from evaluation.run import Result, asked_of_both, mean
from rag.citations import safe_markdown

MEASURES = {
    "score": "case score",
    "fact": "right fact",
    "citation": "right fact and citation",
    "refusal_right": "refuses exactly when it should",
    "support": "support by the cited lines",
    "words": "words a reply",
}
SHOWN = 10  # wins and losses listed each
LONGEST = 300  # characters of a reply in the report
_FIGURE = re.compile(r"[+-]?\d[\d.]*")


def write_report(
    path: Path,
    before: Sequence[Result],
    after: Sequence[Result],
    verdict: Verdict,
    lineage: Mapping[str, Any],
) -> str:
    """Write `report.md` and return its text; `lineage` names dataset, adapters, base, hashes, durations."""
    left_out = _left_out(before, after)
    before, after = asked_of_both(before, after)
    text = "\n".join(
        [
            f"# {'Passed' if verdict.passed else 'Refused'}",
            "",
            safe_markdown(verdict.reason),
            "",
            f"Mean case score: {mean(before):.3f} before, {mean(after):.3f} after, difference"
            f" {verdict.difference:+.3f} (interval {verdict.low:+.3f} to {verdict.high:+.3f},"
            f" {len(after)} cases).",
            "",
            *([left_out, ""] if left_out else []),
            *_section("Before and after", ("measure", "before", "after", "change"), _rows(before, after)),
            *_section("Checks", ("check", "before", "after", "asked for", "passed"), _checks(verdict)),
            *_section("By kind of case", ("kind", "cases", "before", "after"), _kinds(before, after)),
            *_changes("Wins", before, after, 1),
            *_changes("Losses", before, after, -1),
            *_section("Lineage", ("what", "value"), [(key, str(value)) for key, value in lineage.items()]),
        ]
    )
    write_text(path, text)
    return text


def table(before: Sequence[Result], after: Sequence[Result]) -> str:
    """The measures before and after as plain text in columns."""
    left_out = _left_out(before, after)
    before, after = asked_of_both(before, after)
    rows = [("measure", "before", "after", "change"), *_rows(before, after)]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [
        f"{row[0]:<{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]:>{widths[2]}}  {row[3]:>{widths[3]}}"
        for row in rows
    ]
    return "\n".join([*lines, left_out] if left_out else lines)


def summary(before: Sequence[Result], after: Sequence[Result], verdict: Verdict) -> dict[str, Any]:
    """The figures for the `runs` table: every measure before and after, and the verdict with its checks."""
    left_out = _left_out(before, after)
    before, after = asked_of_both(before, after)
    return {
        "before": {measure: round(mean(before, measure), 4) for measure in MEASURES},
        "after": {measure: round(mean(after, measure), 4) for measure in MEASURES},
        "cases": len(after),
        "left_out": left_out,
        "passed": verdict.passed,
        "reason": verdict.reason,
        "difference": round(verdict.difference, 4),
        "low": round(verdict.low, 4),
        "high": round(verdict.high, 4),
        "checks": [
            {"name": check.name, "passed": check.passed, "sentence": check.sentence}
            for check in verdict.checks
        ],
    }


def _left_out(before: Sequence[Result], after: Sequence[Result]) -> str:
    """A sentence that counts the cases which could not be asked; empty when there are none."""
    count = len(after) - len(asked_of_both(before, after)[1])
    if not count:
        return ""
    return f"Cases left out on both sides, because their prompt is longer than the model's context: {count}."


def _rows(before: Sequence[Result], after: Sequence[Result]) -> list[tuple[str, str, str, str]]:
    rows = []
    for measure, name in MEASURES.items():
        old, new = mean(before, measure), mean(after, measure)
        rows.append((name, f"{old:.3f}", f"{new:.3f}", f"{new - old:+.3f}"))
    return rows


def _checks(verdict: Verdict) -> list[tuple[str, ...]]:
    return [
        (
            check.name,
            f"{check.before:.3f}",
            f"{check.after:.3f}",
            check.limit,
            "yes" if check.passed else "no",
        )
        for check in verdict.checks
    ]


def _kinds(before: Sequence[Result], after: Sequence[Result]) -> list[tuple[str, ...]]:
    groups: dict[str, tuple[list[Result], list[Result]]] = {}
    for old, new in zip(before, after, strict=True):
        pair = groups.setdefault(f"{old.origin}: {old.kind or 'other'}", ([], []))
        pair[0].append(old)
        pair[1].append(new)
    return [
        (kind, str(len(olds)), f"{mean(olds):.3f}", f"{mean(news):.3f}")
        for kind, (olds, news) in sorted(groups.items())
    ]


def _changes(title: str, before: Sequence[Result], after: Sequence[Result], sign: int) -> list[str]:
    changed = [(a, b) for a, b in zip(before, after, strict=True) if (b.score - a.score) * sign > 0]
    changed.sort(key=lambda pair: -abs(pair[1].score - pair[0].score))
    rows = [(old.question, old.reply, new.reply) for old, new in changed[:SHOWN]]
    return _section(f"{title} ({len(changed)})", ("question", "before", "after"), rows)


def _section(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    if not rows:
        return [f"## {title}", "", "None.", ""]
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    lines += [f"| {' | '.join(_cell(cell) for cell in row)} |" for row in rows]
    return [f"## {title}", "", *lines, ""]


def _cell(text: str) -> str:
    """One line of inert Markdown: replies are foreign text and must not become links, images or columns."""
    line = " ".join(text.split())
    if _FIGURE.fullmatch(line):
        return line
    return safe_markdown(line if len(line) <= LONGEST else line[: LONGEST - 1] + "…")
