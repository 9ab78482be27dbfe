"""Who may see what, as a plain model, and a comparison with what every query of an installation shows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from core.db import Database
from core.errors import NotFoundError
from feedback.store import FeedbackStore
from rag import lexical
from rag.access import NOBODY, OPERATOR, Access
from rag.chunk_edits import ChunkStore
from rag.groups import Groups
from rag.ingest import Ingestor
from rag.page_view import PageViewer
from rag.reader import Reader
from rag.retrieve import Retriever
from tests.feedback.made import answer, passage

ANNA, BEN, CARA = "api:anna", "api:ben", "api:cara"
OWNERS = (OPERATOR, ANNA, BEN, CARA, "api")
VIEWERS = (NOBODY, *OWNERS, "api:ann", "sales", "' OR 1=1 --", "%")
NAMES = ("sales", "legal", "Sales", "api:anna", "x' OR '1'='1")


@dataclass
class Model:
    """Who may see what, in plain Python."""

    documents: dict[str, Access] = field(default_factory=dict)
    members: dict[str, set[str]] = field(default_factory=dict)

    def given(self, viewer: str, one: Access) -> bool:
        mine = {name for name in one.groups if viewer in self.members.get(name, ())}
        return one.visibility == "owner" and one.approval == "approved" and bool(mine)

    def offered(self, one: Access) -> bool:
        return one.visibility == "everybody" or any(name in self.members for name in one.groups)

    def findable(self, viewer: str) -> set[str]:
        def may(one: Access) -> bool:
            own = one.owner == viewer and one.approval != "rejected"
            return one.shared or own or self.given(viewer, one)

        return {document for document, one in self.documents.items() if may(one)}

    def readable(self, viewer: str) -> set[str]:
        def may(one: Access) -> bool:
            reviewed = viewer == OPERATOR and self.offered(one)
            return one.owner == viewer or one.shared or self.given(viewer, one) or reviewed

        return {document for document, one in self.documents.items() if may(one)}

    def own_groups(self, owner: str, groups: tuple[str, ...]) -> tuple[str, ...]:
        """Those of the groups to which the owner may give a document."""
        mine = (name for name in groups if name in self.members)
        return tuple(name for name in mine if owner == OPERATOR or owner in self.members[name])

    @property
    def shared(self) -> set[str]:
        return {document for document, one in self.documents.items() if one.shared}


@dataclass
class World:
    """An installation with ten documents, and what the model says of them."""

    ingestor: Ingestor
    retriever: Retriever
    exchanges: dict[str, str] = field(default_factory=dict)  # the document behind each
    model: Model = field(default_factory=Model)

    @property
    def database(self) -> Database:
        return self.ingestor.passages.database

    @property
    def groups(self) -> Groups:
        return Groups(self.database)

    def add(self, number: int, access: Access, reader: Reader) -> str:
        text = f"# Note {number}\n\nThe crate word{number} is heavy.".encode()
        document = self.ingestor.documents.add(f"{number}.md", text, "upload", reader, access)
        self.model.documents[document.id] = access
        store, asked = FeedbackStore(self.database), f"What is in crate {number}?"
        made = answer(asked, passages=[replace(passage(), document_id=document.id)])
        exchange = store.record(store.start_conversation(OPERATOR, asked), OPERATOR, asked, made)
        store.vote(exchange, OPERATOR, 1)
        self.exchanges[exchange] = document.id
        return document.id


def check(world: World, *, synced: bool = False) -> None:
    """Every query shows every viewer exactly what the model says."""
    store, passages = world.ingestor.documents, world.ingestor.passages
    with world.database.read() as connection:
        rows = connection.execute("SELECT id, document_id FROM chunks").fetchall()
    chunks = {row["id"]: row["document_id"] for row in rows}

    def of(ids: list[int] | set[int]) -> set[str]:
        return {chunks[i] for i in ids}

    assert of(passages.ready_ids()) == world.model.shared
    assert {d.id for d in store.list()} == set(world.model.documents)
    judged = {one[0].id for one in FeedbackStore(world.database).judged()}
    trained = {world.exchanges[one] for one in judged} & set(world.model.documents)
    assert trained == world.model.shared & set(world.exchanges.values())
    for viewer in VIEWERS:
        wanted = world.model.findable(viewer)
        found = [i for i, _ in lexical.search(world.database, "heavy crate", 500, viewer)]
        assert of(found) == wanted, viewer
        assert {p.document_id for p in passages.get(chunks, viewer).values()} == wanted
        assert of(world.retriever.candidates(set(chunks), viewer)[0]) == wanted
        own = {i for ids in passages.own(viewer).values() for i in ids}
        assert of(own) == (wanted - world.model.shared if viewer else set())
        near = world.retriever.own.near(passages, np.ones(384, np.float32), viewer, 500)
        assert {i for i, _ in near} == own
        assert passages.counts(viewer)[0] == len(wanted)
        for stage, shown in world.retriever.stages("heavy crate", 100, viewer).items():
            # the index follows at the next sync; until then words find what it lacks, and rows hide the rest
            late = stage == "dense" and not synced
            found_by = {p.document_id for p in shown}
            assert found_by <= wanted if late else found_by == wanted
        assert {p.document_id for p in world.retriever.search("heavy crate", 100, viewer)} <= wanted
        assert store.hidden(chunks.values(), viewer) == set(chunks.values()) - wanted
        readable = world.model.readable(viewer)
        assert {d.id for d in store.list(viewer)} == readable
        for document in world.model.documents:
            for read in readers(world, document, viewer):
                if document in readable:
                    read()
                else:
                    with pytest.raises(NotFoundError):
                        read()
            assert bool(ChunkStore(world.database).all(document, viewer)) == (document in readable)


def readers(world: World, document: str, viewer: str) -> Iterator[Callable[[], object]]:
    store = world.ingestor.documents
    yield lambda: store.text(document, viewer)
    yield lambda: store.original(document, viewer)
    yield lambda: PageViewer(store).view(document, 1, 0, 3, viewer)
