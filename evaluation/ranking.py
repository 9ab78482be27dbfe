"""Figures of ranked retrieval, as trec_eval and BEIR define them, and bootstrap intervals of their means.

A ranking is a list of document ids, best first and without repeats; grades are {document id: relevance},
where 0 and below means not relevant. A query without a relevant document has no figures: leave it out before.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from math import ceil, log2
from statistics import fmean

Grades = Mapping[str, int]


def ndcg(ranking: Sequence[str], grades: Grades, k: int = 10) -> float:
    """Normalised discounted cumulative gain of the first `k`, 0 to 1, with the grade itself as gain.

    Source: Järvelin and Kekäläinen, "Cumulated gain-based evaluation of IR techniques", TOIS 2002, in the
    form of trec_eval's ndcg_cut (linear gain, logarithm of rank + 1 to base 2).
    """
    ideal = _gain(sorted(grades.values(), reverse=True)[:k])
    return _gain([grades.get(document, 0) for document in ranking[:k]]) / ideal if ideal else 0.0


def _gain(grades: Sequence[int]) -> float:
    return sum(max(0, grade) / log2(rank + 1) for rank, grade in enumerate(grades, 1))


def recall(ranking: Sequence[str], grades: Grades, k: int = 100) -> float:
    """Share of the relevant documents that are among the first `k`."""
    relevant = {document for document, grade in grades.items() if grade > 0}
    return len(relevant & set(ranking[:k])) / len(relevant) if relevant else 0.0


def reciprocal_rank(ranking: Sequence[str], grades: Grades, k: int = 10) -> float:
    """1 / rank of the first relevant document among the first `k`, else 0; its mean is MRR@k."""
    return next((1 / rank for rank, d in enumerate(ranking[:k], 1) if grades.get(d, 0) > 0), 0.0)


def interval(values: Sequence[float], share: float = 0.95, draws: int = 1_000) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean (Efron 1979); the same values give the same interval.

    Raises ValueError when there are no values.
    """
    if not values:
        raise ValueError("An interval needs at least one value.")
    chance = random.Random(0)  # noqa: S311
    means = sorted(fmean(chance.choices(values, k=len(values))) for _ in range(draws))
    cut = int(draws * (1 - share) / 2)
    return means[cut], means[-1 - cut]


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of the values do not exceed (nearest rank).

    Raises ValueError when there are no values.
    """
    if not values:
        raise ValueError("A percentile needs at least one value.")
    return sorted(values)[max(0, ceil(share * len(values)) - 1)]
