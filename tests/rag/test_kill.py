"""kill -9 while documents are taken in: nothing acknowledged is lost or orphaned, all of it works (row R01).

A child ingests small documents and acknowledges each in a pipe; it is killed after a random time, and the
next child opens the same folder (probe, repair) and goes on. Vectors are derived from the text's hash instead
of MiniLM, whose import alone takes as long as three kills: what is tried here is storage.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest

from core.db import Database
from core.settings import Settings, load_settings
from rag.documents import DocumentStore
from rag.embed import DIMENSIONS, Embedder, Step, Vectors
from rag.index import Index
from rag.ingest import Ingestor
from rag.reader import Reader

PER_CHILD = 400


class HashedVectors(Embedder):
    """Vectors from a text's hash."""

    def encode(self, texts: Sequence[str], step: Step = lambda: None) -> Vectors:
        seeds = [int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) for text in texts]
        drawn = np.stack([np.random.default_rng(seed).normal(size=DIMENSIONS) for seed in seeds])
        return np.asarray(drawn / np.linalg.norm(drawn, axis=1, keepdims=True), np.float32)


def work(folder: str, first: int, acknowledged: Connection) -> None:
    """Open (which repairs), check what is there, then take in documents until killed."""
    settings = load_settings({}, data_dir=folder)
    database = Database(settings.database)
    index = Index(settings, database)
    ingestor = Ingestor(settings, database, index, HashedVectors())
    index.open()
    ingestor.process_pending()
    acknowledged.send(("open", problems(settings, ingestor)))
    with Reader(settings) as reader:
        for number in range(first, first + PER_CHILD):
            text = (
                f"# Document {number}\n\nIt holds the word w{number}.\n\n## More\n\nA second part {number}.\n"
            )
            document = ingestor.documents.add(f"{number}.md", text.encode(), "folder", reader)
            ingestor.process([document])
            acknowledged.send(("ready", f"{number}:{document.id}"))
            index.sync()
            if number % 7 == 3:
                ingestor.delete(document.id)
                acknowledged.send(("deleted", f"{number}:{document.id}"))


def problems(settings: Settings, ingestor: Ingestor) -> list[str]:
    """Orphans in either direction between rows, search entries, vectors and stored bytes."""
    found = []
    ready = ingestor.passages.ready_ids()
    with ingestor.passages.database.read() as connection:
        entries = {row[0] for row in connection.execute("SELECT rowid FROM chunks_fts")}
        chunks = {row[0] for row in connection.execute("SELECT id FROM chunks")}
        rows = {row[0] for row in connection.execute("SELECT id FROM documents")}
        if connection.execute("PRAGMA integrity_check").fetchone()[0] != "ok":
            found.append("database damaged")
    stored = {path.name for path in ingestor.documents.folder.glob("*")}
    if not entries == ready == chunks:
        found.append(f"rows {len(chunks)}, search entries {len(entries)}, ready {len(ready)}")
    if ingestor.index.ids() != ready:
        found.append(f"{len(ingestor.index.ids() ^ ready)} vectors differ")
    if stored != rows:
        found.append(f"{len(stored ^ rows)} stored files differ")
    if not ingestor.index.status().usable:
        found.append("index unusable")
    elif ready and not ingestor.index.query(HashedVectors().encode(["x"])[0], 3):
        found.append("index finds nothing")
    return found


def harness(folder: Path, kills: int) -> tuple[int, list[str]]:
    """Kill `kills` children; returns how many documents were acknowledged and every problem seen."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["chromadb", "rag.ingest", "rag.index"])
    draw = random.Random(7)
    acknowledged: dict[str, str] = {}
    found: list[str] = []
    for number in range(kills + 1):
        ours, theirs = context.Pipe(duplex=False)
        child = context.Process(target=work, args=(str(folder), number * PER_CHILD, theirs))
        child.start()
        theirs.close()
        # one kill in four comes while the child still opens and repairs
        patience = draw.uniform(0.2, 3.0) if number % 4 == 3 and number < kills else 120.0
        # counted in acknowledgements, so that a slow machine is tried as hard as a quick one
        said, opened = listen(ours, patience, 0 if number == kills else draw.randint(0, 8))
        time.sleep(draw.uniform(0.0, 0.06))
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        said += listen(ours, 0.0, 10_000)[0]
        if not opened and patience == 120.0:
            found.append(f"after kill {number}: the folder did not open")
        for kind, value in said:
            if kind == "open":
                found += [f"after kill {number}: {problem}" for problem in value]
            else:
                acknowledged[str(value)] = kind
    return len(acknowledged), found + lost(folder, acknowledged)


def listen(pipe: Connection, patience: float, enough: int) -> tuple[list[tuple[str, list[str]]], bool]:
    """What a child says until it acknowledged `enough` after opening, or `patience` seconds are over."""
    said: list[tuple[str, list[str]]] = []
    deadline = time.monotonic() + patience
    try:
        while len(said) <= enough and pipe.poll(max(0.0, deadline - time.monotonic())):
            said.append(pipe.recv())
    except EOFError:
        pass
    return said, bool(said)


def lost(folder: Path, acknowledged: dict[str, str]) -> list[str]:
    """Documents that are not what their acknowledgement said."""
    settings = load_settings({}, data_dir=str(folder))
    states = {d.id: d.status for d in DocumentStore(Database(settings.database), settings).list()}
    found = []
    for value, kind in acknowledged.items():
        number, _, document_id = value.partition(":")
        # killed between the commit of a deletion and its acknowledgement, a document may be gone
        deleting = kind == "ready" and int(number) % 7 == 3
        if (kind == "ready") != (states.get(document_id) == "ready") and not deleting:
            found.append(f"{kind} document {number} is {states.get(document_id)}")
    return found


def test_kills_lose_nothing(tmp_path: Path) -> None:
    count, found = harness(tmp_path / "data", 15)
    assert found == []
    assert count > 15


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_two_hundred_kills_lose_nothing(tmp_path: Path) -> None:
    count, found = harness(tmp_path / "data", 200)
    assert found == []
    assert count > 200
