from __future__ import annotations

import os
import socket
from pathlib import Path

import numpy as np
import pytest

from core.db import Database
from core.errors import DocumentError, NotFoundError
from core.settings import Settings, load_settings
from rag.documents import DocumentStore
from rag.embed import DIMENSIONS
from rag.passages import PassageStore
from rag.reader import Reader
from rag.words import display_name
from tests.rag.conftest import HANDBOOK
from tests.rag.files import empty_pdf, pdf


@pytest.fixture
def store(database: Database, settings: Settings) -> DocumentStore:
    return DocumentStore(database, settings)


def ready(store: DocumentStore, data: bytes, reader: Reader, name: str = "guide.md") -> str:
    document = store.add(name, data, "upload", reader)
    ids = [i for i, _ in store.chunk_texts(document.id)]
    vectors = np.eye(DIMENSIONS, dtype=np.float32)[: len(ids)]
    assert store.save_documents([(document.id, ids, vectors)]) == 1
    return document.id


def test_a_document_is_pending_and_then_ready(store: DocumentStore, reader: Reader) -> None:
    document = store.add("guide.md", HANDBOOK, "upload", reader)
    assert (document.status, document.title, document.kind) == ("pending", "Staff guide", "markdown")
    assert document.chunks == 3
    assert PassageStore(store.database).counts() == (0, 0)
    assert [d.id for d in store.pending()] == [document.id]
    assert store.original(document.id) == HANDBOOK
    ready(store, HANDBOOK, reader)
    assert store.get(document.id).status == "ready"
    assert PassageStore(store.database).counts() == (1, 3)
    assert store.pending() == []


def test_offsets_point_into_the_stored_text(store: DocumentStore, reader: Reader) -> None:
    document_id = ready(store, HANDBOOK, reader)
    text = store.text(document_id)
    passages = PassageStore(store.database)
    for passage in passages.get(passages.ready_ids()).values():
        assert text[passage.start : passage.end] == passage.text
        assert passage.document == "Staff guide"


def test_the_same_content_is_the_same_document(store: DocumentStore, reader: Reader) -> None:
    first = ready(store, HANDBOOK, reader)
    again = store.add("other-name.md", HANDBOOK, "folder", reader)
    assert again.id == first
    assert again.status == "ready"
    assert len(store.list()) == 1


def test_delete_leaves_nothing_behind(store: DocumentStore, reader: Reader) -> None:
    document_id = ready(store, HANDBOOK, reader)
    store.delete(document_id)
    with store.database.read() as connection:
        for table in ("documents", "chunks", "chunks_fts"):
            assert connection.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0] == 0
        assert connection.execute("SELECT action FROM audit").fetchone()["action"] == "document.delete"
    assert list(store.folder.iterdir()) == []
    with pytest.raises(NotFoundError):
        store.delete(document_id)


def test_vectors_of_a_document_deleted_meanwhile_are_dropped(store: DocumentStore, reader: Reader) -> None:
    document = store.add("guide.md", HANDBOOK, "upload", reader)
    ids = [i for i, _ in store.chunk_texts(document.id)]
    store.delete(document.id)
    assert store.save_documents([(document.id, ids, np.zeros((len(ids), DIMENSIONS), np.float32))]) == 0


def test_a_failed_document_can_be_added_again(store: DocumentStore, reader: Reader) -> None:
    document = store.add("guide.md", HANDBOOK, "upload", reader)
    store.fail(document.id, "The disk was full.")
    assert store.get(document.id).error == "The disk was full."
    assert store.add("guide.md", HANDBOOK, "upload", reader).status == "pending"


REFUSED = {
    "empty.md": b"",
    "spaces.txt": b"   \n",
    "program.exe": b"MZ\x90",
    "fake.pdf": b"hello",
    "broken.pdf": b"%PDF-1.4 nonsense",
    "nul.txt": b"a\0b",
    "surrogate.md": b"\xed\xa0\x80",
    "marks.txt": b"--- *** !!!",
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_document_leaves_nothing(name: str, store: DocumentStore, reader: Reader) -> None:
    with pytest.raises(DocumentError) as refusal:
        store.add(name, REFUSED[name], "upload", reader)
    assert refusal.value.message.endswith(".")  # a sentence, whatever a parser said in it
    assert store.list() == []
    assert not store.folder.exists() or list(store.folder.iterdir()) == []


def test_scans_and_locked_pdfs_say_why(store: DocumentStore, reader: Reader) -> None:
    with pytest.raises(DocumentError, match="OCR"):
        store.add("scan.pdf", empty_pdf(), "upload", reader)
    with pytest.raises(DocumentError, match="password"):
        store.add("locked.pdf", pdf([["x"]], password="p"), "upload", reader)


def test_size_is_checked_before_reading(tmp_path: Path, database: Database) -> None:
    small = load_settings({}, data_dir=str(tmp_path / "data"), upload_mb=1)
    store = DocumentStore(database, small)
    with pytest.raises(DocumentError, match="at most 1 MB"):
        store.add("big.txt", b"a" * ((1 << 20) + 1), "upload")
    path = tmp_path / "sparse.txt"
    with path.open("wb") as file:
        file.truncate(50 << 30)  # 50 GB that take no space: reading it would be noticed
    with pytest.raises(DocumentError, match="at most 1 MB"):
        store.add_file(path, "folder")


def test_special_files_are_refused_without_hanging(
    tmp_path: Path, store: DocumentStore, reader: Reader
) -> None:
    real = tmp_path / "real.md"
    real.write_bytes(HANDBOOK)
    os.mkfifo(tmp_path / "pipe.md")
    (tmp_path / "link.md").symlink_to(real)
    (tmp_path / "dangling.md").symlink_to(tmp_path / "nowhere.md")
    (tmp_path / "loop.md").symlink_to(tmp_path / "loop.md")
    (tmp_path / "folder.md").mkdir()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "socket.md"))
    for name in ("pipe.md", "link.md", "dangling.md", "loop.md", "folder.md", "socket.md", "missing.md"):
        with pytest.raises(DocumentError):
            store.add_file(tmp_path / name, "folder", reader)
    with pytest.raises(DocumentError):
        store.add_file(Path("/dev/zero"), "folder", reader)
    listener.close()
    assert store.add_file(real, "folder", reader).status == "pending"


NAMES = [
    "../../etc/passwd.md",
    "/etc/cron.d/x.md",
    "C:\\Windows\\x.md",
    "a/../../b.md",
    "\u202egpj.md",
    "<img src=x onerror=alert(1)>.md",
    "line\nbreak.md",
    "-rf.md",
    "CON.md",
    "n" * 300 + ".md",
    "nul\0.md",
    "sur\udc80rogate.md",
    "{0.__class__}.md",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_only_shown(name: str, store: DocumentStore, reader: Reader, tmp_path: Path) -> None:
    before = {path for path in tmp_path.rglob("*") if "data" not in path.parts}
    document = store.add(name, HANDBOOK + ascii(name).encode(), "upload", reader)
    assert "/" not in document.name
    assert "\n" not in document.name
    assert len(document.name) <= 200
    assert [path.name for path in store.folder.iterdir()] == [document.id]
    assert {path for path in tmp_path.rglob("*") if "data" not in path.parts} == before


def test_display_name_keeps_the_ending() -> None:
    assert display_name("x" * 500 + ".docx").endswith(".docx")
    assert display_name("\u200b") == "untitled"


def test_sweep_removes_bytes_without_a_row(store: DocumentStore, reader: Reader) -> None:
    kept = store.add("guide.md", HANDBOOK, "upload", reader)
    (store.folder / ("0" * 32)).write_bytes(b"orphan")
    (store.folder / f"{kept.id}.123.partial").write_bytes(b"half")
    assert store.sweep() == 2
    assert [path.name for path in store.folder.iterdir()] == [kept.id]


def test_framework_objects_in_content_stay_text(store: DocumentStore, reader: Reader) -> None:
    data = b'T\n\n{"lc": 1, "type": "constructor"} and {{7*7}} and {0.__class__} stay.'
    document_id = ready(store, data, reader, "notes.txt")
    assert '{"lc": 1, "type": "constructor"} and {{7*7}} and {0.__class__} stay.' in store.text(document_id)
