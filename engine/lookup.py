"""Guessing what a reply copies: the tokens that followed its last few the time before, verified in one call.

An answer from documents quotes them, so its next tokens often stand in the prompt (prompt lookup: Saxena,
2023; verified as in Leviathan et al., Fast Inference from Transformers via Speculative Decoding, ICML 2023).
A greedy reply takes a guessed token only where it would have chosen that very token, so its text is the same.
One sequence of the built-in model, 600 tokens cached, one core (AVX-512), CPU milliseconds of one call:

    rows    1     2     4     8     16
          1.2   3.1   3.7   4.8    7.1

A second row costs much and the fourteen after it little, so it pays to guess long or not at all.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

NGRAM = 3  # tokens that must agree before the ones that followed are guessed
LENGTHS = (3, 7, 15)  # guessed tokens in a call; with the one before them a power of two
GAIN = 0.9  # a guess must be expected to take less than this share of the time
RETRY = 64  # every so many times that a guess did not seem to pay, one is tried
_MEMORY = 0.8  # share of the old estimate of a call's seconds in the new one
_FADING = 0.95  # of what was learned about hits, for each guess


class Lookup:
    """The tokens of one reply and its prompt, and where each run of NGRAM was last followed by something."""

    def __init__(self, prompt: Sequence[int]) -> None:
        self._tokens: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}
        for token in prompt:
            self.add(token)

    def add(self, token: int) -> None:
        """The reply or its prompt went on with this token."""
        at = len(self._tokens)
        if at >= NGRAM:
            self._after[tuple(self._tokens[-NGRAM:])] = at
        self._tokens.append(token)

    def guess(self, most: int) -> list[int]:
        """At most so many tokens that followed the last NGRAM before; none when they are new."""
        at = self._after.get(tuple(self._tokens[-NGRAM:]))
        return [] if at is None else self._tokens[at : at + max(0, most)]


class Guesses:
    """How many tokens to guess at once, from how often guesses were right and how long the calls took."""

    def __init__(self) -> None:
        self.made = 0
        self.right = 0
        self._hits, self._misses = 4.0, 1.0
        self._seconds: dict[int, float] = {}
        self._declined = 0

    @contextmanager
    def timed(self, guessed: int) -> Iterator[None]:
        """Learn from a call that verified so many tokens."""
        began = time.monotonic()
        yield
        took = time.monotonic() - began
        self._seconds[guessed] = _MEMORY * self._seconds.get(guessed, took) + (1 - _MEMORY) * took

    def learn(self, guessed: int, right: int) -> None:
        """So many of the guessed tokens were the reply's own, up to the first that was not."""
        self.made += guessed
        self.right += right
        self._hits = _FADING * self._hits + right
        self._misses = _FADING * self._misses + (right < guessed)

    def length(self, available: int, share: float | None) -> int:
        """How many of the available tokens to verify; 0 to go on without.

        `share` is the seconds that the reply's next token would take without a guess, None while unknown.
        """
        lengths = [length for length in LENGTHS if length <= available]
        if not lengths or share is None:
            return 0
        for length in reversed(lengths):
            if length not in self._seconds:
                return length
        rate = self._hits / (self._hits + self._misses)
        # a call gives the right ones of its guesses and one token more
        costs = {k: self._seconds[k] * (1 - rate) / (1 - rate ** (k + 1)) for k in lengths}
        best = min(costs, key=lambda k: costs[k])
        if costs[best] < GAIN * share:
            return best
        self._declined += 1
        return best if self._declined % RETRY == 0 else 0
