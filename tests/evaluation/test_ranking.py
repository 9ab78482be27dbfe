from __future__ import annotations

from math import log2

import pytest

from evaluation.ranking import interval, ndcg, percentile, recall, reciprocal_rank

GRADES = {"a": 3, "b": 1, "c": 0, "d": 2}


def test_ndcg_by_hand() -> None:
    # gains 1, 0, 3 at ranks 1, 2, 3: 1 + 0 + 3/2 = 2.5; ideal 3, 2, 1: 3 + 2/log2(3) + 1/2 = 4.7618595
    assert ndcg(["b", "c", "a"], GRADES) == pytest.approx(2.5 / 4.76185950714291)
    assert ndcg(["a", "d", "b", "c"], GRADES) == pytest.approx(1.0)
    assert ndcg(["x", "c"], GRADES) == 0.0
    assert ndcg([], GRADES) == 0.0


def test_ndcg_cuts_ranking_and_ideal_alike() -> None:
    assert ndcg(["a"], GRADES, k=1) == pytest.approx(1.0)
    assert ndcg(["b", "a"], GRADES, k=1) == pytest.approx(1 / 3)
    eleven = {str(i): 1 for i in range(11)}
    assert ndcg([str(i) for i in range(11)], eleven) == pytest.approx(1.0)
    late = [f"x{i}" for i in range(9)] + ["0"]
    assert ndcg(late, {"0": 1}) == pytest.approx(1 / log2(11))
    assert ndcg(["x", *late], {"0": 1}) == 0.0


def test_a_negative_grade_gains_nothing() -> None:
    assert ndcg(["spam", "a"], {"a": 1, "spam": -2}) == pytest.approx(1 / log2(3))


def test_recall_counts_relevant_documents_only() -> None:
    assert recall(["c", "a", "x"], GRADES) == pytest.approx(1 / 3)
    assert recall(["a", "b", "d"], GRADES, k=2) == pytest.approx(2 / 3)
    assert recall(["a"], {"a": 0}) == 0.0


def test_reciprocal_rank() -> None:
    assert reciprocal_rank(["c", "x", "d", "a"], GRADES) == pytest.approx(1 / 3)
    assert reciprocal_rank(["x"] * 10 + ["a"], GRADES) == 0.0


def test_interval_holds_the_mean_and_narrows_with_more_values() -> None:
    few = interval([0.0, 1.0] * 10)
    many = interval([0.0, 1.0] * 500)
    assert few[0] < 0.5 < few[1]
    assert many[1] - many[0] < (few[1] - few[0]) / 3
    # the normal approximation: 0.5 ± 1.96 · 0.5 / √1000
    assert many == pytest.approx((0.469, 0.531), abs=0.006)
    assert interval([0.3] * 5) == pytest.approx((0.3, 0.3))
    assert interval([0.1, 0.9, 0.4]) == interval([0.1, 0.9, 0.4])
    with pytest.raises(ValueError, match="at least one"):
        interval([])


def test_percentile_is_the_nearest_rank() -> None:
    values = [float(i) for i in range(100, 0, -1)]
    assert percentile(values, 0.5) == 50.0
    assert percentile(values, 0.95) == 95.0
    assert percentile(values, 1.0) == 100.0
    assert percentile([7.0], 0.95) == 7.0
    assert percentile([1.0, 2.0, 3.0], 0.5) == 2.0
    with pytest.raises(ValueError, match="at least one"):
        percentile([], 0.5)
