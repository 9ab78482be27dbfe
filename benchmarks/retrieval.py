"""How well and how fast documents are found: BM25, dense, plain RRF of both, and the product's own order.

Each folder is a collection in BEIR's layout. Its documents go into a scratch database as passages, whole, as
the collection's judgements mean them; from there everything is the product's: FTS5, MiniLM, Chroma and
`Retriever`. MiniLM reads the first 256 tokens of a document. The reference is reciprocal rank fusion
(Cormack, Clarke and Büttcher, SIGIR 2009) of the first 100 of both. Times leave out the question's embedding,
which has rows of its own; the product's are for the 8 passages that it reads. With --work DIR the documents'
vectors are kept between runs; else nothing stays.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean

import numpy as np

from benchmarks.beir import Collection, load
from benchmarks.table import Row, main
from core.db import Database, now_ms
from core.settings import load_settings, quiet_environment
from evaluation.ranking import interval, ndcg, percentile, recall, reciprocal_rank
from rag import lexical
from rag.documents import DocumentStore
from rag.embed import Embedder, Step, Vectors
from rag.index import Index
from rag.retrieve import Retriever

DEPTH, RRF_K = 100, 60
SHOWN = 8  # passages that the product reads: its time is for these, the figures are for DEPTH
GAIN, LOSS = 0.03, 0.01  # goals of nDCG@10 beside RRF: on the mean of all sets, and on each set
QUICK_QUERIES, QUICK_DOCUMENTS = 25, 250
REFERENCE, PRODUCT = "RRF", "hybrid + rerank"
MEASURES = {"nDCG@10": ndcg, "recall@100": recall, "MRR@10": reciprocal_rank}

Ranker = Callable[[str, int], list[int]]


class KnownVectors(Embedder):
    """Questions embedded before the clock runs."""

    def __init__(self, vectors: dict[str, Vectors]) -> None:
        super().__init__()
        self.vectors = vectors

    def encode(self, texts: Sequence[str], step: Step = lambda: None) -> Vectors:
        """Vectors of known texts, shape (len(texts), 384)."""
        return np.stack([self.vectors[text] for text in texts])


@dataclass
class Measured:
    """One way of ranking on one collection: figures per query, in the order of the queries."""

    ms: list[float] = field(default_factory=list)
    figures: dict[str, list[float]] = field(default_factory=lambda: {measure: [] for measure in MEASURES})


def measure(options: argparse.Namespace) -> list[Row]:
    """Load, index and ask each collection, then compare."""
    quiet_environment()
    embedder, rows = Embedder(), []
    results: list[dict[str, Measured]] = []
    for folder in options.folders:
        collection = smaller(load(folder)) if options.quick else load(folder)
        with tempfile.TemporaryDirectory() as scratch:
            vectors = _vectors(collection, embedder, options.work)
            asked, waits = _questions(collection, embedder)
            results.append(run(collection, Path(scratch), vectors, asked))
        rows += set_rows(collection.name, results[-1])
        rows += _times(f"{collection.name}: embedding a question", waits)
    return [*mean_rows(results), *rows]


def smaller(collection: Collection) -> Collection:
    """The first queries with their documents, and some others: for a quick look, not for figures."""
    queries = dict(list(collection.queries.items())[:QUICK_QUERIES])
    wanted = {document for query in queries for document in collection.grades[query]}
    wanted |= set(list(collection.documents)[:QUICK_DOCUMENTS])
    documents = {i: texts for i, texts in collection.documents.items() if i in wanted}
    return replace(collection, documents=documents, queries=queries)


def run(
    collection: Collection, scratch: Path, vectors: Vectors, asked: dict[str, Vectors]
) -> dict[str, Measured]:
    """Rank every query in every way; `vectors` (documents, 384), `asked` {question: (384,)}."""
    settings = replace(load_settings(), data_dir=scratch)
    database = Database(settings.database)
    index = Index(settings, database)
    try:
        names = fill(database, DocumentStore(database, settings), collection, vectors)
        index.sync()
        retriever = Retriever(settings, database, index, KnownVectors(asked))
        results = {}
        for way, ranker in rankers(retriever, asked).items():
            results[way] = Measured()
            for query, text in collection.queries.items():
                began = time.perf_counter()
                ranking = ranker(text, SHOWN if way == PRODUCT else DEPTH)
                results[way].ms.append((time.perf_counter() - began) * 1000)
                if way == PRODUCT:
                    ranking = ranker(text, DEPTH)
                found = [names[i] for i in ranking]
                for name, figure in MEASURES.items():
                    results[way].figures[name].append(figure(found, collection.grades[query]))
        return results
    finally:
        index.close()
        database.close()


def fill(
    database: Database, store: DocumentStore, collection: Collection, vectors: Vectors
) -> dict[int, str]:
    """Every document as one ready passage; returns {chunk id: document id of the collection}."""
    names: dict[int, str] = {}
    for number, (name, (title, text)) in enumerate(collection.documents.items()):
        now, row_id = now_ms(), f"{number:032x}"
        with database.write() as connection:
            connection.execute(
                "INSERT INTO documents (id, name, kind, bytes, origin, status, text, created_at, updated_at)"
                " VALUES (?, ?, 'text', ?, 'folder', 'pending', ?, ?, ?)",
                (row_id, name, len(text), f"{title}\n{text}", now, now),
            )
            connection.execute(
                "INSERT INTO document_access VALUES (?, 'local', 'everybody', 'approved')", (row_id,)
            )
            added = connection.execute(
                'INSERT INTO chunks (document_id, ordinal, heading, start, "end", text, vector)'
                " VALUES (?, 0, '', ?, ?, ?, x'')",
                (row_id, len(title) + 1, len(title) + 1 + len(text), text),
            )
        names[int(added.lastrowid or 0)] = name
        store.save_documents([(row_id, [int(added.lastrowid or 0)], vectors[number : number + 1])])
    return names


def rankers(retriever: Retriever, asked: dict[str, Vectors]) -> dict[str, Ranker]:
    """The four ways: question and number to chunk ids, best first. RRF joins the first DEPTH of both."""

    def words(question: str, most: int) -> list[int]:
        return [i for i, _ in lexical.search(retriever.database, question, most)]

    def dense(question: str, most: int) -> list[int]:
        return [i for i, _ in retriever.index.query(asked[question], most)]

    def fused(question: str, most: int) -> list[int]:
        return reciprocal_ranks([words(question, DEPTH), dense(question, DEPTH)])[:most]

    def product(question: str, most: int) -> list[int]:
        return [passage.chunk_id for passage in retriever.search(question, most)]

    return {"BM25": words, "dense": dense, REFERENCE: fused, PRODUCT: product}


def reciprocal_ranks(rankings: Sequence[Sequence[int]]) -> list[int]:
    """Reciprocal rank fusion: ids by the sum of 1 / (60 + rank), equal ones by id."""
    scores: dict[int, float] = {}
    for ranking in rankings:
        for rank, i in enumerate(ranking, 1):
            scores[i] = scores.get(i, 0.0) + 1 / (RRF_K + rank)
    return sorted(scores, key=lambda i: (-scores[i], i))


def mean_rows(results: Sequence[dict[str, Measured]]) -> list[Row]:
    """Means over the collections, each counting once."""
    means = {way: fmean(fmean(result[way].figures["nDCG@10"]) for result in results) for way in results[0]}
    wanted = means[REFERENCE] + GAIN
    return [
        Row(f"mean nDCG@10, {way}", value, "", means[REFERENCE],
            f">= {wanted:.3f}" if way == PRODUCT else "", value >= wanted if way == PRODUCT else None)
        for way, value in means.items()
    ]  # fmt: skip


def set_rows(name: str, results: dict[str, Measured]) -> list[Row]:
    """Figures with bootstrap intervals, the product's gain over RRF query by query, and the times."""
    rows = []
    for measure in MEASURES:
        reference = fmean(results[REFERENCE].figures[measure])
        for way, result in results.items():
            values = result.figures[measure]
            goal = way == PRODUCT and measure == "nDCG@10"
            rows.append(
                Row(f"{name}: {measure}, {way}", fmean(values), _spread(values), reference,
                    f">= {reference - LOSS:.3f}" if goal else "",
                    fmean(values) >= reference - LOSS if goal else None)
            )  # fmt: skip
    pairs = zip(results[PRODUCT].figures["nDCG@10"], results[REFERENCE].figures["nDCG@10"], strict=True)
    gains = [product - reference for product, reference in pairs]
    rows.append(Row(f"{name}: nDCG@10 gained over RRF, query by query", fmean(gains), _spread(gains)))
    for way, result in results.items():
        rows += _times(f"{name}: {way}", result.ms)
    return rows


def _spread(values: Sequence[float]) -> str:
    low, high = interval(values)
    return f"95 %: {low:.3f} to {high:.3f}"


def _times(label: str, ms: Sequence[float]) -> list[Row]:
    return [Row(f"{label}, p{int(share * 100)}", percentile(ms, share), "ms") for share in (0.5, 0.95)]


def _questions(collection: Collection, embedder: Embedder) -> tuple[dict[str, Vectors], list[float]]:
    embedder.warm()
    asked: dict[str, Vectors] = {}
    waits = []
    for text in collection.queries.values():
        began = time.perf_counter()
        asked[text] = embedder.encode([text])[0]
        waits.append((time.perf_counter() - began) * 1000)
    return asked, waits


def _vectors(collection: Collection, embedder: Embedder, work: Path | None) -> Vectors:
    # as DocumentStore.chunk_texts: the title, then the text
    texts = [f"{title}\n{text}" for title, text in collection.documents.values()]
    digest = hashlib.sha256("\x00".join(texts).encode()).hexdigest()[:16]
    kept = work / f"{collection.name}-{digest}.npy" if work else None
    if kept is not None and kept.exists():
        return np.asarray(np.load(kept), np.float32)
    vectors = embedder.encode(texts)
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        np.save(kept, vectors)
    return vectors


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="a collection in BEIR's layout")
    parser.add_argument("--work", type=Path, metavar="DIR", help="keep the documents' vectors here")


if __name__ == "__main__":
    sys.exit(main("retrieval", (__doc__ or "").splitlines()[0], measure, _arguments))
