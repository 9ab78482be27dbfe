"""Copies that went wrong, put right: a small reader that answers in a unit's words sometimes loses its place.

It repeats a part, skips one or swaps a word. A skip is the dangerous one: `12,843 unmarried and 1,388
same-sex couples` becomes `12,843 same-sex couples`, whose every word and number the unit holds, so the
support check passes it. What such a model means to say is the unit, so the unit is what is shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher

from core.types import Passage
from rag.citations import cited
from rag.prompt import is_refusal
from rag.words import one_line, words

ALIKE = 0.9  # ratio of like characters from which a sentence is a copy, however it begins
BEGINS = 3  # words; who begins as the unit is copying it


def mended(raw: str, passages: Sequence[Passage]) -> str:
    """The reply of a model that copies, each copy of a unit that went wrong replaced by the unit.

    What stands in its unit word for word, cites several units or is no copy stays; a reply without such
    errors is returned as it was.
    """
    if is_refusal(raw):
        return raw
    units = {unit.number: unit.text for passage in passages for unit in passage.units}
    said = cited(raw, passages)
    right = [
        units[sentence.cites[0]]
        if len(sentence.cites) == 1 and _garbled(sentence.text, units[sentence.cites[0]])
        else sentence.text
        for sentence in said
    ]
    if right == [sentence.text for sentence in said]:
        return raw
    marks = ["".join(f"[{number}]" for number in sentence.cites) for sentence in said]
    return " ".join(f"{mark} {text}".strip() for mark, text in zip(marks, right, strict=True))


def _garbled(text: str, unit: str) -> bool:
    said, source = words(text), words(unit)
    if one_line(text).rstrip(".!?") in one_line(unit) or not said:  # it may stop early
        return False
    begins = len(said) >= BEGINS and said[:BEGINS] == source[:BEGINS]
    return begins or SequenceMatcher(None, text, unit, autojunk=False).ratio() >= ALIKE
