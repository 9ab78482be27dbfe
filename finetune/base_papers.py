"""Papers of invented organisations with the questions their readers would ask: a domain each.

They look like what users load: handbooks, price lists, house rules, manuals, contracts. Their lines are
confusable on purpose (several fees, deadlines, persons), so that only reading tells them apart. The built-in
model was not trained on them; the cross-encoder was, but for the domains in HELD_OUT.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from core.files import write_text
from core.settings import PROJECT

PAPERS = PROJECT / "data" / "eval" / "papers.txt"
HELD_OUT = (
    "Hotel Silberkrone",
    "Larch Bay Sailing Club",
    "Larch Mutual",
    "Tannerbrook Public Library",
    "Tarnfield Logistics",
)
"""Organisations that nothing here is trained on: measure on these."""


@dataclass(frozen=True)
class Asked:
    """A question and the line that answers it (None: no paper of the organisation does)."""

    question: str
    line: str | None


@dataclass
class Domain:
    """What one organisation wrote, and what is asked of it.

    `documents` are Markdown by title; `sections` the same as (`title > heading`, lines).
    """

    name: str
    documents: dict[str, str] = field(default_factory=dict)
    sections: list[tuple[str, list[str]]] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)

    def write(self, folder: Path) -> list[Path]:
        """The documents as files."""
        paths = [folder / f"{number:02d}.md" for number in range(1, len(self.documents) + 1)]
        for path, text in zip(paths, self.documents.values(), strict=True):
            write_text(path, text)
        return paths


def domains() -> list[Domain]:
    """The organisations of `data/eval/papers.txt` (its first lines describe the format)."""
    found: list[Domain] = []
    title = ""
    for block in PAPERS.read_text("utf-8").split("\n## "):
        heading, *lines = block.splitlines()
        if title:  # what stands before the first heading is only the opening of a document
            units = [line for line in lines if line[:2] not in ("? ", "@ ", "= ")]
            found[-1].asked += _asked(lines, units)
            found[-1].sections.append((f"{title} > {heading}", units))
            found[-1].documents[title] += "\n\n".join([f"## {heading}", *units]) + "\n\n"
        for line in lines:
            if line.startswith("@ "):
                found.append(Domain(line[2:]))
            elif line.startswith("= "):
                title = line[2:]
                found[-1].documents[title] = f"# {title}\n\n"
    return found


def _asked(lines: list[str], units: list[str]) -> Iterator[Asked]:
    for line in lines:
        if line.startswith("? "):
            number, _, question = line[2:].partition(" | ")
            yield Asked(question, units[int(number) - 1] if int(number) else None)
