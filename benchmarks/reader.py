"""How well a model reads the sample documents: the golden questions, beside quoting alone, in one run.

Quoting alone is the baseline without a model: the unit that shares most of the question's words, or a
refusal when none shares enough. Both read the same frozen prompts, so only the reading differs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.table import Row, at_least, main
from core.catalog import CatalogModel, resolve
from core.settings import PROJECT, Settings, load_settings, quiet_environment
from evaluation.cases import Case, freeze_cases, read_golden
from evaluation.run import Result, evaluate, quote_replies

GOLDEN = PROJECT / "data" / "eval" / "golden.jsonl"
QUICK_CASES = 24


def measure(options: argparse.Namespace) -> list[Row]:
    """Load the samples into a scratch folder, freeze the prompts, ask, and compare."""
    from rag.model import engine_client

    quiet_environment()
    with tempfile.TemporaryDirectory() as scratch:
        settings = replace(load_settings(model=options.model), data_dir=Path(scratch), engine_port=0)
        model, _ = resolve(settings)
        cases = _cases(settings, model, QUICK_CASES if options.quick else None)
        with engine_client(settings) as client:
            replies = evaluate(client, cases, "base")
    return _rows(model.name, cases, replies, quote_replies(cases))


def _cases(settings: Settings, model: CatalogModel, limit: int | None) -> list[Case]:
    from rag.ingest import open_ingestor
    from rag.prompt import Prompt, build
    from rag.retrieve import Retriever

    ingestor = open_ingestor(settings)
    ingestor.add_samples()
    retriever = Retriever(settings, ingestor.passages.database, ingestor.index, ingestor.embedder)
    names = {document.id: document.name for document in ingestor.documents.list()}

    def ask(question: str) -> Prompt:
        return build(question, retriever.read_for(question, model), model)

    rows = read_golden(GOLDEN)
    step = 1 if limit is None else max(1, len(rows) // limit)
    return freeze_cases(rows[::step], (), ask, names, settings.data_dir / "cases")


def _rows(name: str, cases: Sequence[Case], replies: Sequence[Result], quoted: Sequence[Result]) -> list[Row]:
    answerable = [case.answerable for case in cases]

    def mean(results: Sequence[Result], measure: str, wanted: bool) -> float:
        chosen = [float(r.scores[measure]) for r, a in zip(results, answerable, strict=True) if a == wanted]
        return sum(chosen) / max(1, len(chosen))

    def beside(label: str, measure: str, wanted: bool, unit: str) -> Row:
        return Row(label, mean(replies, measure, wanted), unit, mean(quoted, measure, wanted))

    right = mean(replies, "citation", True)
    seconds = sum(r.ms for r in replies) / 1000
    written = sum(r.completion_tokens for r in replies)
    return [
        at_least(
            f"{name}: fact and citation right", right, 0.5, "of answerable", mean(quoted, "citation", True)
        ),
        beside("fact right", "fact", True, "of answerable"),
        Row("evidence in the prompt (retrieval's limit)", mean(replies, "reachable", True), "of answerable"),
        beside("wrongly refused", "refused", True, "of answerable"),
        beside("rightly refused", "refused", False, "of unanswerable"),
        beside("support of replies", "support", True, "mean"),
        Row("tokens written", written / seconds, "per second, reading included"),
        Row("tokens read", sum(r.prompt_tokens for r in replies) / seconds, "per second, writing included"),
    ]


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="builtin", help="a catalog id or a GGUF file (default: builtin)")


if __name__ == "__main__":
    sys.exit(main("reader", (__doc__ or "").splitlines()[0], measure, _arguments))
