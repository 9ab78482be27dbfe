"""The waiting line: bounded, fair between users, with a place that can be told.

Users take turns: a user's second waiting request stands behind everybody's first. Requests that name no
user each count as a user of their own, so they are first come, first served. (Start-time fair queueing:
Goyal, Vin, Cheng, IEEE/ACM Transactions on Networking, 1997.) A user with half of the slots in work is passed
over while others wait, so long replies of one leave room for the rest.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from core.errors import EngineBusy

QUEUE_LIMIT = 32
USER_LIMIT = QUEUE_LIMIT // 2  # waiting ones of one named user, so that nobody fills the line alone
T = TypeVar("T")


@dataclass(order=True)
class _Place(Generic[T]):
    round: int
    number: int
    user: str = field(compare=False)
    item: T = field(compare=False)


class WaitingLine(Generic[T]):
    """A line of items; not safe in threads by itself. `slots` is how many can be in work at once."""

    def __init__(self, limit: int = QUEUE_LIMIT, user_limit: int = USER_LIMIT, slots: int = 1) -> None:
        self.slots = slots
        self._limit = limit
        self._user_limit = user_limit
        self._line: list[_Place[T]] = []
        self._last_round: dict[str, int] = {}
        self._working: Counter[str] = Counter()
        self._round = 0
        self._arrivals = 0

    def __len__(self) -> int:
        return len(self._line)

    def __iter__(self) -> Iterator[T]:
        """The items in the order in which they will be served, as far as it is known now."""
        return (place.item for place in self._order())

    def _order(self) -> list[_Place[T]]:
        """By turn; those whose user has his share of the slots go last."""
        share = max(1, self.slots // 2)
        return sorted(self._line, key=lambda place: self._working[place.user] >= share)

    def join(self, item: T, user: str = "", *, first: bool = False) -> None:
        """Take a place; `first` goes before everybody and counts towards no limit (the self-test does).

        Raises EngineBusy when the line is full or the user has too much in it.
        """
        if first:
            user = ""
        else:
            self._check(user)
        turn = -1 if first else max(self._round, self._last_round.get(user, -1) + 1 if user else 0)
        self._arrivals += 1
        insort(self._line, _Place(turn, self._arrivals, user, item))
        if user:
            self._last_round[user] = turn

    def _check(self, user: str) -> None:
        if len(self._line) >= self._limit:
            raise EngineBusy(
                f"{self._limit} questions are waiting already.", "Wait some seconds and ask again."
            )
        if user and sum(place.user == user for place in self._line) >= self._user_limit:
            raise EngineBusy(
                f"{self._user_limit} questions of this user are waiting already.", "Wait for one of them."
            )

    def next(self) -> T | None:
        """The next item, out of the line; it counts as its user's work until `leave`."""
        if not self._line:
            return None
        place = self._order()[0]
        self._line.remove(place)
        self._round = max(self._round, place.round)
        if place.user:
            self._working[place.user] += 1
        return place.item

    def remove(self, item: T) -> bool:
        """Take an item out of the line; whether it stood there."""
        for at, place in enumerate(self._line):
            if place.item is item:
                del self._line[at]
                self._forget(place.user)
                return True
        return False

    def leave(self, user: str) -> None:
        """An item of this user that `next` gave is done, whatever became of it."""
        if user:
            self._working[user] -= 1
            self._forget(user)

    def _forget(self, user: str) -> None:
        """Keep nothing of a user who has nothing here any more."""
        if self._working[user] <= 0 and all(place.user != user for place in self._line):
            self._working.pop(user, None)
            self._last_round.pop(user, None)

    def clear(self) -> list[T]:
        """Everything that waited, out of the line."""
        items = list(self)
        self._line = []
        return items
