"""How well the search finds what a gold set says: every stage's figures, beside those of an earlier run.

A gold set names for each question the documents that answer it. A document's place in a stage is that of its
best passage. Results are kept as JSON, so that a change of documents, settings or index can be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from core.db import now_ms
from core.errors import StorageError
from core.files import read_json, write_json
from core.types import Passage
from evaluation.gold import Gold, Names
from evaluation.ranking import ndcg, recall, reciprocal_rank
from rag.retrieve import Retriever

DEPTH = 100  # passages of each stage that are looked at
CUT = 10
MEASURES = ("nDCG@10", "recall@10", "MRR@10", "recall@100")
EVEN = 1e-9  # a difference that counts as none


@dataclass(frozen=True)
class Change:
    """A question whose nDCG differs from an earlier run's."""

    question: str
    before: float
    after: float


def measure(
    retriever: Retriever, gold: Sequence[Gold], names: Names, tell: Callable[[float], None]
) -> dict[str, Any]:
    """Figures of every stage (means, and nDCG by question) over the documents that `names` knows.

    Documents of the gold set that are not there count as not found and are listed under `unknown`, with the
    line of the gold set that names them.
    """
    questions: list[dict[str, Any]] = []
    for done, one in enumerate(gold):
        tell(done / len(gold))
        labels, grades = _answering(one, names)
        stages = retriever.stages(one.question, DEPTH)
        figures = {stage: _figures(_ranking(passages, labels), grades) for stage, passages in stages.items()}
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
        "unknown": [
            {"line": wanted.line, "document": wanted.name, "question": one.question}
            for one in gold
            for wanted in one.documents
            if not names.find(wanted)
        ],
    }


def _answering(gold: Gold, names: Names) -> tuple[dict[str, str], dict[str, int]]:
    """What documents are called by their ids, and the grades of these names; two names of one count once."""
    labels: dict[str, str] = {}
    grades: dict[str, int] = {}
    for wanted in gold.documents:
        ids = names.find(wanted)
        label = next((labels[one] for one in ids if one in labels), wanted.name)
        labels |= dict.fromkeys(ids, label)
        grades[label] = max(wanted.grade, grades.get(label, 0))
    return labels, grades


def _ranking(passages: Sequence[Passage], labels: Mapping[str, str]) -> list[str]:
    """Documents in the order of their best passages, those of the gold set by the name that it gives them."""
    return list(dict.fromkeys(labels.get(one.document_id, f" {one.document_id}") for one in passages))


def _figures(ranking: Sequence[str], grades: Mapping[str, int]) -> list[float]:
    return [
        ndcg(ranking, grades, CUT), recall(ranking, grades, CUT), reciprocal_rank(ranking, grades, CUT),
        recall(ranking, grades, DEPTH),
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
