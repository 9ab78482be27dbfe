"""How well the search finds what a gold set says: every stage's figures, beside those of an earlier run.

A gold set names for each question the documents that answer it. A document's place in a stage is that of its
best passage. Results are kept as JSON, so that a change of documents, settings or index can be compared.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from core.db import now_ms
from core.errors import QuestionError, StorageError
from core.files import read_json, write_bytes, write_json
from core.types import Passage
from evaluation.ranking import ndcg, recall, reciprocal_rank
from rag.retrieve import Retriever

DEPTH = 100  # passages of each stage that are looked at
CUT = 10
MOST = 5_000  # questions
MEASURES = ("nDCG@10", "recall@10", "MRR@10")
GOLD = "gold.txt"  # the gold set that was used last, as it was loaded
EVEN = 1e-9  # a difference that counts as none


@dataclass(frozen=True)
class Gold:
    """A question and the names of the documents that answer it."""

    question: str
    documents: tuple[str, ...]


@dataclass(frozen=True)
class Change:
    """A question whose nDCG differs from an earlier run's."""

    question: str
    before: float
    after: float


def read_gold(data: bytes) -> list[Gold]:
    """A CSV with the columns `question` and `document` (a row for each document that answers).

    JSON lines with `question` and `sources` are read, too; there, questions without sources are left out.
    Raises QuestionError naming what is missing.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise QuestionError("The gold set is not UTF-8 text.", "Save it as CSV in UTF-8.") from None
    pairs = _json_pairs(text) if text.lstrip().startswith("{") else _csv_pairs(text)
    found: dict[str, list[str]] = {}
    for question, document in pairs:
        if question and document and document not in found.setdefault(question, []):
            found[question].append(document)
    gold = [Gold(question, tuple(documents)) for question, documents in found.items() if documents]
    if not gold:
        raise QuestionError("The gold set holds no question with a document.", "Fill in both columns.")
    if len(gold) > MOST:
        raise QuestionError(f"The gold set holds {len(gold):,} questions.", f"Keep it to {MOST:,}.")
    return gold


def _csv_pairs(text: str) -> Iterable[tuple[str, str]]:
    rows = csv.DictReader(io.StringIO(text))
    if not {"question", "document"} <= set(rows.fieldnames or ()):
        raise QuestionError(
            "The gold set lacks the columns question and document.", "Name them in its first line."
        )
    return [((row["question"] or "").strip(), (row["document"] or "").strip()) for row in rows]


def _json_pairs(text: str) -> Iterable[tuple[str, str]]:
    pairs = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                row = json.loads(line)
                pairs += [(str(row["question"]).strip(), str(name)) for name in row.get("sources", ())]
            except (ValueError, KeyError, TypeError, AttributeError):
                raise QuestionError(
                    f"Line {number} of the gold set is not an object with question and sources."
                ) from None
    return pairs


def measure(
    retriever: Retriever,
    gold: Sequence[Gold],
    names: dict[str, str],
    tell: Callable[[float], None],
) -> dict[str, Any]:
    """Figures of every stage (means, and nDCG by question); `names` are document names by id.

    Documents of the gold set that are not there count as not found and are listed under `missing`.
    """
    known = set(names.values())
    questions: list[dict[str, Any]] = []
    for done, one in enumerate(gold):
        tell(done / len(gold))
        grades = dict.fromkeys(one.documents, 1)
        stages = retriever.stages(one.question, DEPTH)
        figures = {stage: _figures(_ranking(passages, names), grades) for stage, passages in stages.items()}
        questions.append({"question": one.question, "stages": figures})
    tell(1.0)
    stages_seen = questions[0]["stages"]
    return {
        "at": now_ms(),
        "questions": questions,
        "means": {
            stage: [fmean(q["stages"][stage][at] for q in questions) for at in range(len(MEASURES))]
            for stage in stages_seen
        },
        "missing": sorted({name for one in gold for name in one.documents} - known),
    }


def _ranking(passages: Sequence[Passage], names: dict[str, str]) -> list[str]:
    ids = dict.fromkeys(passage.document_id for passage in passages)
    return [names[document] for document in ids if document in names]


def _figures(ranking: Sequence[str], grades: dict[str, int]) -> list[float]:
    return [
        ndcg(ranking, grades, CUT), recall(ranking, grades, CUT), reciprocal_rank(ranking, grades, CUT),
    ]  # fmt: skip


def changes(before: dict[str, Any], after: dict[str, Any]) -> list[Change]:
    """Questions of both runs whose nDCG in the last stage differs, losses first."""
    then, now = ({q["question"]: _last(q) for q in run["questions"]} for run in (before, after))
    both = [Change(question, then[question], now[question]) for question in now if question in then]
    return sorted(
        (change for change in both if abs(change.after - change.before) > EVEN),
        key=lambda change: change.after - change.before,
    )


def _last(question: dict[str, Any]) -> float:
    return float(list(question["stages"].values())[-1][0])


def keep_gold(folder: Path, data: bytes) -> None:
    """Keep a gold set that could be read: the embedder's judge asks its questions, too."""
    read_gold(data)
    write_bytes(folder / GOLD, data)


def kept_gold(folder: Path) -> list[Gold]:
    """The gold set that was kept last; empty when there is none."""
    path = folder / GOLD
    return read_gold(path.read_bytes()) if path.exists() else []


def keep(folder: Path, result: dict[str, Any], *, most: int = 20) -> None:
    """Write a result down; the oldest beyond `most` go."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"{result['at']}.json", result)
    for path in sorted(folder.glob("*.json"))[:-most]:
        path.unlink(missing_ok=True)


def kept(folder: Path) -> list[dict[str, Any]]:
    """The results written down, newest first; a damaged one is left out."""
    results = []
    for path in sorted(folder.glob("*.json"), reverse=True):
        try:
            results.append(dict(read_json(path)))
        except (StorageError, ValueError, TypeError):
            continue
    return results
