"""A failed document is read again from its stored bytes, through the queue, and nothing is lost."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from core.errors import DocumentError, NotFoundError, QuotaError
from core.files import inside
from rag.access import OPERATOR, Access
from rag.approval import Approval
from rag.documents import Document
from rag.embed import Embedder, Step, Vectors
from rag.ingest import Ingestor
from rag.queue import Queue
from rag.reader import Reader
from tests.rag.conftest import HANDBOOK
from tests.rag.test_kill import HashedVectors

ANNA = "api:anna"


@pytest.fixture
def embedder() -> Embedder:
    return HashedVectors()


@pytest.fixture
def queue(ingestor: Ingestor) -> Queue:
    return ingestor.queue


def failed(ingestor: Ingestor, access: Access = Access(), origin: str = "upload") -> Document:  # noqa: B008
    """A document that could not be embedded."""
    document = ingestor.documents.add("guide.md", HANDBOOK, origin, access=access)
    ingestor.documents.fail(document.id, "The document holds no text that can be searched.")
    return ingestor.documents.get(document.id)


def test_it_becomes_ready_in_its_place(queue: Queue, ingestor: Ingestor) -> None:
    document = failed(ingestor, origin="sample")
    entry = queue.read_again(document.id)
    assert queue.being_read_again() == {document.id}
    assert queue.read_again(document.id).id == entry.id  # clicked twice
    assert ingestor.documents.get(document.id) == document  # until it was read
    ingestor.drain()
    now = ingestor.documents.get(document.id)
    assert (now.status, now.origin, now.access) == ("ready", "sample", document.access)
    assert queue.get(entry.id).status == "ready"
    assert queue.being_read_again() == set()
    assert [d.id for d in ingestor.documents.list()] == [document.id]


def test_it_keeps_its_owner_its_readers_and_what_was_decided(queue: Queue, ingestor: Ingestor) -> None:
    document = failed(ingestor, Access(ANNA, "everybody", "waiting"))
    Approval(queue.database).approve(document.id, OPERATOR)
    queue.read_again(document.id)
    ingestor.drain()
    # one row: it was stored under an id of its owner's while it waited for approval
    assert [(d.status, d.access) for d in ingestor.documents.list()] == [("ready", Access(ANNA))]


def test_read_under_another_id_the_failed_one_goes_when_that_is_ready(
    queue: Queue, ingestor: Ingestor
) -> None:
    document = failed(ingestor, Access(OPERATOR, "owner"))
    Approval(queue.database).show_to(document.id, "everybody", OPERATOR)
    entry = queue.read_again(document.id)
    states: list[list[str]] = []
    encode = ingestor.embedder.encode

    def looking(texts: Sequence[str], step: Step) -> Vectors:
        states.append(sorted(d.status for d in ingestor.documents.list()))
        return encode(texts, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ingestor.embedder, "encode", looking)
        ingestor.drain()
    assert states == [["failed", "pending"]]
    [now] = ingestor.documents.list()
    assert (now.status, now.id) == ("ready", queue.get(entry.id).documents[0])
    assert now.id != document.id


def test_failing_again_loses_nothing(
    queue: Queue, ingestor: Ingestor, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = failed(ingestor)
    entry = queue.read_again(document.id)

    def broken(*_: object) -> None:
        raise DocumentError("It is broken.")

    monkeypatch.setattr(Reader, "read_chunks", broken)
    ingestor.drain()
    assert (queue.get(entry.id).status, queue.get(entry.id).error) == ("failed", "It is broken.")
    assert ingestor.documents.get(document.id) == document
    assert ingestor.documents.original(document.id) == HANDBOOK
    monkeypatch.undo()
    assert queue.read_again(document.id).id == entry.id  # no second row in the queue
    ingestor.drain()
    assert ingestor.documents.get(document.id).status == "ready"


def test_cancelling_loses_nothing(queue: Queue, ingestor: Ingestor, monkeypatch: pytest.MonkeyPatch) -> None:
    document = failed(ingestor)
    entry = queue.read_again(document.id)
    encode = ingestor.embedder.encode

    def cancelling(texts: Sequence[str], step: Step) -> Vectors:
        queue.cancel(entry.id)
        return encode(texts, step)

    monkeypatch.setattr(ingestor.embedder, "encode", cancelling)
    ingestor.drain()
    monkeypatch.undo()
    now = ingestor.documents.get(document.id)
    assert (now.status, now.error) == ("failed", "Reading it again was cancelled.")
    assert ingestor.documents.original(document.id) == HANDBOOK
    assert ingestor.index.ids() == set()
    queue.read_again(document.id)
    ingestor.drain()
    assert ingestor.documents.get(document.id).status == "ready"
    assert ingestor.index.ids() == ingestor.passages.ready_ids()


def test_a_document_deleted_meanwhile_does_not_come_back(queue: Queue, ingestor: Ingestor) -> None:
    document = failed(ingestor)
    entry = queue.read_again(document.id)
    ingestor.documents.delete(document.id)
    ingestor.drain()
    assert ingestor.documents.list() == []
    with pytest.raises(NotFoundError):
        queue.get(entry.id)


def test_what_cannot_be_read_again(queue: Queue, ingestor: Ingestor) -> None:
    document = failed(ingestor, Access(ANNA, "owner"))
    with pytest.raises(NotFoundError):
        queue.read_again(document.id, "api:ben")
    inside(ingestor.documents.folder, document.id).unlink()
    with pytest.raises(DocumentError, match="is gone"):
        queue.read_again(document.id, ANNA)
    assert queue.list() == []


def test_a_full_queue_says_so_in_its_own_error(
    queue: Queue, ingestor: Ingestor, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = failed(ingestor)
    monkeypatch.setattr(Queue, "_require_room", full)
    with pytest.raises(QuotaError):
        queue.read_again(document.id)
    assert list(queue.folder.glob("*")) == []


def full(*_: object) -> None:
    raise QuotaError("Too many wait.")


def test_what_is_ready_with_a_word_is_cleared_and_what_is_ready_stays(
    queue: Queue, ingestor: Ingestor
) -> None:
    """A caller of the API may still ask what became of its file."""
    from tests.rag.files import archive

    noted = queue.put("two.zip", archive({"a.md": b"# Apples\n\nRed.", "b.exe": b"MZ\0\0"}))
    plain = queue.put("guide.md", HANDBOOK, ANNA)
    gone = queue.put("gone.md", b"# Gone\n\nText.", ANNA)
    queue.cancel(gone.id)
    ingestor.drain()
    assert queue.counts()["finished"] == 2
    assert [entry.id for entry in queue.list(actor=ANNA)] == [gone.id]
    queue.clear()
    assert queue.list() == []
    assert queue.counts()["finished"] == 0
    assert queue.get(plain.id).status == "ready"
    queue.clear("api:ben", plain.id)
    assert queue.get(plain.id).status == "ready"
    queue.clear(ANNA, plain.id)
    for entry in (noted, plain):
        with pytest.raises(NotFoundError):
            queue.get(entry.id)
