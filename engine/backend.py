"""What the scheduler drives: llama.cpp, another server, or a script of replies in tests and demos.

A backend works on several replies at once. `begin` takes one on, every `step` advances all of them a little
and says what came out, `end` lets one go early.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from engine.requests import Request

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True)
class Prompt:
    """A request's token ids. The first `shared` of them are the system message's, the same for every user."""

    tokens: tuple[int, ...]
    shared: int = 0


@dataclass(frozen=True)
class Begun:
    """The prompt is being evaluated; `cached_tokens` of it had been evaluated before."""

    prompt_tokens: int
    cached_tokens: int = 0


@dataclass(frozen=True)
class TokenLogprob:
    """A token's text and natural log probability, with the most probable ones at its place.

    `logprob` is None for the first token of a given text, which nothing predicts. `data` are the bytes that
    the token adds to the reply: none for a control token, and maybe a part of a character.
    """

    text: str
    logprob: float | None
    top: tuple[TokenLogprob, ...] = ()
    data: bytes = b""


@dataclass(frozen=True)
class Piece:
    """The next characters of a reply; never half a character. Log probabilities only when asked for."""

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Finished:
    """The end of a reply and its token counts. `length` is a limit of tokens, context or time."""

    reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


@dataclass(frozen=True)
class Failed:
    """The end of a reply that came to nothing."""

    error: Exception


Part = Begun | Piece | Finished | Failed


@dataclass(eq=False)
class Work:
    """One reply in work. `adapter_id` None is the bare base model; `owner` may reuse its own prompts."""

    request: Request
    prompt: Prompt
    adapter_id: str | None
    owner: str = ""
    state: Any = field(default=None, repr=False)  # the backend's own


Output = tuple[Work, Part]


class Backend(Protocol):
    """One loaded model. Methods run on the owner thread, one at a time, unless they say otherwise."""

    @property
    def slots(self) -> int:
        """How many replies can be in work at once."""

    def load(self) -> None:
        """Load the model (raises ModelError)."""

    def check_adapter(self, adapter_id: str, path: Path) -> None:
        """Whether an adapter's file is sound and fits, on any thread (raises ModelError)."""

    def load_adapter(self, adapter_id: str, path: Path) -> None:
        """Load a checked adapter (raises ModelError and keeps nothing)."""

    def scale_adapter(self, adapter_id: str, scale: float) -> None:
        """How strongly an adapter acts on replies begun from now on; 1 is as trained."""

    def free_adapter(self, adapter_id: str) -> None:
        """Forget an adapter once no reply uses it; unknown ids are ignored."""

    def prepare(self, request: Request) -> Prompt:
        """Encode and check a prompt, on any thread (raises BadRequest when it does not fit)."""

    def begin(self, work: Work) -> None:
        """Take a reply on; at most `slots` may be in work."""

    def step(self) -> Sequence[Output]:
        """Advance every reply in work a little; each ends with exactly one Finished or Failed."""

    def end(self, work: Work) -> Finished:
        """Let a reply go early, with the counts so far."""

    def interrupt(self) -> None:
        """Make a long `step` return soon, for ever after; on any thread, when the engine stops."""

    def facts(self) -> dict[str, Any]:
        """What /health reports about the model, on any thread."""

    def close(self) -> None:
        """Free everything native; nothing may be called after it."""
