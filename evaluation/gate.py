"""The gate: the candidate takes the stage only when it is better, and worse in nothing that matters.

Better means that the lower end of a paired bootstrap interval of the mean score difference lies above zero:
cases are drawn with replacement and the differences averaged, many times (Efron & Tibshirani 1993, An
Introduction to the Bootstrap, chapter 13: percentile interval). Pairing removes the cases' own difficulty.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from core.errors import ConflictError
from evaluation.run import Result, asked_of_both, mean

_NAMED = {"refusal_right": "The share of right refusals", "support": "Support by the cited lines"}


@dataclass(frozen=True)
class Rules:
    """What the gate asks for.

    `confidence` 0.9 is one-sided: one candidate in ten that is only as good as the one on stage would pass
    this check by luck. It is not 0.95 because with some eighty cases that would refuse most real but small
    gains, and a rollback costs one click.
    """

    confidence: float = 0.9
    resamples: int = 10_000
    seed: int = 7
    fewest_cases: int = 20  # below this a bootstrap interval means little
    tolerated_loss: float = 0.05  # absolute, for refusals, support and golden cases
    shortest_ratio: float = 0.5  # mean length of replies, after / before
    longest_ratio: float = 2.0


@dataclass(frozen=True)
class Check:
    """One condition: what was measured, the limit, and a sentence that says how it came out."""

    name: str
    before: float
    after: float
    limit: str
    passed: bool
    sentence: str


@dataclass(frozen=True)
class Verdict:
    """The gate's decision; `low` and `high` bound the mean difference (each with the rules' confidence)."""

    passed: bool
    checks: tuple[Check, ...]
    difference: float
    low: float
    high: float

    @property
    def reason(self) -> str:
        """The sentences of the failed checks, or that all passed."""
        failed = [check.sentence for check in self.checks if not check.passed]
        return " ".join(failed) or f"All {len(self.checks)} checks passed."


def judge(before: Sequence[Result], after: Sequence[Result], rules: Rules | None = None) -> Verdict:
    """Compare the candidate (`after`) with the model on stage (`before`) on the same cases.

    Cases that one of them could not be asked count for neither. Raises ConflictError when the two did not get
    the same cases in the same order.
    """
    rules = rules or Rules()
    if [result.case_id for result in before] != [result.case_id for result in after]:
        raise ConflictError("The two models were not asked the same cases.", "Evaluate both again.")
    before, after = asked_of_both(before, after)
    differences = np.array([b.score - a.score for a, b in zip(before, after, strict=True)])
    low, high = interval(differences, rules)
    checks = (
        _enough(before, rules),
        _better(before, after, low, rules),
        _no_loss("refusals", "refusal_right", before, after, rules),
        _no_loss("support", "support", before, after, rules),
        _golden(before, after, rules),
        _length(before, after, rules),
        _addresses(before, after),
    )
    difference = float(differences.mean()) if len(differences) else 0.0
    return Verdict(all(check.passed for check in checks), checks, difference, low, high)


def interval(
    differences: np.ndarray, rules: Rules, groups: Sequence[int] | None = None
) -> tuple[float, float]:
    """Percentile bootstrap bounds of the mean, each exceeded with probability 1 - confidence.

    Where cases depend on each other `groups` names the group of each, and whole groups are drawn.
    """
    if not len(differences):
        return 0.0, 0.0
    _, belongs = np.unique(range(len(differences)) if groups is None else groups, return_inverse=True)
    sums, sizes = np.bincount(belongs, differences), np.bincount(belongs)
    generator = np.random.default_rng(rules.seed)
    counts = generator.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), rules.resamples)
    low, high = np.quantile(counts @ sums / (counts @ sizes), [1 - rules.confidence, rules.confidence])
    return float(low), float(high)


def _enough(before: Sequence[Result], rules: Rules) -> Check:
    count = len(before)
    passed = count >= rules.fewest_cases
    sentence = f"{count} cases were compared; at least {rules.fewest_cases} are needed."
    return Check("cases", count, count, f">= {rules.fewest_cases}", passed, sentence)


def _better(before: Sequence[Result], after: Sequence[Result], low: float, rules: Rules) -> Check:
    passed = low > 0
    sentence = (
        f"The score went from {mean(before):.3f} to {mean(after):.3f}; with {rules.confidence:.0%} confidence"
        f" the gain is at least {low:+.3f}, which {'is' if passed else 'is not'} above zero."
    )
    return Check("better", mean(before), mean(after), f"gain > 0 at {rules.confidence:.0%}", passed, sentence)


def _no_loss(
    name: str, measure: str, before: Sequence[Result], after: Sequence[Result], rules: Rules
) -> Check:
    """No more than the tolerated loss, over all cases nor over the golden ones.

    Held-out cases come from users: if they taught to refuse, refusing would look right among them.
    """
    groups = {"all cases": (before, after), "golden cases": (_of(before, "golden"), _of(after, "golden"))}
    means = {group: (mean(old, measure), mean(new, measure)) for group, (old, new) in groups.items()}
    group = min(means, key=lambda group: means[group][1] - means[group][0])
    return _loss_check(name, f"{_NAMED[measure]} on {group}", *means[group], rules)


def _golden(before: Sequence[Result], after: Sequence[Result], rules: Rules) -> Check:
    """What was learnt from votes must not be paid for with the questions people wrote down."""
    old, new = mean(_of(before, "golden")), mean(_of(after, "golden"))
    return _loss_check("golden", "The score on golden cases", old, new, rules)


def _loss_check(name: str, what: str, old: float, new: float, rules: Rules) -> Check:
    passed = new >= old - rules.tolerated_loss - 1e-9
    sentence = f"{what} went from {old:.3f} to {new:.3f}; a loss of {rules.tolerated_loss:g} is tolerated."
    return Check(name, old, new, f"loss <= {rules.tolerated_loss:g}", passed, sentence)


def _of(results: Sequence[Result], origin: str) -> list[Result]:
    return [result for result in results if result.origin == origin]


def _length(before: Sequence[Result], after: Sequence[Result], rules: Rules) -> Check:
    old, new = mean(before, "words"), mean(after, "words")
    ratio = new / old if old else (1.0 if not new else float("inf"))
    passed = rules.shortest_ratio <= ratio <= rules.longest_ratio
    limit = f"{rules.shortest_ratio:g} <= ratio <= {rules.longest_ratio:g}"
    sentence = f"Replies went from {old:.1f} to {new:.1f} words on average ({ratio:.2f} times; {limit})."
    return Check("length", old, new, limit, passed, sentence)


def _addresses(before: Sequence[Result], after: Sequence[Result]) -> Check:
    known = _all_addresses(before)
    fresh = sorted(_all_addresses(after) - known)
    named = f": {', '.join(fresh[:3])}" if fresh else ""
    sentence = f"{len(fresh)} links or addresses appear in replies that no prompt holds{named}."
    return Check("addresses", len(known), len(known) + len(fresh), "none new", not fresh, sentence)


def _all_addresses(results: Sequence[Result]) -> set[str]:
    return {address for result in results for address in result.scores["addresses"]}
