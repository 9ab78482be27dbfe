"""Papers of invented organisations, written by hand with the questions their readers would ask.

They look like what users load: handbooks, price lists, house rules, manuals, contracts. Their lines are
confusable on purpose (several fees, deadlines, persons), so that only reading tells them apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from core.types import Passage
from finetune.base_shelf import Asked, passage


@dataclass
class Papers:
    """What one organisation wrote, and what is asked of it."""

    name: str
    passages: list[Passage] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)


def papers() -> list[Papers]:
    """The organisations of `base_papers.txt` (its first lines describe the format)."""
    found: list[Papers] = []
    document = ""
    text = Path(__file__).with_name("base_papers.txt").read_text("utf-8")
    for block in text.split("\n## "):
        heading, *lines = block.splitlines()
        if document:  # what stands before the first heading is only the opening of a document
            _section(found[-1], f"{document} > {heading}", lines)
        for line in lines:
            if line.startswith("@ "):
                found.append(Papers(line[2:]))
            elif line.startswith("= "):
                document = line[2:]
    return found


def _section(home: Papers, heading: str, lines: list[str]) -> None:
    units = [line for line in lines if line[:2] not in ("? ", "@ ", "= ")]
    for number, question in _questions(lines):
        gold = (units[number - 1],) if number else ()
        home.asked.append(Asked(question, len(home.passages), gold, "papers"))
    home.passages.append(passage(heading, units))


def _questions(lines: list[str]) -> Iterator[tuple[int, str]]:
    for line in lines:
        if line.startswith("? "):
            number, _, question = line[2:].partition(" | ")
            yield int(number), question
