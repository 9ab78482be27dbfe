from __future__ import annotations

import numpy as np
import pytest

from rag.embed import Vectors
from rag.rerank import by_words, rerank


def unit(*values: float) -> Vectors:
    vector = np.zeros(384, np.float32)
    vector[: len(values)] = values
    return np.asarray(vector / np.linalg.norm(vector), np.float32)


QUESTION = unit(1)


def test_scores_by_hand() -> None:
    vectors = np.stack([unit(0.6, 0.8), unit(0.8, 0.6)])
    scores = rerank([7, 9], {7: 4.0, 9: 1.0}, vectors, QUESTION)
    # words 4/4 and 1/4, cosines 0.6/0.8 and 0.8/0.8, weighted 0.4 to 0.6
    assert scores[7]["fused"] == pytest.approx(0.4 + 0.6 * 0.75)
    assert scores[9]["fused"] == pytest.approx(0.4 * 0.25 + 0.6)
    assert scores[7]["dense"] == pytest.approx(0.6)
    assert scores[7]["lexical"] == 4.0
    # the question moves to 0.7 (1, 0) + 0.3 (0.7, 0.7) = (0.91, 0.21): 0.714 and 0.854 over its length
    assert scores[7]["reranked"] == pytest.approx(0.4 + 0.6 * 0.714 / 0.854, abs=1e-4)
    assert list(scores) == [7, 9]


def test_a_flat_list_does_not_outvote_one_that_knows() -> None:
    # all vectors are nearly alike, 4 a hair worse, words say 4 by far; by ranks 1 would win
    vectors = np.stack([unit(1, 0.100 + 0.001 * at) for at in range(4)])
    scores = rerank([1, 2, 3, 4], {4: 9.0, 1: 1.0, 2: 0.9}, vectors, QUESTION)
    assert next(iter(scores)) == 4
    assert "lexical" not in scores[3]


def test_feedback_lifts_what_resembles_the_best() -> None:
    # 1 is best. 2 and 3 are equally far from the question; 2 lies on the same side as 1
    vectors = np.stack([unit(0.9, 0.4), unit(0.5, 0.8), unit(0.5, -0.8)])
    scores = rerank([1, 3, 2], {}, vectors[[0, 2, 1]], QUESTION)
    assert scores[2]["fused"] == scores[3]["fused"]
    assert list(scores) == [1, 2, 3]
    assert scores[2]["reranked"] > scores[3]["reranked"]


def test_equal_scores_are_ordered_by_id_and_rounding_does_not_decide() -> None:
    vector = unit(0.3, 0.9)
    hair = vector * np.float32(1 + 1e-7)
    for vectors in (np.stack([vector, hair]), np.stack([hair, vector])):
        assert list(rerank([5, 3], {5: 2.0, 3: 2.0}, vectors, QUESTION)) == [3, 5]


def test_scores_stay_between_0_and_1_even_when_nothing_fits() -> None:
    vectors = np.stack([unit(-1), unit(-0.5, 0.5)])
    scores = rerank([1, 2], {}, vectors, QUESTION)
    assert all(0 <= score["fused"] <= 1 and 0 <= score["reranked"] <= 1 for score in scores.values())
    assert rerank([], {}, np.zeros((0, 384), np.float32), QUESTION) == {}


def test_a_negative_bm25_counts_as_nothing() -> None:
    scores = rerank([1, 2], {1: -0.5, 2: 1.0}, np.stack([unit(1), unit(1)]), QUESTION)
    assert scores[1]["fused"] == pytest.approx(0.6)


def test_words_alone_keep_their_order() -> None:
    scores = by_words({4: 1.0, 2: 3.0, 1: 1.0})
    assert list(scores) == [2, 1, 4]
    assert scores[4] == {"fused": pytest.approx(1 / 3), "reranked": pytest.approx(1 / 3), "lexical": 1.0}
    assert by_words({}) == {}
