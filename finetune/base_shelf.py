"""What the reader is shown in training: the units the product would show it, laid out as it would.

A shelf is a set of passages with a MiniLM vector for each unit. A question is put to it as to the product:
the passages whose best unit is most similar are retrieved, `rag.focus` keeps the few best units of them
(with the cross-encoder's opinion, where one is given), and `rag.prompt` lays them out. So the prompt, the
share of questions whose answer stands first, the near misses and the misses of retrieval are those the
reader will meet.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from core.catalog import BUILTIN
from core.types import Passage, Unit
from rag.chunks import units
from rag.citations import Likelihood, line_of
from rag.embed import Embedder
from rag.focus import focus
from rag.prompt import REFUSAL, layout, number_units, question_line
from rag.words import one_line

LABELS = 40


@dataclass(frozen=True)
class Asked:
    """A question to a shelf, about the passage with the index `home`.

    `gold`: the texts that answer it, together or (`either`) each alone; none when the shelf does not.
    """

    question: str
    home: int
    gold: tuple[str, ...]
    kind: str
    either: bool = False


@dataclass(frozen=True)
class View:
    """How a question is shown: with how many units, in random order or the best first, without its answer."""

    units: int
    shuffled: bool = False
    without: bool = False


@dataclass(frozen=True)
class Exercise:
    """A prompt as sent and the wanted reply; `labels` are the numbers (from 1) of the units it cites.

    `shown` are the units, `lines` the same under their headings (`rag.citations.line_of`).
    """

    prompt: str
    reply: str
    labels: tuple[int, ...]
    shown: tuple[str, ...]
    kind: str
    question: str = ""
    lines: tuple[str, ...] = ()


def passage(heading: str, lines: Iterable[str]) -> Passage:
    """A passage of one line a unit; `heading` is `document > heading` or the document alone."""
    document, _, below = heading.partition(" > ")
    text = "\n".join(one_line(line) for line in lines)
    return Passage(0, "", document, below, None, 0, len(text), text)


class Vectors:
    """MiniLM vectors (384, unit length, half precision) of texts, each computed once.

    `cache` is a file that `keep` writes.
    """

    def __init__(self, embedder: Embedder, cache: Path | None = None) -> None:
        self.embedder = embedder
        self.cache = cache
        self.known: dict[str, np.ndarray] = {}
        if cache and cache.exists():
            with np.load(cache) as saved:
                self.known = dict(zip(saved["texts"].tolist(), saved["vectors"], strict=True))

    def keep(self) -> None:
        """Write the vectors to the cache file."""
        if self.cache and self.known:
            self.cache.parent.mkdir(parents=True, exist_ok=True)
            np.savez(
                self.cache, texts=np.array(list(self.known)), vectors=np.stack(list(self.known.values()))
            )

    def add(self, texts: Iterable[str]) -> None:
        """Compute those that are missing."""
        missing = [text for text in dict.fromkeys(texts) if text not in self.known]
        made = self.embedder.encode(missing).astype(np.float16)
        self.known.update(zip(missing, made, strict=True))

    def stack(self, texts: Sequence[str]) -> np.ndarray:
        """Their vectors as float32 rows."""
        return np.stack([self.known[text] for text in texts]).astype(np.float32)


class Shelf:
    """Passages to ask about."""

    def __init__(self, passages: Sequence[Passage], vectors: Vectors) -> None:
        self.passages = [p for p in passages if units(p.text)]
        self.vectors = vectors
        texts = [[p.text[a:b] for a, b in units(p.text)] for p in self.passages]
        vectors.add(text for part in texts for text in part)
        self.matrix = vectors.stack([text for part in texts for text in part])
        self.starts = np.cumsum([0, *(len(part) for part in texts[:-1])])

    def nearest(self, question: str, most: int) -> list[int]:
        """Indices of the passages with the most similar units, best first."""
        close = self.matrix @ self.vectors.stack([question])[0]
        best = np.maximum.reduceat(close, self.starts)
        return [int(i) for i in np.argsort(-best)[:most]]

    def similarity(self, question: str, texts: Sequence[str]) -> list[float]:
        """As `rag.embed.Embedder.similarity`, from the stored vectors."""
        self.vectors.add(texts)  # a unit shortened by a removal
        asked = self.vectors.stack([question])[0]
        return [float(value) for value in self.vectors.stack(texts) @ asked]

    def show(
        self, asked: Asked, rng: random.Random, view: View, answers: Likelihood | None = None
    ) -> Exercise | None:
        """The exercise that this question gives; `answers` as in `rag.focus`.

        A question whose answer is not shown becomes a refusal. None when nothing is shown.
        """
        found = self.nearest(asked.question, BUILTIN.passages)
        if asked.home not in found and rng.random() < 0.5:
            found[-1] = asked.home  # the product's search by words would find half of these
        chosen = [self.passages[i] for i in found]
        if view.without:
            chosen = [without_units(p, asked.gold) for p in chosen]
        kept = focus(asked.question, chosen, view.units, self.similarity, answers)
        if view.shuffled:
            kept = [
                replace(p, units=tuple(rng.sample(p.units, len(p.units))))
                for p in rng.sample(kept, len(kept))
            ]
        numbered: list[Passage] = []
        for part in kept:
            numbered.append(number_units(part, sum(len(p.units) for p in numbered) + 1))
        shown = [unit for part in numbered for unit in part.units]
        labels = [] if view.without else answering(asked.gold, shown)[: 1 if asked.either else None]
        whole = asked.either or not labels or len(labels) == len(asked.gold)
        if not shown or not whole:
            return None
        reply = " ".join(f"[{n}] {shown[n - 1].text}" for n in labels) or REFUSAL
        prompt = layout(question_line(asked.question), numbered)
        kind = asked.kind if labels else f"{asked.kind}-none"
        lines = tuple(line_of(part, unit) for part in numbered for unit in part.units)
        texts = tuple(unit.text for unit in shown)
        return Exercise(prompt, reply, tuple(labels), texts, kind, asked.question, lines)


def answering(gold: Sequence[str], shown: Sequence[Unit]) -> list[int]:
    """For each gold text the first shown unit that is (a part of) it."""
    found = []
    for text in gold:
        plain = one_line(text)
        found += [unit.number for unit in shown if unit.text in plain][:1]
    return sorted(set(found))


def without_units(part: Passage, gone: Sequence[str]) -> Passage:
    """The passage without the units that are parts of the texts `gone`."""
    plain = [one_line(text) for text in gone]
    lines = [part.text[a:b] for a, b in units(part.text)]
    kept = "\n".join(line for line in lines if not any(line in text for text in plain))
    return replace(part, text=kept, end=part.start + len(kept))
