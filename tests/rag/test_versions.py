"""A synchronised file changes: its earlier version answers until the new one does, and is not lost to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest

from core.db import Database
from rag.approval import Approval
from rag.chunk_edits import ChunkEditor, ChunkStore
from rag.documents import Document
from rag.embed import Step, Vectors
from rag.groups import Groups
from rag.ingest import Ingestor
from rag.queue import Entry
from rag.sources import SourceStore
from rag.versions import WAITS, why_kept
from tests.rag.test_kill import problems

OLD = "# Apples\n\nApples are red.\n\n## Keeping\n\nThey keep for a month."
NEW = "# Apples\n\nApples are green.\n\n## Keeping\n\nThey keep for a month."
NEWER = "# Apples\n\nApples are yellow.\n\n## Keeping\n\nThey keep for a month."
BROKEN = b"%PDF-1.4 nonsense"
EDITED = "They keep for six weeks in the cellar."
TODAY = datetime.now(UTC).strftime("%d %b %Y")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.md").write_text(OLD)
    (folder / "b.md").write_text("# Boats\n\nBoats are blue.")
    return folder


def quiet(line: str) -> None:
    """A report that nobody reads."""


def ready(ingestor: Ingestor) -> list[str]:
    """The first paragraphs of what answers."""
    store = ingestor.documents
    texts = (store.text(one.id, one.owner) for one in store.list() if one.status == "ready")
    return sorted(text.split("\n\n")[1] for text in texts)


def named(ingestor: Ingestor, name: str) -> Document:
    (found,) = [one for one in ingestor.documents.list() if one.name == name]
    return found


def edit(ingestor: Ingestor, name: str = "a.md") -> None:
    """Change the passage under Keeping by hand."""
    store = ChunkStore(ingestor.passages.database)
    (chunk,) = [one for one in store.all(named(ingestor, name).id) if one.heading.endswith("Keeping")]
    ChunkEditor(store, ingestor.vectors, ingestor.index).edit(chunk.id, EDITED, "ada")


def edits(ingestor: Ingestor) -> list[str]:
    with ingestor.passages.database.read() as connection:
        return [row["text"] for row in connection.execute("SELECT text FROM chunks WHERE edited")]


def rows(database: Database) -> int:
    with database.read() as connection:
        return int(connection.execute("SELECT COUNT(*) FROM replaced").fetchone()[0])


def entry(ingestor: Ingestor, path: str) -> Entry:
    with ingestor.passages.database.read() as connection:
        row = connection.execute("SELECT id FROM intake WHERE path = ?", (path,)).fetchone()
    return ingestor.queue.get(row["id"])


def while_embedding(ingestor: Ingestor, patch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Have documents embedded one by one, and `act` while each is."""
    patch.setattr("rag.pipeline.GROUP_CHUNKS", 1)
    encode = ingestor.embedder.encode

    def acting(texts: Sequence[str], step: Step = lambda: None) -> Vectors:
        act()
        return encode(texts)

    patch.setattr(ingestor.embedder, "encode", acting)


def test_the_earlier_version_answers_until_the_new_one_is_ready(
    ingestor: Ingestor, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingestor.sync(folder, quiet)
    old = named(ingestor, "a.md")
    (folder / "a.md").write_text(NEW)
    seen: list[list[str]] = []
    kept: list[dict[str, str]] = []

    def look() -> None:
        seen.append(ready(ingestor))
        kept.append(why_kept(ingestor.passages.database, [old.id]))

    with monkeypatch.context() as patch:
        while_embedding(ingestor, patch, look)
        summary = ingestor.sync(folder, quiet)
    assert seen == [["Apples are red.", "Boats are blue."]]
    assert kept == [{old.id: WAITS}]
    assert (summary.added, summary.removed, summary.refused) == (1, 1, [])
    assert ready(ingestor) == ["Apples are green.", "Boats are blue."]
    assert why_kept(ingestor.passages.database, [old.id]) == {}
    assert problems(ingestor.settings, ingestor) == []


def test_one_commit_makes_the_new_version_ready_and_removes_the_earlier_one(
    ingestor: Ingestor, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingestor.sync(folder, quiet)
    (folder / "a.md").write_text(NEW)
    save = ingestor.documents.save_documents
    seen: list[list[str]] = []

    def looking(*rest: object) -> int:
        seen.append(ready(ingestor))
        count = save(*rest)  # type: ignore[arg-type]
        seen.append(ready(ingestor))
        return count

    monkeypatch.setattr(ingestor.documents, "save_documents", looking)
    ingestor.sync(folder, quiet)
    assert seen == [["Apples are red.", "Boats are blue."], ["Apples are green.", "Boats are blue."]]


@pytest.mark.parametrize("bad", [BROKEN, b"", b"PK\x03\x04 and no archive"])
def test_a_version_that_is_refused_leaves_the_earlier_one_and_its_edits(
    ingestor: Ingestor, folder: Path, bad: bytes
) -> None:
    ingestor.sync(folder, quiet)
    edit(ingestor)
    old = named(ingestor, "a.md")
    (folder / "a.md").write_bytes(bad)
    said: list[str] = []
    summary = ingestor.sync(folder, said.append)
    assert (summary.added, summary.removed, len(summary.refused)) == (0, 0, 1)
    assert f"earlier    a.md: the version of {TODAY} goes on answering" in said
    assert ready(ingestor) == ["Apples are red.", "Boats are blue."]
    assert edits(ingestor) == [EDITED]
    reason = why_kept(ingestor.passages.database, [old.id])[old.id]
    assert reason.startswith("The new version could not be read: ")
    assert reason.endswith(f" The version of {TODAY} goes on answering.")
    queued = entry(ingestor, "a.md")
    assert (queued.status, queued.next_step) == ("failed", f"a.md: the version of {TODAY} goes on answering")
    again = ingestor.sync(folder, quiet)
    assert (again.removed, len(again.refused)) == (0, 1)
    assert ready(ingestor) == ["Apples are red.", "Boats are blue."]
    (folder / "a.md").write_text(NEW)
    mended = ingestor.sync(folder, quiet)
    assert (mended.added, mended.removed, mended.refused) == (1, 1, [])
    assert ready(ingestor) == ["Apples are green.", "Boats are blue."]
    assert edits(ingestor) == [EDITED]
    assert problems(ingestor.settings, ingestor) == []


def test_a_parser_that_takes_too_long_leaves_the_earlier_version(
    ingestor: Ingestor, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rag.sync.YOUNG_NS", 0)
    ingestor.sync(folder, quiet)
    (folder / "a.md").write_text(NEW)
    with monkeypatch.context() as patch:
        patch.setattr("rag.reader.WALL_SECONDS", -1.0)
        summary = ingestor.sync(folder, quiet)
    assert "too much memory or time" in summary.refused[0][1]
    assert ready(ingestor) == ["Apples are red.", "Boats are blue."]
    ingestor.sync(folder, quiet)  # the file is as it was, and the machine less busy
    assert ready(ingestor) == ["Apples are green.", "Boats are blue."]


def test_a_version_that_fails_later_leaves_the_earlier_one(
    ingestor: Ingestor, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingestor.sync(folder, quiet)
    old = named(ingestor, "a.md")
    (folder / "a.md").write_text(NEW)
    with monkeypatch.context() as patch:
        patch.setattr(ingestor.documents, "chunk_texts", lambda document_id: [])
        ingestor.sync(folder, quiet)
    assert ready(ingestor) == ["Apples are red.", "Boats are blue."]
    assert "holds no text" in why_kept(ingestor.passages.database, [old.id])[old.id]
    (folder / "a.md").write_text(NEWER)
    ingestor.sync(folder, quiet)
    assert ready(ingestor) == ["Apples are yellow.", "Boats are blue."]
    assert len(ingestor.documents.list()) == 2


def test_a_file_that_goes_after_it_was_refused_takes_the_earlier_version_with_it(
    ingestor: Ingestor, folder: Path
) -> None:
    ingestor.sync(folder, quiet)
    (folder / "a.md").write_bytes(BROKEN)
    ingestor.sync(folder, quiet)
    (folder / "a.md").unlink()
    assert ingestor.sync(folder, quiet).removed == 1
    assert ready(ingestor) == ["Boats are blue."]
    assert rows(ingestor.passages.database) == 0


def test_a_file_that_is_as_it_was_again(ingestor: Ingestor, folder: Path) -> None:
    ingestor.sync(folder, quiet)
    edit(ingestor)
    (folder / "a.md").write_bytes(BROKEN)
    ingestor.sync(folder, quiet)
    (folder / "a.md").write_text(OLD)
    summary = ingestor.sync(folder, quiet)
    assert (summary.added, summary.removed, summary.refused) == (0, 0, [])
    assert edits(ingestor) == [EDITED]
    assert rows(ingestor.passages.database) == 0
    (folder / "a.md").write_text(NEW)
    ingestor.sync(folder, quiet)
    (folder / "a.md").write_text(OLD)
    ingestor.sync(folder, quiet)
    assert ready(ingestor) == ["Apples are red.", "Boats are blue."]
    assert problems(ingestor.settings, ingestor) == []


def test_a_third_version_comes_before_the_second_is_ready(
    ingestor: Ingestor, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingestor.sync(folder, quiet)
    edit(ingestor)
    (folder / "a.md").write_text(NEW)

    def die() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        while_embedding(ingestor, patch, die)
        with pytest.raises(KeyboardInterrupt):
            ingestor.sync(folder, quiet)
    assert ready(ingestor) == ["Apples are red.", "Boats are blue."]
    (folder / "a.md").write_text(NEWER)
    ingestor.sync(folder, quiet)
    assert ready(ingestor) == ["Apples are yellow.", "Boats are blue."]
    assert edits(ingestor) == [EDITED]
    assert len(ingestor.documents.list()) == 2
    assert problems(ingestor.settings, ingestor) == []


def test_a_version_that_comes_back_as_it_is_being_replaced(
    ingestor: Ingestor, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first version is found stored, and is then removed as the second one gets ready."""
    ingestor.sync(folder, quiet)
    (folder / "a.md").write_text(NEW)
    with monkeypatch.context() as patch:
        patch.setattr(ingestor, "process", lambda documents, step: 0)
        patch.setattr("rag.drain.Drain.finish", lambda self: None)
        ingestor.sync(folder, quiet)
    (folder / "a.md").write_text(OLD)
    replace, pending = SourceStore.replace, ingestor.documents.pending()

    def late(self: SourceStore, *rest: object) -> bool:
        if pending:
            ingestor.process([pending.pop()])
            assert ready(ingestor) == ["Apples are green.", "Boats are blue."]
        return replace(self, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(SourceStore, "replace", late)
    ingestor.sync(folder, quiet)
    assert ready(ingestor) == ["Apples are red.", "Boats are blue."]


def test_an_edit_made_while_the_new_version_waits_is_handed_on(
    ingestor: Ingestor, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingestor.sync(folder, quiet)
    store = ChunkStore(ingestor.passages.database)
    (chunk,) = [one for one in store.all(named(ingestor, "a.md").id) if one.heading.endswith("Keeping")]
    (folder / "a.md").write_text(NEW)
    editor = ChunkEditor(store, ingestor.vectors, ingestor.index)
    with monkeypatch.context() as patch:
        while_embedding(ingestor, patch, lambda: editor.switch(chunk.id, False, "ada"))
        ingestor.sync(folder, quiet)
    chunks = store.all(named(ingestor, "a.md").id)
    assert [one.off for one in chunks if one.heading.endswith("Keeping")] == [True]
    assert ready(ingestor) == ["Apples are green.", "Boats are blue."]


def test_who_may_find_a_file_is_changed_while_its_new_version_waits(
    ingestor: Ingestor, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = ingestor.passages.database
    for name in ("sales", "staff"):
        Groups(database).create(name, "local")
    ingestor.sync(folder, quiet)
    for text, groups in ((NEW, ["sales", "staff"]), (NEWER, ["sales"])):
        old = named(ingestor, "a.md").id
        (folder / "a.md").write_text(text)

        def show(old: str = old, groups: list[str] = groups) -> None:
            Approval(database).show_to(old, "owner", "local", groups)

        with monkeypatch.context() as patch:
            while_embedding(ingestor, patch, show)
            ingestor.sync(folder, quiet)
        document = named(ingestor, "a.md")
        assert (document.visibility, document.access.groups) == ("owner", tuple(groups))
        assert document.id != old


def test_what_was_rejected_stays_so_in_its_next_version(ingestor: Ingestor, folder: Path) -> None:
    ingestor.sync(folder, quiet)
    approval = Approval(ingestor.passages.database)
    approval.reject(named(ingestor, "a.md").id, "local")
    for text in (NEW, NEWER):
        (folder / "a.md").write_text(text)
        ingestor.sync(folder, quiet)
        assert named(ingestor, "a.md").approval == "rejected"
    approval.approve(named(ingestor, "a.md").id, "local")
    (folder / "a.md").write_text(OLD)
    ingestor.sync(folder, quiet)
    assert named(ingestor, "a.md").approval == "approved"


def test_a_copy_elsewhere_and_an_upload_keep_what_one_file_was(ingestor: Ingestor, folder: Path) -> None:
    (folder / "copy.md").write_text(OLD)
    ingestor.sync(folder, quiet)
    (folder / "a.md").write_text(NEW)
    ingestor.sync(folder, quiet)
    assert ready(ingestor) == ["Apples are green.", "Apples are red.", "Boats are blue."]
    ingestor.documents.add("mine.md", NEW.encode(), "upload")
    (folder / "a.md").write_text(NEWER)
    (folder / "copy.md").unlink()
    ingestor.sync(folder, quiet)
    assert ready(ingestor) == ["Apples are green.", "Apples are yellow.", "Boats are blue."]
