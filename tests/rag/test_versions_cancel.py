"""New versions of archives that are refused in part, and of files that are cancelled while they are read."""

from __future__ import annotations

from pathlib import Path

import pytest

from rag.ingest import Ingestor
from rag.sources import SourceStore
from tests.rag.files import archive
from tests.rag.test_kill import problems
from tests.rag.test_versions import (
    BROKEN,
    EDITED,
    NEW,
    TODAY,
    edit,
    edits,
    entry,
    folder,
    quiet,
    ready,
    rows,
    while_embedding,
)

__all__ = ["folder"]


def test_members_of_an_archive_that_are_refused_keep_their_earlier_versions(
    ingestor: Ingestor, folder: Path
) -> None:
    first = {"c.md": b"# Cats\n\nCats.", "d.md": b"# Dogs\n\nDogs.", "e.md": b"# Eels\n\nEels."}
    (folder / "all.zip").write_bytes(archive(first))
    ingestor.sync(folder, quiet)
    (folder / "all.zip").write_bytes(archive({"c.md": BROKEN, "d.md": b"# Dogs\n\nBig dogs."}))
    said: list[str] = []
    ingestor.sync(folder, said.append)
    assert ready(ingestor) == ["Apples are red.", "Big dogs.", "Boats are blue.", "Cats."]
    assert f"earlier    c.md: the version of {TODAY} goes on answering" in said
    assert f"earlier    e.md: the version of {TODAY} goes, as no file has its name now" in said
    assert "goes on answering" in entry(ingestor, "all.zip").error
    (folder / "all.zip").write_bytes(b"PK\x03\x04 and no archive")
    ingestor.sync(folder, quiet)
    assert ready(ingestor) == ["Apples are red.", "Big dogs.", "Boats are blue.", "Cats."]
    (folder / "all.zip").write_bytes(archive({"c.md": b"# Cats\n\nGrey cats."}))
    ingestor.sync(folder, quiet)
    assert ready(ingestor) == ["Apples are red.", "Boats are blue.", "Grey cats."]
    assert problems(ingestor.settings, ingestor) == []


def test_files_of_one_name_in_an_archive_all_stay_when_one_is_refused(
    ingestor: Ingestor, folder: Path
) -> None:
    (folder / "all.zip").write_bytes(archive({"x/r.md": b"# X\n\nOf x.", "y/r.md": b"# Y\n\nOf y."}))
    ingestor.sync(folder, quiet)
    (folder / "all.zip").write_bytes(archive({"x/r.md": b"# X\n\nNew of x.", "y/r.md": BROKEN}))
    ingestor.sync(folder, quiet)
    assert ready(ingestor) == ["Apples are red.", "Boats are blue.", "New of x.", "Of x.", "Of y."]
    (folder / "all.zip").write_bytes(archive({"x/r.md": b"# X\n\nNew of x.", "y/r.md": b"# Y\n\nNew of y."}))
    ingestor.sync(folder, quiet)
    assert ready(ingestor) == ["Apples are red.", "Boats are blue.", "New of x.", "New of y."]


def test_a_cancelled_file_is_what_it_was_and_is_read_again(
    ingestor: Ingestor, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingestor.sync(folder, quiet)
    edit(ingestor)
    before = ingestor.documents.list()
    (folder / "a.md").write_text(NEW)
    with monkeypatch.context() as patch:
        while_embedding(ingestor, patch, lambda: ingestor.queue.cancel(entry(ingestor, "a.md").id))
        ingestor.sync(folder, quiet)
    assert ingestor.documents.list() == before
    assert edits(ingestor) == [EDITED]
    assert rows(ingestor.passages.database) == 0
    assert ingestor.sync(folder, quiet).added == 1
    assert ready(ingestor) == ["Apples are green.", "Boats are blue."]
    assert edits(ingestor) == [EDITED]


def test_a_file_that_is_cancelled_while_it_is_read_is_what_it_was(
    ingestor: Ingestor, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingestor.sync(folder, quiet)
    before = ingestor.documents.list()
    (folder / "a.md").write_text(NEW)
    replace = SourceStore.replace

    def cancelled(self: SourceStore, *rest: object) -> bool:
        ingestor.queue.cancel(entry(ingestor, "a.md").id)
        return replace(self, *rest)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(SourceStore, "replace", cancelled)
        ingestor.sync(folder, quiet)
    assert ingestor.documents.list() == before
    assert ingestor.sync(folder, quiet).added == 1


def test_cancelling_too_late_keeps_what_has_replaced_the_earlier_version(
    ingestor: Ingestor, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new version is ready and the earlier one gone when its entry is still called embedding."""
    ingestor.sync(folder, quiet)
    (folder / "a.md").write_text(NEW)
    with monkeypatch.context() as patch:
        patch.setattr("rag.queue_work.QueueWork.settle", lambda self: 0)
        ingestor.sync(folder, quiet)
    ingestor.queue.cancel(entry(ingestor, "a.md").id)
    assert "replaced an earlier version" in entry(ingestor, "a.md").error
    assert ready(ingestor) == ["Apples are green.", "Boats are blue."]


def test_a_cancelled_archive_keeps_a_version_of_each_of_its_files(
    ingestor: Ingestor, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "all.zip").write_bytes(archive({"c.md": b"# C\n\nOld c.", "d.md": b"# D\n\nOld d."}))
    ingestor.sync(folder, quiet)
    (folder / "all.zip").write_bytes(archive({"c.md": b"# C\n\nNew c.", "d.md": b"# D\n\nNew d."}))
    seen: list[list[str]] = []

    def look() -> None:
        seen.append(ready(ingestor)[2:])
        if len(seen) == 2:
            ingestor.queue.cancel(entry(ingestor, "all.zip").id)

    with monkeypatch.context() as patch:
        while_embedding(ingestor, patch, look)
        ingestor.sync(folder, quiet)
    assert seen == [["Old c.", "Old d."], ["New c.", "Old d."]]
    assert ready(ingestor)[2:] == ["New c.", "Old d."]
    ingestor.sync(folder, quiet)
    assert ready(ingestor)[2:] == ["New c.", "New d."]
