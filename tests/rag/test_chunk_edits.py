"""Chunks changed by hand: found by their new words at once, undone in one step, never in two minds."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from core.catalog import BUILTIN
from core.errors import ConflictError, DocumentError, NotFoundError
from core.files import owner_lock
from core.settings import PROJECT, Settings
from rag.chunk_carry import carry
from rag.chunk_edits import Change, ChunkEditor, Chunks, ChunkStore, StoredChunk
from rag.citations import resolve
from rag.documents import Document
from rag.ingest import Ingestor
from rag.prompt import build
from rag.quality import warnings
from rag.retrieve import Retriever
from tests.rag.conftest import HANDBOOK
from tests.rag.test_kill import problems

EDITED = "The notice period is 14 days for apprentices called zebrafolk. Send a letter to the office."


@pytest.fixture
def document(ingestor: Ingestor) -> Document:
    """The handbook, ready."""
    added = ingestor.documents.add("guide.md", HANDBOOK, "upload")
    ingestor.process_pending()
    return ingestor.documents.get(added.id)


@pytest.fixture
def store(ingestor: Ingestor) -> ChunkStore:
    return ChunkStore(ingestor.passages.database)


@pytest.fixture
def editor(ingestor: Ingestor, store: ChunkStore) -> ChunkEditor:
    return ChunkEditor(store, ingestor.vectors, ingestor.index)


@pytest.fixture
def retriever(settings: Settings, ingestor: Ingestor) -> Retriever:
    return Retriever(settings, ingestor.passages.database, ingestor.index, ingestor.embedder)


def under(chunks: Chunks, heading: str) -> StoredChunk:
    return next(chunk for chunk in chunks if chunk.heading == heading)


def actions(ingestor: Ingestor) -> list[str]:
    with ingestor.passages.database.read() as connection:
        return [row["action"] for row in connection.execute("SELECT action FROM audit ORDER BY seq")]


def sound(settings: Settings, ingestor: Ingestor) -> list[str]:
    """As after a kill, but switched-off chunks are neither searched nor indexed."""
    return [problem for problem in problems(settings, ingestor) if not problem.startswith("rows ")]


def test_the_chunks_of_a_document_in_order(document: Document, store: ChunkStore) -> None:
    chunks = store.all(document.id)
    assert [chunk.ordinal for chunk in chunks] == list(range(len(chunks)))
    assert [chunk.heading for chunk in chunks] == ["", "Leaving", "Prices"]
    assert all(chunk.source == chunk.text for chunk in chunks)
    assert all(5 < chunk.tokens < 150 for chunk in chunks[1:])
    assert not any(chunk.off or chunk.edited or chunk.changed for chunk in chunks)


def test_an_edit_is_found_at_once_by_words_and_by_meaning(
    document: Document, store: ChunkStore, editor: ChunkEditor, retriever: Retriever, ingestor: Ingestor
) -> None:
    old = under(store.all(document.id), "Leaving")
    new_id = editor.edit(old.id, EDITED, "ada")
    assert new_id != old.id
    found = retriever.search("Who are the zebrafolk?", 1)[0]
    assert found.chunk_id == new_id
    assert found.text == EDITED
    assert found.edited
    vector = ingestor.embedder.encode([f"Staff guide > Leaving\n{EDITED}"])[0]
    nearest, cosine = ingestor.index.query(vector, 1)[0]
    assert nearest == new_id
    assert cosine > 0.999
    assert not any("Adeyemi" in p.text for p in retriever.search("Who is Ms. Adeyemi?", 5))
    assert actions(ingestor)[-1] == "chunk.edit"
    assert sound(retriever.settings, ingestor) == []
    with pytest.raises(NotFoundError, match="changed or removed meanwhile"):
        editor.edit(old.id, "A second thought.", "bob")


def test_a_citation_of_an_edited_chunk_claims_its_whole_place(
    document: Document, store: ChunkStore, editor: ChunkEditor, retriever: Retriever
) -> None:
    old = under(store.all(document.id), "Leaving")
    editor.edit(old.id, EDITED, "ada")
    passages = retriever.read_for("How long is the notice period of zebrafolk?", BUILTIN)
    prompt = build("How long?", passages, BUILTIN)
    unit = next(u for p in prompt.passages for u in p.units if "zebrafolk" in u.text)
    assert unit.text == "The notice period is 14 days for apprentices called zebrafolk."
    citation = resolve(f"[{unit.number}] It is 14 days.", prompt.passages).citations[0]
    assert citation.edited
    assert (citation.start, citation.end) == (old.start, old.end)
    assert citation.quote == unit.text
    other = next(p for p in prompt.passages if not p.edited)
    citation = resolve(f"[{other.units[0].number}] It is.", prompt.passages).citations[0]
    assert not citation.edited
    assert (citation.start, citation.end) == (other.units[0].start, other.units[0].end)


def test_a_chunk_that_is_off_is_not_found_and_comes_back(
    document: Document, store: ChunkStore, editor: ChunkEditor, retriever: Retriever, ingestor: Ingestor
) -> None:
    old = under(store.all(document.id), "Leaving")
    assert editor.switch(old.id, False, "ada") == old.id
    assert all(p.heading != "Leaving" for p in retriever.search("notice period", 5))
    assert old.id not in ingestor.index.ids()
    assert ingestor.passages.counts()[1] == len(store.all(document.id)) - 1
    assert sound(retriever.settings, ingestor) == []
    assert editor.edit(old.id, EDITED, "ada") != old.id  # it may be edited while it is off
    assert all("zebrafolk" not in p.text for p in retriever.search("zebrafolk", 5))
    chunk = under(store.all(document.id), "Leaving")
    assert chunk.off
    editor.switch(chunk.id, True, "ada")
    assert retriever.search("zebrafolk", 1)[0].text == EDITED
    assert sound(retriever.settings, ingestor) == []


def test_undo_takes_back_one_change_after_the_other(
    document: Document, store: ChunkStore, editor: ChunkEditor, retriever: Retriever, ingestor: Ingestor
) -> None:
    chunk = under(store.all(document.id), "Leaving")
    first = editor.edit(chunk.id, "The first text.", "ada")
    second = editor.edit(first, "The second text.", "ada")
    off = editor.switch(second, False, "ada")
    back = editor.undo(off, "ada")
    assert (store.get(back).text, store.get(back).off) == ("The second text.", False)
    back = editor.undo(back, "ada")
    assert store.get(back).text == "The first text."
    back = editor.undo(back, "ada")
    assert store.get(back).text == chunk.text
    assert not store.get(back).edited
    assert not store.get(back).changed
    assert editor.undo(back, "ada") == back
    assert actions(ingestor)[-3:] == ["chunk.undo"] * 3
    assert retriever.search("How long is the notice period?", 1)[0].text == chunk.text


def test_restore_brings_the_source_back_and_can_be_undone(
    document: Document, store: ChunkStore, editor: ChunkEditor
) -> None:
    chunk = under(store.all(document.id), "Leaving")
    changed = editor.switch(editor.edit(chunk.id, EDITED, "ada"), False, "ada")
    restored = store.get(editor.restore(changed, "ada"))
    assert (restored.text, restored.off, restored.edited) == (chunk.source, False, False)
    again = store.get(editor.undo(restored.id, "ada"))
    assert (again.text, again.off, again.edited) == (EDITED, True, True)


def test_nothing_is_written_when_nothing_changes(
    document: Document, store: ChunkStore, editor: ChunkEditor, ingestor: Ingestor
) -> None:
    chunk = under(store.all(document.id), "Leaving")
    version = ingestor.passages.version()
    assert editor.edit(chunk.id, f"  {chunk.text}\r\n", "ada") == chunk.id
    assert editor.switch(chunk.id, True, "ada") == chunk.id
    assert editor.restore(chunk.id, "ada") == chunk.id
    assert ingestor.passages.version() == version
    assert not store.get(chunk.id).changed


@pytest.mark.parametrize(
    ("text", "reason"), [("", "no words"), (" \n*** \x00", "no words"), ("many words " * 400, "Shorten it")]
)
def test_a_text_that_cannot_be_searched_is_refused(
    document: Document, store: ChunkStore, editor: ChunkEditor, text: str, reason: str
) -> None:
    chunk = under(store.all(document.id), "Leaving")
    with pytest.raises(DocumentError, match="passage would h") as refused:
        editor.edit(chunk.id, text, "ada")
    assert reason in str(refused.value)
    assert store.get(chunk.id) == chunk


def test_two_who_edit_at_once_do_not_overwrite_each_other(
    document: Document, store: ChunkStore, editor: ChunkEditor, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunk = under(store.all(document.id), "Leaving")
    encode = editor.embedder.encode

    def meanwhile(texts: list[str]) -> object:
        monkeypatch.undo()
        vectors = encode(texts)
        store.put(chunk, Change("Bob was quicker.", False, "bob", "edit"), vectors[0])
        return vectors

    monkeypatch.setattr(editor.embedder, "encode", meanwhile)
    with pytest.raises(ConflictError, match="changed meanwhile"):
        editor.edit(chunk.id, "Ada was slower.", "ada")
    assert under(store.all(document.id), "Leaving").text == "Bob was quicker."


def test_no_text_is_embedded_while_documents_are_read_or_the_embedder_is_exchanged(
    document: Document, store: ChunkStore, editor: ChunkEditor, ingestor: Ingestor
) -> None:
    chunk = under(store.all(document.id), "Leaving")
    with owner_lock(ingestor.lock, "Reading documents"):
        with pytest.raises(ConflictError, match="being read just now"):
            editor.edit(chunk.id, EDITED, "ada")
        assert editor.switch(chunk.id, False, "ada") == chunk.id  # needs no vector
    ingestor.passages.put_note(index_embedding="another")
    with pytest.raises(ConflictError, match="once that is mended"):
        editor.edit(chunk.id, EDITED, "ada")
    assert store.get(chunk.id).text == chunk.text


def test_edits_go_with_their_document(
    document: Document, store: ChunkStore, editor: ChunkEditor, ingestor: Ingestor
) -> None:
    chunk = under(store.all(document.id), "Leaving")
    editor.edit(chunk.id, EDITED, "ada")
    ingestor.delete(document.id)
    assert store.all(document.id) == []
    with store.database.read() as connection:
        assert connection.execute("SELECT COUNT(*) FROM chunk_history").fetchone()[0] == 0
        assert connection.execute("SELECT COUNT(*) FROM chunks_fts").fetchone()[0] == 0


def quiet(line: str) -> None:
    """A report that nobody reads."""


def test_a_sync_of_an_unchanged_file_keeps_the_edit(
    ingestor: Ingestor, store: ChunkStore, editor: ChunkEditor, tmp_path: Path
) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "guide.md").write_bytes(HANDBOOK)
    ingestor.sync(folder, quiet)
    document = ingestor.documents.list()[0]
    editor.edit(under(store.all(document.id), "Leaving").id, EDITED, "ada")
    os.utime(folder / "guide.md")  # its time changed, its bytes did not
    ingestor.sync(folder, quiet)
    assert under(store.all(document.id), "Leaving").text == EDITED
    ingestor.documents.add("guide.md", HANDBOOK, "upload")
    assert under(store.all(document.id), "Leaving").text == EDITED


def test_a_changed_file_keeps_the_edits_whose_passage_is_the_same(
    ingestor: Ingestor, store: ChunkStore, editor: ChunkEditor, retriever: Retriever, tmp_path: Path
) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "guide.md").write_bytes(HANDBOOK)
    ingestor.sync(folder, quiet)
    old = ingestor.documents.list()[0]
    editor.edit(under(store.all(old.id), "Leaving").id, EDITED, "ada")
    editor.switch(under(store.all(old.id), "").id, False, "ada")
    editor.edit(under(store.all(old.id), "Prices").id, "Everything is free.", "ada")
    (folder / "guide.md").write_bytes(HANDBOOK.replace(b"Parking costs 3 EUR", b"Parking costs 4 EUR"))
    said: list[str] = []
    ingestor.sync(folder, said.append)
    (new,) = ingestor.documents.list()
    assert new.id != old.id
    assert new.status == "ready"
    chunks = store.all(new.id)
    assert under(chunks, "Leaving").text == EDITED
    assert under(chunks, "Leaving").edited
    assert under(chunks, "").off
    assert "Parking costs 4 EUR" in under(chunks, "Prices").text  # the new source, not the old edit
    assert retriever.search("Who are the zebrafolk?", 1)[0].document_id == new.id
    assert "1 edit of the earlier version was dropped" in warnings(new.quality)[0]
    assert any("1 dropped" in line for line in said)
    with store.database.read() as connection:
        dropped = connection.execute("SELECT detail FROM audit WHERE action = 'chunk.drop'").fetchone()
    assert "Everything is free." in dropped["detail"]
    assert sound(retriever.settings, ingestor) == []
    back = editor.undo(under(chunks, "Leaving").id, "ada")
    assert "30 days" in store.get(back).text


def test_passing_edits_on_twice_or_to_a_ready_document_does_no_harm(
    ingestor: Ingestor, store: ChunkStore, editor: ChunkEditor, retriever: Retriever, document: Document
) -> None:
    changed = HANDBOOK.replace(b"Parking costs 3 EUR", b"Parking costs 4 EUR")
    new = ingestor.documents.add("guide.md", changed, "upload")
    ingestor.process_pending()
    editor.edit(under(store.all(document.id), "Leaving").id, EDITED, "ada")
    assert carry(store.database, [document.id], [new.id]) == 0
    assert ingestor.documents.get(new.id).status == "pending"
    assert all(p.document_id == document.id for p in retriever.search("zebrafolk", 5))
    ingestor.process_pending()
    assert carry(store.database, [document.id], [new.id]) == 0
    assert ingestor.documents.get(new.id).status == "ready"
    assert under(store.all(new.id), "Leaving").text == EDITED
    assert sound(retriever.settings, ingestor) == []
    assert carry(store.database, [document.id], [document.id]) == 0


def test_vectors_of_chunks_that_were_replaced_meanwhile_are_not_saved(
    ingestor: Ingestor, store: ChunkStore, editor: ChunkEditor, document: Document
) -> None:
    new = ingestor.documents.add("b.md", HANDBOOK + b"\nMore.\n", "upload")
    pieces = ingestor.documents.chunk_texts(new.id)
    editor.edit(under(store.all(document.id), "Leaving").id, EDITED, "ada")
    carry(store.database, [document.id], [new.id])
    vectors = ingestor.embedder.encode([text for _, text in pieces])
    assert ingestor.documents.save_documents([(new.id, [i for i, _ in pieces], vectors)]) == 0
    ingestor.process_pending()
    assert ingestor.documents.get(new.id).status == "ready"


@pytest.mark.parametrize("where", ["before the commit", "inside the commit", "after the commit"])
def test_a_kill_leaves_the_old_chunk_or_the_new_one(
    settings: Settings, ingestor: Ingestor, store: ChunkStore, document: Document, where: str
) -> None:
    chunk = under(store.all(document.id), "Leaving")
    ingestor.index.close()
    code = f"""
import os, signal
from core.settings import load_settings
from rag import chunk_edits
from rag.chunk_edits import Change, ChunkEditor, ChunkStore
from rag.ingest import open_ingestor
from tests.rag.test_kill import HashedVectors
def die(*_): os.kill(os.getpid(), signal.SIGKILL)
ingestor = open_ingestor(load_settings({{}}, data_dir={str(settings.data_dir)!r}))
store = ChunkStore(ingestor.passages.database)
if {where!r} == "before the commit": store.put = die
if {where!r} == "inside the commit": chunk_edits.audit = die
if {where!r} == "after the commit": ingestor.index.sync = die
ingestor.vectors.plain = HashedVectors()
ChunkEditor(store, ingestor.vectors, ingestor.index).edit({chunk.id}, {EDITED!r}, "ada")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=False)
    assert done.returncode == -signal.SIGKILL
    ingestor.index.open()
    now = under(store.all(document.id), "Leaving")
    assert now.text == (EDITED if where == "after the commit" else chunk.text)
    assert now.changed == (where == "after the commit")
    assert problems(settings, ingestor) == []
