"""The vector index: Chroma as a cache of the vectors in the database, thrown away when in doubt.

Killed while writing, Chroma 1.5.9 became unusable in 3 of 144 kills, and a damaged segment can crash the
process that opens it. So: the database keeps every vector; the index is probed in a child process before this
one opens it; a bad one is rebuilt into a new generation folder, and only then the pointer moves. Notes in the
database tell readers in other processes to reopen (an open Chroma client does not see others' writes).
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from core.db import Database
from core.errors import Cancelled, ConflictError, StorageError, UnderstudyError, run_main
from core.files import owner_lock
from core.jobs import Jobs
from core.settings import PROJECT, Settings, child_environment, load_settings, quiet_environment
from rag.embed import DIMENSIONS, Vectors
from rag.embedders import MADE_BY, Embedders
from rag.passages import PassageStore, put_notes

COLLECTION = "chunks"
# a segment damaged by a kill can make Chroma compute for ever (2 of 100 kills); building 100,000 vectors anew
# takes 38 s, so trying for longer does not pay
PROBE_SECONDS = 45.0
MAX_FAILURES = 3
STEP = 2_000
SEARCH_WIDTH = 300  # passages that HNSW keeps in view while it searches (`ef`), see docs/log.md
_SENTINEL = "probe"

Progress = Callable[[float], None]


@dataclass(frozen=True)
class IndexStatus:
    """Whether vectors can be searched, and if not, why."""

    usable: bool
    reason: str
    generation: int


class Index:
    """The vectors of ready chunks, searchable; safe in threads and beside other processes."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self.settings = settings
        self.folder = settings.data_dir / "index"
        self.passages = PassageStore(database)
        self.embedders = Embedders(settings, database)
        self._lock = threading.RLock()
        self._client: Any = None
        self._collection: Any = None
        self._stamp = ""
        self._held: set[int] | None = None  # ids in the open collection, once they were compared
        self._broken = ""
        self._failures = 0
        self._opened = False

    def open(self, progress: Progress | None = None) -> IndexStatus:
        """Make the index fit for use: probe it in a child, rebuild it when that fails, add what it lacks."""
        with self._owned():
            self._opened = False
            self._sync(progress)
        if self.embedders.mismatch():
            self._embed_anew()
        return self.status()

    def sync(self) -> None:
        """Bring the index up to the database: add vectors it lacks, drop those of deleted chunks."""
        with self._owned():
            self._sync()

    def rebuild(self, progress: Progress | None = None) -> None:
        """Build the index anew from the database (raises StorageError when that fails)."""
        with self._owned():
            self._rebuild(progress)

    def replace(self, passages: PassageStore, exchange: Callable[[Any], None]) -> None:
        """Put vectors of another embedder, those of `passages`, in the place of these, in one commit.

        The index is built beside this one, which serves until then; `exchange` changes the database's own
        vectors and the notes on who made them, inside the commit that also names the new generation.
        """
        beside = self.folder / "next"
        shutil.rmtree(beside, ignore_errors=True)
        client, collection = open_collection(beside)
        self._fill(collection, sorted(passages.ready_ids()), None, passages)
        with self._owned():
            wanted, present = passages.ready_ids(), {int(i) for i in collection.get(include=[])["ids"]}
            self._fill(collection, sorted(wanted - present), None, passages)
            if extra := [str(i) for i in sorted(present - wanted)]:
                collection.delete(ids=extra)
            client.close()
            taken, generation = self._next_generation()
            beside.rename(self._path(generation))
            stamp = int(self.passages.note("index_stamp") or 0) + 1
            with self.passages.database.write() as connection:
                exchange(connection)
                put_notes(
                    connection,
                    {
                        "index_generation": str(generation), "index_state": "ready",
                        "index_version": str(self.passages.version()), "index_stamp": str(stamp),
                    },
                )  # fmt: skip
            self._forget()
            for number in taken:
                shutil.rmtree(self._path(number), ignore_errors=True)

    def status(self) -> IndexStatus:
        """Whether vectors can be searched right now."""
        generation = int(self.passages.note("index_generation") or 0)
        state = self.passages.note("index_state")
        if self._broken and (self._failures >= MAX_FAILURES or self._stamp == self._current_stamp()):
            return IndexStatus(False, self._broken, generation)
        if state == "rebuilding":
            return IndexStatus(False, "The vector index is being rebuilt.", generation)
        if not generation or not self._path(generation).exists():
            return IndexStatus(False, "The vector index is not built yet.", generation)
        mismatch = self.embedders.mismatch()
        return IndexStatus(not mismatch, mismatch, generation)

    def query(self, vector: Vectors, limit: int) -> list[tuple[int, float]]:
        """(chunk id, cosine similarity) of the nearest chunks, best first; empty when the index is unusable.

        `vector` has shape (384,). Ids of chunks deleted a moment ago may be among them.
        """
        if not self._opened:  # never open files that a child has not tried first
            self.open()
        for attempt in (1, 2):
            if not self.status().usable:
                return []
            try:
                with self._lock:
                    found = self._open().query(
                        query_embeddings=[vector], n_results=limit, include=["distances"]
                    )
                pairs = zip(found["ids"][0], found["distances"][0], strict=True)
                return sorted(
                    ((int(i), 1.0 - float(d)) for i, d in pairs if i != _SENTINEL),
                    key=lambda pair: (-pair[1], pair[0]),
                )
            except Exception as error:  # chromadb has no error tree of its own; a rebuild mends them all
                self._forget()
                if attempt == 2:
                    self._give_up(error)
        return []

    def ids(self) -> set[int]:
        """Ids of the vectors in the index."""
        with self._lock:
            return {int(i) for i in self._open().get(include=[])["ids"] if i != _SENTINEL}

    def close(self) -> None:
        """Release the files."""
        self._forget()

    def _path(self, generation: int) -> Path:
        return self.folder / str(generation)

    @contextmanager
    def _owned(self) -> Iterator[None]:
        with owner_lock(self.folder / ".lock", "The vector index", wait=True), self._lock:
            yield

    def _fit(self) -> bool:
        """Whether a child process can write, search and delete in the current generation."""
        status = self.status()
        if not status.usable and not self._broken:
            return False
        self._forget()
        command = [sys.executable, "-m", "rag.index", "--probe", str(self._path(status.generation))]
        try:
            done = subprocess.run(
                command,
                cwd=PROJECT,
                env=child_environment(self.settings),
                capture_output=True,
                timeout=PROBE_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return False
        return done.returncode == 0

    def _open(self) -> Any:
        """The collection, reopened when another process wrote since."""
        stamp = self._current_stamp()
        if self._collection is None or stamp != self._stamp:
            self._forget()
            path = self._path(int(self.passages.note("index_generation")))
            self._client, self._collection = open_collection(path)
            self._stamp = stamp
        return self._collection

    def _current_stamp(self) -> str:
        return f"{self.passages.note('index_generation')}:{self.passages.note('index_stamp')}"

    def _forget(self) -> None:
        with self._lock:
            if self._client is not None:
                with suppress(Exception):
                    self._client.close()
            self._client = self._collection = self._held = None

    def _give_up(self, error: Exception) -> None:
        """Go on by words alone, until somebody has rebuilt the index; give up for good after some tries."""
        self._broken = f"The vector index failed ({type(error).__name__}); it will be rebuilt."
        self._stamp = self._current_stamp()
        self._failures += 1
        if self._failures < MAX_FAILURES:
            Jobs(self.passages.database).submit("index", once=True)

    def _sync(self, progress: Progress | None = None) -> None:
        if self.embedders.mismatch():
            return  # nothing to mend here: other vectors are needed
        if not self._opened and not self._fit():
            self._rebuild(progress)
            return
        version = self.passages.version()
        if self._opened and self.passages.note("index_version") == str(version):
            return
        self._opened = True
        try:
            collection = self._open()
            wanted, present = self.passages.ready_ids(), self.ids() if self._held is None else self._held
            self._held = None
            extra = [str(i) for i in sorted(present - wanted)]
            for at in range(0, len(extra), STEP):
                collection.delete(ids=extra[at : at + STEP])
            self._fill(collection, sorted(wanted - present), None)
            self._held = wanted
        except UnderstudyError:
            raise
        except Exception:
            self._rebuild(None)
            return
        self._commit(version)

    def _rebuild(self, progress: Progress | None) -> None:
        self.passages.put_note(index_state="rebuilding")
        self._forget()
        taken, generation = self._next_generation()
        version = self.passages.version()
        try:
            client, collection = open_collection(self._path(generation))
            self._fill(collection, sorted(self.passages.ready_ids()), progress)
            client.close()
        except Cancelled:
            shutil.rmtree(self._path(generation), ignore_errors=True)
            raise
        except Exception as error:
            shutil.rmtree(self._path(generation), ignore_errors=True)
            raise StorageError(
                f"The vector index could not be rebuilt: {error}.",
                "Search goes on by words alone. Check the free space, then run `understudy index rebuild`.",
            ) from error
        self._broken, self._failures, self._opened = "", 0, True
        self.passages.put_note(index_generation=str(generation), index_state="ready")
        self._commit(version)
        for number in taken:
            shutil.rmtree(self._path(number), ignore_errors=True)

    def _next_generation(self) -> tuple[list[int], int]:
        """The generations that have a folder, and the number of a new one."""
        taken = [int(path.name) for path in self.folder.iterdir() if path.name.isdigit()]
        return taken, max([*taken, int(self.passages.note("index_generation") or 0)]) + 1

    def _embed_anew(self) -> None:
        """Queue what makes the vectors fit the embedder on disk again, where there is one."""
        with suppress(UnderstudyError):
            wanted = {"embedder": self.embedders.in_service().id}
            Jobs(self.passages.database).submit("reindex", wanted, once=True)

    def _fill(
        self,
        collection: Any,
        ids: list[int],
        progress: Progress | None,
        passages: PassageStore | None = None,
    ) -> None:
        passages = passages or self.passages
        for at in range(0, len(ids), STEP):
            step = ids[at : at + STEP]
            collection.upsert(ids=[str(i) for i in step], embeddings=passages.vectors(step))
            if progress is not None:
                progress((at + len(step)) / len(ids))

    def _commit(self, version: int) -> None:
        stamp = int(self.passages.note("index_stamp") or 0) + 1
        notes = {"index_version": str(version), "index_stamp": str(stamp)}
        if not self.embedders.mismatch():  # a new index, or one of a version that noted the name alone
            notes[MADE_BY] = self.embedders.in_service().note
        self.passages.put_note(**notes)
        if self._collection is not None:  # what this process wrote itself it also sees
            self._stamp = f"{self.passages.note('index_generation')}:{stamp}"


def open_collection(path: Path) -> tuple[Any, Any]:
    """A Chroma client on `path` and its collection; no telemetry, no embedding function.

    An index that was made with another search width keeps its graph and gets today's.
    """
    import chromadb
    from chromadb.config import Settings as ChromaSettings

    path.mkdir(parents=True, exist_ok=True)
    client = chromadb.PersistentClient(str(path), settings=ChromaSettings(anonymized_telemetry=False))
    collection = client.get_or_create_collection(
        COLLECTION,
        embedding_function=None,
        configuration={"hnsw": {"space": "cosine", "ef_search": SEARCH_WIDTH}},
    )
    if collection.configuration_json["hnsw"]["ef_search"] != SEARCH_WIDTH:  # heeded before the first query
        collection.modify(configuration={"hnsw": {"ef_search": SEARCH_WIDTH}})
    return client, collection


def probe(path: Path) -> None:
    """Count, add, search and delete in a generation; raises or dies when it is damaged."""
    client, collection = open_collection(path)
    vector = np.zeros((1, DIMENSIONS), np.float32)
    vector[0, 0] = 1.0
    collection.count()
    collection.upsert(ids=[_SENTINEL], embeddings=vector)
    if not collection.query(query_embeddings=vector, n_results=1, include=["distances"])["ids"][0]:
        raise RuntimeError("the index does not find what was just added")
    collection.delete(ids=[_SENTINEL])
    client.close()


def _run_job(index: Index, database: Database, job_id: str, token: int) -> None:
    jobs = Jobs(database)
    job = jobs.get(job_id)
    if job.token != token:
        raise ConflictError(f"Job {job_id} was taken over by another worker.")

    def report(share: float) -> None:
        if jobs.heartbeat(job, share, "Rebuilding the vector index …"):
            raise Cancelled("Rebuilding was cancelled.")

    try:
        index.rebuild(report)
        jobs.finish(job, "done", f"{index.passages.counts()[1]} vectors in the index.")
    except Cancelled as error:
        jobs.finish(job, "cancelled", error.message)
    except UnderstudyError as error:
        jobs.finish(job, "failed", str(error))


def main(arguments: list[str] | None = None) -> int:
    """`understudy index rebuild|check`; with --job, as a child of the worker."""
    parser = argparse.ArgumentParser(
        prog="understudy index", description="Check or rebuild the vector index."
    )
    parser.add_argument("action", nargs="?", choices=["rebuild", "check"], default="check")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    parser.add_argument("--token", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--probe", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    quiet_environment()
    if options.probe is not None:
        probe(options.probe)
        return 0
    settings = load_settings()
    database = Database(settings.database)
    index = Index(settings, database)
    if options.job:
        _run_job(index, database, options.job, options.token)
        return 0
    if options.action == "rebuild":
        index.rebuild()
    status = index.open()
    print(
        f"{index.passages.counts()[1]} vectors, generation {status.generation}: "
        + ("ready." if status.usable else status.reason)
    )
    return 0 if status.usable else 1


if __name__ == "__main__":
    run_main(main)
