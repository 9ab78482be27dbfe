"""Passages that stand next to each other in a document, put together again before a model reads them.

Chunks cut a section at a size that search needs, not where its sense ends. Joined, they are one block under
one heading: the model reads them in the document's order, and the heading is not written twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from core.types import Passage

GAP = 8  # characters between neighbours: white space, a bullet; a chunk between them would be longer


def merged(passages: Sequence[Passage]) -> list[Passage]:
    """The passages in their order, neighbours as one in the place, and with the id and scores, of the best.

    The characters between two are replaced by line ends, so that all offsets stay true and every unit stays
    itself. What was edited by hand, or whose units were chosen already (`rag.focus`), is left alone.
    """
    runs: list[tuple[int, Passage]] = []
    for rank, passage in sorted(enumerate(passages), key=lambda pair: (_section(pair[1]), pair[1].start)):
        if runs and _adjoin(runs[-1][1], passage):
            runs[-1] = _join(runs[-1], (rank, passage))
        else:
            runs.append((rank, passage))
    return [passage for _, passage in sorted(runs, key=lambda run: run[0])]


def _section(passage: Passage) -> tuple[str, str, int]:
    return passage.document_id, passage.heading, passage.page or 0


def _adjoin(before: Passage, after: Passage) -> bool:
    shared = before.text[after.start - before.start :]  # nothing, but for passages that overlap
    return (
        _section(before) == _section(after)
        and (shared.startswith(after.text) or after.text.startswith(shared))
        and not (before.units or after.units or before.edited or after.edited)
        and after.start - before.end <= GAP
    )


def _join(first: tuple[int, Passage], second: tuple[int, Passage]) -> tuple[int, Passage]:
    before, after = first[1], second[1]
    gap = after.start - before.end
    text = before.text + "\n" * gap + after.text[max(0, -gap) :]
    rank, best = min(first, second, key=lambda run: run[0])
    return rank, replace(best, start=before.start, end=max(before.end, after.end), text=text)
