"""What the scheduler drives: llama.cpp in service, or a script of replies in tests and demos."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from engine.requests import Request

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True)
class Begun:
    """The prompt was accepted and is being evaluated."""

    prompt_tokens: int


@dataclass(frozen=True)
class Piece:
    """The next characters of a reply; never half a character."""

    text: str


@dataclass(frozen=True)
class Finished:
    """The end of a reply and its token counts. `length` is a limit of tokens, context or time."""

    reason: FinishReason
    prompt_tokens: int
    completion_tokens: int


Part = Begun | Piece | Finished


class StopFlag:
    """Set by any thread, read between tokens, and by llama.cpp inside a long prompt evaluation.

    `buffer` holds an empty C string until the flag is set and a one-character string after it.
    """

    def __init__(self) -> None:
        self.buffer = bytearray(2)
        self.reason: Literal["", "cancelled", "timeout"] = ""
        self._lock = threading.Lock()

    def set(self, reason: Literal["cancelled", "timeout"]) -> None:
        """Ask the generation to stop; the first reason stays."""
        with self._lock:
            if not self.reason:
                self.reason = reason
                self.buffer[0] = 1

    @property
    def is_set(self) -> bool:
        """Whether somebody asked to stop."""
        return bool(self.reason)


class Backend(Protocol):
    """One loaded model. Every method runs on the owner thread, one at a time."""

    def load(self) -> None:
        """Load the model (raises ModelError)."""

    def load_adapter(self, adapter_id: str, path: Path) -> None:
        """Load an adapter and try it on canary prompts (raises ModelError and keeps nothing)."""

    def free_adapter(self, adapter_id: str) -> None:
        """Forget an adapter; unknown ids are ignored."""

    def generate(self, request: Request, adapter_id: str | None, stop: StopFlag) -> Iterator[Part]:
        """Yield Begun, the reply's pieces and exactly one Finished (raises BadRequest or ModelError)."""

    def facts(self) -> dict[str, Any]:
        """What /health reports about the model."""

    def close(self) -> None:
        """Free everything native; nothing may be called after it."""
