"""Backup of a large library: how long it takes, how long writers wait meanwhile, how long the way back takes.

A chunk is sixty drawn words with a drawn vector; an original is as large as its chunks. During the backup
another process commits every few milliseconds. The way back is what an operator waits for: verify, put in
place, and build the vector index anew.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from app.backup import backup
from app.manifest import verify
from app.restore import rebuild, restore
from benchmarks.table import Row, main
from core.db import Database, audit, now_ms
from core.files import make_folder
from core.settings import Settings, load_settings, quiet_environment
from rag.embed import DIMENSIONS

CHUNKS, QUICK, PER_DOCUMENT, WORDS = 100_000, 4_000, 20, 60
RESTORE_S, WAIT_MS = 300.0, 250.0  # goals


def measure(options: argparse.Namespace) -> list[Row]:
    """Fill, back up under writes, restore elsewhere."""
    quiet_environment()
    with tempfile.TemporaryDirectory() as scratch:
        settings = load_settings({}, data_dir=f"{scratch}/data")
        fill(settings, QUICK if options.quick else CHUNKS)
        alone, _ = timed(settings, Path(scratch) / "alone")
        ours, theirs = multiprocessing.Pipe()
        writer = multiprocessing.get_context("spawn").Process(target=write, args=(settings.database, theirs))
        writer.start()
        ours.recv()
        seconds, size = timed(settings, Path(scratch) / "b")
        ours.send("enough")
        waits = sorted(ours.recv())
        writer.join()
        began = time.perf_counter()
        manifest = verify(Path(scratch) / "b", quiet)
        verified = time.perf_counter()
        there = load_settings({}, data_dir=f"{scratch}/restored")
        restore(there, Path(scratch) / "b", manifest, quiet)
        put = time.perf_counter()
        rebuild(there, quiet)
        done = time.perf_counter()
    slow = waits[int(0.99 * len(waits))]
    return [
        Row("files", len(manifest.files)),
        Row("bytes", size / 1e6, "MB"),
        Row("backup, nobody writing", alone, "s"),
        Row("backup beside a writer", seconds, "s"),
        Row("a write meanwhile, p50", waits[len(waits) // 2], "ms"),
        Row("a write meanwhile, p99", slow, "ms", None, f"<= {WAIT_MS:g}", slow <= WAIT_MS),
        Row("a write meanwhile, longest", waits[-1], "ms"),
        Row("restore: verify", verified - began, "s"),
        Row("restore: put in place", put - verified, "s"),
        Row("restore: build the index", done - put, "s"),
        Row("restore in all", done - began, "s", None, f"<= {RESTORE_S:g}", done - began <= RESTORE_S),
    ]


def quiet(_what: str, _done: float) -> None:
    """Nobody listens."""


def timed(settings: Settings, target: Path) -> tuple[float, int]:
    """Seconds of one backup, and its bytes."""
    began = time.perf_counter()
    manifest = backup(settings, target, quiet)
    return time.perf_counter() - began, manifest.bytes


def write(path: Path, pipe: Connection) -> None:
    """Commit until told that it is enough; send how many milliseconds each commit took."""
    database, waits = Database(path), []
    pipe.send("begun")
    while not pipe.poll(0.005):
        began = time.perf_counter()
        with database.write() as connection:
            audit(connection, "benchmark", "write", "something")
        waits.append((time.perf_counter() - began) * 1000)
    pipe.send(waits)


def fill(settings: Settings, chunks: int) -> None:
    """Documents with their bytes, chunks and search entries."""
    draw, vectors = random.Random(7), np.random.default_rng(7)
    words = [f"word{number}" for number in range(20_000)]
    make_folder(settings.data_dir / "documents")
    database = Database(settings.database)
    for first in range(0, chunks, PER_DOCUMENT):
        document_id = f"{first:032x}"
        texts = [" ".join(draw.choices(words, k=WORDS)) for _ in range(PER_DOCUMENT)]
        text = "\n".join(texts)
        (settings.data_dir / "documents" / document_id).write_text(text)
        drawn = vectors.normal(size=(PER_DOCUMENT, DIMENSIONS))
        drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
        with database.relaxed(), database.write() as connection:
            connection.execute(
                "INSERT INTO documents (id, name, kind, bytes, origin, status, text, created_at, updated_at)"
                " VALUES (?, 'made.txt', 'text', ?, 'upload', 'ready', ?, ?, ?)",
                (document_id, len(text), text, now_ms(), now_ms()),
            )
            connection.execute(
                "INSERT INTO document_access VALUES (?, 'local', 'everybody', 'approved')", (document_id,)
            )
            for at, (one, vector) in enumerate(zip(texts, drawn.astype("<f4"), strict=True)):
                row = connection.execute(
                    'INSERT INTO chunks (document_id, ordinal, heading, start, "end", text, vector)'
                    " VALUES (?,?,'',0,?,?,?)",
                    (document_id, at, len(one), one, vector.tobytes()),
                ).lastrowid
                connection.execute(
                    "INSERT INTO chunks_fts (rowid, heading, text) VALUES (?,'',?)", (row, one)
                )
    database.close()


if __name__ == "__main__":
    sys.exit(main("backup", __doc__ or "", measure))
