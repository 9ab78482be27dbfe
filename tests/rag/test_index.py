from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from core.db import Database
from core.errors import ConflictError, StorageError
from core.files import owner_lock
from core.jobs import Jobs
from core.settings import Settings, child_environment
from rag import index as module
from rag.documents import DocumentStore
from rag.embed import DIMENSIONS, Vectors
from rag.index import SEARCH_WIDTH, Index, main, open_collection, probe
from rag.reader import Reader

TEXT = "# Doc {n}\n\nUnique words number {n} stand here.\n\n## More\n\nSecond words of {n} here.\n"


def fill(database: Database, settings: Settings, reader: Reader, numbers: range) -> list[str]:
    """Ready documents with vectors drawn from their number."""
    store = DocumentStore(database, settings)
    done = []
    for n in numbers:
        document = store.add(f"d{n}.md", TEXT.format(n=n).encode(), "upload", reader)
        ids = [i for i, _ in store.chunk_texts(document.id)]
        store.save_documents([(document.id, ids, drawn(n, len(ids)))])
        done.append(document.id)
    return done


def drawn(seed: int, count: int) -> Vectors:
    vectors = np.random.default_rng(seed).normal(size=(count, DIMENSIONS)).astype(np.float32)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def test_the_index_follows_the_database(
    index: Index, database: Database, settings: Settings, reader: Reader
) -> None:
    ids = fill(database, settings, reader, range(5))
    assert not index.status().usable
    assert index.open().usable
    assert index.ids() == index.passages.ready_ids()
    found = index.query(drawn(3, 1)[0], 3)
    assert index.passages.get([found[0][0]])[found[0][0]].document == "Doc 3"
    assert found[0][1] == pytest.approx(1.0, abs=1e-4)
    assert [score for _, score in found] == sorted((score for _, score in found), reverse=True)
    DocumentStore(database, settings).delete(ids[3])
    index.sync()
    assert index.ids() == index.passages.ready_ids()


def test_what_the_index_holds_is_listed_again_only_when_others_wrote(
    index: Index, database: Database, settings: Settings, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids, listed = Index.ids, []

    def counted(self: Index) -> set[int]:
        listed.append(self)
        return ids(self)

    monkeypatch.setattr(Index, "ids", counted)
    index.open()
    fill(database, settings, reader, range(2))
    index.sync()
    listed.clear()
    [first, *_] = fill(database, settings, reader, range(2, 5))
    index.sync()
    DocumentStore(database, settings).delete(first)
    index.sync()
    assert listed == []
    assert ids(index) == index.passages.ready_ids()
    other = Index(settings, database)
    other.open()
    [second, *_] = fill(database, settings, reader, range(5, 8))
    other.sync()
    other.close()
    listed.clear()
    DocumentStore(database, settings).delete(second)
    index.sync()
    assert listed == [index]
    assert ids(index) == index.passages.ready_ids()


@pytest.mark.parametrize("damage", ["truncate", "zero", "missing-sqlite", "missing", "garbage"])
def test_a_damaged_index_is_rebuilt(
    damage: str, index: Index, database: Database, settings: Settings, reader: Reader
) -> None:
    fill(database, settings, reader, range(3))
    first = index.open()
    index.close()
    folder = settings.data_dir / "index" / str(first.generation)
    for path in [p for p in folder.rglob("*") if p.is_file()]:
        if damage == "truncate":
            path.write_bytes(path.read_bytes()[:100])
        elif damage == "zero":
            path.write_bytes(bytes(path.stat().st_size))
        elif damage == "garbage":
            path.write_bytes(b"\xff" * 10_000)
        elif damage == "missing-sqlite" and path.suffix == ".sqlite3":
            path.unlink()
    if damage == "missing":
        shutil.rmtree(folder)
    fresh = Index(settings, database)
    status = fresh.open()
    assert status.usable
    assert fresh.ids() == fresh.passages.ready_ids()
    assert len(fresh.query(drawn(1, 1)[0], 3)) == 3
    fresh.close()


def test_an_index_of_an_earlier_version_gets_the_search_width_of_today(
    index: Index, database: Database, settings: Settings, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(database, settings, reader, range(3))
    with monkeypatch.context() as earlier:
        earlier.setattr(module, "SEARCH_WIDTH", 100)
        generation = index.open().generation
        index.close()
    assert index.open().generation == generation  # not rebuilt
    assert len(index.query(drawn(1, 1)[0], 3)) == 3
    index.close()
    client, collection = open_collection(settings.data_dir / "index" / str(generation))
    assert collection.configuration_json["hnsw"]["ef_search"] == SEARCH_WIDTH
    client.close()


def test_old_generations_are_removed(index: Index, settings: Settings) -> None:
    index.open()
    index.rebuild()
    index.rebuild()
    generation = index.status().generation
    assert [path.name for path in index.folder.iterdir() if path.name.isdigit()] == [str(generation)]


def test_a_rebuild_that_was_killed_is_done_again(
    index: Index, database: Database, settings: Settings, reader: Reader
) -> None:
    fill(database, settings, reader, range(2))
    index.open()
    index.close()
    index.passages.put_note(index_state="rebuilding")
    (index.folder / "99").mkdir()
    fresh = Index(settings, database)
    assert not fresh.status().usable
    assert "rebuilt" in fresh.status().reason
    assert fresh.open().usable
    assert fresh.ids() == fresh.passages.ready_ids()
    assert not (index.folder / "99").exists()
    fresh.close()


def test_a_reader_sees_what_another_process_wrote(
    index: Index, database: Database, settings: Settings, reader: Reader
) -> None:
    fill(database, settings, reader, range(2))
    index.open()
    assert len(index.query(drawn(0, 1)[0], 50)) == 4
    fill(database, settings, reader, range(2, 4))
    code = (
        "from core.settings import load_settings; from core.db import Database; from rag.index import Index;"
        "s = load_settings(); Index(s, Database(s.database)).open()"
    )
    subprocess.run([sys.executable, "-c", code], env=child_environment(settings), check=True)
    assert len(index.query(drawn(0, 1)[0], 50)) == 8
    subprocess.run(
        [sys.executable, "-m", "rag.index", "rebuild"], env=child_environment(settings), check=True
    )
    assert len(index.query(drawn(0, 1)[0], 50)) == 8


def test_a_failing_query_falls_back_and_asks_for_a_rebuild(
    index: Index, database: Database, settings: Settings, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(database, settings, reader, range(2))
    index.open()

    def broken(path: Path) -> tuple[object, object]:
        raise RuntimeError("Failed to apply logs to the hnsw segment writer")

    monkeypatch.setattr(module, "open_collection", broken)
    index.close()
    assert index.query(drawn(0, 1)[0], 5) == []
    assert not index.status().usable
    assert [job.kind for job in Jobs(database).list()] == ["index"]
    with pytest.raises(StorageError, match="could not be rebuilt"):
        index.rebuild()
    monkeypatch.undo()
    Index(settings, database).rebuild()  # as the worker does
    assert index.status().usable
    assert len(index.query(drawn(0, 1)[0], 5)) == 4


def test_the_probe_accepts_a_good_folder(tmp_path: Path) -> None:
    probe(tmp_path / "1")
    assert main(["--probe", str(tmp_path / "1")]) == 0


def test_a_second_writer_waits(index: Index, settings: Settings) -> None:
    index.open()
    done = threading.Event()

    def write() -> None:
        index.rebuild()
        done.set()

    with owner_lock(settings.data_dir / "index" / ".lock", "The vector index"):
        threading.Thread(target=write, daemon=True).start()
        assert not done.wait(0.3)
    assert done.wait(30)


def test_the_job_reports_and_finishes(
    index: Index, database: Database, settings: Settings, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(database, settings, reader, range(2))
    jobs = Jobs(database)
    jobs.submit("index")
    job = jobs.lease(("index",))
    assert job is not None
    monkeypatch.setattr(module, "load_settings", lambda: settings)
    assert main(["--job", job.id, "--token", str(job.token)]) == 0
    assert jobs.get(job.id).status == "done"
    with pytest.raises(ConflictError, match="taken over"):
        main(["--job", job.id, "--token", "99"])
    assert main(["check"]) == 0
