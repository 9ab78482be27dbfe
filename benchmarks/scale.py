"""Search in a large library: time per question with four at once, and what the index misses of exact search.

A passage is three lines of the written organisations (`finetune.base_papers`), and its vector the sum of the
lines' MiniLM vectors with a little noise, so that 100,000 need minutes and not an hour, and questions are
near their passages as in life. Everything else is the product's: FTS5, Chroma and `Retriever`. Embedding the
question is left out. Recall is that of the ten nearest passages beside comparing with all of them; for words,
of the ten best when every passage with any word of the question is scored. The stages are timed one question
at a time, as processor time of their thread: with four at once they would wait for one another.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

import numpy as np

from benchmarks.beir import Collection
from benchmarks.retrieval import KnownVectors, fill
from benchmarks.table import Row, at_least, main
from core.db import Database
from core.settings import load_settings, quiet_environment
from evaluation.ranking import percentile
from finetune.base_papers import domains
from rag import lexical
from rag.documents import DocumentStore
from rag.embed import Embedder, Vectors
from rag.index import Index
from rag.rerank import rerank
from rag.retrieve import CANDIDATES, Retriever
from rag.variety import WINDOW

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
            waits, others = asked_at_once(retriever, list(library.asked))
            spent = stages(retriever, library.asked)
            found = recall(index, library, names)
            worded = words_recall(database, list(library.asked))
        finally:
            index.close()
            database.close()
    slow = percentile(waits, 0.95)
    return [
        Row("passages", len(library.passages), ""),
        Row("building the index", len(library.passages) / built, "passages per second"),
        Row("search, four at once, p50", percentile(waits, 0.5), "ms"),
        Row("search, four at once, p95", slow, "ms", None, f"<= {P95_MS:g}", slow <= P95_MS),
        Row("processors that other programs kept busy meanwhile", others, f"of {os.cpu_count()}"),
        *(
            Row(f"one at a time, {stage}, p{share}", percentile(ms, share / 100), "ms of CPU")
            for stage, ms in spent.items()
            for share in (50, 95)
        ),
        at_least("recall@10 of exact search", found, RECALL, "of passages"),
        Row("words: recall@10 of scoring every match", worded, "of passages"),
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


def asked_at_once(retriever: Retriever, questions: Sequence[str]) -> tuple[list[float], float]:
    """Milliseconds of each question, AT_ONCE asking at the same time; and how many processors others used."""

    def ask(question: str) -> float:
        began = time.perf_counter()
        retriever.search(question, SHOWN)
        return (time.perf_counter() - began) * 1000

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(ask, questions[:AT_ONCE]))  # opens the index and a connection for each
        began, busy = time.perf_counter(), _others()
        waits = list(pool.map(ask, questions))
        return waits, max(0.0, (_others() - busy) / (time.perf_counter() - began))


def _others() -> float:
    """Seconds of processor time that all other programs have taken."""
    import psutil

    total = psutil.cpu_times()
    return float(sum(total) - total.idle - getattr(total, "iowait", 0.0) - time.process_time())


def stages(retriever: Retriever, asked: Mapping[str, Vectors]) -> dict[str, list[float]]:
    """Milliseconds of processor time that each question takes in each part of `Retriever.search`."""
    spent: dict[str, list[float]] = {}

    @contextmanager
    def timed(stage: str) -> Iterator[None]:
        began = time.thread_time()
        yield
        spent.setdefault(stage, []).append((time.thread_time() - began) * 1000)

    passages = retriever.passages
    for question, vector in asked.items():
        with timed("words"):
            by_words = dict(lexical.search(retriever.database, question, CANDIDATES))
        with timed("vectors"):
            near = retriever.index.query(vector, CANDIDATES)
        with timed("reading the candidates' vectors"):
            ids, vectors = passages.ready_vectors(sorted({*by_words, *(i for i, _ in near)}))
        with timed("the order"):
            scores = rerank(ids, by_words, vectors, vector)
        with timed("reading the passages"):
            passages.get(list(scores)[: WINDOW * SHOWN])
        with timed("all"):
            retriever.search(question, SHOWN)
    return spent


def words_recall(database: Database, questions: Sequence[str]) -> float:
    """Mean share of the ten passages that are best by words which search by words finds."""
    shares = []
    for question in questions:
        found = {i for i, _ in lexical.search(database, question, TEN)}
        with mock.patch.object(lexical, "SCORED", sys.maxsize):
            best = {i for i, _ in lexical.search(database, question, TEN)}
        if best:
            shares.append(len(best & found) / len(best))
    return sum(shares) / len(shares)


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
