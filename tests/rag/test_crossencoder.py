"""The cross-encoder that comes with the project tells which line answers, remembers, and can be missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from core.files import read_json, sha256_of
from core.settings import Settings
from rag import crossencoder
from rag.crossencoder import FOLDER, CrossEncoder
from rag.embed import Embedder
from rag.index import Index
from rag.ingest import Ingestor
from rag.retrieve import Retriever

QUESTION = "How long is the notice period?"
LINES = [
    "Handbook > Leaving: Send the letter to the office at least once.",
    "Handbook > Leaving: Whoever leaves gives 30 days of notice.",
    "Canteen: Lunch is free for guests.",
]


class Counted:
    """Stands for the model: counts the pairs that it reads."""

    def __init__(self) -> None:
        self.pairs: list[tuple[str, str]] = []

    def predict(self, pairs: Sequence[tuple[str, str]], **_options: object) -> np.ndarray:
        self.pairs += pairs
        return np.array([1 / len(line) for _, line in pairs])


def test_the_line_that_answers_is_the_likeliest() -> None:
    likely = CrossEncoder().answers(QUESTION, LINES)
    assert max(likely) == likely[1]
    assert likely[1] > 0.5 > likely[2]
    assert all(0 <= value <= 1 for value in likely)


def test_a_pair_is_read_once_and_not_kept_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    model, reader = Counted(), CrossEncoder()
    monkeypatch.setattr(reader, "_load", lambda: model)
    first = reader.answers(QUESTION, LINES)
    assert reader.answers(QUESTION, [*LINES[::-1], LINES[0]]) == [*first[::-1], first[0]]
    assert len(model.pairs) == len(LINES)
    assert reader.answers("Who?", []) == []
    monkeypatch.setattr(crossencoder, "REMEMBERED", 2)
    reader.answers("Who?", LINES)
    reader.answers(QUESTION, LINES[:1])
    assert len(model.pairs) == 2 * len(LINES) + 1


def test_the_files_are_those_of_the_card() -> None:
    card = read_json(FOLDER / "card.json")
    assert card["files"] == {name: sha256_of(FOLDER / name) for name in card["files"]}
    assert max((FOLDER / name).stat().st_size for name in card["files"]) < 64 * 2**20
    assert set(card["files"]) >= {"model.safetensors", "config.json", "tokenizer.json"}


def test_it_can_be_missing_or_switched_off(
    ingestor: Ingestor, settings: Settings, index: Index, embedder: Embedder, tmp_path: Path
) -> None:
    database = ingestor.passages.database
    assert Retriever(settings, database, index, embedder).answers is not None
    assert Retriever(replace(settings, cross_encoder=False), database, index, embedder).answers is None
    without = Retriever(settings, database, index, embedder)
    without.crossencoder = CrossEncoder(tmp_path)
    assert without.answers is None
