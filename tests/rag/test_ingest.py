from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from core.db import Database
from core.errors import Cancelled, ConflictError, DocumentError
from core.files import owner_lock
from core.jobs import Jobs
from core.settings import Settings
from rag import ingest as module
from rag.documents import Document
from rag.embed import Step, Vectors
from rag.index import Index
from rag.ingest import SAMPLES, Ingestor, main
from rag.reader import Reader
from rag.retrieve import Retriever
from tests.rag.conftest import HANDBOOK


def counts(ingestor: Ingestor) -> tuple[int, ...]:
    with ingestor.passages.database.read() as connection:
        rows = [
            connection.execute(f"SELECT COUNT(*) FROM {t}").fetchone()[0]
            for t in ("documents", "chunks", "chunks_fts")
        ]
    return (*rows, len(ingestor.index.ids()), len(list(ingestor.documents.folder.iterdir())))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder as people have them: good files, bad files, special files."""
    folder = tmp_path / "in"
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "guide.md").write_bytes(HANDBOOK)
    (folder / "copy.md").write_bytes(HANDBOOK)
    (folder / "deep" / "er" / "prices.csv").write_text("Plan,Price\nBasic,10 EUR\n")
    (folder / "empty.md").write_bytes(b"")
    (folder / "photo.jpg").write_bytes(b"\xff\xd8\xff")
    (folder / ".hidden.md").write_bytes(b"# Hidden\n\nNot for you.")
    os.mkfifo(folder / "pipe.md")
    (folder / "link.md").symlink_to("/etc/hostname")
    (folder / "loop").symlink_to(folder)
    return folder


def test_a_folder_is_ingested_with_a_line_per_file(folder: Path, ingestor: Ingestor) -> None:
    lines: list[str] = []
    summary = ingestor.ingest([folder], lines.append)
    assert (summary.added, summary.unchanged) == (2, 1)
    assert sorted(name for name, _ in summary.refused) == [
        "empty.md",
        "link.md",
        "loop",
        "photo.jpg",
        "pipe.md",
    ]
    assert len(lines) == 8
    assert {document.status for document in ingestor.documents.list()} == {"ready"}


def test_the_same_folder_ten_times_changes_nothing(folder: Path, ingestor: Ingestor) -> None:
    ingestor.ingest([folder], lambda line: None)
    first = counts(ingestor)
    assert first == (2, 4, 4, 4, 2)
    for _ in range(9):
        summary = ingestor.ingest([folder], lambda line: None)
        assert summary.added == 0
    assert counts(ingestor) == first


def test_delete_removes_everything(folder: Path, ingestor: Ingestor) -> None:
    ingestor.ingest([folder], lambda line: None)
    for document in ingestor.documents.list():
        ingestor.delete(document.id)
    assert counts(ingestor) == (0, 0, 0, 0, 0)


def test_samples_come_once_and_stay_deleted(
    ingestor: Ingestor, reader: Reader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = tmp_path / "samples"
    few.mkdir()
    for name in ("employee-handbook.md", "price-list.csv"):
        shutil.copy(SAMPLES / name, few)
    monkeypatch.setattr(module, "SAMPLES", few)
    assert ingestor.add_samples() == 2
    assert {document.origin for document in ingestor.documents.list()} == {"sample"}
    ingestor.delete(ingestor.documents.list()[0].id)
    assert ingestor.add_samples() == 0
    assert len(ingestor.documents.list()) == 1


def test_two_processes_ingesting_at_once(folder: Path, ingestor: Ingestor) -> None:
    with (
        owner_lock(ingestor.lock, "Reading documents"),
        pytest.raises(ConflictError, match="in use by process"),
    ):
        ingestor.ingest([folder], lambda line: None)
    ingestor.ingest([folder], lambda line: None)
    assert counts(ingestor) == (2, 4, 4, 4, 2)


def test_the_worker_waits_for_a_running_ingest(ingestor: Ingestor, reader: Reader) -> None:
    ingestor.documents.add("guide.md", HANDBOOK, "upload", reader)
    with owner_lock(ingestor.lock, "Reading documents"):
        worker = threading.Thread(target=ingestor.process_pending, daemon=True)
        worker.start()
        worker.join(0.3)
        assert worker.is_alive()
    worker.join(60)
    assert ingestor.documents.pending() == []


def test_commands_exit_codes(
    folder: Path,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    embedder: object,
) -> None:
    monkeypatch.setattr(module, "load_settings", lambda: settings)
    monkeypatch.setattr(module, "Embedder", lambda half: embedder)
    assert main([str(folder / "guide.md")]) == 0
    assert "1 added, 0 unchanged, 0 refused." in capsys.readouterr().out
    assert main([str(folder)]) == 2
    out = capsys.readouterr().out
    assert "unchanged  guide.md" in out
    assert "refused    empty.md: The file is empty." in out
    with pytest.raises(DocumentError, match="does not exist"):
        main([str(folder / "nowhere.md")])
    with (
        owner_lock(settings.data_dir / "ingest.lock", "x"),
        pytest.raises(ConflictError, match="already in use by process"),
    ):
        main([str(folder)])


def test_help_is_quick_and_needs_no_libraries() -> None:
    code = (
        "import sys, rag.ingest, rag.ask_command, rag.index;"
        "print([m for m in ('torch', 'chromadb', 'langchain_openai', 'pypdfium2') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_job_processes_what_is_pending(
    settings: Settings,
    database: Database,
    ingestor: Ingestor,
    reader: Reader,
    monkeypatch: pytest.MonkeyPatch,
    embedder: object,
) -> None:
    monkeypatch.setattr(module, "load_settings", lambda: settings)
    monkeypatch.setattr(module, "Embedder", lambda half: embedder)
    ingestor.documents.add("guide.md", HANDBOOK, "upload", reader)
    jobs = Jobs(database)
    jobs.submit("ingest")
    job = jobs.lease(("ingest",))
    assert job is not None
    with pytest.raises(ConflictError, match="taken over"):
        main(["--job", job.id, "--token", str(job.token - 1)])
    assert main(["--job", job.id, "--token", str(job.token)]) == 0
    assert jobs.get(job.id).status == "done"
    assert jobs.get(job.id).result == {"documents": 1}
    assert ingestor.documents.pending() == []


def test_a_cancelled_job_keeps_what_is_ready(
    ingestor: Ingestor, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rag.pipeline.GROUP_CHUNKS", 1)
    ingestor.documents.add("guide.md", HANDBOOK, "upload", reader)
    ingestor.documents.add("other.txt", b"Other words stand here.", "upload", reader)
    process = ingestor.process

    def endless(documents: Sequence[Document], step: Step) -> int:
        while documents[0].name == "other.txt":
            step()
        return process(documents, step)

    def beat(share: float, message: str) -> None:
        if share > 0:  # the first is ready
            raise Cancelled("stop")

    with monkeypatch.context() as patch:
        patch.setattr(ingestor, "process", endless)
        with pytest.raises(Cancelled):
            ingestor.process_pending(beat)
    assert sorted(document.status for document in ingestor.documents.list()) == ["pending", "ready"]
    ingestor.process_pending()
    assert ingestor.index.ids() == ingestor.passages.ready_ids()


def test_a_document_is_found_after_ingest(
    folder: Path, ingestor: Ingestor, settings: Settings, index: Index
) -> None:
    ingestor.ingest([folder], lambda line: None)
    retriever = Retriever(settings, ingestor.passages.database, index, ingestor.embedder)
    assert "30 days" in retriever.search("How long is the notice period?", 1)[0].text


def test_small_documents_are_embedded_together(
    ingestor: Ingestor, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        ingestor.documents.add(f"{number}.md", b"%s\n\nNumber %d." % (HANDBOOK, number), "upload", reader)
    asked: list[int] = []
    encode = ingestor.embedder.encode

    def watched(texts: Sequence[str], step: Step) -> Vectors:
        asked.append(len(texts))
        return encode(texts)

    monkeypatch.setattr(ingestor.embedder, "encode", watched)
    assert ingestor.process_pending() == 5
    assert len(asked) == 1
    for document in ingestor.documents.list():
        texts = ingestor.documents.chunk_texts(document.id)
        stored = ingestor.passages.vectors([i for i, _ in texts])
        assert (stored * encode([text for _, text in texts])).sum(1).min() > 0.9999


def test_a_document_deleted_meanwhile_does_not_stop_the_others(ingestor: Ingestor, reader: Reader) -> None:
    gone, kept = (
        ingestor.documents.add(name, HANDBOOK + name.encode(), "upload", reader) for name in ("a.md", "b.md")
    )
    ingestor.documents.delete(gone.id)
    assert ingestor.process([gone, kept]) == 1
    assert ingestor.documents.get(kept.id).status == "ready"
