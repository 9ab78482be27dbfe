"""Hybrid retrieval: BM25 and MiniLM, joined by reciprocal rank fusion.

Source: Cormack, Clarke and Büttcher, "Reciprocal rank fusion outperforms Condorcet", SIGIR 2009.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from core.catalog import CatalogModel
from core.db import Database
from core.settings import Settings
from core.types import Passage
from rag import lexical
from rag.embed import Embedder
from rag.focus import focus
from rag.index import Index
from rag.passages import PassageStore
from rag.words import content, words

RRF_K = 60
CANDIDATES = 40


class Retriever:
    """Finds the passages that fit a question; falls back to words alone while vectors are unavailable."""

    def __init__(self, settings: Settings, database: Database, index: Index, embedder: Embedder) -> None:
        self.settings = settings
        self.database = database
        self.index = index
        self.embedder = embedder
        self.passages = PassageStore(database)

    def search(self, question: str, k: int) -> list[Passage]:
        """At most `k` passages of ready documents, best first, each with its scores.

        Scores: `lexical` (BM25), `dense` (cosine), `fused` (the order). Passages with the same words count
        once. Equal scores are ordered by chunk id, so the same question gives the same passages.
        """
        lexically = dict(lexical.search(self.database, question, CANDIDATES))
        dense = self._dense(question)
        fused: dict[int, float] = {}
        for ranking in (lexically, dense):
            for rank, chunk_id in enumerate(ranking, 1):
                fused[chunk_id] = fused.get(chunk_id, 0.0) + 1.0 / (RRF_K + rank)
        order = sorted(fused, key=lambda chunk_id: (-fused[chunk_id], chunk_id))
        found = self.passages.get(order)
        chosen: list[Passage] = []
        seen: set[tuple[str, ...]] = set()
        for chunk_id in order:
            passage = found.get(chunk_id)
            same = tuple(content(passage.text)) if passage is not None else ()
            if passage is None or same in seen:
                continue
            seen.add(same)
            scores = {"fused": fused[chunk_id]}
            if chunk_id in lexically:
                scores["lexical"] = lexically[chunk_id]
            if chunk_id in dense:
                scores["dense"] = dense[chunk_id]
            chosen.append(replace(passage, scores=scores))
            if len(chosen) == k:
                break
        return chosen

    def read_for(self, question: str, model: CatalogModel) -> list[Passage]:
        """The passages that `model` shall read: its number of them, focused when it reads few units."""
        found = self.search(question, model.passages)
        if not model.units:
            return found
        usable = self.index.status().usable
        return focus(question, found, model.units, self.embedder.similarity if usable else None)

    def status(self) -> dict[str, object]:
        """`dense` says whether vectors are searched, `reason` why not; and how much there is to search."""
        index = self.index.status()
        documents, chunks = self.passages.counts()
        return {"dense": index.usable, "reason": index.reason, "documents": documents, "chunks": chunks}

    def _dense(self, question: str) -> dict[int, float]:
        if not self.index.status().usable:
            return {}
        return dict(self.index.query(self.embedder.encode([question])[0], CANDIDATES))


def with_context(question: str, earlier: Sequence[str]) -> str:
    """The question to search for: a follow-up ("and for her?") gets the content words of the one before.

    Deterministic: a follow-up has fewer than three content words, or starts with or leans on a pronoun.
    """
    if not earlier or not _leans(question):
        return question
    return f"{' '.join(dict.fromkeys(content(earlier[-1])))} {question}"


_PRONOUNS = frozenset({"it", "its", "they", "them", "their", "he", "him", "his", "she", "her"})


def _leans(question: str) -> bool:
    plain = [word.lower() for word in words(question)]
    return len(content(question)) < 3 or bool(_PRONOUNS & set(plain)) or plain[:1] in (["and"], ["but"])
