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
    line.join("a3", "a")  # what is being answered waits no longer
    line.join("b1", "b")
    with pytest.raises(EngineBusy, match="waiting already"):
        line.join("c1", "c")
    line.join("test", first=True)
    assert line.remove("a3")
    assert not line.remove("a3")
    assert line.clear() == ["test", "b1", "a2"]


def test_who_has_half_of_the_slots_is_passed_over_while_others_wait() -> None:
    line: WaitingLine[str] = WaitingLine(slots=4)
    for number in range(6):
        line.join(f"a{number}", "a")
    assert [line.next(), line.next(), line.next()] == ["a0", "a1", "a2"]  # alone, he may have them all
    for item in ("b0", "b1", "?0"):
        line.join(item, item[0].replace("?", ""))
    assert list(line) == ["b0", "?0", "b1", "a3", "a4", "a5"]
    line.leave("a")
    assert line.next() == "b0"  # two of his are left, which is half
    line.leave("a")
    assert line.next() == "?0"  # his turn came later than the stranger's
    assert line.next() == "a3"
    assert drained(line) == ["b1", "a4", "a5"]


def test_nothing_is_kept_of_a_user_who_left() -> None:
    line: WaitingLine[str] = WaitingLine()
    line.join("a0", "a")
    line.join("a1", "a")
    assert line.next() == "a0"
    assert line.remove("a1")
    line.leave("a")
    assert not line._working
    assert not line._last_round


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(["a", "b", "c", ""]), max_size=32))
def test_everybody_is_served_once_and_in_turn(users: list[str]) -> None:
    line: WaitingLine[tuple[int, str]] = WaitingLine(user_limit=100)
    for number, user in enumerate(users):
        line.join((number, user), user)
    served = []
    while (item := line.next()) is not None:
        served.append(item)
        line.leave(item[1])
    assert sorted(served) == list(enumerate(users))
    for user in "abc":
        assert [n for n, u in served if u == user] == sorted(n for n, u in served if u == user)
        # before a user's k-th, no other named user has had more than k
        for at, (_, who) in enumerate(served):
            if who == user:
                before = [u for _, u in served[:at] if u]
                mine = before.count(user)
                assert all(before.count(other) <= mine + 1 for other in "abc")


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 5), st.lists(st.sampled_from("aaabbc?-"), min_size=15, max_size=60))
def test_no_slot_is_idle_and_nobody_has_more_than_his_share_while_others_wait(
    slots: int, events: list[str]
) -> None:
    """Each event is one who joins, or (-) the earliest in work that ends."""
    line: WaitingLine[tuple[int, str]] = WaitingLine(limit=100, user_limit=100, slots=slots)
    work: list[str] = []
    served = 0
    for number, event in enumerate(events):
        if event != "-":
            user = event.replace("?", "")
            line.join((number, user), user)
        elif work:
            line.leave(work.pop(0))
        while len(work) < slots and (waiting := {user for _, user in line}):
            item = line.next()
            assert item is not None
            over = {user for user in "abc" if work.count(user) >= max(1, slots // 2)}
            assert item[1] not in over or waiting <= over
            work.append(item[1])
            served += 1
    assert served + len(line) == sum(event != "-" for event in events)
