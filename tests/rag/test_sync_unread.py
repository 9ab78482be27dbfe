"""What a synchronised folder cannot read this time stays as it is known, is said, and is tried again."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from core.errors import DocumentError
from core.jobs import Jobs
from core.settings import Settings
from rag import ingest
from rag.documents import DocumentStore
from rag.embed import Embedder
from rag.ingest import Ingestor, main
from rag.queue import Queue
from rag.reader import Reader
from rag.sources import SourceStore
from rag.sync import sync
from tests.rag.conftest import titles
from tests.rag.test_sync import folder, run

__all__ = ["folder"]

Deny = Callable[[Path], None]


@pytest.fixture
def deny(monkeypatch: pytest.MonkeyPatch) -> Deny:
    """Lets the system refuse a path: tests may run as root, whom no permission stops."""
    denied: set[str] = set()

    def guarded(name: str) -> None:
        real = getattr(os, name)

        def call(path: object = ".", *rest: object, **named: object) -> object:
            if isinstance(path, str | Path) and str(path) in denied:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            return real(path, *rest, **named)

        monkeypatch.setattr(os, name, call)

    guarded("scandir")
    guarded("open")
    return lambda path: denied.add(str(path))


def test_what_lies_below_an_unreadable_folder_stays(
    store: DocumentStore, folder: Path, reader: Reader, deny: Deny, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "deeper").mkdir()
    (folder / "deeper" / "e.md").write_text("# Eggs\n\nEggs are white.")
    run(store, folder, reader)
    sources = SourceStore(store.database, str(folder))
    known, ids = sources.all(), {document.id for document in store.list()}
    (folder / "a.md").unlink()
    (folder / "deeper" / "e.md").unlink()  # in a folder of a similar name, which can be read
    with monkeypatch.context():
        deny(folder / "deep")
        said: list[str] = []
        changes = sync(store, folder, reader, said.append)
    assert changes.unread == [("deep", "The folder cannot be read: Permission denied.")]
    assert any(line.startswith("unread     deep: The folder cannot be read") for line in said)
    assert changes.removed == 2
    assert titles(store) == {"Boats", "Cats", "Dogs"}
    assert {document.id for document in store.list()} < ids
    assert sources.all()["deep/b.md"] == known["deep/b.md"]
    monkeypatch.undo()
    (folder / "deep" / "b.md").unlink()
    again = run(store, folder, reader)
    assert (again.removed, again.unread) == (1, [])


def test_a_folder_that_cannot_be_listed_at_all_removes_nothing(
    store: DocumentStore, folder: Path, reader: Reader, deny: Deny
) -> None:
    run(store, folder, reader)
    deny(folder)
    with pytest.raises(DocumentError, match="cannot be read, so nothing was removed"):
        run(store, folder, reader)
    assert len(store.list()) == 4


def test_a_file_that_cannot_be_read_stays_and_is_read_later(
    store: DocumentStore,
    settings: Settings,
    folder: Path,
    reader: Reader,
    deny: Deny,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("rag.sync.YOUNG_NS", 0)
    run(store, folder, reader)
    (folder / "a.md").write_text("# Apples\n\nApples are green now.")
    (folder / "new.md").write_text("# News\n\nNews are new.")
    deny(folder / "a.md")
    deny(folder / "new.md")
    for _ in range(2):
        changes = run(store, folder, reader)
        assert [name for name, _ in changes.unread] == ["a.md", "new.md"]
        assert (changes.added, changes.removed, len(changes.refused)) == ([], 0, 1)
        assert "red" in next(store.text(d.id) for d in store.list() if d.title == "Apples")
    entry = next(e for e in Queue(store.database, store, settings).list() if e.path == "a.md")
    assert (entry.status, entry.error) == ("failed", "The file cannot be read: Permission denied.")
    assert "stays" in entry.next_step
    monkeypatch.undo()
    monkeypatch.setattr("rag.sync.YOUNG_NS", 0)
    changes = run(store, folder, reader)  # neither file changed since
    assert (len(changes.added), changes.removed, changes.unread) == (2, 1, [])
    assert "green" in next(store.text(d.id) for d in store.list() if d.title == "Apples")


def test_what_is_no_file_any_more_goes(store: DocumentStore, folder: Path, reader: Reader) -> None:
    """A pipe or a link in a file's place is no failure to read: the file is gone."""
    run(store, folder, reader)
    (folder / "a.md").unlink()
    os.mkfifo(folder / "a.md")
    (folder / "deep" / "b.md").unlink()
    (folder / "deep" / "b.md").symlink_to("nowhere")
    changes = run(store, folder, reader)
    assert (changes.removed, changes.unread) == (2, [])
    assert ("a.md", "This is not a regular file.") in changes.refused
    assert ("deep/b.md", "This is not a regular file.") in changes.refused


def test_the_command_and_the_job_say_it(
    settings: Settings,
    ingestor: Ingestor,
    folder: Path,
    embedder: Embedder,
    deny: Deny,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(ingest, "load_settings", lambda: settings)
    monkeypatch.setattr(ingest, "Embedder", lambda half: embedder)
    monkeypatch.setattr("rag.ingest._stop_in_order", lambda: None)
    (folder / "bad.pdf").unlink()
    deny(folder / "deep")
    deny(folder / "a.md")
    assert main(["--sync", str(folder)]) == 2
    out = capsys.readouterr().out
    assert "unread     a.md: The file cannot be read: Permission denied. What is known of it stays" in out
    assert "2 added, 0 unchanged, 0 removed, 0 refused, 2 could not be read and stay as they were." in out
    assert main([str(folder)]) == 2
    out = capsys.readouterr().out
    assert "refused    deep: The folder cannot be read: Permission denied." in out
    jobs = Jobs(ingestor.passages.database)
    jobs.submit("ingest")
    job = jobs.lease(("ingest",))
    assert job is not None
    assert main(["--job", job.id, "--token", str(job.token)]) == 0
    assert jobs.get(job.id).message.endswith("1 of the queue's files failed; the Documents page says why.")
