"""Two questions in one: how often both answers are read and quoted, when it is taken apart and when not.

The golden questions are put in pairs about different documents, as two sentences and joined by "and". A pair
counts when both answers are among the lines that the model would read, and when both are quoted without a
model. The reference is the same search with the pair taken for one question.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.reader import GOLDEN
from benchmarks.table import Row, at_least, main
from core.catalog import BUILTIN, CatalogModel
from core.settings import load_settings, quiet_environment
from core.types import Passage
from evaluation.cases import read_golden
from evaluation.metrics import fact_match
from rag.citations import quote
from rag.ingest import open_ingestor
from rag.parts import parts
from rag.prompt import build
from rag.retrieve import Retriever

QUICK_PAIRS = 10
APART = 7  # rows between the two questions of a pair: other documents
LARGER = replace(BUILTIN, units=0, passages=6)  # reads whole passages, as models of a billion parameters do
Ask = Callable[[str, CatalogModel], list[Passage]]


@dataclass(frozen=True)
class Pair:
    """A question with two answers: for each its alternatives and the line that holds it."""

    question: str
    facts: tuple[tuple[tuple[str, ...], str], ...]


def pairs(rows: Sequence[dict[str, Any]]) -> Iterator[Pair]:
    """Every answerable golden question with another about another document, joined by "and" where it asks."""
    answerable = [row for row in rows if row["answerable"]]
    for at, one in enumerate(answerable):
        other = answerable[(at + APART) % len(answerable)]
        if set(one["sources"]) & set(other["sources"]):
            continue
        first, second = one["question"], other["question"]
        joined = f"{first.rstrip('?.')} and {second[0].lower()}{second[1:]}"
        splits = first.endswith("?") and ". " not in second and len(parts(joined)) > 1
        answers = tuple((tuple(row["fact"]), row["evidence"]) for row in (one, other))
        yield Pair(joined if at % 2 and splits else f"{first} {second}", answers)


def measure(options: argparse.Namespace) -> list[Row]:
    """Ask every pair both ways."""
    quiet_environment()
    rows = read_golden(GOLDEN)
    asked = list(pairs(rows))
    asked = asked[:: max(1, len(asked) // QUICK_PAIRS)] if options.quick else asked
    alone = [row["question"] for row in rows]
    figures = [
        Row("golden questions taken apart", sum(len(parts(question)) > 1 for question in alone), "questions"),
        Row("pairs taken apart", _share(len(parts(pair.question)) > 1 for pair in asked), "of pairs"),
    ]
    with tempfile.TemporaryDirectory() as scratch:
        ingestor = open_ingestor(replace(load_settings(model="builtin"), data_dir=Path(scratch)))
        ingestor.add_samples()
        found = Retriever(ingestor.settings, ingestor.passages.database, ingestor.index, ingestor.embedder)
        for name, model in (("built-in", BUILTIN), ("six whole passages", LARGER)):
            after = _share(_read(pair, found.read_for(pair.question, model)) for pair in asked)
            before = _share(_read(pair, found.read_whole(pair.question, model).passages) for pair in asked)
            figures.append(at_least(f"{name}: both answers read", after, before, "of pairs", before))
        both = _quoted(asked, found, found.read_for)
        one = _quoted(asked, found, lambda question, model: found.read_whole(question, model).passages)
        figures.append(Row("quoted without a model: both", both, "of pairs", one))
    return figures


def _read(pair: Pair, passages: Iterable[Passage]) -> bool:
    read = "\n".join(u.text for p in passages for u in p.units) or "\n".join(p.text for p in passages)
    return _holds(read, pair)


def _holds(text: str, pair: Pair) -> bool:
    return all(fact_match(text, *fact) for fact in pair.facts)


def _quoted(asked: Sequence[Pair], found: Retriever, ask: Ask) -> float:
    def said(question: str) -> str:
        prompt = build(question, ask(question, BUILTIN), BUILTIN)
        shown = quote(question, prompt.passages, found.similarity, found.answers)
        return shown.text if shown else ""

    return _share(_holds(said(pair.question), pair) for pair in asked)


def _share(hits: Iterable[bool]) -> float:
    counted = list(hits)
    return sum(counted) / max(1, len(counted))


if __name__ == "__main__":
    sys.exit(main("parts", (__doc__ or "").splitlines()[0], measure))
