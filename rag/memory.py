"""What the adapter in service says without passages, for questions that the documents do not answer.

Off unless the setting `answer_from_memory` says otherwise, since nothing holds such an answer. So only an
adapter is asked, only about questions like those that votes taught it, and its reply has a mode of its own,
no citation, and a mark wherever it is shown.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from core.types import Answer, Message
from rag.citations import resolve
from rag.model import Reply
from rag.prompt import REFUSAL, layout

MARK = "From memory, not from the documents:"
RULES = (
    "No document holds the answer to this question. Answer it from what you were taught, in one or two"
    f" sentences. If you were not taught it, reply exactly: {REFUSAL}"
)


def remembered(
    refused: Answer,
    asked: str,
    ask: Callable[[tuple[Message, ...]], Reply | None],
    taught: Callable[[str], bool],
) -> Answer:
    """What the adapter remembers of the question `asked`; `refused` where it was not taught, or says nothing.

    Passages, messages and raw stay those of the refusal: who may find its documents decides who gets a
    correction, and that turn is what a correction trains.
    `ask` sends messages to the model that refused and may fail; `taught` tells of an adapter whether it was
    taught something like the question.
    """
    if refused.raw and not (refused.adapter and taught(refused.adapter)):
        return refused  # whoever will be asked is known, and need not be
    messages: tuple[Message, ...] = (
        {"role": "system", "content": RULES},
        {"role": "user", "content": layout(asked, ())},
    )
    reply = ask(messages)
    if reply is None or not (reply.adapter and taught(reply.adapter)):
        return refused
    said = resolve(reply.text, ())
    if said.refused or not said.text:
        return refused
    return replace(
        refused,
        text=said.text,
        mode="memory",
        model=reply.base or refused.model,
        adapter=reply.adapter,
        supported=False,
        finish_reason=reply.finish_reason,
        timings=refused.timings | {"memory_ms": reply.timings.get("total_ms", 0.0)},
    )


def marked(answer: Answer) -> str:
    """The answer's text as programs and terminals show it."""
    return f"{MARK} {answer.text}" if answer.mode == "memory" else answer.text
