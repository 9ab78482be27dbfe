"""A question that asks several things, in its parts: each is searched for, and answered, by itself.

"What does a household membership cost, and when is the shop open?" has two answers, which seldom stand in one
place. Searched for as a whole, the better matched half fills all places. Taking a question apart before the
search is the first step of multi-hop methods (Press et al., "Measuring and Narrowing the Compositionality Gap
in Language Models", Findings of EMNLP 2023); here it is done by rules, since a model of a few million
parameters cannot, and a rule is free. Figures: `python -m benchmarks.parts`, docs/log.md.

Not done: a part whose search needs the answer of the part before it ("Who runs the shop that ...?").
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import zip_longest

from core.types import Passage
from rag.followup import with_context
from rag.words import words

MOST = 4  # parts; what asks more is searched for as a whole, since each would get too few passages

_ASKS = r"(?:what|which|who|whom|whose|where|when|why|how)\b"
_VERB = r"(?:is|are|was|were|do|does|did|can|could|may|must|should|will|would|has|have)\b"
_SUBJECT = r"(?:it|they|there|this|that|these|those|the|an?|my|our|your|i|you|we|he|she|one)\b"
# ", and how much"; a comma alone joins no questions: "If it rains, what then?"
_JOINT = re.compile(
    rf"[,;]?\s+(?:and|but)\s+(?:also\s+)?(?={_ASKS}|{_VERB}\s+{_SUBJECT})|;\s+(?={_ASKS})",
    re.IGNORECASE,
)
_QUESTION = re.compile(rf"^{_VERB}|\b{_ASKS}", re.IGNORECASE)
_ENDS = re.compile(r"(?<=\?)\s+(?=[^?]*\?)")  # not before a remark that follows the last question
_TOPIC = re.compile(r"(?<=\?)\s*\([^?]*\)$")  # of a follow-up, see `rag.followup`: it is that of every part


@dataclass(frozen=True)
class Part:
    """One question of several: as it was `asked`, and how it is `searched` for, which stands alone."""

    asked: str
    searched: str


def parts(question: str) -> tuple[Part, ...]:
    """The questions that `question` consists of; itself when it is one. Deterministic.

    Statements before a question belong to it. A part that leans on those before it ("and how much?") is
    searched for with their topic (`rag.followup`).
    """
    whole, topic = question.strip(), ""
    if found := _TOPIC.search(whole):
        whole, topic = whole[: found.start()], found.group()
    asked = [part for sentence in _ENDS.split(whole) for part in _joined(sentence)]
    if not 1 < len(asked) <= MOST or not all(words(part) for part in asked):
        return (Part(question, question),)
    return tuple(Part(part, f"{with_context(part, asked[:at])}{topic}") for at, part in enumerate(asked))


def _joined(sentence: str) -> list[str]:
    """The questions of a sentence; "Those who ride and those who walk" asks nothing before its "and"."""
    found = _JOINT.split(sentence)
    return found if _QUESTION.search(found[0]) else [sentence]


def together(found: Iterable[list[Passage]], most: int) -> list[Passage]:
    """At most `most` passages from each part's, by turns, best first; one that several parts found is one.

    Its units are those of all, in the order of the parts.
    """
    merged: dict[int, Passage] = {}
    for passage in (one for row in zip_longest(*found) for one in row if one is not None):
        known = merged.get(passage.chunk_id)
        if known is None and len(merged) < most:
            merged[passage.chunk_id] = passage
        elif known is not None:
            units = {(unit.start, unit.end): unit for unit in (*known.units, *passage.units)}
            merged[passage.chunk_id] = replace(known, units=tuple(units.values()))
    return list(merged.values())
