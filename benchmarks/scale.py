"""Search in a large library: time per question with four at once, and what the index misses of exact search.

A passage is three lines of the written organisations (`finetune.base_papers`), and its vector the sum of the
lines' MiniLM vectors with a little noise, so that 100,000 need minutes and not an hour, and questions are
near their passages as in life. Everything else is the product's: FTS5, Chroma and `Retriever`. Embedding the
question is left out. Recall is that of the ten nearest passages beside comparing with all of them.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.beir import Collection
from benchmarks.retrieval import KnownVectors, fill
from benchmarks.table import Row, at_least, main
from core.db import Database
from core.settings import load_settings, quiet_environment
from evaluation.ranking import percentile
from finetune.base_papers import domains
from rag.documents import DocumentStore
from rag.embed import Embedder, Vectors
from rag.index import Index
from rag.retrieve import Retriever

CHUNKS, QUICK = 100_000, 4_000
LINES = 3  # of a passage
NOISE = 0.3  # length of the noise beside a vector of length 1
ASKED, AT_ONCE, SHOWN = 400, 4, 8
TEN = 10
P95_MS, RECALL = 60.0, 0.97  # goals


@dataclass(frozen=True)
class Library:
    """Passages with vectors of shape (passages, 384), and questions with theirs."""

    passages: list[str]
    vectors: Vectors
    asked: dict[str, Vectors]


def measure(options: argparse.Namespace) -> list[Row]:
    """Fill, index, ask."""
    quiet_environment()
    library = made(QUICK if options.quick else CHUNKS, Embedder(half=True))
    collection = Collection(
        "library", {str(at): ("", text) for at, text in enumerate(library.passages)}, {}, {}
    )
    with tempfile.TemporaryDirectory() as scratch:
        settings = replace(load_settings(), data_dir=Path(scratch))
        database = Database(settings.database)
        index = Index(settings, database)
        try:
            with database.read() as connection:
                connection.execute("PRAGMA synchronous=OFF")  # a scratch file: filling it is not measured
            names = fill(database, DocumentStore(database, settings), collection, library.vectors)
            began = time.perf_counter()
            index.sync()
            built = time.perf_counter() - began
            retriever = Retriever(settings, database, index, KnownVectors(library.asked))
            waits = asked_at_once(retriever, list(library.asked))
            found = recall(index, library, names)
        finally:
            index.close()
            database.close()
    slow = percentile(waits, 0.95)
    return [
        Row("passages", len(library.passages), ""),
        Row("building the index", len(library.passages) / built, "passages per second"),
        Row("search, four at once, p50", percentile(waits, 0.5), "ms"),
        Row("search, four at once, p95", slow, "ms", None, f"<= {P95_MS:g}", slow <= P95_MS),
        at_least("recall@10 of exact search", found, RECALL, "of passages"),
    ]


def made(count: int, embedder: Embedder) -> Library:
    """The lines of the written organisations, drawn three at a time, under the seed 0."""
    rng, noise = random.Random(0), np.random.default_rng(0)
    papers = domains()
    lines = [line for domain in papers for _, part in domain.sections for line in part]
    questions = [asked.question for domain in papers for asked in domain.asked]
    known = embedder.encode(lines)
    drawn = [rng.sample(range(len(lines)), LINES) for _ in range(count)]
    sums = known[np.array(drawn)].sum(1)
    sums /= np.linalg.norm(sums, axis=1, keepdims=True)
    grain = noise.standard_normal(sums.shape).astype(np.float32)
    sums += NOISE * grain / np.linalg.norm(grain, axis=1, keepdims=True)
    vectors = sums / np.linalg.norm(sums, axis=1, keepdims=True)
    chosen = rng.sample(questions, ASKED)
    asked = dict(zip(chosen, embedder.encode(chosen), strict=True))
    return Library([" ".join(lines[at] for at in part) for part in drawn], vectors, asked)


def asked_at_once(retriever: Retriever, questions: Sequence[str]) -> list[float]:
    """Milliseconds of each question, AT_ONCE asking at the same time."""

    def ask(question: str) -> float:
        began = time.perf_counter()
        retriever.search(question, SHOWN)
        return (time.perf_counter() - began) * 1000

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(ask, questions[:AT_ONCE]))  # opens the index and a connection for each
        return list(pool.map(ask, questions))


def recall(index: Index, library: Library, names: dict[int, str]) -> float:
    """Mean share of the ten nearest passages that the index finds."""
    shares = []
    for vector in library.asked.values():
        nearest = {str(at) for at in np.argsort(-(library.vectors @ vector))[:TEN]}
        found = {names[i] for i, _ in index.query(vector, TEN)}
        shares.append(len(nearest & found) / TEN)
    return sum(shares) / len(shares)


if __name__ == "__main__":
    sys.exit(main("scale", (__doc__ or "").splitlines()[0], measure))
