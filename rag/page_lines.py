"""Runs of text on a PDF page, and the lines they make. Units are points, y grows upwards."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

from rag.words import one_line

MARKER = re.compile(r"(\d{1,3})[.)]?|[•●○■□▪◦‣➢✓–*-]|")
"""The bullet or number that stands before a list item."""


@dataclass(frozen=True)
class Run:
    """A piece of text with the position of its left baseline, its type size and right edge (0: unknown)."""

    text: str
    x: float
    y: float
    size: float
    bold: bool
    right: float = 0.0


@dataclass(frozen=True)
class Line:
    """Runs on one baseline, left to right."""

    cells: tuple[Run, ...]

    @cached_property
    def text(self) -> str:
        """The line's words."""
        return one_line(" ".join(run.text for run in self.cells))

    @cached_property
    def size(self) -> float:
        """Its largest type size; the bullet or number before an item does not count."""
        words = [run.size for run in self.cells if not is_marker(run.text)]
        return max(words, default=self.cells[0].size)

    @property
    def y(self) -> float:
        """Height of its baseline."""
        return self.cells[0].y


def is_marker(text: str) -> bool:
    """Whether a run is the bullet or number before a list item."""
    return MARKER.fullmatch(one_line(text)) is not None
