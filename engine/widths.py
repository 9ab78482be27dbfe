"""How many replies to decode in one call: as many as there are, unless fewer at a time are faster.

On a CPU llama.cpp takes another route for two or more rows than for one, and for some block types it is
slower at first. CPU milliseconds of one call with 500 tokens in each sequence, one core (AVX-512):

    rows         1    2    3    4    5    6    8
    0.6B Q8_0   45  114  136  156  207  239  260
    1B   Q8_0   62  148  163  192  293  324  297
    0.6B Q4_K_M 32   66   96  126  156  183  268

Two replies of a Q8_0 model are quicker one after the other, eight are not. So the calls are timed as they are
made, and a group is split where the times say that it pays.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

GAIN = 0.9  # a split must be expected to take less than this share
RETRY = 64  # every so many calls the whole group goes in one, in case the times changed
_MEMORY = 0.8  # share of the old estimate in the new one


class Widths:
    """Seconds that decoding so many rows takes, as exponential averages."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}
        self._calls = 0

    @contextmanager
    def timed(self, rows: int) -> Iterator[None]:
        """Learn from a call."""
        began = time.monotonic()
        yield
        took = time.monotonic() - began
        self._seconds[rows] = _MEMORY * self._seconds.get(rows, took) + (1 - _MEMORY) * took

    def split(self, count: int) -> list[int]:
        """The sizes of the calls for `count` replies, largest first."""
        self._calls += 1
        whole = self._seconds.get(count)
        if count < 2 or whole is None or self._calls % RETRY == 0:
            return [count]
        seconds, sizes = self._quickest(count)
        return sorted(sizes, reverse=True) if seconds < GAIN * whole else [count]

    def share(self, count: int) -> float | None:
        """Seconds that a token of each of `count` replies takes; None while unknown."""
        seconds, _ = self._quickest(count)
        return seconds / count if math.isfinite(seconds) else None

    def _quickest(self, count: int) -> tuple[float, list[int]]:
        """The least seconds that so many rows take, and in calls of which sizes."""
        best: list[tuple[float, list[int]]] = [(0.0, [])]
        for number in range(1, count + 1):
            choices = [
                (best[number - rows][0] + seconds, [rows, *best[number - rows][1]])
                for rows, seconds in self._seconds.items()
                if rows <= number
            ]
            best.append(min(choices, default=(math.inf, [])))
        return best[count]
