"""How often the gate of trained embedders is right: better ones should pass, others should not.

In each organisation of `finetune.base_papers.HELD_OUT` simulated readers vote (see `benchmarks.voters`). Then
come, each as a candidate of its own for the product's gate:

- `as voted`: trained on these votes;
- `dealt out`: trained on the same questions with each other's right passages, judged by the right ones;
- `misled`: of each answer the readers liked another passage than the right one, in training and before the
  judge; once without a gold set and once with one, of GOLD questions that nobody voted on;
- `shaken`: the packaged weights with noise, SHAKES times: another order that is no better.

What they are worth is measured on the questions that nobody voted on: nDCG@10 of the search's own order. With
--domain NAME only organisations of that name are asked, with --kinds some of the candidates.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from benchmarks.table import Row, main
from benchmarks.voters import Gold, House, houses
from benchmarks.votes import aside
from core.db import now_ms
from core.files import sha256_of, write_json
from core.settings import quiet_environment
from core.types import Passage
from evaluation import gold
from evaluation.ranking import interval, ndcg
from evaluation.search_exam import Fold, Verdict, examine
from feedback.folds import groups
from feedback.triples import Lesson
from finetune.embedder import questions_of, taught, train_candidate
from rag.embed import DIMENSIONS, Embedder
from rag.embedders import CARD, WEIGHTS, Embedders, packaged
from rag.passages import PassageStore
from rag.reindex import Reindex
from rag.retrieve import Retriever

KINDS = ("as voted", "dealt out", "misled", "shaken")
CUT = 10
GOLD = 30  # questions
SHAKES = 5
NOISE = 0.1  # of each tensor's own spread
SEED = 7
BAD_STEPS = 12  # of some 50: what is trained wrongly stays near the packaged one, so it is hard to refuse


@dataclass(frozen=True)
class Tried:
    """A candidate: what it is, the gate's verdict, and its gain on the questions nobody voted on."""

    kind: str
    verdict: Verdict
    gain: float
    low: float  # of a 95 % interval

    @property
    def better(self) -> bool:
        """Whether it certainly is."""
        return self.low > 0


def measure(options: argparse.Namespace) -> list[Row]:
    """Try every kind in every organisation."""
    quiet_environment()
    embedder = Embedder()
    tried: list[Tried] = []
    for house in houses(options.domain, embedder, one=options.quick):
        house.vote()
        for kind in KINDS[-1:] if options.quick else options.kinds:
            for one in candidates(house, kind, 2 if options.quick else SHAKES):
                print(f"{house.name}: {one}", file=sys.stderr, flush=True)
                tried.append(one)
    return rows(tried)


def candidates(house: House, kind: str, shakes: int) -> list[Tried]:
    """The candidates of one kind."""
    known = taught(house.settings, house.database)
    if kind == "shaken":
        return [shaken(house, known, seed) for seed in range(shakes)]
    folder = house.settings.data_dir / "embedders" / kind.replace(" ", "-")
    folder.mkdir(parents=True)
    taught_so = {"as voted": known, "dealt out": dealt_out(known), "misled": misled(known)}[kind]
    steps = None if kind == KINDS[0] else BAD_STEPS
    folds = train_candidate(house.settings, house.database, taught_so, folder, aside, steps)
    if kind == "dealt out":  # the judge knows better
        right = {one.text: one for one in questions_of(known, groups(known))}
        folds = [replace(fold, questions=tuple(right[one.text] for one in fold.questions)) for fold in folds]
    found = [attempt(house, kind, folder, folds)]
    if kind == "misled":
        keep_gold(house)
        found.append(attempt(house, "misled, with a gold set", folder, folds))
        (house.settings.data_dir / "bench" / gold.GOLD).unlink()
    return found


def dealt_out(known: Sequence[Lesson]) -> list[Lesson]:
    """Each question with the right passages of another."""
    others = list(known)
    random.Random(SEED).shuffle(others)
    return [
        replace(one, right=other.right, facts=other.facts, wrong=_without(other.right, one.wrong))
        for one, other in zip(known, others, strict=True)
    ]


def misled(known: Sequence[Lesson]) -> list[Lesson]:
    """For each question one of the wrong passages that were shown is liked and the right ones are not."""
    chance = random.Random(SEED)
    found = []
    for one in known:
        if one.wrong:
            liked = chance.choice(one.wrong)
            line = (liked.document_id, liked.start, liked.end)
            others = _without((liked,), (*one.right, *one.wrong))
            found.append(replace(one, right=(liked,), facts=(line,), wrong=others))
    return found


def _without(some: Sequence[Passage], passages: Sequence[Passage]) -> tuple[Passage, ...]:
    return tuple(passage for passage in passages if passage not in some)


def shaken(house: House, known: Sequence[Lesson], seed: int) -> Tried:
    """The packaged embedder with noise on its weights."""
    import torch
    from safetensors.torch import load_file, save_file

    base = packaged()
    folder = house.settings.data_dir / "embedders" / f"shaken-{seed}"
    shutil.copytree(base.folder, folder)
    torch.manual_seed(seed)
    weights = {
        name: value + NOISE * value.std() * torch.randn_like(value) if value.is_floating_point() else value
        for name, value in load_file(base.folder / WEIGHTS).items()
    }
    save_file(weights, folder / WEIGHTS, {"format": "pt"})
    card = {"id": folder.name, "sha256": sha256_of(folder / WEIGHTS), "dimensions": DIMENSIONS}
    write_json(folder / CARD, card | {"created_at": now_ms()})
    identity = Embedders(house.settings, house.database).get(folder.name)
    judging = replace(identity, id=f"{identity.id} before the judge")
    return attempt(house, "shaken", folder, [Fold(judging, questions_of(known, groups(known)))])


def attempt(house: House, kind: str, folder: Path, folds: Sequence[Fold]) -> Tried:
    """Ask the gate, and measure."""
    way = Reindex(house.settings, house.database, Embedders(house.settings, house.database).get(folder.name))
    verdict = examine(house.retriever, way, folds, aside)
    # nobody looks at the cross-encoder's order here, and it takes most of the time
    settings = replace(house.settings, cross_encoder=False)
    before = Retriever(settings, house.database, house.index, house.embedder)
    after = Reindex(settings, house.database, way.target).retriever(house.embedder)
    gains = [_found(after, one) - _found(before, one) for one in house.gold]
    way.drop()
    return Tried(kind, verdict, fmean(gains), interval(gains)[0])


def _found(retriever: Retriever, gold: Gold) -> float:
    """nDCG@10 of the search's own order."""
    last = list(retriever.stages(gold.question, CUT).values())[-1]
    return ndcg([str(passage.chunk_id) for passage in last], {str(i): 1 for i in gold.chunks}, CUT)


def keep_gold(house: House) -> None:
    """A gold set of the first questions that nobody voted on, with the documents that answer them."""
    store, found = PassageStore(house.database), []
    for one in house.gold[:GOLD]:
        documents = {passage.document_id for passage in store.get(sorted(one.chunks)).values()}
        found.append(gold.Gold(one.question, tuple(gold.Wanted(name) for name in sorted(documents))))
    gold.keep_gold(house.settings.data_dir / "bench", found)


def rows(tried: Sequence[Tried]) -> list[Row]:
    """How many of each kind pass, and the two rates."""
    found = []
    for kind in dict.fromkeys(one.kind for one in tried):
        those = [one for one in tried if one.kind == kind]
        found += [
            Row(f"{kind}: candidates", len(those)),
            Row(f"{kind}: nDCG@10 gained", fmean(one.gain for one in those)),
            Row(f"{kind}: certainly better", sum(one.better for one in those)),
            Row(f"{kind}: passed", sum(one.verdict.passed for one in those)),
        ]
    for what, those in (
        ("certainly better ones that pass", [one for one in tried if one.better]),
        ("no better ones that pass", [one for one in tried if one.gain <= 0]),
    ):
        if those:
            found.append(Row(what, fmean(one.verdict.passed for one in those), f"of {len(those)}"))
    return found


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--domain", default="", help="part of an organisation's name [all]")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="which candidates [all]")


if __name__ == "__main__":
    sys.exit(main("votes_gate", (__doc__ or "").splitlines()[0], measure, _arguments))
