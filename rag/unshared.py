"""What not everybody may find, in memory: which passages a viewer may not find, and the vectors of his own.

Asking the tables (`rag.access`) about 67,000 hidden passages took 43 ms at each question, and reading the
vectors of 10,000 that are given to groups 65 ms. So both are kept for one state of the database. Its number,
`chunks_version`, grows in every commit that changes passages, access, groups or members, and it is read in
the same snapshot as what is asked, so nothing older is ever used. They decide which passages are proposed
and compared; about what is shown `PassageStore.get` asks the tables again.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary, WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from core.db import Database
from rag.embed import DIMENSIONS, Vectors
from rag.embedders import MADE_BY
from rag.passages import PassageStore

VIEWERS = 64  # who asked last: what is kept of the others is forgotten
TERMS = 10_000  # whose passages are counted for a viewer

T = TypeVar("T")


class _Kept(Generic[T]):
    """One value for each of the last viewers, made anew when the state of the database is another one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, tuple[Hashable, T]] = OrderedDict()

    def get(self, viewer: str, state: Hashable, make: Callable[[], T]) -> T:
        with self._lock:  # of those who ask at once, one makes it
            kept = self._kept.pop(viewer, None)
            if kept is None or kept[0] != state:
                kept = (state, make())
            self._kept[viewer] = kept
            if len(self._kept) > VIEWERS:
                self._kept.popitem(last=False)
        return kept[1]


@dataclass(frozen=True)
class Hidden:
    """What a viewer may not find.

    `marks` has a byte for each chunk id from 0 on, 1 where he may not find it; ids beyond the end he may.
    `counts` keeps in how many of the others a term stands, as far as it was counted.
    """

    marks: bytes
    counts: dict[str, int] = field(default_factory=dict)

    def left(self, ids: Iterable[int]) -> list[int]:
        """Those of `ids` that he may find, where they are ready."""
        return [i for i in ids if self.marks[i : i + 1] != b"\x01"]

    def keep(self, counted: Mapping[str, int]) -> None:
        """Remember what was counted; all is forgotten when it becomes much."""
        if len(self.counts) > TERMS:
            self.counts.clear()
        self.counts.update(counted)


_hidden: WeakKeyDictionary[Database, _Kept[Hidden]] = WeakKeyDictionary()


def hidden(database: Database, viewer: str) -> Hidden:
    """True in this thread's snapshot, in which it has to be called."""
    passages = PassageStore(database)

    def make() -> Hidden:
        ids = passages.hidden_ids(viewer)
        marks = bytearray(max(ids, default=-1) + 1)
        for chunk_id in ids:
            marks[chunk_id] = 1
        return Hidden(bytes(marks))

    return _hidden.setdefault(database, _Kept()).get(viewer, passages.version(), make)


@dataclass(frozen=True, eq=False)
class _Part:
    """Passages that go to the same accounts: ids in order, and their vectors, shape (len(ids), 384)."""

    ids: NDArray[np.int64]
    vectors: Vectors


class OwnVectors:
    """Exact search in what a viewer may find beside what everybody may, which the index does not hold.

    Viewers share what is kept for the same owner and groups.
    """

    def __init__(self) -> None:
        self._kept: _Kept[list[_Part]] = _Kept()
        self._parts: WeakValueDictionary[Hashable, _Part] = WeakValueDictionary()

    def near(
        self, passages: PassageStore, vector: Vectors, viewer: str, limit: int
    ) -> list[tuple[int, float]]:
        """(chunk id, cosine similarity) of the `limit` nearest, in no order; `vector` has shape (384,)."""
        with passages.database.snapshot():
            state = (passages.version(), passages.note(MADE_BY))
            parts = self._kept.get(viewer, state, lambda: self._load(passages, viewer, state[1]))
        if not parts:
            return []
        ids = np.concatenate([part.ids for part in parts])
        near = np.concatenate([np.vecdot(part.vectors, vector) for part in parts])
        best = np.argpartition(-near, limit)[:limit] if len(ids) > limit else slice(None)
        return list(zip(ids[best].tolist(), near[best].tolist(), strict=True))

    def _load(self, passages: PassageStore, viewer: str, made_by: str) -> list[_Part]:
        parts = []
        for shared_by, ids in passages.own(viewer).items():
            part = self._parts.get((made_by, shared_by))
            if part is None or not np.array_equal(part.ids, ids):
                part = _read(passages, np.array(ids, np.int64), part)
                self._parts[(made_by, shared_by)] = part
            parts.append(part)
        return parts


def _read(passages: PassageStore, ids: NDArray[np.int64], known: _Part | None) -> _Part:
    """The vectors of `ids`; only those that `known` lacks are read, since a chunk's text never changes."""
    vectors = np.empty((len(ids), DIMENSIONS), np.float32)
    lacking = np.ones(len(ids), np.bool_)
    if known is not None:
        lacking = ~np.isin(ids, known.ids)
        vectors[~lacking] = known.vectors[np.searchsorted(known.ids, ids[~lacking])]
    vectors[lacking] = passages.vectors(ids[lacking].tolist())
    return _Part(ids, vectors)
