"""Search in a large library: time per question with four at once, and what the index misses of exact search.

A passage is three lines of the written organisations (`finetune.base_papers`), and its vector the sum of the
lines' MiniLM vectors with a little noise, so that 100,000 need minutes and not an hour, and questions are
near their passages as in life. Everything else is the product's: FTS5, Chroma and `Retriever`. Embedding the
question is left out. Recall is that of the ten nearest passages beside comparing with all of them; for words,
of the ten best when every passage with any word of the question is scored. The stages are timed one question
at a time, as processor time of their thread: with four at once they would wait for one another.

Then the same with access rules: every passage is a document of its own, a third is everybody's, a third is
given to groups that the one who asks is in, and a third is others' alone or given to groups that he is not
in. The same questions are asked again, as this account.
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
from rag.access import NOBODY, OPERATOR
from rag.documents import DocumentStore
from rag.embed import Embedder, Vectors
from rag.groups import Groups
from rag.index import Index
from rag.passages import bump_version
from rag.rerank import rerank
from rag.retrieve import CANDIDATES, Retriever
from rag.variety import WINDOW

CHUNKS, QUICK = 100_000, 4_000
LINES = 3  # of a passage
NOISE = 0.3  # length of the noise beside a vector of length 1
ASKED, AT_ONCE, SHOWN = 400, 4, 8
TEN = 10
VIEWER, OTHER = "api:anna", "api:ben"
GROUPS = 20  # the viewer is in half of them
P95_MS, RECALL = 60.0, 0.97  # goals


@dataclass(frozen=True)
class Library:
    """Passages with vectors of shape (passages, 384), and questions with theirs."""

    passages: list[str]
    vectors: Vectors
    asked: dict[str, Vectors]


def measure(options: argparse.Namespace) -> list[Row]:
    """Fill, index, ask; then put access rules on it and ask again."""
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
            rows = [
                Row("passages", len(library.passages), ""),
                Row("building the index", len(library.passages) / built, "passages per second"),
                *asked(retriever, library, names, NOBODY),
                *kept_up(index, database),
            ]
            give(database)
            index.rebuild()
            rows += [replace(row, measure=f"with access rules: {row.measure}")
                     for row in asked(retriever, library, names, VIEWER)]  # fmt: skip
            return rows
        finally:
            index.close()
            database.close()


def asked(retriever: Retriever, library: Library, names: dict[int, str], viewer: str) -> list[Row]:
    """How long `viewer` waits, four at once and by stages, and what is missed."""
    began = time.perf_counter()
    retriever.search(next(iter(library.asked)), SHOWN, viewer)
    first = (time.perf_counter() - began) * 1000
    waits, others = asked_at_once(retriever, list(library.asked), viewer)
    slow = percentile(waits, 0.95)
    return [
        Row("the first search", first, "ms"),
        Row("search, four at once, p50", percentile(waits, 0.5), "ms"),
        Row("search, four at once, p95", slow, "ms", None, f"<= {P95_MS:g}", slow <= P95_MS),
        Row("processors that other programs kept busy meanwhile", others, f"of {os.cpu_count()}"),
        *(
            Row(f"one at a time, {stage}, p{share}", percentile(ms, share / 100), "ms of CPU")
            for stage, ms in stages(retriever, library.asked, viewer).items()
            for share in (50, 95)
        ),
        at_least(
            "recall@10 of exact search", recall(retriever, library, names, viewer), RECALL, "of passages"
        ),
        Row(
            "words: recall@10 of scoring every match",
            words_recall(retriever.database, list(library.asked), viewer),
            "of passages",
        ),
    ]


def kept_up(index: Index, database: Database) -> list[Row]:
    """Seconds in which the index follows when a document is taken back, the first time and again."""
    rows = []
    for time_of, number in (("first", 0), ("second", 1)):
        with database.write() as connection:
            connection.execute(
                "UPDATE document_access SET visibility = 'owner' WHERE document_id = ?", (f"{number:032x}",)
            )
            bump_version(connection)
        began = time.perf_counter()
        index.sync()
        spent = time.perf_counter() - began
        rows.append(Row(f"the index follows one document, {time_of} time", spent, "s"))
    return rows


def give(database: Database) -> None:
    """Two thirds of the documents to groups or their owners, as the module's docstring says."""
    groups = Groups(database)
    for number in range(GROUPS):
        groups.create(f"group {number}")
        groups.change(f"group {number}", [OTHER if number % 2 else VIEWER])
    with database.write() as connection:
        rows = connection.execute("SELECT id FROM documents ORDER BY id")
        for number, row in enumerate(rows.fetchall()):
            owner, group = OPERATOR, number // 3 % (GROUPS // 2) * 2  # even ones are the viewer's
            match number % 6:
                case 0 | 3:
                    continue  # everybody's
                case 2:
                    owner, group = OTHER, -1
                case 5:
                    group += 1
            connection.execute(
                "UPDATE document_access SET owner = ?, visibility = 'owner' WHERE document_id = ?",
                (owner, row["id"]),
            )
            if group >= 0:
                connection.execute("INSERT INTO document_groups VALUES (?, ?)", (row["id"], f"group {group}"))
        bump_version(connection)


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


def asked_at_once(retriever: Retriever, questions: Sequence[str], viewer: str) -> tuple[list[float], float]:
    """Milliseconds of each question, AT_ONCE asking at the same time; and how many processors others used."""

    def ask(question: str) -> float:
        began = time.perf_counter()
        retriever.search(question, SHOWN, viewer)
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


def stages(retriever: Retriever, asked: Mapping[str, Vectors], viewer: str) -> dict[str, list[float]]:
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
            by_words = dict(lexical.search(retriever.database, question, CANDIDATES, viewer))
        with timed("vectors"):
            near = retriever.near(vector, viewer)
        with timed("reading the candidates' vectors"):
            ids, vectors = retriever.candidates({*by_words, *near}, viewer)
        with timed("the order"):
            scores = rerank(ids, by_words, vectors, vector)
        with timed("reading the passages"):
            passages.get(list(scores)[: WINDOW * SHOWN], viewer)
        with timed("all"):
            retriever.search(question, SHOWN, viewer)
    return spent


def words_recall(database: Database, questions: Sequence[str], viewer: str) -> float:
    """Mean share of the ten passages that are best by words which search by words finds."""
    shares = []
    for question in questions:
        found = {i for i, _ in lexical.search(database, question, TEN, viewer)}
        with mock.patch.object(lexical, "SCORED", sys.maxsize):
            best = {i for i, _ in lexical.search(database, question, TEN, viewer)}
        if best:
            shares.append(len(best & found) / len(best))
    return sum(shares) / len(shares)


def recall(retriever: Retriever, library: Library, names: dict[int, str], viewer: str) -> float:
    """Mean share of the ten nearest passages that `viewer` may find which are proposed, ten of them."""
    findable = np.array([int(names[i]) for i in retriever.passages.get(names, viewer)])
    shares = []
    for vector in library.asked.values():
        order = np.argsort(-(library.vectors[findable] @ vector))[:TEN]
        nearest = {str(at) for at in findable[order]}
        found = {names[i] for i in retriever.near(vector, viewer)[:TEN]}
        shares.append(len(nearest & found) / TEN)
    return sum(shares) / len(shares)


if __name__ == "__main__":
    sys.exit(main("scale", (__doc__ or "").splitlines()[0], measure))
