"""What feedback is about: conversations, exchanges, votes and corrections as values."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass
from typing import Literal

from core.types import Answer, Citation, Unit, to_passages, to_trace

Status = Literal["complete", "interrupted", "failed"]


@dataclass(frozen=True)
class Conversation:
    """A thread of exchanges of one user; `created_at` is in UTC milliseconds."""

    id: str
    user_id: str
    title: str
    created_at: int


@dataclass(frozen=True)
class Exchange:
    """One question and its answer, with the prompt exactly as sent. `seq` orders exchanges."""

    seq: int
    id: str
    conversation_id: str
    user_id: str
    question: str
    answer: Answer
    status: Status
    created_at: int

    @property
    def units(self) -> tuple[Unit, ...]:
        """Every numbered unit of the prompt."""
        return tuple(unit for passage in self.answer.passages for unit in passage.units)


@dataclass(frozen=True)
class Vote:
    """One user's vote on one exchange: 1 is up, -1 is down."""

    exchange_id: str
    user_id: str
    value: int
    reason: str
    comment: str
    created_at: int


@dataclass(frozen=True)
class Correction:
    """What an answer should have said, in a user's words. `created_at` is when this text was written."""

    id: str
    exchange_id: str
    user_id: str
    question_key: str
    text: str
    status: Literal["pending", "approved", "rejected"]
    reviewer: str | None
    reviewed_at: int | None
    created_at: int


def to_exchange(row: sqlite3.Row) -> Exchange:
    """Rebuild an Exchange, with its Answer, from a row of `exchanges`."""
    answer = Answer(
        text=row["answer"],
        raw=row["raw"],
        mode=row["mode"],
        citations=tuple(Citation(**citation) for citation in json.loads(row["citations"])),
        passages=to_passages(json.loads(row["passages"])),
        messages=tuple(json.loads(row["messages"])),
        model=row["model"],
        adapter=row["adapter_id"],
        prompt_version=row["prompt_version"],
        supported=bool(row["supported"]),
        finish_reason=row["finish_reason"],
        sampling=json.loads(row["sampling"]),
        timings=json.loads(row["timings"]),
        trace=to_trace(json.loads(row["trace"])),
    )
    return Exchange(
        row["seq"], row["id"], row["conversation_id"], row["user_id"], row["question"],
        answer, row["status"], row["created_at"],
    )  # fmt: skip
