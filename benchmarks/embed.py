"""How fast MiniLM embeds passages and what that costs in quality: ways to compute it, side by side.

The texts are passages of the files of `benchmarks.folder`, as the product embeds them. The reference
is `SentenceTransformer.encode` with its defaults, in float32. Each way embeds the same texts, in turns; its
best turn counts. With --sets, each collection in BEIR's layout is ranked by exact search: its documents
embedded in each way, its questions always exactly, as the product does.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean

import numpy as np

from benchmarks.beir import Collection, load
from benchmarks.folder import made
from benchmarks.retrieval import smaller
from benchmarks.table import Row, main
from core.settings import load_settings, quiet_environment
from evaluation.ranking import ndcg
from rag.chunks import chunk
from rag.documents import headline
from rag.embed import Embedder, Vectors, library, quick_half, weights
from rag.loaders import extract

TEXTS, QUICK, TURNS = 512, 96, 2
FASTER, LOST = 2.0, 0.005  # goals: times the reference, nDCG@10 beside it
PRODUCT, INT8 = "the product's way", "int8, dynamic quantisation by torch"

Encode = Callable[[Sequence[str]], Vectors]


def measure(options: argparse.Namespace) -> list[Row]:
    """Time every way, then rank with it."""
    quiet_environment()
    ways = _ways()
    plain = next(iter(ways))
    texts = passages(QUICK if options.quick else TEXTS)
    seconds: dict[str, float] = {}
    for turn in range(1 + TURNS):
        for way, encode in ways.items():
            began = time.perf_counter()
            encode(texts[:32] if turn == 0 else texts)  # the first turn only warms
            if turn:
                spent = time.perf_counter() - began
                seconds[way] = min(seconds.get(way, spent), spent)
    exact = ways[plain](texts)
    rows = [Row("texts", len(texts)), Row("characters of a text", fmean(map(len, texts)))]
    for way, encode in ways.items():
        speed, reference = len(texts) / seconds[way], len(texts) / seconds[plain]
        goal = way == PRODUCT
        rows.append(Row(way, speed, "texts/s", reference, f"ratio >= {FASTER:g}" if goal else "",
                        speed >= FASTER * reference if goal else None))  # fmt: skip
        if way != plain:
            cosines = (encode(texts) * exact).sum(1)
            rows.append(Row(f"{way}: least cosine to the reference", float(cosines.min())))
    for folder in options.sets:
        collection = smaller(load(folder)) if options.quick else load(folder)
        rows += _quality(collection, ways)
    return rows


def passages(count: int) -> list[str]:
    """That many texts as the product embeds them."""
    texts: list[str] = []
    for name, content in made(count):
        document = extract(name, content.encode())
        for piece in chunk(document, load_settings({}).chunk_tokens):
            texts.append(f"{headline(document.title, piece.heading)}\n{piece.text}")
        if len(texts) >= count:
            break
    return texts[:count]


def _ways() -> dict[str, Encode]:
    model = library().SentenceTransformer(str(weights()), device="cpu", local_files_only=True)
    exact, half, product = Embedder(), Embedder(half=True), Embedder(half=quick_half())

    def plain(texts: Sequence[str]) -> Vectors:
        return np.asarray(model.encode(list(texts), show_progress_bar=False), np.float32)

    return {
        "SentenceTransformer.encode": plain,
        PRODUCT: product.encode,
        "float32": exact.encode,
        "bfloat16": half.encode,
        INT8: _int8(),
    }


def _int8() -> Encode:
    import torch

    model = library().SentenceTransformer(str(weights()), device="cpu", local_files_only=True)
    torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8, inplace=True)  # type: ignore[no-untyped-call]
    return lambda texts: np.asarray(model.encode(list(texts), show_progress_bar=False), np.float32)


def _quality(collection: Collection, ways: dict[str, Encode]) -> list[Row]:
    texts = [f"{title}\n{text}" for title, text in collection.documents.values()]
    names = list(collection.documents)
    plain = next(iter(ways))
    questions = ways[plain](list(collection.queries.values()))
    found: dict[str, float] = {}
    for way in (plain, PRODUCT, INT8):
        scores = questions @ ways[way](texts).T
        figures = [
            ndcg([names[at] for at in np.argsort(-row, kind="stable")[:100]], collection.grades[query])
            for query, row in zip(collection.queries, scores, strict=True)
        ]
        found[way] = fmean(figures)
    wanted = found[plain] - LOST
    return [
        Row(f"{collection.name}: nDCG@10, {way}", value, "", found[plain],
            f">= {wanted:.4f}" if way == PRODUCT else "", value >= wanted if way == PRODUCT else None)
        for way, value in found.items()
    ]  # fmt: skip


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--sets", nargs="*", default=[], type=Path, metavar="DIR", help="collections in BEIR's layout"
    )


if __name__ == "__main__":
    sys.exit(main("embed", (__doc__ or "").splitlines()[0], measure, _arguments))
