"""Texts that several pages show in the same way."""

from __future__ import annotations

from core.types import LeftOut, Passage


def short(text: str, length: int) -> str:
    """The text on one line, cut with an ellipsis."""
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 1] + "…"


def place(passage: Passage | LeftOut) -> str:
    """Document, heading and page of a passage, and whether it was edited by hand."""
    where = f"{passage.document} › {passage.heading}" if passage.heading else passage.document
    where += f", p. {passage.page}" if passage.page else ""
    return f"{where} (edited)" if isinstance(passage, Passage) and passage.edited else where
