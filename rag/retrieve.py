"""Hybrid retrieval: BM25 and MiniLM propose, `rag.rerank` orders, a cross-encoder reads the best again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from dataclasses import replace
from math import ceil

from core.catalog import CatalogModel
from core.db import Database
from core.settings import Settings
from core.types import Passage, Why
from rag import lexical, rerank
from rag.access import NOBODY, OPERATOR
from rag.citations import Likelihood, Similarity
from rag.crossencoder import CrossEncoder
from rag.embed import Embedder, Vectors
from rag.embedders import MADE_BY, Embedders, InService
from rag.focus import READ, focus
from rag.index import Index
from rag.parts import parts, together
from rag.passages import PassageStore
from rag.priors import voted
from rag.trace import LISTED, SILENT, Found, left, merged
from rag.unshared import OwnVectors, hidden
from rag.variety import WINDOW, Choice, Source, choose, fair
from rag.votes import Votes

CANDIDATES = 100  # of each kind
LOOKED_AT = 16  # passages whose lines are compared when looking inside
FLOOD = 5_000  # passages of one account; with more it is a library, and to leave it out would be slow
CHOICE = 2  # times the passages that a model reads are looked at by the cross-encoder


class Retriever:
    """Finds the passages that fit a question; falls back to words alone while vectors are unavailable."""

    def __init__(self, settings: Settings, database: Database, index: Index, embedder: Embedder) -> None:
        self.settings = settings
        self.database = database
        self.index = index
        self.embedder = embedder
        self.vectors = InService(Embedders(settings, database), embedder)
        self.crossencoder = CrossEncoder()
        self.passages = PassageStore(database)
        self.own = OwnVectors()
        self.votes = Votes(database, settings.vote_half_life) if settings.vote_priors else None

    def search(self, question: str, k: int, viewer: str = NOBODY) -> list[Passage]:
        """At most `k` passages that the viewer may find, best first, each with its scores.

        Scores: `lexical` (BM25), `dense` (cosine), `fused` (both), `reranked` (the order), and where votes
        count `voted` (the order then) and the `prior` they gave. What repeats another passage is left out and
        no document or account crowds out the others, see `rag.variety`. Equal scores are ordered by chunk id,
        so the same question gives the same passages.
        """
        return self._chosen(question, k, viewer, {}).chosen

    def _chosen(self, question: str, k: int, viewer: str, owners: dict[str, str]) -> Choice:
        """What is chosen of the ranked passages; the owners of their documents go into `owners`."""
        return choose(self._ranked(question, WINDOW * k, viewer, owners), k, _limited(owners, viewer))

    def _ranked(self, question: str, step: int, viewer: str, owners: dict[str, str]) -> Iterator[Passage]:
        """Passages in their order, read `step` at a time; the owners of their documents go into `owners`."""
        scores = self._scores(question, viewer)
        order = list(scores)
        for at in range(0, len(order), step):
            found = self.passages.get(order[at : at + step], viewer)
            owners |= self.passages.owners({passage.document_id for passage in found.values()} - set(owners))
            for chunk_id in order[at : at + step]:
                if chunk_id in found:  # else deleted a moment ago
                    yield replace(found[chunk_id], scores=scores[chunk_id])

    def read_for(self, question: str, model: CatalogModel, viewer: str = NOBODY) -> list[Passage]:
        """The passages of `read`."""
        return self.read(question, model, viewer).passages

    def read(self, question: str, model: CatalogModel, viewer: str = NOBODY) -> Found:
        """The passages that `model` shall read: its number of them, focused when it reads few units.

        Where there is a cross-encoder it has the last word on their order. A question in several parts is
        looked up part by part, and the passages share the places.
        """
        asked = parts(question)
        if len(asked) == 1:
            return self.read_whole(question, model, viewer)
        share = replace(model, units=ceil(model.units / len(asked)))
        found = [self.read_whole(part.searched, share, viewer) for part in asked]
        return merged(found, together([one.passages for one in found], model.passages))

    def read_whole(self, question: str, model: CatalogModel, viewer: str = NOBODY) -> Found:
        """The same for one question, or for several as if they were one."""
        owners: dict[str, str] = {}
        if model.units:
            choice = self._chosen(question, model.passages, viewer, owners)
            read = focus(question, choice.chosen, model.units, self.similarity, self.answers)
            return self._found(choice, read, "lines")
        if not self.answers:
            choice = self._chosen(question, model.passages, viewer, owners)
            return self._found(choice, choice.chosen, "rank")
        choice = self._chosen(question, CHOICE * model.passages, viewer, owners)
        best = fair(self._read_again(question, choice.chosen), model.passages, _limited(owners, viewer))
        whole = [replace(passage, units=()) for passage in best.chosen]  # it reads them whole
        return self._found(Choice(best.chosen, [*best.left_out, *choice.left_out]), whole, "rank")

    def _found(self, choice: Choice, read: list[Passage], why: Why) -> Found:
        """What of a choice is read; `why` the rest of it is not."""
        kept = {passage.chunk_id for passage in read}
        rest = [(passage, why) for passage in choice.chosen if passage.chunk_id not in kept]
        left_out = [left(passage, reason) for passage, reason in (*rest, *choice.left_out)]
        return Found(read, tuple(left_out[:LISTED]), self._words_only(choice.chosen))

    def _words_only(self, chosen: list[Passage]) -> str:
        """Why vectors had no part in finding these; empty where they had."""
        if any("dense" in passage.scores for passage in chosen):
            return ""
        status = self.index.status()
        if not status.usable:
            return status.reason
        return SILENT if chosen else ""

    def stages(self, question: str, k: int, viewer: str = NOBODY) -> dict[str, list[Passage]]:
        """The best `k` passages of every stage in its own order, with all their scores; for looking inside.

        Stages: those of `search`, and `answers` where there is a cross-encoder. Empty for `dense` while the
        vectors are unusable.
        """
        scores = self._scores(question, viewer)
        orders: dict[str, list[int]] = {}
        for stage in ("lexical", "dense", "fused", "reranked"):
            with_score = [i for i in scores if stage in scores[i]]
            orders[stage] = sorted(with_score, key=lambda i: (-scores[i][stage], i))[:k]
        last = "voted" if self.votes else "reranked"
        orders[last] = list(scores)[:k]
        found = self.passages.get(sorted({i for order in orders.values() for i in order}), viewer)
        ranked = {
            stage: [replace(found[i], scores=scores[i]) for i in order if i in found]
            for stage, order in orders.items()
        }
        if self.answers:
            first, rest = ranked[last][:LOOKED_AT], ranked[last][LOOKED_AT:]
            ranked["answers"] = [*self._read_again(question, first), *rest]
        return ranked

    def _read_again(self, question: str, found: list[Passage]) -> list[Passage]:
        """In the order of the cross-encoder's best line of each; what it did not read follows as it was."""
        best = focus(question, found, READ, self.similarity, self.answers)
        chosen = {passage.chunk_id for passage in best}
        return [*best, *(passage for passage in found if passage.chunk_id not in chosen)]

    @property
    def similarity(self) -> Similarity | None:
        """Cosine of a question to texts, where the vectors may be used."""
        return self.embedder.similarity if self.index.status().usable else None

    @property
    def answers(self) -> Likelihood | None:
        """The cross-encoder's opinion, where it is installed and switched on."""
        return self.crossencoder.opinion(self.settings)

    def warm(self) -> None:
        """Load the models and open the index, so that the first question is quick."""
        self.vectors.warm()
        if self.answers:
            self.crossencoder.warm()
        self.index.open()

    def status(self) -> dict[str, object]:
        """`dense` says whether vectors are searched, `reason` why not; and how much there is to search."""
        index = self.index.status()
        documents, chunks = self.passages.counts()
        return {"dense": index.usable, "reason": index.reason, "documents": documents, "chunks": chunks}

    def _scores(self, question: str, viewer: str) -> dict[int, rerank.Scores]:
        """Candidates in order, with the scores of every stage but `answers`."""
        scores = self._unvoted(question, viewer)
        return voted(scores, self.votes.priors(scores)) if self.votes else scores

    def _unvoted(self, question: str, viewer: str) -> dict[int, rerank.Scores]:
        """What votes have no part in; by words alone while vectors are unusable."""
        lexically = dict(lexical.search(self.database, question, CANDIDATES, viewer))
        lexically |= self._crowded_out(question, lexically, viewer)
        if not self.index.status().usable:
            return rerank.by_words(lexically)
        for _ in range(2):
            made_by = self.passages.note(MADE_BY)
            vector = self.vectors.encode([question])[0]
            near = self.near(vector, viewer)
            ids, vectors = self.candidates({*lexically, *near}, viewer)
            # else another embedder came into service between the lines: never mix the two
            if near and self.passages.note(MADE_BY) == made_by:
                return rerank.rerank(ids, lexically, vectors, vector)
        return rerank.by_words(lexically)

    def _crowded_out(self, question: str, proposed: Mapping[int, float], viewer: str) -> dict[int, float]:
        """What words propose besides the documents of an account that has most of the proposals to itself."""
        if len(proposed) < CANDIDATES:
            return {}  # nobody was pushed out
        owner, count = self.passages.busiest(proposed)
        if count <= CANDIDATES // 2 or owner in (OPERATOR, viewer):
            return {}
        own = self.passages.loaded_by(owner, FLOOD + 1)
        if len(own) > FLOOD:
            return {}
        return dict(lexical.search(self.database, question, CANDIDATES, viewer, without=own))

    def candidates(self, proposed: Set[int], viewer: str) -> tuple[list[int], Vectors]:
        """Those that the viewer may find, in order, with vectors of shape (len(them), 384)."""
        with self.database.snapshot():
            return self.passages.ready_vectors(hidden(self.database, viewer).left(sorted(proposed)))

    def near(self, vector: Vectors, viewer: str) -> list[int]:
        """The nearest chunks: of the index, which everybody shares, and of what else the viewer may find."""
        pairs = self.index.query(vector, CANDIDATES)
        if viewer:
            pairs += self.own.near(self.passages, vector, viewer, CANDIDATES)
        return [chunk_id for chunk_id, _ in sorted(pairs, key=lambda pair: -pair[1])[:CANDIDATES]]


def _limited(owners: Mapping[str, str], viewer: str) -> Source:
    """Names the account of a passage's document, by `owners`, unless it is the operator's or the viewer's.

    The operator's documents are the library, and nobody floods himself.
    """

    def limited(passage: Passage) -> str:
        owner = owners.get(passage.document_id, "")
        return "" if owner in (OPERATOR, viewer) else owner

    return limited
