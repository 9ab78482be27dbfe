"""The retrieval benchmark's ways of ranking, on three documents in the product's own database and index."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.beir import Collection
from benchmarks.retrieval import MEASURES, PRODUCT, REFERENCE, run
from rag.embed import DIMENSIONS


def test_every_way_ranks_the_documents(tmp_path: Path) -> None:
    collection = Collection(
        "tiny",
        {
            "a": ("Leaving", "The notice period is 30 days."),
            "b": ("", "Dogs stay outside."),
            "c": ("", "Tea."),
        },
        {"q": "How long is the notice period?"},
        {"q": {"a": 1}},
    )
    vectors = np.eye(3, DIMENSIONS, dtype=np.float32)
    results = run(collection, tmp_path, vectors, {collection.queries["q"]: vectors[0]})
    assert set(results) == {"BM25", "dense", REFERENCE, PRODUCT}
    for measured in results.values():
        assert measured.figures == {measure: [1.0] for measure in MEASURES}
        assert len(measured.ms) == 1
