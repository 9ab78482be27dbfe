"""What a search found and left out, kept with the answer so that it can be explained afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from core.types import Answer, LeftOut, Passage, Trace, Why
from rag.followup import FollowUp
from rag.prompt import Prompt

LISTED = 20  # passages left out that are told of
SILENT = "The vector index did not answer."


@dataclass(frozen=True)
class Found:
    """Passages to read, some of those left out, and why vectors had no part in it (empty: they had)."""

    passages: list[Passage]
    left_out: tuple[LeftOut, ...] = ()
    words_only: str = ""


def left(passage: Passage, why: Why) -> LeftOut:
    """A passage that is not read, and why."""
    return LeftOut(passage.document_id, passage.document, passage.heading, passage.page, why)


def merged(found: Sequence[Found], passages: list[Passage]) -> Found:
    """What was found for the parts of a question as one, of which `passages` are read."""
    read = {(passage.document_id, passage.heading, passage.page) for passage in passages}
    rest = [left(one, "rank") for part in found for one in part.passages]
    left_out = dict.fromkeys([*rest, *(one for part in found for one in part.left_out)])
    told = tuple(one for one in left_out if (one.document_id, one.heading, one.page) not in read)[:LISTED]
    return Found(passages, told, next((part.words_only for part in found if part.words_only), ""))


def traced(question: FollowUp, found: Found, turns: int, prompt: Prompt | None = None) -> Trace:
    """What the prompt, if there was one, does not hold of what was found and of `turns` earlier questions."""
    full = [left(passage, "budget") for passage in found.passages if prompt and not _holds(prompt, passage)]
    asked = sum(message["role"] == "user" for message in prompt.messages) - 1 if prompt else 0
    return Trace(question.text, found.words_only, (*full, *found.left_out), turns - asked)


def _holds(prompt: Prompt, passage: Passage) -> bool:
    """Whether the passage stands in the prompt, maybe as a part of a block of neighbours."""
    return any(
        block.document_id == passage.document_id and block.start <= passage.start and passage.end <= block.end
        for block in prompt.passages
    )


def search_notice(answer: Answer) -> str:
    """One sentence where vectors had no part in finding an answer's passages; empty where they had."""
    if not answer.trace.words_only:
        return ""
    reason = answer.trace.words_only.rstrip(".")
    return f"Only words were searched ({reason}), so passages that say it in other words may be missing."
