"""What is kept in memory of access rules; `test_groups` compares what it leads to with a plain model."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from core.db import Database
from core.settings import Settings
from rag import lexical, unshared
from rag.access import OPERATOR, Access
from rag.embed import Embedder, Vectors
from rag.embedders import MADE_BY
from rag.groups import Groups
from rag.ingest import Ingestor
from rag.passages import PassageStore, put_notes
from rag.reader import Reader
from rag.retrieve import Retriever
from rag.unshared import OwnVectors, hidden
from rag.vectors import StagedVectors
from tests.rag.test_kill import HashedVectors

ANNA, BEN = "api:anna", "api:ben"
EVERY = np.ones(384, np.float32)


@pytest.fixture
def embedder() -> Embedder:
    return HashedVectors()


@pytest.fixture
def passages(ingestor: Ingestor, reader: Reader) -> PassageStore:
    """A document for everybody, two for a group of Anna and Ben, one for Ben."""
    groups = Groups(ingestor.passages.database)
    groups.create("sales")
    groups.change("sales", [ANNA, BEN])
    given = Access(OPERATOR, "owner", groups=("sales",))
    for number, access in enumerate((Access(), given, given, Access(BEN, "owner"))):
        add(ingestor, reader, number, access)
    return ingestor.passages


def add(ingestor: Ingestor, reader: Reader, number: int, access: Access) -> None:
    text = f"# Note {number}\n\nCrate {number} is heavy.".encode()
    ingestor.documents.add(f"{number}.md", text, "upload", reader, access)
    ingestor.process_pending()


def near(own: OwnVectors, passages: PassageStore, viewer: str) -> dict[int, float]:
    return dict(own.near(passages, EVERY, viewer, 100))


def test_the_nearest_are_those_of_an_exact_comparison(passages: PassageStore) -> None:
    own = OwnVectors()
    found = near(own, passages, BEN)
    ids = sorted(found)
    assert len(ids) == 3
    assert [found[i] for i in ids] == pytest.approx((passages.vectors(ids) @ EVERY).tolist(), abs=1e-5)
    assert dict(own.near(passages, EVERY, BEN, 1)) == {max(found, key=found.__getitem__): max(found.values())}


def test_vectors_are_read_once_for_all_who_share_them(
    passages: PassageStore, ingestor: Ingestor, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    vectors = PassageStore.vectors

    def counted(self: PassageStore, ids: Sequence[int]) -> Vectors:
        read.extend(ids)
        return vectors(self, ids)

    own = OwnVectors()
    monkeypatch.setattr(PassageStore, "vectors", counted)
    anna, ben = near(own, passages, ANNA), near(own, passages, BEN)
    assert anna.keys() < ben.keys()
    assert sorted(read) == sorted(ben)
    read.clear()
    add(ingestor, reader, 9, Access(OPERATOR, "owner", groups=("sales",)))
    read.clear()  # the index reads its own
    assert near(own, passages, ANNA).keys() - anna.keys() == set(read)
    assert len(read) == 1


def test_vectors_follow_a_switch_of_the_embedder(passages: PassageStore) -> None:
    own, staged = OwnVectors(), StagedVectors(passages.database, "other")
    before = near(own, passages, ANNA)
    staged.save(list(before), np.eye(2, 384, dtype=np.float32) * 3)
    with passages.database.write() as connection:
        staged.exchange(connection, "")
        put_notes(connection, {MADE_BY: "other"})
    assert near(own, passages, ANNA) == dict.fromkeys(before, 3.0)


def test_of_many_viewers_the_last_are_kept(passages: PassageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unshared, "VIEWERS", 2)
    own = OwnVectors()
    for viewer in (ANNA, BEN, ANNA, OPERATOR):
        near(own, passages, viewer)
    assert list(own._kept._kept) == [ANNA, OPERATOR]


def test_counted_words_are_forgotten_when_they_are_many(
    passages: PassageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unshared, "TERMS", 3)
    database = passages.database
    for at in range(10):
        assert len(lexical.search(database, f"heavy crate and word{at}", 10, ANNA)) == 3
        with database.snapshot():
            assert len(hidden(database, ANNA).counts) <= 6
    assert len(lexical.search(database, "heavy crate", 10, BEN)) == 4


def test_whoever_leaves_finds_nothing_more_however_many_ask_at_once(
    passages: PassageStore, ingestor: Ingestor, settings: Settings, database: Database
) -> None:
    groups = Groups(database)
    retriever = Retriever(replace(settings, cross_encoder=False), database, ingestor.index, ingestor.embedder)

    def found(_: int) -> tuple[int, int, int]:
        words = lexical.search(database, "heavy crate", 10, ANNA)
        return (
            len(words),
            len(retriever.search("heavy crate", 10, ANNA)),
            len(near(retriever.own, passages, ANNA)),
        )

    with ThreadPoolExecutor(4) as pool:
        for _ in range(10):
            assert set(pool.map(found, range(8))) == {(3, 3, 2)}
            groups.change("sales", leave=[ANNA])
            assert set(pool.map(found, range(8))) == {(1, 1, 0)}
            groups.change("sales", [ANNA])
