"""kill -9 while files are queued and read: what was acknowledged becomes one document, and nothing stays.

A child queues files, acknowledges each, and works on the queue beside it; it is killed after a random time.
At the end the queue is finished here. Vectors as in `tests.rag.test_kill`.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from core.db import Database
from core.settings import load_settings
from rag.index import Index
from rag.ingest import Ingestor
from rag.queue import Queue
from tests.rag.files import archive
from tests.rag.test_kill import HashedVectors, listen, problems

PER_CHILD = 40


def make(folder: str) -> Ingestor:
    settings = load_settings({}, data_dir=folder)
    database = Database(settings.database)
    return Ingestor(settings, database, Index(settings, database), HashedVectors())


def content(number: int) -> tuple[str, bytes]:
    """Every fifth file is an archive of two, every seventh is broken."""
    if number % 7 == 6:
        return f"{number}.pdf", b"%%PDF-1.4 nonsense %d" % number
    text = f"# Document {number}\n\nIt holds the word w{number}.\n".encode()
    if number % 5 == 4:
        return f"{number}.zip", archive({"one.md": text, "two.md": text + b"\nAnd more.\n"})
    return f"{number}.md", text


def put(queue: Queue, numbers: range, acknowledged: Connection) -> None:
    for number in numbers:
        queue.put(*content(number))
        acknowledged.send(("put", str(number)))


def work(folder: str, first: int, acknowledged: Connection) -> None:
    """Queue files in a thread, as the pages do, and read them, as the worker does, until killed."""
    ingestor = make(folder)
    ingestor.index.open()
    acknowledged.send(("open", ""))
    numbers = range(first, first + PER_CHILD)
    thread = threading.Thread(target=put, args=(ingestor.queue, numbers, acknowledged), daemon=True)
    thread.start()
    while True:
        ingestor.drain()
        time.sleep(0.01)


def harness(folder: Path, kills: int) -> tuple[set[int], Ingestor]:
    """Kill `kills` children, then finish the queue; returns what was acknowledged, and the installation."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["chromadb", "rag.ingest", "rag.index"])
    draw = random.Random(7)
    acknowledged: set[int] = set()
    for number in range(kills):
        ours, theirs = context.Pipe(duplex=False)
        child = context.Process(target=work, args=(str(folder), number * PER_CHILD, theirs))
        child.start()
        theirs.close()
        said, _ = listen(ours, 120.0, draw.randint(0, 8))
        time.sleep(draw.uniform(0.0, 0.6))
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        said += listen(ours, 0.0, 10_000)[0]
        acknowledged |= {int(str(value)) for kind, value in said if kind == "put"}
    ingestor = make(str(folder))
    with ingestor.passages.database.write() as connection:
        # many kills in a row may meet the same file; that it is given up then is tried elsewhere
        connection.execute(
            "UPDATE intake SET status = 'waiting' WHERE status = 'failed' AND error LIKE '%died%'"
        )
    ingestor.index.open()
    ingestor.drain()
    return acknowledged, ingestor


def check(folder: Path, kills: int) -> int:
    """How many files were acknowledged; all of them are what they should be."""
    acknowledged, ingestor = harness(folder, kills)
    entries = {}
    with ingestor.passages.database.read() as connection:
        for row in connection.execute("SELECT name, status, documents FROM intake"):
            assert row["name"] not in entries, "queued twice"
            entries[row["name"]] = row["status"]
    assert {content(number)[0] for number in acknowledged} <= set(entries)
    for name, status in entries.items():
        assert status == ("failed" if name.endswith(".pdf") else "ready"), name
    expected = sum(2 if name.endswith(".zip") else name.endswith(".md") for name in entries)
    documents = ingestor.documents.list()
    assert len(documents) == len({document.title + str(document.bytes) for document in documents}) == expected
    assert problems(ingestor.settings, ingestor) == []
    failed = {entry.id for entry in ingestor.queue.list(1000) if entry.status == "failed"}
    left = {path.name for path in ingestor.queue.folder.glob("*") if not path.name.endswith(".partial")}
    with ingestor.passages.database.read() as connection:
        rows = {row["id"] for row in connection.execute("SELECT id FROM intake WHERE status = 'ready'")}
    assert failed <= left
    assert not left & rows
    assert len(left - failed) <= kills  # bytes whose process died before their row; they go when they are old
    return len(acknowledged)


def test_kills_lose_nothing_that_was_queued(tmp_path: Path) -> None:
    assert check(tmp_path / "data", 5) > 5


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_hundred_kills_lose_nothing_that_was_queued(tmp_path: Path) -> None:
    assert check(tmp_path / "data", 100) > 100
