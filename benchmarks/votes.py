"""What votes do for retrieval: simulated readers vote on half of the questions, the other half measures.

Each organisation of `finetune.base_papers.HELD_OUT` is an installation of its own, see `benchmarks.voters`.
Figures are those of passages (a question's right ones are those that hold its line), for the order that the
search gives (`search`) and after the cross-encoder read the best again (`whole`). The embedder is trained on
the voting questions and judged by the product's gate, whose verdict is counted, but both ways are measured
whatever it says; `benchmarks.votes_gate` measures the gate. With --domain NAME only organisations of that
name are asked.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field, replace
from statistics import fmean

from benchmarks.table import Row, main
from benchmarks.voters import Gold, House, houses
from core.settings import quiet_environment
from evaluation.ranking import interval, ndcg, recall
from evaluation.search_exam import Verdict, examine
from finetune.embedder import taught, train_candidate
from finetune.telling import Terminal
from rag.embed import Embedder
from rag.embedders import Embedders
from rag.reindex import Reindex
from rag.retrieve import Retriever

DEPTH = 100
Figure = Callable[[Sequence[str], Mapping[str, int], int], float]
CUTS: dict[str, tuple[Figure, int]] = {"nDCG@10": (ndcg, 10), "recall@5": (recall, 5)}
QUICK_VOTES, QUICK_GOLD = 30, 30
BEFORE, PRIORS, EMBEDDER, BOTH = "before", "priors", "embedder", "both"


@dataclass
class Figures:
    """One way of searching: by (part of the pipeline, measure), a figure for each question."""

    values: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    seen: list[bool] = field(default_factory=list)

    def add(self, gold: Gold, retriever: Retriever) -> None:
        """Ask one question."""
        stages = retriever.stages(gold.question, DEPTH)
        order = list(stages)
        grades = {str(i): 1 for i in gold.chunks}
        parts = {"search": order[-2] if retriever.answers else order[-1], "whole": order[-1]}
        for part, stage in parts.items():
            found = [str(passage.chunk_id) for passage in stages[stage]]
            for measure, (figure, cut) in CUTS.items():
                self.values.setdefault((part, measure), []).append(figure(found, grades, cut))
        self.seen.append(gold.seen)


def measure(options: argparse.Namespace) -> list[Row]:
    """Let the readers of each organisation vote, and compare."""
    quiet_environment()
    embedder = Embedder()
    results: dict[str, Figures] = {}
    votes = {"up": 0, "down": 0, "corrections": 0, "questions that trained": 0, "gates passed": 0}
    for house in houses(options.domain, embedder, one=options.quick):
        gold = house.gold[: QUICK_GOLD if options.quick else None]
        ask(results, BEFORE, gold, house.retriever)
        for kind, count in house.vote(QUICK_VOTES if options.quick else None).items():
            votes[kind] += count
        ask(results, PRIORS, gold, with_priors(house))
        way, learnt, verdict = tuned(house)
        votes["questions that trained"] += learnt
        votes["gates passed"] += verdict.passed
        ask(results, EMBEDDER, gold, beside(house, way))
        way.settings = replace(house.settings, vote_priors=True)
        ask(results, BOTH, gold, beside(house, way))
        print(f"{house.name}: {votes}", file=sys.stderr, flush=True)
    counts = [Row(f"votes: {kind}", count) for kind, count in votes.items()]
    return [*counts, *comparison(results)]


def with_priors(house: House) -> Retriever:
    """The same search with votes counted."""
    settings = replace(house.settings, vote_priors=True)
    found = Retriever(settings, house.database, house.index, house.embedder)
    found.crossencoder = house.retriever.crossencoder  # it remembers the pairs it has read
    return found


def tuned(house: House) -> tuple[Reindex, int, Verdict]:
    """An embedder trained on the votes with the passages embedded, how much it learnt from, its gate."""
    known = taught(house.settings, house.database)
    folder = house.settings.data_dir / "embedders" / "tuned"
    folder.mkdir(parents=True)
    folds = train_candidate(house.settings, house.database, known, folder, aside)
    way = Reindex(house.settings, house.database, Embedders(house.settings, house.database).get(folder.name))
    verdict = examine(house.retriever, way, folds, aside)
    print(verdict.reason, file=sys.stderr, flush=True)
    return way, len(known), verdict


def aside(done: float, what: str, terminal: Terminal = Terminal()) -> None:  # noqa: B008
    """Progress to the other stream: the table is all that goes to the first."""
    with redirect_stdout(sys.stderr):
        terminal(done, what)


def beside(house: House, way: Reindex) -> Retriever:
    """The search with the trained embedder's vectors."""
    found = way.retriever(house.embedder)
    found.crossencoder = house.retriever.crossencoder
    return found


def ask(results: dict[str, Figures], way: str, gold: Sequence[Gold], retriever: Retriever) -> None:
    """Every question, one way."""
    figures = results.setdefault(way, Figures())
    for one in gold:
        figures.add(one, retriever)


def comparison(results: dict[str, Figures]) -> list[Row]:
    """Means beside those before the votes, with intervals of the gain, question by question."""
    before = results[BEFORE]
    rows = [Row("questions that measure", len(before.seen)),
            Row("of them, with a line that a voting question has", sum(before.seen))]  # fmt: skip
    groups: dict[str, Callable[[bool], bool]] = {
        "": lambda seen: True,
        ", line voted on": lambda seen: seen,
        ", line not voted on": lambda seen: not seen,
    }
    for part, measured in before.values:
        for way, figures in results.items():
            for group, belongs in groups.items():
                kept = [at for at, seen in enumerate(before.seen) if belongs(seen)]
                if kept and (way != BEFORE or not group):
                    rows.append(
                        _row(f"{part}: {measured}, {way}{group}", before, figures, (part, measured), kept)
                    )
    return rows


def _row(label: str, before: Figures, after: Figures, key: tuple[str, str], kept: Sequence[int]) -> Row:
    old, new = ([figures.values[key][at] for at in kept] for figures in (before, after))
    if after is before:
        return Row(label, fmean(new))
    low, high = interval([b - a for a, b in zip(old, new, strict=True)])
    return Row(label, fmean(new), f"gain {low:+.3f} to {high:+.3f}", fmean(old))


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--domain", default="", help="part of an organisation's name [all]")


if __name__ == "__main__":
    sys.exit(main("votes", (__doc__ or "").splitlines()[0], measure, _arguments))
