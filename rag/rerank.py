"""The order of candidates: BM25 and cosine in one score, then the question moved towards its best answers.

Two steps, both measured (docs/log.md), neither trained on anything:

* fusion: each score over the best of its kind, then their weighted mean. Unlike ranks, scores keep how much
  better the first is than the second, so a list in which everything is alike cannot outvote one that knows.
  Source: Bruch, Gai and Ingber, "An Analysis of Fusion Functions for Hybrid Retrieval", TOIS 2023.
* feedback: the question's vector moves towards the mean of the best passages and the candidates are scored
  anew. Source: Rocchio, "Relevance feedback in information retrieval", 1971, with the best passages taken as
  relevant.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from rag.embed import Vectors

LEXICAL_WEIGHT = 0.4  # the rest is the cosine's; 0.4 to 0.5 measure alike
FEEDBACK = 3  # passages that the question moves towards
FEEDBACK_WEIGHT = 0.3
DIGITS = 6  # finer differences are rounding, which must not decide an order

Scores = dict[str, float]
_Array = NDArray[np.float64]


def rerank(
    ids: Sequence[int], lexical: Mapping[int, float], vectors: Vectors, question: Vectors
) -> dict[int, Scores]:
    """Scores of every stage for each candidate, in the new order (equal ones by id).

    `ids` are the candidates, `vectors` (len(ids), 384) and `question` (384,) of unit length; `lexical` are
    BM25 scores, and a candidate that is not among them counts as without a common word. Scores: `dense`
    (cosine to the question), `fused`, `reranked` (the order), the latter two from 0 to 1, and `lexical` where
    known.
    """
    if not ids:
        return {}
    words = np.array([lexical.get(i, 0.0) for i in ids], np.float64)
    dense = _cosine(vectors, question)
    fused = _fuse(words, dense)
    best = sorted(range(len(ids)), key=lambda at: (-fused[at], ids[at]))[:FEEDBACK]
    moved = (1 - FEEDBACK_WEIGHT) * question + FEEDBACK_WEIGHT * vectors[best].mean(axis=0)
    moved /= max(float(np.linalg.norm(moved)), 1e-9)
    reranked = _fuse(words, _cosine(vectors, moved))
    scores = {
        i: {"dense": float(dense[at]), "fused": float(fused[at]), "reranked": float(reranked[at])}
        for at, i in enumerate(ids)
    }
    return _ordered({i: scores[i] | _known(i, lexical) for i in ids})


def by_words(lexical: Mapping[int, float]) -> dict[int, Scores]:
    """The same without vectors: in the order of BM25."""
    fused = _share(np.array(list(lexical.values()), np.float64))
    return _ordered(
        {
            i: {"fused": float(share), "reranked": float(share), "lexical": lexical[i]}
            for i, share in zip(lexical, fused, strict=True)
        }
    )


def _known(chunk_id: int, lexical: Mapping[int, float]) -> Scores:
    return {"lexical": lexical[chunk_id]} if chunk_id in lexical else {}


def _ordered(scores: dict[int, Scores]) -> dict[int, Scores]:
    return dict(sorted(scores.items(), key=lambda pair: (-pair[1]["reranked"], pair[0])))


def _cosine(vectors: Vectors, question: Vectors) -> _Array:
    cosines: _Array = np.asarray(np.vecdot(vectors, question), np.float64)
    return np.asarray(np.round(cosines, DIGITS), np.float64)


def _fuse(words: _Array, dense: _Array) -> _Array:
    fused: _Array = np.round(LEXICAL_WEIGHT * _share(words) + (1 - LEXICAL_WEIGHT) * _share(dense), DIGITS)
    return fused


def _share(scores: _Array) -> _Array:
    """Each score over the highest, 0 to 1; what is below 0 or has no positive beside it is 0."""
    highest = scores.max(initial=0.0)
    return np.asarray(
        np.clip(scores, 0.0, None) / highest if highest > 0 else np.zeros_like(scores), np.float64
    )
