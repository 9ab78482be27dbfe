from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import EngineBusy
from engine.admission import WaitingLine


def drained(line: WaitingLine[str]) -> list[str]:
    found = []
    while (item := line.next()) is not None:
        found.append(item)
    return found


def test_users_take_turns_and_strangers_are_first_come() -> None:
    line: WaitingLine[str] = WaitingLine()
    for item in ("a1", "a2", "a3", "b1", "?1", "?2", "b2"):
        line.join(item, item[0].replace("?", ""))
    assert list(line) == ["a1", "b1", "?1", "?2", "a2", "b2", "a3"]
    line.join("test", first=True)
    assert drained(line)[0] == "test"


def test_a_late_user_does_not_wait_for_all_of_an_early_one() -> None:
    line: WaitingLine[str] = WaitingLine()
    for number in range(6):
        line.join(f"a{number}", "a")
    assert [line.next(), line.next()] == ["a0", "a1"]
    line.join("b0", "b")
    assert drained(line) == ["b0", "a2", "a3", "a4", "a5"]


def test_limits_and_leaving() -> None:
    line: WaitingLine[str] = WaitingLine(limit=3, user_limit=2)
    line.join("a1", "a")
    line.join("a2", "a")
    with pytest.raises(EngineBusy, match="of this user"):
        line.join("a3", "a")
    assert line.next() == "a1"
    with pytest.raises(EngineBusy, match="of this user"):
        line.join("a3", "a")  # still being answered
    line.leave("a")
    line.join("a3", "a")
    line.join("b1", "b")
    with pytest.raises(EngineBusy, match="waiting already"):
        line.join("c1", "c")
    line.join("test", first=True)
    assert line.remove("a3")
    assert not line.remove("a3")
    assert line.clear() == ["test", "b1", "a2"]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(["a", "b", "c", ""]), max_size=32))
def test_everybody_is_served_once_and_in_turn(users: list[str]) -> None:
    line: WaitingLine[tuple[int, str]] = WaitingLine(user_limit=100)
    for number, user in enumerate(users):
        line.join((number, user), user)
    served = []
    while (item := line.next()) is not None:
        served.append(item)
    assert sorted(served) == list(enumerate(users))
    for user in "abc":
        assert [n for n, u in served if u == user] == sorted(n for n, u in served if u == user)
        # before a user's k-th, no other named user has had more than k
        for at, (_, who) in enumerate(served):
            if who == user:
                before = [u for _, u in served[:at] if u]
                mine = before.count(user)
                assert all(before.count(other) <= mine + 1 for other in "abc")
