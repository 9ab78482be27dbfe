"""Vectors are remembered: the same texts are embedded once, with the same similarity, within a bound."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from rag import embed
from rag.embed import Embedder, Vectors, quick_half

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


def test_half_vectors_may_be_mixed_with_exact_ones(embedder: Embedder) -> None:
    texts = [*TEXTS, "Bring the signed contract to room 4. " * 20]
    half = Embedder(half=True).encode(texts)
    assert half.dtype == np.float32
    assert np.allclose(np.linalg.norm(half, axis=1), 1.0, atol=1e-5)
    assert (half * embedder.encode(texts)).sum(1).min() > 0.999


def test_half_reads_whole_tiles() -> None:
    half, lengths = Embedder(half=True), set[int]()
    half.warm()
    half._model[0].register_forward_pre_hook(lambda _, given: lengths.add(given[0]["input_ids"].shape[1]))
    half.encode([*TEXTS, *("Dogs stay outside. " * number for number in range(1, 60))])
    assert len(lengths) > 1
    assert all(length % embed.TILE == 0 for length in lengths)


def test_bfloat16_only_where_the_processor_has_tiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for flags, expected in (("avx512f amx_bf16 amx_tile", True), ("avx512f avx512_bf16", False)):
        (tmp_path / "cpuinfo").write_text(f"flags : fpu {flags}\n")
        monkeypatch.setattr(embed, "CPU", tmp_path / "cpuinfo")
        assert quick_half() is expected
    monkeypatch.setattr(embed, "CPU", tmp_path / "missing")
    assert not quick_half()


@pytest.fixture
def two_processors() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    assert torch.get_num_threads() == 2  # others still get both
    torch.set_num_threads(before)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("embed")]


@pytest.mark.usefixtures("two_processors")
def test_many_texts_come_back_in_order_whatever_thread_embeds_them(embedder: Embedder) -> None:
    texts = [f"Number {number} costs {number * 7} EUR. " * (1 + number % 5) for number in range(75)]
    threads = set[str]()
    vectors = embedder.encode(texts, lambda: threads.add(threading.current_thread().name))
    assert len(threads) == 2
    one_by_one = np.concatenate([embedder.encode([text]) for text in texts])
    assert (vectors * one_by_one).sum(1).min() > 0.9999
    assert embedder.encode([]).shape == (0, 384)


@pytest.mark.usefixtures("two_processors")
def test_embedding_stops_at_a_batch(embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    class Enough(Exception):
        pass

    batch, done = embed._batch, list[int]()

    def counted(model: object, texts: Sequence[str]) -> Vectors:
        done.append(len(texts))
        return batch(model, texts)

    def step() -> None:
        if done:
            raise Enough

    monkeypatch.setattr(embed, "_batch", counted)
    with pytest.raises(Enough):
        embedder.encode(["Many words."] * 2_000, step)
    assert len(done) <= 2  # one in each thread, of 63
