"""The judge of an embedder: the whole search with its vectors against the search in service.

Asked are the questions of held-out votes (right are the passages that readers approved), the golden questions
and the gold set last loaded on the Search page (right are their documents). Each gives an nDCG@10 before and
after; better means that the lower end of a paired bootstrap interval lies above zero (`evaluation.gate`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import numpy as np

from core.db import Database
from core.settings import Settings
from core.types import Passage
from evaluation import bench
from evaluation.exam import golden
from evaluation.gate import Rules, interval
from evaluation.ranking import ndcg
from rag.documents import DocumentStore
from rag.embed import Embedder
from rag.embedders import Embedders, Identity, packaged
from rag.index import Index
from rag.reindex import Reindex, reindex
from rag.retrieve import Retriever
from rag.vectors import headed

__all__ = ["Embedders", "Identity", "Verdict", "headed", "packaged", "reindex", "try_out"]

DEPTH = 100

Place = tuple[str, int]
"""Document id and offset in its text: the passage that holds it is right."""

Tell = Callable[[float, str], None]


@dataclass(frozen=True)
class Question:
    """A question and what it is to find: places, or whole documents by id."""

    text: str
    places: tuple[Place, ...] = ()
    documents: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """How a trial came out: means of nDCG@10, and the lower bound of the gain."""

    passed: bool
    reason: str
    cases: int
    before: float
    after: float
    low: float

    def to_json(self) -> dict[str, Any]:
        """As it is kept beside the embedder."""
        return asdict(self)


def try_out(
    settings: Settings,
    database: Database,
    candidate: Identity,
    heldout: Iterable[tuple[str, Sequence[Place]]],
    tell: Tell,
) -> Verdict:
    """Embed every passage beside the index, judge, and put the candidate into service if it is better."""
    way = Reindex(settings, database, candidate)
    asked = questions(settings, database, heldout)
    switched = False
    try:
        way.embed(lambda done, what: tell(0.4 * done, what))
        plain, index = Embedder(), Index(settings, database)
        try:
            now = Retriever(settings, database, index, plain)
            before = figures(now, asked, lambda done: tell(0.4 + 0.25 * done, "Asking the search in service"))
        finally:
            index.close()
        after = figures(
            way.retriever(plain), asked, lambda done: tell(0.65 + 0.25 * done, "Asking the candidate")
        )
        verdict = judge(asked, before, after)
        if verdict.passed:
            way.switch("gate", verdict.reason, lambda done, what: tell(0.9 + 0.1 * done, what))
            switched = True
    finally:
        if not switched:
            way.drop()
    return verdict


def questions(
    settings: Settings, database: Database, heldout: Iterable[tuple[str, Sequence[Place]]]
) -> list[Question]:
    """Everything that can be asked today."""
    ids = {one.name: one.id for one in DocumentStore(database, settings).list() if one.status == "ready"}
    found = [Question(text, places=tuple(places)) for text, places in heldout if places]
    gold = {row["question"]: row["sources"] for row in golden(settings, database) if row["answerable"]}
    gold |= {one.question: one.documents for one in bench.kept_gold(settings.data_dir / "bench")}
    for text, names in gold.items():
        documents = tuple(ids[name] for name in names if name in ids)
        if documents:
            found.append(Question(text, documents=documents))
    return found


def figures(retriever: Retriever, asked: Sequence[Question], tell: Callable[[float], None]) -> list[float]:
    """nDCG@10 of the last stage for each question."""
    found = []
    for number, question in enumerate(asked):
        tell(number / len(asked))
        last = list(retriever.stages(question.text, DEPTH).values())[-1]
        found.append(_ndcg(question, last))
    return found


def _ndcg(question: Question, passages: Sequence[Passage]) -> float:
    if question.documents:
        ranking = list(dict.fromkeys(passage.document_id for passage in passages))
        return ndcg(ranking, dict.fromkeys(question.documents, 1))
    grades = {f"right {number}": 1 for number in range(len(question.places))}
    return ndcg(list(dict.fromkeys(_names(question, passages))), grades)


def _names(question: Question, passages: Sequence[Passage]) -> Iterable[str]:
    """A name for each passage: `right n` when it holds the nth place."""
    for passage in passages:
        held = [
            f"right {number}"
            for number, (document, at) in enumerate(question.places)
            if passage.document_id == document and passage.start <= at < passage.end
        ]
        yield from held or [str(passage.chunk_id)]


def judge(asked: Sequence[Question], before: Sequence[float], after: Sequence[float]) -> Verdict:
    """Better on the whole, and on the questions that people wrote down no worse than is tolerated."""
    rules = Rules()
    if len(asked) < rules.fewest_cases:
        reason = f"{len(asked)} questions can be asked; at least {rules.fewest_cases} are needed to judge."
        return Verdict(False, reason, len(asked), 0.0, 0.0, 0.0)
    old, new = fmean(before), fmean(after)
    low, _ = interval(np.array([b - a for a, b in zip(before, after, strict=True)]), rules)
    written = [at for at, question in enumerate(asked) if question.documents]
    loss = fmean(before[at] - after[at] for at in written) if written else 0.0
    reason = (
        f"nDCG@10 of the whole search went from {old:.3f} to {new:.3f} on {len(asked)} questions; with"
        f" {rules.confidence:.0%} confidence the gain is at least {low:+.3f}."
    )
    if loss > rules.tolerated_loss:
        reason += f" Gold sets lose {loss:.3f}; {rules.tolerated_loss:g} is tolerated."
    return Verdict(low > 0 and loss <= rules.tolerated_loss, reason, len(asked), old, new, low)
