from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engine.widths import RETRY, Widths


def knowing(**seconds: float) -> Widths:
    widths = Widths()
    widths._seconds = {int(name[1:]): value for name, value in seconds.items()}
    return widths


def test_a_group_is_split_only_where_that_pays() -> None:
    # milliseconds of 0.6B Q8_0 on one core
    widths = knowing(w1=45, w2=114, w3=136, w4=156, w5=207, w8=260)
    assert widths.split(1) == [1]
    assert widths.split(2) == [1, 1]
    assert widths.split(8) == [8]
    assert knowing(w1=62, w4=192, w5=293).split(5) == [4, 1]
    assert knowing(w1=32, w2=66).split(2) == [2]  # a few percent are not worth it


def test_an_unknown_size_is_tried_and_an_old_one_tried_again() -> None:
    widths = knowing(w1=1, w2=100)
    assert widths.split(3) == [3]
    assert [widths.split(2) for _ in range(RETRY)].count([2]) == 1


@given(st.dictionaries(st.integers(1, 8), st.floats(0.001, 10), max_size=8), st.integers(1, 16))
def test_everybody_gets_a_token(seconds: dict[int, float], count: int) -> None:
    widths = Widths()
    widths._seconds = seconds
    assert sum(widths.split(count)) == count
