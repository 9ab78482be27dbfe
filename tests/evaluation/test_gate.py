"""The gate lets real gains pass and names what it refuses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from core.errors import ConflictError
from evaluation.gate import Rules, interval, judge
from evaluation.run import Result
from tests.evaluation.made import results

BEFORE = [0.0, 1.0] * 30
BETTER = [1.0, 1.0] * 30


def failed(before: list[Result], after: list[Result]) -> list[str]:
    return [check.name for check in judge(before, after).checks if not check.passed]


def test_a_clear_gain_passes() -> None:
    verdict = judge(results(BEFORE), results(BETTER))
    assert verdict.passed
    assert verdict.difference == 0.5
    assert 0.35 < verdict.low < 0.5 < verdict.high < 0.65
    assert verdict.reason == "All 7 checks passed."


def test_the_same_model_is_refused_and_told_why() -> None:
    verdict = judge(results(BEFORE), results(BEFORE))
    assert not verdict.passed
    assert "from 0.500 to 0.500" in verdict.reason
    assert "is not above zero" in verdict.reason


def test_a_gain_that_luck_explains_is_refused() -> None:
    after = list(BEFORE)
    after[0], after[2], after[1] = 1.0, 1.0, 0.0  # two wins, one loss
    assert failed(results(BEFORE), results(after)) == ["better"]


def spoiled(**measures: Any) -> list[Result]:
    return results(BETTER, **measures)


@pytest.mark.parametrize(
    ("after", "check"),
    [
        (spoiled(refusal_right=False), "refusals"),
        (spoiled(support=0.9), "support"),
        (spoiled(words=21), "length"),
        (spoiled(words=4), "length"),
        (spoiled(words=0), "length"),
        (spoiled(addresses=["https://evil.example"]), "addresses"),
    ],
)
def test_a_gain_bought_with_something_else_is_refused_by_name(after: list[Result], check: str) -> None:
    """T05: drift in refusals, support, length and links."""
    verdict = judge(results(BEFORE), after)
    assert failed(results(BEFORE), after) == [check]
    assert not verdict.passed
    assert verdict.reason.count(".") >= 1


def test_a_loss_within_the_tolerance_passes() -> None:
    assert judge(results(BEFORE), spoiled(support=0.95)).passed
    assert judge(results(BEFORE), spoiled(words=20)).passed


def test_forgetting_the_golden_questions_is_refused() -> None:
    before = [0.0, 1.0] * 30  # odd cases are golden
    after = [1.0, 1.0] * 26 + [1.0, 0.0] * 4
    assert failed(results(before), results(after)) == ["golden"]


def test_refusals_taught_by_held_out_cases_do_not_hide_golden_ones() -> None:
    """Poisoned corrections make refusing right among the held-out cases and wrong everywhere else."""
    after = results(BETTER)
    for result in after[1::8]:
        result.scores["refusal_right"] = False  # golden
    before = results(BEFORE)
    for result in before[::4]:
        result.scores["refusal_right"] = False  # held out
    verdict = judge(before, after)
    assert [check.name for check in verdict.checks if not check.passed] == ["refusals"]
    assert "on golden cases" in verdict.reason


def test_a_handful_of_cases_is_not_enough() -> None:
    assert failed(results([0.0] * 10), results([1.0] * 10)) == ["cases"]
    assert judge(results([0.0] * 10), results([1.0] * 10), Rules(fewest_cases=5)).passed
    assert not judge([], []).passed


def test_addresses_known_from_before_are_not_new() -> None:
    before = results(BEFORE, addresses=["https://coop.example"])
    assert judge(before, spoiled(addresses=["https://coop.example"])).passed


def test_other_cases_cannot_be_compared() -> None:
    after = results(BETTER)
    with pytest.raises(ConflictError, match="same cases"):
        judge(results(BEFORE), after[:-1])
    with pytest.raises(ConflictError, match="same cases"):
        judge(results(BEFORE), [replace(after[0], case_id="other"), *after[1:]])


def test_the_verdict_is_reproducible() -> None:
    assert judge(results(BEFORE), results(BETTER)) == judge(results(BEFORE), results(BETTER))


def test_the_interval_is_the_bootstraps() -> None:
    """Against the normal approximation, which is close for 400 cases."""
    differences = np.random.default_rng(1).normal(0.1, 0.5, 400)
    low, high = interval(differences, Rules())
    error = differences.std() / 20
    assert low == pytest.approx(differences.mean() - 1.2816 * error, abs=0.1 * error)
    assert high == pytest.approx(differences.mean() + 1.2816 * error, abs=0.1 * error)


def test_an_equal_candidate_passes_about_one_time_in_ten() -> None:
    """The documented meaning of the confidence: the share of no-gain candidates that luck lets through."""
    generator = np.random.default_rng(2)
    rules = Rules(resamples=400)
    passed = sum(
        interval(generator.choice([-1.0, 0.0, 1.0], 80, p=[0.1, 0.8, 0.1]), rules)[0] > 0 for _ in range(600)
    )
    assert 0.05 < passed / 600 < 0.15
