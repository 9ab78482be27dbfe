"""How large a piece of a prompt is evaluated at once, from how fast the last pieces went."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from engine.context import BATCH

STREAM_SECONDS = 0.3  # the longest wait for the next token that each waiting prompt may cause others
ALONE_SECONDS = 0.9  # a cancelled prompt is let go within this time
SMALLEST = 16  # below this the kernels are no faster than one token at a time
_MEMORY = 0.7  # share of the old estimate in the new one


class Pace:
    """Seconds a prompt token takes, as an exponential average."""

    def __init__(self, seconds_per_token: float = 0.002) -> None:
        self.seconds = seconds_per_token

    @contextmanager
    def timed(self, tokens: int) -> Iterator[None]:
        """Learn from evaluating so many tokens; very few say little about a token's time."""
        began = time.monotonic()
        yield
        if tokens >= SMALLEST:
            found = (time.monotonic() - began) / tokens
            self.seconds = _MEMORY * self.seconds + (1 - _MEMORY) * found

    def chunk(self, *, streaming: bool, waiting: int = 1) -> int:
        """How many tokens to evaluate: a power of two, so that chunks begin where whole blocks do.

        The more prompts are `waiting`, the longer streams may pause. Else a few early streams go on in narrow
        calls, for each of which all weights are read, while the others have nothing yet.
        """
        longest = min(ALONE_SECONDS, waiting * STREAM_SECONDS) if streaming else ALONE_SECONDS
        allowed = longest / max(self.seconds, 1e-9)
        size = BATCH
        while size > SMALLEST and size > allowed:
            size //= 2
        return size
