"""Rows of a PDF page into a table: columns are where the cells of several lines stand above each other."""

from __future__ import annotations

from collections.abc import Sequence

from rag.page_lines import Line, Run

CLEAR = 0.8  # share of cells that must stand in one column alone
TOUCH = 1.0  # points by which neighbours may overlap


class Column:
    """A stretch of the page's width, in points."""

    def __init__(self, left: float, right: float) -> None:
        self.left = left
        self.right = max(right, left + 1.0)

    def holds(self, run: Run) -> bool:
        """Whether the run stands in it, wholly or in part, or starts at its edge."""
        overlap = min(self.right, run.right) - max(self.left, run.x)
        return overlap > TOUCH or abs(self.left - run.x) < 6

    def distance(self, run: Run) -> float:
        """Points between the run and the column."""
        return 0.0 if self.holds(run) else max(self.left - run.right, run.x - self.right, 0.0)


def grid(lines: Sequence[Line]) -> list[list[str]] | None:
    """The cells of the lines, one list per line, all equally long; None when they form no table."""
    columns = _columns(lines)
    cells = [run for line in lines for run in line.cells]
    clear = sum(sum(column.holds(run) for column in columns) <= 1 for run in cells)
    if len(lines) < 2 or len(columns) < 2 or clear < CLEAR * len(cells):
        return None
    rows = []
    for line in lines:
        row = [""] * len(columns)
        for place, run in enumerate(sorted(line.cells, key=lambda run: run.x)):
            # numbers flush right may stand nearer to the next heading than to their own
            full = len(line.cells) == len(columns)
            at = place if full else min(range(len(columns)), key=lambda index: columns[index].distance(run))
            row[at] = f"{row[at]} {run.text}".strip()
        rows.append(row)
    shared = sum(sum(bool(row[at]) for row in rows) >= 2 for at in range(len(columns)))
    if shared < 2:
        return None
    leftwards = lines[0].cells[0].x > lines[0].cells[-1].x  # Arabic and Hebrew: the first column stands right
    return [row[::-1] for row in rows] if leftwards else rows


def has_header(lines: Sequence[Line], rows: Sequence[Sequence[str]]) -> bool:
    """Whether the first row names the columns: bold above plain, or words alone above other things."""
    first = [run.bold for run in lines[0].cells]
    rest = [run.bold for line in lines[1:] for run in line.cells]
    if all(first) and not all(rest):
        return True
    return all(cell and not any(char.isdigit() for char in cell) for cell in rows[0])


def _columns(lines: Sequence[Line]) -> list[Column]:
    """Start from the line with most cells; every cell that fits one column alone widens it."""
    widest = max(lines, key=lambda line: len(line.cells))
    columns = [Column(run.x, run.right) for run in sorted(widest.cells, key=lambda run: run.x)]
    for line in lines:
        for run in line.cells:
            held = [column for column in columns if column.holds(run)]
            if len(held) == 1:
                held[0].left = min(held[0].left, run.x)
                held[0].right = max(held[0].right, run.right)
    return columns
