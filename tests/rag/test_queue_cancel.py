"""An archive is cancelled while its files are embedded: what came with it goes, the others stay."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from rag.embed import Step, Vectors
from rag.ingest import Ingestor
from rag.queue import Queue
from tests.rag.conftest import act_once_read
from tests.rag.files import archive

A, B, C = (f"# {name}\n\nWords about {name}.".encode() for name in ("Apples", "Boats", "Cats"))


@pytest.fixture
def queue(ingestor: Ingestor) -> Queue:
    return ingestor.queue


def at_second_group(ingestor: Ingestor, patch: pytest.MonkeyPatch, act: Callable[[], None]) -> None:
    """Have every document embedded by itself, and `act` while the second one is."""
    patch.setattr("rag.pipeline.GROUP_CHUNKS", 1)
    encode, groups = ingestor.embedder.encode, []

    def acting(texts: Sequence[str], step: Step) -> Vectors:
        groups.append(texts)
        if len(groups) == 2:
            act()
        return encode(texts)

    patch.setattr(ingestor.embedder, "encode", acting)


def names(ingestor: Ingestor, status: str = "ready") -> list[str]:
    return sorted(one.name for one in ingestor.documents.list() if one.status == status)


def test_files_of_it_that_were_ready_are_removed(
    queue: Queue, ingestor: Ingestor, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue.put("a.md", A)
    ingestor.drain()
    entry = queue.put("all.zip", archive({"a.md": A, "b.md": B, "c.md": C}))

    def cancel() -> None:
        assert names(ingestor) == ["a.md", "b.md"]
        queue.cancel(entry.id)

    at_second_group(ingestor, monkeypatch, cancel)
    ingestor.drain()
    assert names(ingestor) == ["a.md"]
    assert names(ingestor, "pending") == []
    assert ingestor.index.ids() == ingestor.passages.ready_ids()
    cancelled = queue.get(entry.id)
    assert cancelled.status == "cancelled"
    assert cancelled.error.startswith("Of its documents 1 stay")
    queue.retry(entry.id)
    ingestor.drain()
    assert names(ingestor) == ["a.md", "b.md", "c.md"]


def test_a_file_that_came_another_way_since_stays(
    queue: Queue, ingestor: Ingestor, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = queue.put("all.zip", archive({"a.md": A, "b.md": B, "c.md": C}))

    def cancel() -> None:
        ingestor.documents.add("mine.md", A, "upload")  # it is ready, so the page reads nothing
        queue.put("b.md", B)
        queue.cancel(entry.id)

    at_second_group(ingestor, monkeypatch, cancel)
    ingestor.drain()
    assert names(ingestor) == ["a.md", "b.md"]
    assert "1 stay" in queue.get(entry.id).error
    queue.retry(entry.id)
    queue.cancel(entry.id)  # while it waits: nothing is its own now
    assert names(ingestor) == ["a.md", "b.md"]


def test_a_cancelled_archive_of_a_folder_keeps_what_it_was(
    tmp_path: Path, queue: Queue, ingestor: Ingestor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its new files go and come back with the next run; those it held before, and their edits, stay."""
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "all.zip").write_bytes(archive({"a.md": A}))
    ingestor.sync(folder, lambda line: None)
    before = ingestor.documents.list()
    (folder / "all.zip").write_bytes(archive({"a.md": A, "b.md": B, "c.md": C}))

    def cancel() -> None:
        queue.cancel(next(entry.id for entry in queue.list() if entry.status == "embedding"))

    with monkeypatch.context() as patch:
        at_second_group(ingestor, patch, cancel)
        ingestor.sync(folder, lambda line: None)
    assert ingestor.documents.list() == before
    assert ingestor.sync(folder, lambda line: None).added == 2
    assert names(ingestor) == ["a.md", "b.md", "c.md"]


def test_a_row_that_was_cleared_while_it_was_read(
    queue: Queue, ingestor: Ingestor, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = queue.put("a.md", A)

    def clear() -> None:
        queue.cancel(entry.id)
        queue.clear()

    act_once_read(monkeypatch, clear)
    assert ingestor.drain() == 0
    assert ingestor.documents.list() == []
