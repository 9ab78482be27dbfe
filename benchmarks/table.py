"""The one convention of every benchmark: the flags, the rows, the printed table and docs/benchmarks.md.

A row is `{"measure", "value", "unit", "reference", "ratio", "goal", "met"}`: `reference` is the other side
measured in the same run, `ratio` is value / reference, `goal` what the ratio or value must reach and `met`
whether it did (None when there is no goal).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from core.files import write_text
from core.settings import PROJECT

PAGE = PROJECT / "docs" / "benchmarks.md"


@dataclass(frozen=True)
class Row:
    """One measured figure beside its reference and its goal."""

    measure: str
    value: float
    unit: str = ""
    reference: float | None = None
    goal: str = ""
    met: bool | None = None

    def as_json(self) -> dict[str, object]:
        """The row as the convention's JSON object."""
        ratio = None if not self.reference else round(self.value / self.reference, 4)
        return {**asdict(self), "value": round(self.value, 4), "ratio": ratio}


def at_least(measure: str, value: float, goal: float, unit: str = "", reference: float | None = None) -> Row:
    """A row whose value should reach `goal`."""
    return Row(measure, value, unit, reference, f">= {goal:g}", value >= goal)


def render(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| measure | value | unit | reference | ratio | goal | met |",
        "|---|---:|---|---:|---:|---|---|",
    ]
    for row in rows:
        cell = row.as_json()
        met = {True: "yes", False: "**no**", None: ""}[row.met]
        reference = "" if row.reference is None else f"{row.reference:.3g}"
        ratio = "" if cell["ratio"] is None else f"{cell['ratio']:.2f}"
        lines.append(
            f"| {row.measure} | {row.value:.4g} | {row.unit} | {reference} | {ratio} | {row.goal} | {met} |"
        )
    return "\n".join(lines) + "\n"


def main(
    name: str,
    description: str,
    measure: Callable[[argparse.Namespace], list[Row]],
    arguments: Callable[[argparse.ArgumentParser], None] | None = None,
    argv: Sequence[str] | None = None,
) -> int:
    """Parse the common flags, measure, and print; a full run also updates docs/benchmarks.md."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=description)
    parser.add_argument("--json", action="store_true", help="print the rows as a JSON list and nothing else")
    parser.add_argument("--quick", action="store_true", help="a smaller run that ends within a minute")
    if arguments:
        arguments(parser)
    options = parser.parse_args(argv)
    rows = measure(options)
    if options.json:
        print(json.dumps([row.as_json() for row in rows], indent=2))
    else:
        print(render(rows))
    if not options.quick and not options.json:
        _publish(name, rows)
    return 0


def _publish(name: str, rows: Sequence[Row], page: Path = PAGE) -> None:
    stamp = datetime.now(UTC).strftime("%Y-%m-%d")
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    command = f"python -m benchmarks.{name} {' '.join(sys.argv[1:])}".strip()
    section = f"## {name}\n\n{stamp}, {machine}: `{command}`\n\n{render(rows)}"
    text = (
        page.read_text("utf-8")
        if page.exists()
        else "# Benchmarks\n\nWritten by the full run of each benchmark.\n"
    )
    pattern = re.compile(rf"^## {re.escape(name)}\n.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)
    text = pattern.sub("", text).rstrip() + "\n\n" + section
    write_text(page, text)
