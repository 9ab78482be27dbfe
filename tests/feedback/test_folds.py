"""Lessons about one line, or of nearly one question, never stand on both sides."""

from __future__ import annotations

from collections import Counter

from feedback.folds import deal, groups
from feedback.triples import Lesson


def lesson(question: str, *lines: tuple[str, int, int]) -> Lesson:
    return Lesson(question, (), (), lines)


def test_lessons_about_overlapping_lines_are_one_group() -> None:
    one, other, chained, elsewhere, later = groups(
        [
            lesson("Who keeps the oar?", ("boats", 0, 100)),
            lesson("What costs a tent?", ("boats", 99, 200), ("tents", 0, 50)),
            lesson("Where is the stove?", ("tents", 10, 20)),
            lesson("When is lunch?", ("meals", 0, 100)),
            lesson("Which flag is red?", ("boats", 200, 300)),
        ]
    )
    assert one == other == chained
    assert len({one, elsewhere, later}) == 3


def test_a_short_line_inside_a_long_one_does_not_hide_what_follows() -> None:
    found = groups([lesson(f"{n}?", ("d", *span)) for n, span in enumerate([(0, 100), (5, 10), (50, 60)])])
    assert len(set(found)) == 1


def test_nearly_the_same_question_is_one_group_wherever_its_answer_stands() -> None:
    found = groups(
        [
            lesson("What is the notice period of the lease?", ("a", 0, 9)),
            lesson("the lease: what notice period?", ("b", 0, 9)),
            lesson("What is the deposit of the lease?", ("c", 0, 9)),
        ]
    )
    assert found[0] == found[1] != found[2]


def test_groups_are_dealt_whole_and_evenly_and_always_alike() -> None:
    belongs = [0] * 9 + [1] * 5 + [2] * 4 + list(range(3, 15))
    folds = deal(belongs, 3, 7)
    assert all(
        len({fold for fold, of in zip(folds, belongs, strict=True) if of == group}) == 1 for group in belongs
    )
    assert sorted(Counter(folds).values()) == [10, 10, 10]
    assert folds == deal(belongs, 3, 7)
