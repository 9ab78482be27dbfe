"""Values that cross package borders. Types used by one package live with their producer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict


class Message(TypedDict):
    """One chat message in the OpenAI layout."""

    role: Literal["system", "user", "assistant"]
    content: str


AnswerMode = Literal["answer", "quotes", "refusal", "memory", "correction", "chat"]
"""How an answer came about: written by the model, quoted because the model's reply was not believed,
refused because the passages do not hold it, said by an adapter without passages (`rag.memory`), taken
from a reviewed correction, or small talk."""


@dataclass(frozen=True)
class Unit:
    """The smallest citable piece of a passage: a sentence, a list item or a table row.

    `number` is the 1-based label shown to the model; `start` and `end` are character offsets into the
    document's extracted text.
    """

    number: int
    text: str
    start: int
    end: int


@dataclass(frozen=True)
class Passage:
    """A retrieved chunk with its numbered units and the score of every retrieval stage.

    `text` is the document's from `start` to `end`, unless it was `edited` by hand: then the units' offsets
    count on from `start` in the edited text, and only the whole span is a place in the source.
    """

    chunk_id: int
    document_id: str
    document: str
    heading: str
    page: int | None
    start: int
    end: int
    text: str
    units: tuple[Unit, ...] = ()
    scores: dict[str, float] = field(default_factory=dict)
    edited: bool = False


@dataclass(frozen=True)
class Citation:
    """A place in a source: the displayed number, the unit it stands for and where that unit lies.

    Of a passage that was `edited` by hand, `quote` is the edited text and the place is that of the whole
    passage in the source.
    """

    number: int
    unit: int
    document_id: str
    document: str
    heading: str
    page: int | None
    start: int
    end: int
    quote: str
    edited: bool = False


Why = Literal["repeat", "document", "owner", "lines", "rank", "budget"]
"""Why a passage that was found is not in the prompt: another holds its words, its document or its owner has
its share, none of its lines is among those that the model reads, the model reads fewer passages, or the
prompt was full."""


@dataclass(frozen=True)
class LeftOut:
    """A passage that was found and not read, and why."""

    document_id: str
    document: str
    heading: str
    page: int | None
    why: Why


@dataclass(frozen=True)
class Trace:
    """How passages and prompt of an answer came about, as far as the prompt does not say so itself.

    `searched` is what was searched for; `words_only` says why vectors had no part in it, and is empty where
    they had; `turns_cut` counts earlier questions of the conversation that the prompt does not hold.
    """

    searched: str = ""
    words_only: str = ""
    left_out: tuple[LeftOut, ...] = ()
    turns_cut: int = 0


@dataclass(frozen=True)
class Answer:
    """The finished reply to one question, with everything needed to show, audit and train on it.

    `supported` says whether the model's own reply (`raw`) was believed, see `rag.shown`. With mode `memory`,
    raw, passages and messages are those of the refusal that the text stands for.
    """

    text: str
    raw: str
    mode: AnswerMode
    citations: tuple[Citation, ...]
    passages: tuple[Passage, ...]
    messages: tuple[Message, ...]
    model: str
    adapter: str | None
    prompt_version: str
    supported: bool
    finish_reason: str
    sampling: dict[str, Any]
    timings: dict[str, float]
    trace: Trace = Trace()


def to_passages(rows: list[dict[str, Any]]) -> tuple[Passage, ...]:
    """Rebuild passages, with their units, from their JSON form (`dataclasses.asdict`)."""
    return tuple(Passage(**(row | {"units": tuple(Unit(**unit) for unit in row["units"])})) for row in rows)


def to_trace(row: dict[str, Any]) -> Trace:
    """Rebuild a trace from its JSON form (`dataclasses.asdict`)."""
    return Trace(**(row | {"left_out": tuple(LeftOut(**one) for one in row.get("left_out", ()))}))
