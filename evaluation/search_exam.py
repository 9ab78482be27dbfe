"""The judge of an embedder that votes trained: the search with its vectors against the search in service.

Asked are the questions of votes (right are the passages that readers approved), each of an embedder that did
not learn from it (`feedback.folds`), and of the candidate itself the golden questions and the gold set last
loaded on the Search page (right are their documents), which nothing learns from.

What an embedder owns is the order that the cross-encoder is given; there the candidate must be better: the
lower end of a paired bootstrap interval of nDCG@10 lies above zero, whole groups of questions drawn
(`evaluation.gate`). The order that users see must lose no more than a little, with the same confidence. Where
the cross-encoder already puts nearly every right passage first, a gain there cannot be shown.
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
from evaluation.exam import golden
from evaluation.gate import Rules, interval
from evaluation.gold import Wanted, kept_gold, names_of
from evaluation.ranking import ndcg
from rag.embed import Embedder, quick_half
from rag.embedders import Embedders, Identity, packaged
from rag.index import Index
from rag.reindex import Reindex, reindex
from rag.retrieve import Retriever
from rag.vectors import forget, headed

__all__ = [
    "Embedders",
    "Fold",
    "Identity",
    "Question",
    "Verdict",
    "examine",
    "forget",
    "headed",
    "packaged",
    "quick_half",
    "reindex",
    "try_out",
    "written",
]

DEPTH = 100
FEWEST_FACTS = 10  # questions about fewer say little about others
SHOWN_LOSS = 0.02  # nDCG@10 that the order shown may lose at most, with the rules' confidence
GOLD_LOSS = 0.02  # mean nDCG@10 that the written questions may lose

Place = tuple[str, int]
"""Document id and offset in its text: the passage that holds it is right."""

Tell = Callable[[float, str], None]


@dataclass(frozen=True)
class Question:
    """A question and what it is to find: places, or whole documents by id. `group` is that of its fact."""

    text: str
    places: tuple[Place, ...] = ()
    documents: tuple[str, ...] = ()
    group: int = 0


@dataclass(frozen=True)
class Fold:
    """An embedder, and questions that it did not learn from."""

    embedder: Identity
    questions: tuple[Question, ...]


@dataclass(frozen=True)
class Score:
    """nDCG@10 of the order that the cross-encoder is given and of the one shown."""

    search: float
    shown: float


@dataclass(frozen=True)
class Outcome:
    """A question asked both ways."""

    question: Question
    before: Score
    after: Score


@dataclass(frozen=True)
class Verdict:
    """How a trial came out: means of nDCG@10 and the lower bound of the gain.

    `before`, `after` and `low` are of the search's own order, `shown_*` of the order shown. Verdicts kept by
    the first versions have no `shown_*`: they were about the order shown alone.
    """

    passed: bool
    reason: str
    cases: int
    before: float
    after: float
    low: float
    shown_before: float = 0.0
    shown_after: float = 0.0
    shown_low: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """As it is kept beside the embedder."""
        return asdict(self)


def try_out(
    settings: Settings, database: Database, candidate: Identity, folds: Sequence[Fold], tell: Tell
) -> Verdict:
    """Judge, and put the candidate into service if it is better."""
    way = Reindex(settings, database, candidate)
    switched = False
    try:
        index = Index(settings, database)
        try:
            now = Retriever(settings, database, index, Embedder())
            verdict = examine(now, way, folds, lambda done, what: tell(0.9 * done, what))
        finally:
            index.close()
        if verdict.passed:
            way.switch("gate", verdict.reason, lambda done, what: tell(0.9 + 0.1 * done, what))
            switched = True
    finally:
        if not switched:
            way.drop()
    return verdict


def examine(now: Retriever, candidate: Reindex, folds: Sequence[Fold], tell: Tell) -> Verdict:
    """Embed every passage beside the index, with each embedder, and compare it with the search `now`."""
    parts = len(folds) + 1
    held: list[Outcome] = []

    def part(number: int) -> Tell:
        return lambda done, what: tell((number + done) / parts, f"{what}, embedder {number + 1} of {parts}")

    for number, fold in enumerate(folds):
        way = Reindex(now.settings, now.database, fold.embedder)
        try:
            held += compare(now, way, fold.questions, part(number))
        finally:
            way.drop()
    learnt = [question for fold in folds for question in fold.questions]
    gold = written(now.settings, now.database)
    last = compare(now, candidate, [*gold, *learnt], part(len(folds)))
    return judge([*held, *last[: len(gold)]], last[len(gold) :])


def written(settings: Settings, database: Database) -> list[Question]:
    """The golden questions and those of the gold set that today's documents can be asked."""
    names = names_of(settings, database)
    gold = {
        row["question"]: tuple(Wanted(name) for name in row["sources"])
        for row in golden(settings, database)
        if row["answerable"]
    }
    gold |= {one.question: one.documents for one in kept_gold(settings.data_dir / "bench")}
    found = []
    for number, (text, wanted) in enumerate(gold.items(), 1):
        documents = tuple(dict.fromkeys(document for one in wanted for document in names.find(one)))
        if documents:
            found.append(Question(text, documents=documents, group=-number))  # each a group of its own
    return found


def compare(now: Retriever, way: Reindex, asked: Sequence[Question], tell: Tell) -> list[Outcome]:
    """Ask every question both ways."""
    way.embed(lambda done, what: tell(0.7 * done, what))
    then = way.retriever(now.embedder)
    then.crossencoder = now.crossencoder  # it remembers what it has read
    found = []
    for number, one in enumerate(asked):
        tell(0.7 + 0.3 * number / len(asked), "Asking both ways")
        found.append(Outcome(one, _score(now, one), _score(then, one)))
    return found


def _score(retriever: Retriever, question: Question) -> Score:
    stages = retriever.stages(question.text, DEPTH)
    order = list(stages)
    searched = order[-2] if "answers" in stages else order[-1]
    return Score(_ndcg(question, stages[searched]), _ndcg(question, stages[order[-1]]))


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


def judge(held: Sequence[Outcome], learnt: Sequence[Outcome]) -> Verdict:
    """Whether the search's own order is better and nothing else is worse than is tolerated.

    `held` are outcomes of embedders that did not learn from the question, `learnt` those of the candidate
    with the questions that it learnt from: a gain there means nothing, but a training gone astray shows.
    """
    rules = Rules()
    groups = [one.question.group for one in held]
    if len(held) < rules.fewest_cases or len(set(groups)) < FEWEST_FACTS:
        reason = (
            f"{len(held)} questions about {len(set(groups))} facts can be asked; at least"
            f" {rules.fewest_cases} about {FEWEST_FACTS} are needed to judge."
        )
        return Verdict(False, reason, len(held), 0.0, 0.0, 0.0)
    old, new, low = _change([(one.before.search, one.after.search) for one in held], groups, rules)
    shown = _change([(one.before.shown, one.after.shown) for one in held], groups, rules)
    reason = (
        f"Judged on {len(held)} questions about {len(set(groups))} facts by embedders that had not learnt"
        f" from them: nDCG@10 of the search's own order went from {old:.3f} to {new:.3f}, with"
        f" {rules.confidence:.0%} confidence by at least {low:+.3f}; of the order shown from"
        f" {shown[0]:.3f} to {shown[1]:.3f}, by at least {shown[2]:+.3f} ({-SHOWN_LOSS:g} is tolerated)."
    )
    faults = []
    gold = [one for one in held if one.question.documents]
    if gold:
        lost = max(
            fmean(one.before.search - one.after.search for one in gold),
            fmean(one.before.shown - one.after.shown for one in gold),
        )
        reason += f" {len(gold)} of the questions are gold."
        if lost > GOLD_LOSS:
            faults.append(f"Gold sets lose {lost:.3f}; {GOLD_LOSS:g} is tolerated.")
    if learnt and fmean(one.after.search - one.before.search for one in learnt) < 0:
        faults.append("It finds less than the one in service even of what it learnt.")
    passed = low > 0 and shown[2] >= -SHOWN_LOSS and not faults
    return Verdict(passed, " ".join([reason, *faults]), len(held), old, new, low, *shown)


def _change(
    pairs: Sequence[tuple[float, float]], groups: Sequence[int], rules: Rules
) -> tuple[float, float, float]:
    """Means before and after, and the lower bound of the gain."""
    low, _ = interval(np.array([after - before for before, after in pairs]), rules, groups)
    return fmean(before for before, _ in pairs), fmean(after for _, after in pairs), low
