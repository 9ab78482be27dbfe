"""What every loader produces: one text, and the sections in it.

The text's first line is always the title; each paragraph, list item and table row is one line, so that
units never run across blocks. A table row carries its headers: `Header: value; Header: value.`
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import PurePath

from core.errors import DocumentError
from rag.filetypes import decoded
from rag.words import one_line

MAX_TEXT = 5_000_000
MAX_HEADING = 120
REPEAT = 80  # characters from which a second copy of a block counts as a repetition
# zero-width spaces, direction overrides and tag characters; joiners are left out, many scripts need them
_HIDDEN = re.compile("[\u200b\u202a-\u202e\u2060-\u2069\ufeff\U000e0000-\U000e007f]")


@dataclass(frozen=True)
class Section:
    """A stretch of the text under one heading on one page; `heading` is a path like "Pay > Overtime"."""

    heading: str
    start: int
    end: int
    page: int | None


@dataclass(frozen=True)
class Extracted:
    """A document's text and outline; all offsets are characters of `text`.

    `quality` counts what a reader should know about the extraction; `rag.quality` names its keys.
    """

    kind: str
    title: str
    text: str
    sections: tuple[Section, ...]
    quality: dict[str, int] = field(default_factory=dict)


class Outline:
    """Collects blocks in reading order. The first heading becomes the title when nothing stood before it."""

    def __init__(self, kind: str, name: str) -> None:
        self._kind = kind
        self._title = pretty_name(name)
        self._parts: list[str] = []
        self._length = 0
        self._sections: list[Section] = []
        self._path: list[tuple[int, str]] = []
        self._page: int | None = None
        self._begin = 0
        self._empty = True
        self._lone = (-1, 0)  # where the last heading starts, and its level
        self._seen: set[int] = set()
        self._quality: Counter[str] = Counter()

    @property
    def length(self) -> int:
        """Characters collected so far."""
        return self._length

    def count(self, what: str, number: int = 1) -> None:
        """Add to the quality report (see `rag.quality` for what is counted)."""
        if number:
            self._quality[what] += number

    def decode(self, data: bytes) -> str:
        """Bytes to text; what had to be repaired is counted (raises DocumentError, see `rag.filetypes`)."""
        text, repaired = decoded(data)
        self.count("repaired", repaired)
        return text

    def page(self, number: int) -> None:
        """The blocks that follow stand on this page (from 1)."""
        if number != self._page:
            self._close()
            self._page = number

    def heading(self, level: int, text: str) -> None:
        """A heading of level 1 to 9; it closes the section before it."""
        self._look(text)
        text = one_line(text)[:MAX_HEADING].strip()
        if not text:
            return
        self._close(level)
        self._lone = (self._length, level)
        if self._empty:
            self._title, self._empty = text, False
            self._append(text, "\n\n")
            self._path = []
        else:
            self._path = [(depth, name) for depth, name in self._path if depth < level]
            self._path.append((level, text))
            self._append(text, "\n\n")
        self._begin = self._length

    def paragraph(self, text: str) -> None:
        """Running text; several sentences are cut into units later."""
        self._look(text)
        self._block(one_line(text), "\n\n")

    def item(self, text: str, number: int | None = None) -> None:
        """An item of a bulleted or numbered list."""
        self._look(text)
        text = one_line(text)
        self._block(text and (f"{number}. {text}" if number is not None else f"- {text}"), "\n")

    def line(self, text: str) -> None:
        """A line that stands for itself, such as one of a listing."""
        self._look(text)
        self._block(one_line(text), "\n")

    def table(self, rows: Sequence[Sequence[str]]) -> None:
        """A table whose first row names the columns (a single row is taken as text)."""
        for row in rows:
            self._look(" ".join(row))
        cells = [[one_line(cell) for cell in row] for row in rows]
        cells = [row for row in cells if any(row)]
        self.count("tables")
        if len(cells) < 2:
            for row in cells:
                self.line(" ".join(row))
            return
        for row in cells[1:]:
            self.line(row_text(cells[0], row))

    def finish(self) -> Extracted:
        """The document (raises DocumentError when it holds no text)."""
        self._close()
        if not self._sections:
            raise DocumentError("No text was found in this document.")
        if self._empty:
            raise AssertionError("a block opens the text with the title")
        return Extracted(
            self._kind, self._title, "".join(self._parts), tuple(self._sections), dict(self._quality)
        )

    def _block(self, text: str, ending: str) -> None:
        if not any(char.isalnum() for char in text):
            return
        if len(text) >= REPEAT:
            key = hash(text)
            self.count("repeated", key in self._seen)
            self._seen.add(key)
        if self._empty:
            self._empty = False
            self._append(self._title, "\n\n")
            self._begin = self._length
        self._append(text, ending)

    def _append(self, text: str, ending: str) -> None:
        # a list or table is set off from the paragraph after it
        if ending == "\n\n" and self._parts and self._parts[-1] == "\n":
            self._parts.append("\n")
            self._length += 1
        self._parts += [text, ending]
        self._length += len(text) + len(ending)
        if self._length > MAX_TEXT:
            raise DocumentError(
                f"The document holds more than {MAX_TEXT:,} characters of text.",
                "Split it into smaller ones.",
            )

    def _look(self, text: str) -> None:
        if not text.isascii():
            self.count("hidden", len(_HIDDEN.findall(text)))
            self.count("repaired", text.count("\ufffd"))

    def _close(self, level: int = 0) -> None:
        start, depth = self._lone
        if self._begin == self._length > start >= 0 and level <= depth:
            self._begin = start  # a heading with nothing below it, such as a slide's title, is text itself
        self._lone = (-1, 0)
        if self._length > self._begin:
            path = " > ".join(name for _, name in self._path)
            self._sections.append(Section(path, self._begin, self._length, self._page))
        self._begin = self._length


def blocks(rows: Iterable[list[str]]) -> Iterator[list[list[str]]]:
    """Runs of rows that hold something: blank rows part the tables of a sheet."""
    return (list(run) for filled, run in groupby(rows, any) if filled)


def row_text(headers: Sequence[str], row: Sequence[str]) -> str:
    """A table row that explains itself: `Plan: Basic; Price: 10 EUR.`; empty cells are left out."""
    parts = []
    for index, value in enumerate(row):
        header = headers[index] if index < len(headers) else ""
        header = re.sub(r"[:;]", " ", header).strip()[:80] or (
            "Item" if index == 0 else f"Column {index + 1}"
        )
        value = value.replace(";", ",").strip()
        if value:
            parts.append(f"{header}: {value}")
    text = "; ".join(parts)
    return text if text.endswith((".", "!", "?")) else f"{text}."


def pretty_name(name: str) -> str:
    """A title from a file name: `price-list_2024.csv` becomes `Price list 2024`."""
    stem = one_line(re.sub(r"[-_]+", " ", PurePath(name.replace("\\", "/")).stem))[:MAX_HEADING].strip()
    return stem[:1].upper() + stem[1:] if stem else "Untitled"
