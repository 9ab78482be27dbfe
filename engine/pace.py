"""How large a piece of a prompt is evaluated at once, from how fast the last pieces went."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from engine.context import BATCH

STREAM_SECONDS = 0.3  # the longest wait for the next token that one waiting prompt may cause others
ALONE_SECONDS = 0.9  # as long as anybody's wait gets; a cancelled prompt is let go within this time
PATIENCE_SECONDS = 5.0  # a prompt that has waited so long counts as one more
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

    def chunk(self, *, streaming: bool, waiting: int = 1, waited: float = 0.0) -> int:
        """How many tokens to evaluate: a multiple of SMALLEST, so that chunks begin where whole blocks do.

        The more prompts are `waiting`, and the more seconds the first of them has `waited`, the longer may
        streams pause. Else a few early streams go on in narrow calls, for each of which all weights are read,
        while the others have nothing yet.
        """
        pressure = waiting + waited / PATIENCE_SECONDS
        longest = min(ALONE_SECONDS, pressure * STREAM_SECONDS) if streaming else ALONE_SECONDS
        allowed = min(BATCH, int(longest / max(self.seconds, 1e-9)))
        return max(SMALLEST, allowed // SMALLEST * SMALLEST)
