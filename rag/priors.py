"""What votes say about a passage, as a small prior on its place in the order.

A passage that good answers cited moves up a little, one that readers called a wrong source moves down a
little. Four things keep votes from doing harm:

* decay: a vote's weight halves with every half-life, so what was right last year gives way;
* shrinkage: the prior is (ups - downs) / (votes + SHRINKAGE), an estimate shrunk towards 0 as with a beta
  prior (Gelman et al., "Bayesian Data Analysis", 3rd edition, 2.4), so one vote moves little;
* bound: the prior lies between -1 and 1 and changes a score by at most WEIGHT. Who leads all others by more
  than 2 * WEIGHT stays first, whatever the votes;
* floor: no passage falls by more than FALL places. What is among the first k - FALL stays among the first k.

That a voter counts once for each passage is seen to where the votes are read (`rag.votes`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

WEIGHT = 0.1  # of the prior, beside scores from 0 to 1
SHRINKAGE = 4.0  # votes that say nothing, added to those there are: one vote moves a fifth of the way
FALL = 3  # places
DAY_MS = 86_400_000

Scores = dict[str, float]


@dataclass(frozen=True)
class Said:
    """One voter's word on a passage: `sign` is 1 or -1, `at` UTC milliseconds."""

    sign: int
    at: int


def prior(said: Iterable[Said], now: int, half_life: float) -> float:
    """The votes of one passage as a number between -1 and 1; `half_life` in days, `now` in UTC ms."""
    total = weights = 0.0
    for one in said:
        weight = 0.5 ** (max(0, now - one.at) / (half_life * DAY_MS))
        total += one.sign * weight
        weights += weight
    return total / (weights + SHRINKAGE)


def voted(scores: Mapping[int, Scores], priors: Mapping[int, float]) -> dict[int, Scores]:
    """The candidates with a score `voted`, and `prior` where votes say something, in the new order.

    `scores` are in the order of their `reranked`. A passage that its floor holds up gets the score of the
    one behind it, so the order is that of the scores.
    """
    moved = {i: one["reranked"] + WEIGHT * priors.get(i, 0.0) for i, one in scores.items()}
    order = _held_up(list(scores), moved)
    level = min(moved.values(), default=0.0)
    levels: dict[int, float] = {}
    for i in reversed(order):
        level = levels[i] = max(level, moved[i])
    return {
        i: scores[i] | {"voted": levels[i]} | ({"prior": priors[i]} if priors.get(i) else {}) for i in order
    }


def _held_up(before: list[int], moved: Mapping[int, float]) -> list[int]:
    """By their moved scores, but nobody more than FALL places behind the old one.

    The next place goes to whoever must not wait longer, else to the best; since no two have the same last
    place, everyone gets one in time (earliest deadline first).
    """
    best_first = sorted(before, key=lambda i: -moved[i])  # stable: equal ones as before
    placed: set[int] = set()
    order: list[int] = []
    for place in range(len(before)):
        due = before[place - FALL] if place >= FALL else None
        if due is None or due in placed:
            due = next(i for i in best_first if i not in placed)
        placed.add(due)
        order.append(due)
    return order
