"""The waiting line: bounded, fair between users, with a place that can be told.

Users take turns: a user's second waiting request stands behind everybody's first. Requests that name no
user each count as a user of their own, so they are first come, first served. (Start-time fair queueing:
Goyal, Vin, Cheng, IEEE/ACM Transactions on Networking, 1997.)
"""

from __future__ import annotations

from bisect import insort
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from core.errors import EngineBusy

QUEUE_LIMIT = 32
USER_LIMIT = 8  # of one named user, waiting and in work
T = TypeVar("T")


@dataclass(order=True)
class _Place(Generic[T]):
    round: int
    number: int
    user: str = field(compare=False)
    item: T = field(compare=False)


class WaitingLine(Generic[T]):
    """A line of items; not safe in threads by itself."""

    def __init__(self, limit: int = QUEUE_LIMIT, user_limit: int = USER_LIMIT) -> None:
        self._limit = limit
        self._user_limit = user_limit
        self._line: list[_Place[T]] = []
        self._last_round: dict[str, int] = {}
        self._here: Counter[str] = Counter()
        self._round = 0
        self._arrivals = 0

    def __len__(self) -> int:
        return len(self._line)

    def __iter__(self) -> Iterator[T]:
        """The items in the order in which they will be served."""
        return (place.item for place in self._line)

    def join(self, item: T, user: str = "", *, first: bool = False) -> None:
        """Take a place; `first` goes before everybody and counts towards no limit (the self-test does).

        Raises EngineBusy when the line is full or the user has too much in it or in work.
        """
        if not first:
            self._check(user)
        turn = -1 if first else max(self._round, self._last_round.get(user, -1) + 1 if user else 0)
        self._arrivals += 1
        insort(self._line, _Place(turn, self._arrivals, user, item))
        if user and not first:
            self._last_round[user] = turn
            self._here[user] += 1

    def _check(self, user: str) -> None:
        if len(self._line) >= self._limit:
            raise EngineBusy(
                f"{self._limit} questions are waiting already.", "Wait some seconds and ask again."
            )
        if user and self._here[user] >= self._user_limit:
            raise EngineBusy(
                f"{self._user_limit} questions of this user are waiting or being answered already.",
                "Wait for one of them.",
            )

    def next(self) -> T | None:
        """The next item, out of the line; its user's share stays taken until `leave`."""
        if not self._line:
            return None
        place = self._line.pop(0)
        self._round = max(self._round, place.round)
        return place.item

    def remove(self, item: T) -> bool:
        """Take an item out of the line; whether it stood there."""
        for at, place in enumerate(self._line):
            if place.item is item:
                del self._line[at]
                return True
        return False

    def leave(self, user: str) -> None:
        """An item of this user is done, whatever became of it."""
        if user:
            self._here[user] -= 1
            if self._here[user] <= 0:
                del self._here[user]
                self._last_round.pop(user, None)

    def clear(self) -> list[T]:
        """Everything that waited, out of the line."""
        items = list(self)
        self._line = []
        return items
