"""The queue of files: nothing twice, nothing lost, everybody his own; and what the worker makes of it."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from core.db import Database
from core.errors import Cancelled, ConflictError, DocumentError, NotFoundError, StorageError
from core.settings import Settings, load_settings
from rag import intake
from rag.documents import DocumentStore
from rag.embed import Step, Vectors
from rag.groups import Groups
from rag.ingest import Ingestor
from rag.queue import Queue
from rag.queue_work import LEFT_S, MAX_DEATHS, QueueWork
from tests.rag.conftest import HANDBOOK, act_once_read
from tests.rag.files import archive


@pytest.fixture
def queue(ingestor: Ingestor) -> Queue:
    return ingestor.queue


def statuses(queue: Queue) -> dict[str, str]:
    with queue.database.read() as connection:
        return {row["name"]: row["status"] for row in connection.execute("SELECT * FROM intake")}


def kept_bytes(queue: Queue) -> list[str]:
    return sorted(path.name for path in queue.folder.glob("*"))


def test_uploads_are_read_in_order_and_found(queue: Queue, ingestor: Ingestor) -> None:
    queue.put("guide.md", HANDBOOK)
    queue.put("broken.pdf", b"%PDF-1.4 nonsense")
    queue.put("two.zip", archive({"a.md": b"# Apples\n\nRed.", "b.exe": b"MZ\0\0"}))
    names = ["guide.md", "broken.pdf", "two.zip"]
    assert [entry.name for entry in queue.list()] == names
    said: list[str] = []
    assert ingestor.drain(lambda share, message: said.append(message)) == 2
    assert statuses(queue) == {"guide.md": "ready", "broken.pdf": "failed", "two.zip": "ready"}
    assert [line for line in said if line.startswith("Reading")] == [
        "Reading guide.md …", "Reading broken.pdf …", "Reading two.zip …",
    ]  # fmt: skip
    assert {"Preparing guide.md …", "Preparing a.md …"} >= set(said) - {f"Reading {name} …" for name in names}
    failed = next(entry for entry in queue.list() if entry.status == "failed")
    assert failed.error
    assert failed.next_step
    assert "b.exe was not added" in next(e for e in queue.list() if e.status == "ready").error
    assert kept_bytes(queue) == [failed.id]  # to try again
    assert ingestor.index.ids() == ingestor.passages.ready_ids()
    assert {document.status for document in ingestor.documents.list()} == {"ready"}


def test_the_same_bytes_wait_once_and_become_one_document(queue: Queue, ingestor: Ingestor) -> None:
    first = queue.put("guide.md", HANDBOOK)
    assert queue.put("copy.md", HANDBOOK).id == first.id
    assert queue.put("guide.md", HANDBOOK, "api:anna").id != first.id
    ingestor.drain()
    queue.put("again.md", HANDBOOK)
    ingestor.drain()
    assert len(ingestor.documents.list()) == 1
    assert kept_bytes(queue) == []


def test_bad_sizes_are_refused_at_once(queue: Queue) -> None:
    with pytest.raises(DocumentError, match="empty"):
        queue.put("empty.md", b"")
    with pytest.raises(DocumentError, match="at most 25 MB"):
        queue.put("large.md", b"x" * ((25 << 20) + 1))
    assert kept_bytes(queue) == []


def test_a_quota_for_each_user(tmp_path: Path, ingestor: Ingestor) -> None:
    settings = load_settings({}, data_dir=str(tmp_path / "data"), waiting_files=2)
    queue = Queue(ingestor.passages.database, ingestor.documents, settings)
    for number in range(2):
        queue.put(f"{number}.md", b"# %d\n\nText." % number)
    with pytest.raises(DocumentError, match="2 of your files wait already") as caught:
        queue.put("2.md", b"# 2\n\nText.")
    assert "cancel some" in caught.value.next_step
    assert len(kept_bytes(queue)) == 2
    queue.put("2.md", b"# 2\n\nText.", "api:anna")
    assert queue.cancel_waiting("api:anna") == 1
    assert queue.cancel_waiting() == 2
    queue.put("2.md", b"# 2\n\nText.")


def test_twenty_users_at_once_lose_nothing(queue: Queue) -> None:
    threads = [
        threading.Thread(target=queue.put, args=(f"{number}.md", b"# %d\n\nText." % number))
        for number in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert queue.counts()["waiting"] == len(kept_bytes(queue)) == 20


def test_cancel_and_retry(queue: Queue, ingestor: Ingestor) -> None:
    entry = queue.put("guide.md", HANDBOOK)
    with pytest.raises(ConflictError, match="did not fail"):
        queue.retry(entry.id)
    queue.cancel(entry.id)
    assert ingestor.drain() == 0
    assert ingestor.documents.list() == []
    other = queue.put("other.md", b"# Other\n\nText.")
    queue.retry(entry.id)
    assert [one.id for one in queue.list()] == [other.id, entry.id]  # at the end
    ingestor.drain()
    assert set(statuses(queue).values()) == {"ready"}
    with pytest.raises(ConflictError, match="is done"):
        queue.cancel(entry.id)
    queue.clear(entry_id=entry.id)
    with pytest.raises(NotFoundError):
        queue.cancel(entry.id)


def test_users_reach_their_own_files_and_the_operator_all(queue: Queue) -> None:
    entry = queue.put("guide.md", HANDBOOK, "api:anna")
    for act in (queue.cancel, queue.retry):
        with pytest.raises(NotFoundError):
            act(entry.id, "api:ben")
    assert queue.cancel_waiting("api:ben") == 0
    queue.cancel(entry.id, "api:anna")
    queue.clear("api:ben")
    assert queue.get(entry.id).status == "cancelled"
    queue.retry(entry.id)
    queue.cancel(entry.id)


def test_cancelled_while_it_is_read_or_embedded(
    queue: Queue, ingestor: Ingestor, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = queue.put("guide.md", HANDBOOK)
    act_once_read(monkeypatch, lambda: queue.cancel(entry.id))
    assert ingestor.drain() == 0
    assert queue.get(entry.id).status == "cancelled"
    monkeypatch.undo()

    queue.retry(entry.id)
    other = queue.put("other.md", b"# Other\n\nText.")

    cancel_while_it_is_embedded(entry.id, ingestor, monkeypatch)
    assert ingestor.drain() >= 1
    assert queue.get(entry.id).status == "cancelled"
    assert queue.get(other.id).status == "ready"
    assert [document.name for document in ingestor.documents.list()] == ["other.md"]
    assert ingestor.index.ids() == ingestor.passages.ready_ids()


def cancel_while_it_is_embedded(entry_id: str, ingestor: Ingestor, patch: pytest.MonkeyPatch) -> None:
    encode = ingestor.embedder.encode

    def cancelling(texts: Sequence[str], step: Step) -> Vectors:
        if ingestor.queue.get(entry_id).active:
            ingestor.queue.cancel(entry_id)
        return encode(texts)

    patch.setattr(ingestor.embedder, "encode", cancelling)


def test_a_cancelled_document_is_given_to_no_group(
    queue: Queue, ingestor: Ingestor, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = Groups(queue.database)
    groups.create("sales")
    entry = queue.put("guide.md", HANDBOOK, visibility="owner", groups=["sales"])
    cancel_while_it_is_embedded(entry.id, ingestor, monkeypatch)
    ingestor.drain()
    assert queue.get(entry.id).status == "cancelled"
    assert groups.all()[0].documents == 0


def test_an_interrupted_file_waits_again_and_a_strange_error_fails_it_alone(
    queue: Queue, ingestor: Ingestor, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue.put("guide.md", HANDBOOK)
    queue.put("other.md", b"# Other\n\nText.")
    for error in (KeyboardInterrupt(), SystemExit(143), Cancelled("stop"), StorageError("The disk is full.")):

        def interrupted(*rest: object, error: BaseException = error) -> object:
            raise error

        monkeypatch.setattr("rag.drain.take", interrupted)
        with pytest.raises(type(error)):
            ingestor.drain()
        assert set(statuses(queue).values()) == {"waiting"}
    real = DocumentStore.add
    monkeypatch.undo()

    def odd(self: DocumentStore, name: str, *rest: object) -> object:
        if name == "guide.md":
            raise ZeroDivisionError
        return real(self, name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(DocumentStore, "add", odd)
    ingestor.drain()
    assert statuses(queue) == {"guide.md": "failed", "other.md": "ready"}
    assert queue.list()[0].error == "Reading this file failed (ZeroDivisionError)."


def test_a_file_that_kills_its_process_is_given_up(queue: Queue) -> None:
    work = QueueWork(queue)
    entry = queue.put("guide.md", HANDBOOK)
    for _ in range(MAX_DEATHS):
        assert queue.get(entry.id).status == "waiting"
        assert work.claim() is not None
        work.recover()
    assert queue.get(entry.id).status == "failed"
    assert "died 3 times" in queue.get(entry.id).error
    queue.retry(entry.id)
    assert work.claim() is not None


def test_bytes_of_a_process_that_died_are_removed_when_old(queue: Queue) -> None:
    work = QueueWork(queue)
    kept = queue.put("guide.md", HANDBOOK)
    for name in ("old", "young"):
        (queue.folder / name).write_bytes(b"x")
    past = (queue.folder / "old").stat().st_mtime - LEFT_S - 1
    for name in ("old", kept.id):
        os.utime(queue.folder / name, (past, past))
    work.recover()
    assert kept_bytes(queue) == sorted([kept.id, "young"])


def test_what_holds_no_text_fails_with_the_reason(queue: Queue, ingestor: Ingestor) -> None:
    entry = queue.put("guide.md", HANDBOOK)
    work = QueueWork(queue)
    claimed = work.claim()
    assert claimed is not None
    document = ingestor.documents.add("guide.md", HANDBOOK, "upload")
    work.read(claimed, [document.id])
    ingestor.documents.fail(document.id, "The document holds no text that can be searched.")
    work.settle()
    assert queue.get(entry.id).status == "failed"
    assert "no text" in queue.get(entry.id).error
    queue.retry(entry.id)
    ingestor.drain()
    assert queue.get(entry.id).status == "ready"


def test_a_folder_is_queued_and_finished_by_the_worker(
    tmp_path: Path, queue: Queue, ingestor: Ingestor, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.md").write_text(f"# Number {number}\n\nText {number}.")
    take = intake.take

    def killed(store: object, name: str, *rest: object) -> object:
        if name == "2.md":
            raise KeyboardInterrupt
        return take(store, name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr("rag.renew.take", killed)
    with pytest.raises(KeyboardInterrupt):
        ingestor.sync(folder, lambda line: None)
    assert statuses(queue) == {
        "0.md": "embedding", "1.md": "embedding", "2.md": "waiting", "3.md": "waiting",
    }  # fmt: skip
    monkeypatch.undo()
    (folder / "3.md").unlink()
    ingestor.drain()
    assert list(statuses(queue).values()) == ["ready", "ready", "ready", "failed"]
    summary = ingestor.sync(folder, lambda line: None)
    assert (summary.added, summary.unchanged, summary.removed) == (0, 3, 0)
    assert "3.md" not in statuses(queue)
    assert len(ingestor.documents.list()) == 3


def test_a_cancelled_file_of_a_folder_comes_back_with_the_next_run(
    tmp_path: Path, queue: Queue, ingestor: Ingestor
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.md").write_text("# A\n\nText.")
    entry = queue.put_files(str(folder), [("a.md", 10)], ["a.md"])[0]
    claimed = QueueWork(queue).claim(entry.id)
    assert claimed is not None
    queue.cancel(entry.id)
    ingestor.drain()
    assert ingestor.documents.list() == []
    assert ingestor.sync(folder, lambda line: None).added == 1
    assert queue.get(entry.id).status == "ready"


def test_an_empty_queue(database: Database, settings: Settings) -> None:
    queue = Queue(database, DocumentStore(database, settings), settings)
    assert queue.list() == []
    assert queue.active() == 0
    assert queue.counts()["done"] == 0
    queue.clear()
