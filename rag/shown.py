"""What is shown of a model's reply: the reply where it is believed, else the best line, else a refusal.

A reply is believed when the lines it cites hold it. A small model judges badly which line answers, and
whether any does (`second_look`). Where a cross-encoder can say that better, one of two must come to it:

- the reply cites the very line that would be quoted without it, so that the whole is as good as quoting;
- its adapter was taught a question like this one: what users taught, the cross-encoder cannot know.

The exam shows replies in the same way, so that the gate judges what users see. Figures: docs/log.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from core.catalog import CatalogModel
from core.types import AnswerMode, Passage
from rag.citations import Likelihood, Resolved, Similarity, quote, resolve, support
from rag.copies import mended
from rag.prompt import REFUSAL

REFUSED = Resolved(REFUSAL, (), (), True)


class Finder(Protocol):
    """What knows which line answers: `rag.retrieve.Retriever`."""

    @property
    def similarity(self) -> Similarity | None:
        """Cosine of a question to texts, where there are vectors."""

    @property
    def answers(self) -> Likelihood | None:
        """The cross-encoder's opinion, where there is one."""


@dataclass(frozen=True)
class Shown:
    """What is shown. `said` is the same as a model would write it, each sentence with its unit's number."""

    resolved: Resolved
    mode: AnswerMode
    supported: bool
    said: str


@dataclass(frozen=True)
class Showing:
    """How replies of `model` are shown; `threshold` is the support that they need.

    `taught` tells of an adapter and a question whether the one was taught something like the other.
    """

    model: CatalogModel
    threshold: float
    finder: Finder
    taught: Callable[[str, str], bool]

    def show(self, question: str, raw: str, passages: Sequence[Passage], adapter: str | None = None) -> Shown:
        """What is shown of the reply `raw` to `question`, as it was searched for; `adapter` wrote it."""
        resolved = resolve(raw, passages)
        if resolved.refused and (not self.model.second_look or self._knows(question, adapter)):
            return Shown(REFUSED, "refusal", True, REFUSAL)
        held = resolved.text and not resolved.refused and support(raw, passages) >= self.threshold
        if held and (not self._doubts or self._knows(question, adapter)):
            return self._as_written(raw, passages)
        quoted = quote(question, passages, self.finder.similarity, self.finder.answers)
        if quoted is None:
            return Shown(REFUSED, "refusal", resolved.refused, REFUSAL)
        if held and set(quoted.units) <= set(resolved.units):
            return self._as_written(raw, passages)
        return Shown(quoted, "quotes", False, quoted.said)

    def _as_written(self, raw: str, passages: Sequence[Passage]) -> Shown:
        said = mended(raw, passages) if self.model.cite_first else raw
        return Shown(resolve(said, passages), "answer", True, said)

    @property
    def _doubts(self) -> bool:
        """Whether a supported reply is not enough, and there is something that knows better."""
        return self.model.second_look and self.finder.answers is not None

    def _knows(self, question: str, adapter: str | None) -> bool:
        return adapter is not None and self.taught(adapter, question)
