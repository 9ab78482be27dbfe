from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from core.db import Database
from core.errors import DocumentError
from core.settings import Settings
from rag import sync as module
from rag.documents import DocumentStore
from rag.ingest import Ingestor
from rag.intake import take
from rag.reader import Reader
from rag.retrieve import Retriever
from rag.sync import Changes, sync
from tests.rag.files import archive


@pytest.fixture
def store(database: Database, settings: Settings) -> DocumentStore:
    return DocumentStore(database, settings)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.md").write_text("# Apples\n\nApples are red.")
    (folder / "deep" / "b.md").write_text("# Boats\n\nBoats are blue.")
    (folder / "both.zip").write_bytes(archive({"c.md": b"# Cats\n\nCats.", "d.md": b"# Dogs\n\nDogs."}))
    (folder / "bad.pdf").write_bytes(b"%PDF-1.4 nonsense")
    return folder


def titles(store: DocumentStore) -> set[str]:
    return {document.title for document in store.list()}


def run(store: DocumentStore, folder: Path, reader: Reader) -> Changes:
    return sync(store, folder, reader, lambda line: None)


def test_adds_updates_and_removes(store: DocumentStore, folder: Path, reader: Reader) -> None:
    first = run(store, folder, reader)
    assert (len(first.added), first.removed, len(first.refused)) == (4, 0, 1)
    assert titles(store) == {"Apples", "Boats", "Cats", "Dogs"}
    (folder / "a.md").write_text("# Apples\n\nApples are green now.")
    (folder / "deep" / "b.md").unlink()
    (folder / "both.zip").write_bytes(archive({"c.md": b"# Cats\n\nCats."}))
    second = run(store, folder, reader)
    assert (len(second.added), second.removed) == (1, 3)
    assert titles(store) == {"Apples", "Cats"}
    assert "green" in next(store.text(d.id) for d in store.list() if d.title == "Apples")


def test_documents_are_removed_for_good(
    store: DocumentStore, folder: Path, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading waits for no disk, since the folder still has the file; a removal must wait."""
    run(store, folder, reader)
    (folder / "a.md").unlink()
    (folder / "deep" / "b.md").write_text("# Boats\n\nBoats are green.")
    levels: dict[str, int] = {}

    def noting(name: str) -> None:
        real = getattr(store, name)

        def noted(*rest: object) -> object:
            with store.database.read() as connection:
                levels[name] = connection.execute("PRAGMA synchronous").fetchone()[0]
            return real(*rest)

        monkeypatch.setattr(store, name, noted)

    noting("add")
    noting("delete")
    assert run(store, folder, reader).removed == 2
    assert levels == {"add": 1, "delete": 2}


def test_unchanged_files_are_not_even_opened(
    store: DocumentStore, folder: Path, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "YOUNG_NS", 0)
    run(store, folder, reader)
    monkeypatch.setattr(DocumentStore, "read_file", lambda self, path: pytest.fail(f"{path} was read"))
    again = run(store, folder, reader)
    assert not again.touched
    assert again.unchanged == 3
    assert [path for path, _ in again.refused] == ["bad.pdf"]


def test_a_change_with_the_same_size_and_times_is_found(
    store: DocumentStore, folder: Path, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Changed within one tick of the clock: every field of `stat` is as it was."""
    frozen = (folder / "a.md").stat().st_ctime_ns
    monkeypatch.setattr(module, "_stamp", lambda path: (20, frozen, 1))
    run(store, folder, reader)
    (folder / "a.md").write_text("# Apples\n\nApples are big.")
    monkeypatch.setattr(module, "YOUNG_NS", 0)  # later: it is old when it is read again
    assert len(run(store, folder, reader).added) == 1
    assert not run(store, folder, reader).touched


def test_a_change_under_a_time_that_was_set_back_is_found(
    store: DocumentStore, folder: Path, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "YOUNG_NS", 0)
    seen = (folder / "a.md").stat()
    run(store, folder, reader)
    (folder / "a.md").write_text("# Apples\n\nApples are big.")
    os.utime(folder / "a.md", ns=(seen.st_atime_ns, seen.st_mtime_ns))
    assert (folder / "a.md").stat().st_size == seen.st_size
    assert len(run(store, folder, reader).added) == 1


def test_touched_but_equal_files_are_not_parsed(
    store: DocumentStore, folder: Path, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(store, folder, reader)
    os.utime(folder / "a.md", ns=(1, 1))
    monkeypatch.setattr("rag.renew.take", lambda *rest: pytest.fail("it was taken again"))
    assert not run(store, folder, reader).touched


def test_a_renamed_file_and_a_second_copy_keep_the_document(
    store: DocumentStore, folder: Path, reader: Reader
) -> None:
    run(store, folder, reader)
    before = {document.id for document in store.list()}
    (folder / "a.md").rename(folder / "z.md")
    shutil.copy(folder / "deep" / "b.md", folder / "copy.md")
    (folder / "deep" / "b.md").unlink()
    assert run(store, folder, reader).removed == 0
    assert {document.id for document in store.list()} == before


def test_what_somebody_uploaded_stays(store: DocumentStore, folder: Path, reader: Reader) -> None:
    kept = store.add("mine.md", b"# Mine\n\nMy own.", "upload", reader)
    (folder / "mine.md").write_bytes(b"# Mine\n\nMy own.")
    run(store, folder, reader)
    store.add("a.md", (folder / "a.md").read_bytes(), "upload", reader)
    (folder / "mine.md").unlink()
    (folder / "a.md").unlink()
    assert run(store, folder, reader).removed == 0
    assert store.find(kept.id) is not None
    assert "Apples" in titles(store)


def test_an_empty_or_missing_folder_deletes_nothing(
    store: DocumentStore, folder: Path, reader: Reader
) -> None:
    run(store, folder, reader)
    shutil.rmtree(folder)
    with pytest.raises(DocumentError, match="not a folder"):
        run(store, folder, reader)
    folder.mkdir()
    with pytest.raises(DocumentError, match="nothing was removed"):
        run(store, folder, reader)
    assert len(store.list()) == 4


def test_a_run_that_was_killed_is_finished_by_the_next(
    store: DocumentStore, folder: Path, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(Exception):
        pass

    run(store, folder, reader)
    (folder / "a.md").write_text("# Apricots\n\nNew words.")

    def die(*rest: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("rag.renew.retire_all", die)
        with pytest.raises(Killed):
            run(store, folder, reader)
    assert titles(store) >= {"Apples", "Apricots"}
    assert run(store, folder, reader).removed == 1
    assert titles(store) == {"Apricots", "Boats", "Cats", "Dogs"}


def test_a_refusal_is_tried_again_by_another_reader(
    store: DocumentStore, folder: Path, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(store, folder, reader)
    seen: list[str] = []

    def watch(store: DocumentStore, name: str, *rest: object) -> object:
        seen.append(name)
        return take(store, name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr("rag.renew.take", watch)
    monkeypatch.setattr(module, "READER", "another")
    run(store, folder, reader)
    assert seen == ["bad.pdf"]


def test_search_follows_the_folder(ingestor: Ingestor, folder: Path) -> None:
    ingestor.sync(folder, lambda line: None)
    assert ingestor.sync(folder, lambda line: None).added == 0
    (folder / "a.md").unlink()
    summary = ingestor.sync(folder, lambda line: None)
    assert (summary.added, summary.removed) == (0, 1)
    retriever = Retriever(ingestor.settings, ingestor.passages.database, ingestor.index, ingestor.embedder)
    found = {passage.document for passage in retriever.search("What colour are apples and boats?", 4)}
    assert "b.md" in found or "Boats" in found
    assert not found & {"a.md", "Apples"}
