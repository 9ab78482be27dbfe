"""Where the reader's exercises come from: written questions, public question sets, rules, papers.

Two shelves of text, one to train on and one held out, with whole documents on either side; and
organisations: some whose papers and questions were written, others invented as needed. Nothing that shares
thirteen words in a row with what the benchmark measures on is used.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from math import ceil, exp
from pathlib import Path
from zlib import crc32

from core.types import Passage
from finetune import base_business, base_data, base_qa
from finetune.base_papers import HELD_OUT, Domain, domains
from finetune.base_shelf import Asked, Exercise, Shelf, Vectors, View, passage
from rag.citations import Likelihood
from rag.embed import Embedder
from rag.focus import log_odds
from rag.prompt import question_line

OTHERS = 200  # documents taken where none was asked about
SIBLINGS = 3  # other paragraphs of a document beside one that was asked about
QUESTIONS = 45  # to an organisation, which has some 40 facts with four questions each
WITHOUT = 0.08  # share of the answerable questions whose answer is taken away
# Share of each kind among the exercises; what is missing (no source, no sets) goes to the invented papers.
SHARES = (("written", 0.24), ("papers", 0.22), ("sets", 0.11), ("rule", 0.08), ("greeting", 0.01))
# The cross-encoder has learned most of these very questions, so it is surer of them than of a user's. Noise
# with this standard deviation on its log-odds puts the answer first as often as on held-out papers.
BLUR = 1.2


@dataclass(frozen=True)
class Step:
    """A shard: how many exercises, of how many units, which share of them in random order.

    `disguise`: share of the words that a question by rule may inflect or replace. `easy`: share kept of the
    refusals and of the answers that stand first, without which little else would be learned.
    """

    count: int
    units: tuple[int, int]
    shuffled: float
    disguise: float
    easy: float = 0.6


class Texts:
    """A shelf of text with the questions on it, by kind."""

    def __init__(self) -> None:
        self.passages: list[Passage] = []
        self.asked: dict[str, list[Asked]] = {"written": [], "sets": []}
        self.shelf: Shelf | None = None
        self.rarity = base_data.Rarity([])

    def add(self, heading: str, sentences: Sequence[str]) -> int:
        """Put a passage on the shelf; returns its index."""
        self.passages.append(passage(heading, sentences))
        return len(self.passages) - 1

    def close(self, vectors: Vectors) -> None:
        """Compute the vectors; no passage may follow."""
        if self.passages:
            self.shelf = Shelf(self.passages, vectors)
            self.rarity = base_data.Rarity([line for p in self.passages for line in p.text.split("\n")])


class Library:
    """All sources; `source` is the folder of the text corpus, `sets` that of the question sets.

    Without `answers` the lines stand in the order that a product without cross-encoder gives them.
    """

    def __init__(
        self, source: Path | None, sets: Path | None, cache: Path, answers: Likelihood | None = None
    ) -> None:
        self.vectors = Vectors(Embedder(half=True), cache)
        self.answers = answers
        self._shelves: dict[str, tuple[Shelf, list[Asked]]] = {}
        self.train, self.held = Texts(), Texts()
        self.barred = base_qa.held_out_grams(sets) if sets else set()
        if source:
            self._read_source(source)
        if sets:
            self._read_sets(sets)
        for texts in (self.train, self.held):
            texts.close(self.vectors)
        self.vectors.keep()

    def exercises(self, step: Step, rng: random.Random, held: bool) -> Iterator[Exercise]:
        """The exercises of a step of the curriculum, in random order."""
        plan = {kind: int(share * step.count) for kind, share in SHARES}
        texts = self.held if held else self.train
        for kind in ("written", "sets"):
            plan[kind] = plan[kind] if texts.asked[kind] else 0
        plan["rule"] = plan["rule"] if texts.shelf else 0
        made = [greeting(rng) for _ in range(plan["greeting"])]
        made += self.papers(plan["papers"], step, rng, held)
        for kind in ("written", "sets"):
            made += self._asked(texts, kind, plan[kind], step, rng, held)
        made += self.by_rule(texts, plan["rule"], step, rng)
        made += self.office(step.count - len(made), step, rng, held)
        rng.shuffle(made)
        yield from made

    def _asked(
        self, texts: Texts, kind: str, count: int, step: Step, rng: random.Random, held: bool
    ) -> list[Exercise]:
        made: list[Exercise] = []
        pool = [asked for asked in texts.asked[kind] for _ in range(2)]
        chosen = rng.sample(pool, min(count, len(pool)))
        self.vectors.add(question_line(asked.question) for asked in chosen)
        for asked in chosen:
            assert texts.shelf
            line = replace(asked, question=question_line(asked.question))
            made += self._show(texts.shelf, line, step, rng, held)
        return made

    def _show(self, shelf: Shelf, asked: Asked, step: Step, rng: random.Random, held: bool) -> list[Exercise]:
        return kept(shelf.show(asked, rng, view(step, rng), self._opinion(rng, held)), step, rng)

    def _opinion(self, rng: random.Random, held: bool) -> Likelihood | None:
        return blurred(self.answers, rng, BLUR) if self.answers and not held else self.answers

    def papers(self, count: int, step: Step, rng: random.Random, held: bool) -> list[Exercise]:
        """Exercises on the written papers of organisations, as many on each."""
        made: list[Exercise] = []
        chosen = [domain for domain in domains() if (domain.name in HELD_OUT) == held]
        each = max(QUESTIONS, ceil(count / len(chosen)))
        for domain in rng.sample(chosen, min(len(chosen), ceil(count / each))):
            if domain.name not in self._shelves:
                self._shelves[domain.name] = shelved(domain, self.vectors.embedder)
            shelf, pool = self._shelves[domain.name]
            for asked in rng.sample(pool, min(each, len(pool))):
                made += self._show(shelf, asked, step, rng, held)
        return made[:count]

    def by_rule(self, texts: Texts, count: int, step: Step, rng: random.Random) -> list[Exercise]:
        """Exercises whose question a rule makes from a sentence."""
        made: list[Exercise] = []
        while len(made) < count and texts.shelf:
            drafts = []
            for _ in range(500):
                home = rng.randrange(len(texts.shelf.passages))
                draft = base_data.made(texts.shelf.passages[home], home, texts.rarity, rng, step.disguise)
                drafts += [draft] if draft else []
            self.vectors.add(asked.question for asked, _ in drafts)
            for asked, words in drafts:
                shown = texts.shelf.show(asked, rng, view(step, rng), self._opinion(rng, held=False))
                if shown and base_data.clear(shown, words, texts.rarity):
                    made += kept(shown, step, rng)
        return made[:count]

    def office(self, count: int, step: Step, rng: random.Random, held: bool) -> list[Exercise]:
        """Exercises on the papers of organisations invented for them."""
        made: list[Exercise] = []
        while len(made) < count:
            sections = base_business.organisation(rng, held)
            papers = [passage(part.heading, [fact.unit for fact in part.facts]) for part in sections]
            vectors = Vectors(self.vectors.embedder)
            wanted = list(islice(base_business.questions(sections, rng, held), QUESTIONS))
            wanted = [replace(asked, question=question_line(asked.question)) for asked in wanted]
            vectors.add(asked.question for asked in wanted)
            shelf = Shelf(papers, vectors)
            for asked in wanted:
                made += self._show(shelf, asked, step, rng, held)
        return made[:count]

    def _read_source(self, source: Path) -> None:
        written, others = base_data.written(), list[list[tuple[str, str]]]()
        for path in sorted(source.glob("*.txt")):
            for doc in base_data.documents(path):
                homes = {p for _, p in doc if base_data.key(p) in written}
                if homes:
                    self._shelve(doc, homes, written)
                elif doc and len(others) < OTHERS:
                    others.append(doc)
        if not self.train.passages:  # another corpus than the questions were written for
            for doc in others:
                self._shelve(doc, set(), written)

    def _shelve(
        self, doc: list[tuple[str, str]], homes: set[str], written: Mapping[str, Sequence[tuple[int, str]]]
    ) -> None:
        texts = self.held if is_held(doc[0][0].split(" > ")[0]) else self.train
        rest = [p for _, p in doc if p not in homes and base_data.readable(p)]
        chosen = homes | set(random.Random(len(doc)).sample(rest, min(SIBLINGS, len(rest))))  # noqa: S311
        for heading, paragraph in doc:
            if paragraph in chosen and not (base_qa.grams(paragraph) & self.barred):
                lines = base_data.sentences(paragraph)
                home = texts.add(heading, lines)
                for number, question in written.get(base_data.key(paragraph), ()):
                    gold = (lines[number - 1],) if number else ()
                    texts.asked["written"].append(Asked(question, home, gold, "written"))

    def _read_sets(self, sets: Path) -> None:
        for load in (base_qa.xquad, base_qa.clapnq, base_qa.covidqa):
            part = load(sets, "train")
            asked_on = {q.context for q in part.questions}
            where: dict[int, tuple[Texts, int]] = {}
            for number, context in enumerate(part.contexts):
                if number in asked_on and not (base_qa.grams(" ".join(context.sentences)) & self.barred):
                    texts = self.held if is_held(context.group) else self.train
                    where[number] = (texts, texts.add(context.heading, context.sentences))
            for question in part.questions:
                if question.context in where:
                    texts, home = where[question.context]
                    texts.asked["sets"].append(Asked(question.text, home, question.gold, "sets", either=True))


def shelved(domain: Domain, embedder: Embedder) -> tuple[Shelf, list[Asked]]:
    """The papers of an organisation as a shelf, and the questions on them."""
    home = {line: at for at, (_, lines) in enumerate(domain.sections) for line in lines}
    vectors = Vectors(embedder)
    shelf = Shelf([passage(heading, lines) for heading, lines in domain.sections], vectors)
    pool = [(question_line(asked.question), asked.line) for asked in domain.asked]
    vectors.add(question for question, _ in pool)
    return shelf, [
        Asked(question, home[line] if line else 0, (line,) if line else (), "papers")
        for question, line in pool
    ]


def blurred(answers: Likelihood, rng: random.Random, deviation: float) -> Likelihood:
    """The same opinion with normal noise on its log-odds."""

    def likely(question: str, lines: Sequence[str]) -> list[float]:
        odds = [log_odds(p) + rng.gauss(0.0, deviation) for p in answers(question, lines)]
        return [1 / (1 + exp(-value)) for value in odds]

    return likely


def view(step: Step, rng: random.Random) -> View:
    """How to show the next question."""
    return View(rng.randint(*step.units), rng.random() < step.shuffled, rng.random() < WITHOUT)


def kept(shown: Exercise | None, step: Step, rng: random.Random) -> list[Exercise]:
    """The exercise, unless there is none or it is one of the easy ones that are left out."""
    easy = shown is not None and shown.labels in ((1,), ())
    return [shown] if shown and (not easy or rng.random() < step.easy) else []


def is_held(name: str) -> bool:
    """Whether a document is held out of training (one in twelve)."""
    return crc32(name.encode()) % 12 == 5


def greeting(rng: random.Random) -> Exercise:
    """Small talk without passages."""
    return Exercise(rng.choice(base_data.WORDS["greeting"]), base_data.GREETING, (), (), "greeting")
