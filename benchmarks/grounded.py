"""Answers from given passages: facts, citations and refusals of a model, beside quoting alone.

Each file holds JSON lines, one question each:

    {"question": "How long is the notice period?",
     "passages": ["Plain text.", {"id": "p2", "title": "Handbook", "heading": "Leaving", "text": "..."}],
     "facts": ["30 days", "thirty days"],    alternatives; none: the passages do not hold the answer
     "sources": ["p2"],                      passages that may be cited (default: all that hold a fact)
     "evidence": "The notice period is 30 days.", "id": "q1", "kind": "policy"}      may be left out

Only `question`, `passages` and `facts` must be there; a passage without an id is called by its place, from 1.
Prompts, focus, what is shown and scoring are the product's (`evaluation.metrics.score`). A model that reads
whole passages gets them in the order of the file, as many as it reads.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.reader import answers, embedder, mean, quoted_alone, showing, shown_of, whole_row
from benchmarks.table import Row, main
from core.catalog import CatalogModel, resolve
from core.errors import StorageError
from core.files import read_jsonl
from core.settings import load_settings, quiet_environment
from core.types import Passage
from evaluation.cases import Case
from evaluation.run import Result, Show, evaluate
from rag.focus import focus
from rag.model import ModelClient, engine_client
from rag.prompt import build, question_line

SAMPLE = Path(__file__).parent.parent / "data" / "eval" / "grounded.jsonl"
QUICK_CASES = 24


def measure(options: argparse.Namespace) -> list[Row]:
    """Ask the questions of every file."""
    quiet_environment()
    limit = QUICK_CASES if options.quick else None
    rows: list[Row] = []
    with TemporaryDirectory() as scratch:
        settings = replace(load_settings(model=options.model), data_dir=Path(scratch), engine_port=0)
        model, _ = resolve(settings)
        show = showing(settings, model)
        sets = {path: read_cases(path, model, limit) for path in options.files}
        with engine_client(settings) as client:
            for path, cases in sets.items():
                rows += figures(path.stem, cases, client, show)
    return rows


def read_cases(path: Path, model: CatalogModel, limit: int | None = None) -> list[Case]:
    """The questions of a file with the prompts that `model` gets; with a `limit`, that many spread over it.

    Raises StorageError naming the row that lacks something.
    """
    rows = list(enumerate(read_jsonl(path), 1))
    if not rows:
        raise StorageError(f"{path} holds no question.", "Write one JSON object a line.")
    step = 1 if limit is None else max(1, len(rows) // limit)
    try:
        return [_case(row, number, model) for number, row in rows[::step]]
    except _Bad as error:
        raise StorageError(f"Row {error.number} of {path} {error}.", "Mend that row.") from None


class _Bad(Exception):
    def __init__(self, number: int, what: str) -> None:
        super().__init__(what)
        self.number = number


def _case(row: Mapping[str, Any], number: int, model: CatalogModel) -> Case:
    passages = [_passage(part, at, number) for at, part in enumerate(_list(row, "passages", number), 1)]
    facts = tuple(str(fact) for fact in _list(row, "facts", number))
    if not str(row.get("question") or "").strip():
        raise _Bad(number, "has no question")
    names = {passage.document_id for passage in passages}
    sources = tuple(str(name) for name in row.get("sources") or sorted(names))
    if unknown := set(sources) - names:
        raise _Bad(number, f"names the source {sorted(unknown)[0]!r}, which is none of its passages")
    line = question_line(str(row["question"]))
    shown: Sequence[Passage] = passages
    if model.units:
        shown = focus(line, passages, model.units, embedder().similarity, answers())
    prompt = build(line, shown, model)
    return Case(
        str(row.get("id", number)), line, bool(facts), facts, sources, str(row.get("evidence", "")), "",
        "golden", str(row.get("kind", "")), prompt.messages, prompt.passages,
    )  # fmt: skip


def _list(row: Mapping[str, Any], key: str, number: int) -> list[Any]:
    if not isinstance(row.get(key), list):
        raise _Bad(number, f"has no list of {key}")
    return list(row[key])


def _passage(part: Any, at: int, number: int) -> Passage:
    given = {"text": part} if isinstance(part, str) else part
    if not isinstance(given, dict) or not str(given.get("text") or "").strip():
        raise _Bad(number, f"has a passage without text, the {at}.")
    name, text = str(given.get("id", at)), str(given["text"]).strip()
    title = str(given.get("title") or f"Passage {name}")
    return Passage(at, name, title, str(given.get("heading") or ""), None, 0, len(text), text)


def figures(name: str, cases: Sequence[Case], client: ModelClient, show: Show) -> list[Row]:
    """The model's figures, each beside that of quoting alone; prompts that do not fit count for neither."""
    replies = evaluate(client, cases, "base")
    asked = [at for at, reply in enumerate(replies) if reply.asked]
    kept, said = [cases[at] for at in asked], [replies[at] for at in asked]
    rows = [Row(f"{name}: questions", len(kept), "")]
    if len(kept) < len(cases):
        rows.append(Row(f"{name}: questions too long for the model", len(cases) - len(kept), ""))
    if not kept:
        return rows
    quoted = quoted_alone(kept)
    answerable = sum(case.answerable for case in kept)
    if answerable:
        rows += [
            _row(f"{name}: fact right", "fact", True, kept, said, quoted),
            _row(f"{name}: fact and citation right", "citation", True, kept, said, quoted),
            _row(f"{name}: wrongly refused", "refused", True, kept, said, quoted),
            _row(f"{name}: evidence in the prompt", "reachable", True, kept, said, quoted),
        ]
    if answerable < len(kept):
        rows.append(_row(f"{name}: rightly refused", "refused", False, kept, said, quoted))
    both = [sum(bool(r.scores["refusal_right"]) for r in part) / len(kept) for part in (said, quoted)]
    rows.append(
        Row(f"{name}: refusal right (refuses when, and only when, it must)", both[0], "of all", both[1])
    )
    return [*rows, whole_row(name, shown_of(kept, said, show), quoted)]


def _row(
    label: str,
    measure: str,
    answerable: bool,
    cases: Sequence[Case],
    replies: Sequence[Result],
    quoted: Sequence[Result],
) -> Row:
    unit = "of answerable" if answerable else "of unanswerable"
    return Row(
        label, mean(replies, cases, measure, answerable), unit, mean(quoted, cases, measure, answerable)
    )


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "files", nargs="*", type=Path, metavar="FILE", default=[SAMPLE],
        help="questions with passages as JSON lines; the layout stands at the head of benchmarks/grounded.py"
        " (default: the tiny sample, data/eval/grounded.jsonl)",
    )  # fmt: skip
    parser.add_argument("--model", default="builtin", help="a catalog id or a GGUF file (default: builtin)")


if __name__ == "__main__":
    sys.exit(main("grounded", (__doc__ or "").splitlines()[0], measure, _arguments))
