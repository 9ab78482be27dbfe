"""Vectors are remembered: the same texts are embedded once, with the same similarity, within a bound."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from rag import embed
from rag.embed import Embedder, Vectors

TEXTS = ["The notice period is 30 days.", "Parking costs 3 EUR.", "Dogs stay outside."]


def test_similarity_is_the_cosine_and_each_text_is_embedded_once(
    embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh, counted = Embedder(), list[str]()

    def encode(texts: Sequence[str]) -> Vectors:
        counted.extend(texts)
        return embedder.encode(texts)

    monkeypatch.setattr(fresh, "encode", encode)
    first = fresh.similarity("How long is the notice?", [*TEXTS, TEXTS[0]])
    again = fresh.similarity("How long is the notice?", TEXTS[::-1])
    assert first == pytest.approx([*again[::-1], again[-1]], abs=1e-6)
    assert sorted(counted) == sorted(["How long is the notice?", *TEXTS])
    exact = embedder.encode(["How long is the notice?", *TEXTS])
    assert np.allclose(first[:3], exact[1:] @ exact[0], atol=1e-5)
    assert max(first) == first[0]


def test_no_more_than_the_bound_is_remembered(embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embed, "REMEMBERED", 3)
    fresh = Embedder()
    monkeypatch.setattr(fresh, "encode", embedder.encode)
    for text in TEXTS:
        assert len(fresh.similarity("Which?", [text, *TEXTS])) == 4
    assert len(fresh._known) == 3
