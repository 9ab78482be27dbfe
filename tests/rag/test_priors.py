"""Priors from votes: small, fading, bounded, and unable to bury a passage."""

from __future__ import annotations

import random

import pytest

from rag.priors import DAY_MS, FALL, SHRINKAGE, WEIGHT, Said, prior, voted

NOW = 1_000 * DAY_MS


def said(sign: int, days: float = 0.0) -> Said:
    return Said(sign, NOW - int(days * DAY_MS))


def scored(*values: float) -> dict[int, dict[str, float]]:
    return {i: {"reranked": value} for i, value in enumerate(values, 1)}


def test_one_vote_moves_little_and_many_move_more() -> None:
    one, ten = prior([said(1)], NOW, 100), prior([said(1)] * 10, NOW, 100)
    assert one == pytest.approx(1 / (1 + SHRINKAGE))
    assert one < ten < 1
    assert prior([said(1), said(-1)], NOW, 100) == 0
    assert prior([], NOW, 100) == 0


def test_a_vote_counts_half_after_the_half_life_and_fades_away() -> None:
    assert prior([said(1, 100)], NOW, 100) == pytest.approx(0.5 / (0.5 + SHRINKAGE))
    assert abs(prior([said(-1, 5_000)] * 50, NOW, 100)) < 1e-6
    assert prior([said(1, -3)], NOW, 100) == prior([said(1)], NOW, 100)  # a clock that was set back


def test_the_score_says_what_votes_did() -> None:
    order = voted(scored(0.9, 0.85), {2: 0.8})
    assert list(order) == [2, 1]
    assert order[2] == {"reranked": 0.85, "voted": pytest.approx(0.85 + WEIGHT * 0.8), "prior": 0.8}
    assert order[1] == {"reranked": 0.9, "voted": 0.9}
    assert voted({}, {}) == {}


def test_equal_scores_keep_their_order() -> None:
    assert list(voted(scored(0.5, 0.5, 0.5), {})) == [1, 2, 3]


def test_who_leads_by_twice_the_weight_stays_first() -> None:
    rest = [1.0 - 2 * WEIGHT - 0.001] * 20
    priors = dict.fromkeys(range(2, 22), 1.0) | {1: -1.0}
    assert next(iter(voted(scored(1.0, *rest), priors))) == 1


def test_no_passage_falls_by_more_than_the_floor_whatever_the_votes() -> None:
    chance = random.Random(3)
    for _ in range(300):
        count = chance.randint(1, 30)
        scores = scored(*sorted((chance.random() for _ in range(count)), reverse=True))
        priors = {i: chance.uniform(-1, 1) for i in scores if chance.random() < 0.7}
        after = list(voted(scores, priors))
        assert sorted(after) == list(scores)
        assert all(after.index(i) <= i - 1 + FALL for i in scores)
        levels = [one["voted"] for one in voted(scores, priors).values()]
        assert levels == sorted(levels, reverse=True)


def test_a_passage_that_everybody_blames_is_still_read() -> None:
    """The first of eight nearly equal passages, blamed by all while all others are praised."""
    priors = dict.fromkeys(range(2, 9), 1.0) | {1: -1.0}
    assert list(voted(scored(*[0.5] * 8), priors)).index(1) == FALL
