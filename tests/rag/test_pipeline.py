"""Reading while passages are embedded: in groups, one alone does not wait, errors arrive, no thread stays."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from core.errors import Cancelled, DocumentError, StorageError
from rag import pipeline as module
from rag.documents import Document, DocumentStore
from rag.embed import Step, Vectors
from rag.ingest import Ingestor
from rag.pipeline import Group, Pipeline

PATIENCE = 60.0  # seconds until a test that waits for another thread fails


def document(number: int, chunks: int = 1, status: str = "pending") -> Document:
    return Document(f"{number}", f"{number}.md", "markdown", 1, "upload", status, "", 0, 0, "", chunks)


class Made:
    """Groups as they were embedded; each waits for a turn when `held`."""

    def __init__(self, held: bool = False) -> None:
        self.groups: list[list[str]] = []
        self.begun = threading.Semaphore(0)
        self.turns = threading.Semaphore(0 if held else 1_000)

    def embed(self, group: Group, step: Step) -> None:
        self.begun.release()
        assert self.turns.acquire(timeout=PATIENCE)
        step()
        self.groups.append([one.id for one in group])


def pipeline(made: Made) -> Pipeline:
    return Pipeline(made.embed, lambda group: None, lambda first: None)


@pytest.fixture(autouse=True)
def no_thread_is_left() -> object:
    yield
    assert [thread for thread in threading.enumerate() if thread.name == "embedding"] == []


def test_one_alone_is_embedded_while_the_caller_goes_on() -> None:
    made = Made()
    with pipeline(made) as running:
        assert running.offer([document(1)]) == 1
        assert made.begun.acquire(timeout=PATIENCE)  # nothing else was offered, nobody waits
        running.wait()
        assert made.groups == [["1"]]
        assert not running.wait()


def test_what_comes_while_a_group_is_embedded_goes_together() -> None:
    made = Made(held=True)
    with pipeline(made) as running:
        running.offer([document(1)])
        assert made.begun.acquire(timeout=PATIENCE)
        for number in range(2, 6):
            running.offer([document(number, 200)])
        made.turns.release(10)
    assert made.groups == [["1"], ["2", "3"], ["4", "5"]]  # 512 chunks at most


def test_a_document_larger_than_a_group_goes_alone_and_each_once() -> None:
    made = Made()
    with pipeline(made) as running:
        assert running.offer([document(1, 5_000), document(2), document(2), document(3, 1, "ready")]) == 2
        assert running.offer([document(2)]) == 0
    assert made.groups == [["1"], ["2"]]


def test_reading_is_not_far_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GROUP_CHUNKS", 2)
    most = 0
    left: list[int] = []

    def embed(group: Group, step: Step) -> None:
        nonlocal most
        most = max(most, offered - len(left))
        left.extend(range(len(group)))

    offered = 0
    with Pipeline(embed, lambda group: None, lambda first: None) as running:
        for number in range(50):
            running.offer([document(number)])
            offered += 1
    assert len(left) == 50
    assert most <= module.AHEAD * 2 + 1


def test_an_error_of_the_thread_reaches_the_caller_at_its_next_word() -> None:
    def embed(group: Group, step: Step) -> None:
        raise StorageError("The disk is full.")

    running = Pipeline(embed, lambda group: None, lambda first: None)
    running.offer([document(1)])
    with pytest.raises(StorageError, match="disk is full"):
        running.wait()
    with pytest.raises(StorageError, match="disk is full"):
        running.offer([document(2)] * 2_000)
    with pytest.raises(StorageError, match="disk is full"):
        running.__exit__(None, None, None)


@pytest.mark.parametrize("error", [Cancelled("stop"), KeyboardInterrupt(), SystemExit(143)])
def test_when_the_caller_leaves_the_thread_ends_at_its_next_step(
    error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BEAT_SECONDS", 0.01)
    begun = threading.Event()

    def embed(group: Group, step: Step) -> None:
        begun.set()
        while True:  # ends by `step` alone
            step()
            time.sleep(0.001)

    def beat(first: Document) -> None:
        assert first.name == "1.md"
        if begun.is_set():
            raise error

    def run() -> None:
        with Pipeline(embed, lambda group: None, beat) as running:
            running.offer([document(1)])

    with pytest.raises(type(error)):
        run()


def watched(ingestor: Ingestor, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many texts each call of the embedder gets; it waits until three files have been read."""
    asked: list[int] = []
    read = threading.Semaphore(0)
    encode, add = ingestor.embedder.encode, DocumentStore.add

    def slow(texts: Sequence[str], step: Step) -> Vectors:
        if not asked:
            for _ in range(3):
                assert read.acquire(timeout=PATIENCE), "reading waits for embedding"
        asked.append(len(texts))
        return encode(texts)

    def noted(self: DocumentStore, *rest: object) -> Document:
        added = add(self, *rest)  # type: ignore[arg-type]
        read.release()
        return added

    monkeypatch.setattr(ingestor.embedder, "encode", slow)
    monkeypatch.setattr(DocumentStore, "add", noted)
    return asked


@pytest.mark.parametrize("way", ["folder", "queue", "paths"])
def test_every_way_in_reads_on_while_it_embeds(
    way: str, ingestor: Ingestor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    asked = watched(ingestor, monkeypatch)
    for number in range(4):
        text = f"# Number {number}\n\nThe words of {number}.\n"
        if way == "queue":
            ingestor.queue.put(f"{number}.md", text.encode())
        else:
            (folder / f"{number}.md").write_text(text)
    if way == "queue":
        assert ingestor.drain() == 4
    else:
        summary = (
            ingestor.sync(folder, lambda line: None)
            if way == "folder"
            else ingestor.ingest([folder], lambda line: None)
        )
        assert summary.added == 4
    assert len(asked) < 4  # in groups that cross files
    assert sum(asked) == 4
    assert ingestor.index.ids() == ingestor.passages.ready_ids()
    assert {one.status for one in ingestor.documents.list()} == {"ready"}
    with ingestor.passages.database.read() as connection:  # and for good
        assert connection.execute("PRAGMA synchronous").fetchone()[0] == 2


def test_a_line_for_each_file_comes_when_it_can_be_searched(ingestor: Ingestor, tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("# A\n\nWords.")
    (tmp_path / "b.md").write_text("# A\n\nWords.")
    (tmp_path / "c.md").write_bytes(b"")
    states: list[tuple[str, str]] = []

    def report(line: str) -> None:
        found = [one.status for one in ingestor.documents.list()]
        states.append((line.split()[0], found[0] if found else ""))

    ingestor.ingest([tmp_path / "a.md", tmp_path / "b.md", tmp_path / "c.md"], report)
    assert sorted(kind for kind, _ in states) == ["added", "refused", "unchanged"]
    assert ("added", "ready") in states


def test_a_failure_of_the_embedder_leaves_what_is_read_pending_and_the_rest_waiting(
    ingestor: Ingestor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(texts: Sequence[str], step: Step) -> Vectors:
        raise StorageError("The disk is full.")

    for number in range(3):
        ingestor.queue.put(f"{number}.md", b"# %d\n\nText." % number)
    with monkeypatch.context() as patch:
        patch.setattr(ingestor.embedder, "encode", full)
        with pytest.raises(StorageError):
            ingestor.drain()
    counts = ingestor.queue.counts()
    assert counts["embedding"] + counts["waiting"] == 3
    assert counts["reading"] == 0
    assert {one.status for one in ingestor.documents.list()} == {"pending"}
    ingestor.drain()
    assert ingestor.queue.counts()["ready"] == 3


def test_one_bad_file_among_many_fails_alone(ingestor: Ingestor, monkeypatch: pytest.MonkeyPatch) -> None:
    add = DocumentStore.add

    def odd(self: DocumentStore, name: str, *rest: object) -> Document:
        if name == "1.md":
            raise DocumentError("It is odd.")
        return add(self, name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(DocumentStore, "add", odd)
    for number in range(3):
        ingestor.queue.put(f"{number}.md", b"# %d\n\nText." % number)
    assert ingestor.drain() == 2
    assert ingestor.queue.counts()["failed"] == 1
