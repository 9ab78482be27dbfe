"""Lessons dealt into folds, so that each is measured by a model that did not learn what it asks for.

Questions that the same line answers, and questions that are nearly the same, are one group and never stand
on both sides. Other lines of a passage may: readers will ask for them, too. Source: grouped k-fold
cross-validation; to estimate a gain by models that were trained on the other folds is the cross-fitting of
Chernozhukov et al., "Double/debiased machine learning", 2018.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import combinations

from feedback.questions import OVERLAP, content_words, question_key
from feedback.triples import FEWEST, Lesson

FOLDS = 3


def outlook(count: int) -> str:
    """What a training on the votes would learn from and what it takes, in sentences."""
    return (
        f"Votes and approved corrections name the right passages of {count} questions to learn from"
        f" (at least {FEWEST} are needed). A training makes {FOLDS + 1} embedders, {FOLDS} of them for the"
        " judge alone, so that each question is asked of one that did not learn from it: a minute or two each"
        " per hundred questions, and every passage is embedded with each."
    )


def groups(lessons: Sequence[Lesson]) -> list[int]:
    """For each lesson the number of its group."""
    parent = list(range(len(lessons)))

    def root(at: int) -> int:
        while parent[at] != at:
            at = parent[at]
        return at

    for one, other in (*_same_line(lessons), *_same_question(lessons)):
        parent[root(one)] = root(other)
    return [root(at) for at in range(len(lessons))]


def deal(belongs: Sequence[int], folds: int, seed: int) -> list[int]:
    """For each lesson its fold, 0 to `folds` - 1; groups stay whole, the largest are dealt first."""
    sizes = Counter(belongs)
    order = sorted(sizes)
    random.Random(seed).shuffle(order)  # noqa: S311
    order.sort(key=lambda group: -sizes[group])
    filled = [0] * folds
    fold_of = {}
    for group in order:
        fold_of[group] = filled.index(min(filled))
        filled[fold_of[group]] += sizes[group]
    return [fold_of[group] for group in belongs]


def _same_line(lessons: Sequence[Lesson]) -> Iterator[tuple[int, int]]:
    """Pairs of lessons whose lines overlap; a chain of them suffices."""
    lines = sorted((*line, at) for at, lesson in enumerate(lessons) for line in lesson.facts)
    before, reach, last = "", 0, 0
    for document, start, end, at in lines:
        if document == before and start < reach:
            yield last, at
            reach = max(reach, end)
        else:
            before, reach = document, end
        last = at


def _same_question(lessons: Sequence[Lesson]) -> Iterator[tuple[int, int]]:
    """Pairs that share most of their content words (as `feedback.questions.Excluded` counts them)."""
    contents = [content_words(question_key(lesson.question)) for lesson in lessons]
    for (one, words), (other, more) in combinations(enumerate(contents), 2):
        shared = len(words & more)
        if shared and shared >= OVERLAP * len(words | more):
            yield one, other
