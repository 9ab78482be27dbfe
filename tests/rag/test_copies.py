"""A copy that went wrong is replaced by its unit; everything else stays as it was."""

from __future__ import annotations

import pytest

from core.types import Passage, Unit
from rag.copies import mended
from rag.prompt import REFUSAL

COUPLES = "There were 12,843 unmarried partnerships, and 1,388 same-sex couples or partnerships."
HOURS = "Rental team; Monday to Friday: 08:00-18:00; Saturday: 08:00-14:00; Sunday: closed."
UNITS = (Unit(1, COUPLES, 0, len(COUPLES)), Unit(2, HOURS, 0, len(HOURS)))
PASSAGES = [Passage(1, "d", "Census", "", None, 0, 999, f"{COUPLES} {HOURS}", units=UNITS)]


@pytest.mark.parametrize(
    "said",
    [
        "[1] There were 12,843 same-sex couples or partnerships.",  # skips, and the number gets another name
        "[1] There were 12,843 unmarried partnerships, and 1,388 unmarried partnerships, and 1,388 unmarried",
        f"[1] {COUPLES.replace('There', 'Their')}",
    ],
)
def test_a_copy_that_went_wrong_becomes_its_unit(said: str) -> None:
    assert mended(said, PASSAGES) == f"[1] {COUPLES}"


def test_a_swapped_number_is_put_right_and_the_other_sentence_stays() -> None:
    wrong = HOURS.replace("18:00", "14:00")
    assert mended(f"[2] {wrong} [1] {COUPLES}", PASSAGES) == f"[2] {HOURS} [1] {COUPLES}"


@pytest.mark.parametrize(
    "said",
    [
        f"[1] {COUPLES}",
        "[1] 1,388 same-sex couples or partnerships.",  # a part, word for word
        "[1] There were 12,843 unmarried partnerships.",  # stops early
        "[2] They are closed on Sundays.",  # in words of its own
        f"{COUPLES} [1]",
        "[7] There were 12,843 same-sex couples.",  # no such unit: the support check's business
        "[1][2] There were 12,843 couples in the rental team.",
        REFUSAL,
        "",
    ],
)
def test_what_is_no_broken_copy_stays(said: str) -> None:
    assert mended(said, PASSAGES) == said
