"""Test collections in the layout of BEIR (Thakur et al., NeurIPS 2021): a corpus, queries, judgements.

corpus.jsonl[.gz]    {"_id": "d1", "title": "...", "text": "..."} a line; the title may be missing
queries.jsonl[.gz]   {"_id": "q1", "text": "..."} a line
qrels.tsv            query-id, corpus-id, score; also found as qrels/test.tsv; the header may be missing
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import StorageError

QRELS = ("qrels.tsv", "qrels/test.tsv", "qrels.tsv.gz")


@dataclass(frozen=True)
class Collection:
    """`documents` are {id: (title, text)}; `queries` only those with a relevant document, {id: text};
    `grades` are {query id: {document id: relevance}}."""

    name: str
    documents: dict[str, tuple[str, str]]
    queries: dict[str, str]
    grades: dict[str, dict[str, int]]


def load(folder: Path) -> Collection:
    """Read a folder; judgements of unknown documents count as never found, as in trec_eval.

    Raises StorageError naming the file that is missing or the line that cannot be read.
    """
    documents = {
        str(row["_id"]): (str(row.get("title") or "").strip(), str(row["text"]))
        for row in _rows(_find(folder, "corpus.jsonl", "corpus.jsonl.gz"))
    }
    texts = {
        str(row["_id"]): str(row["text"]) for row in _rows(_find(folder, "queries.jsonl", "queries.jsonl.gz"))
    }
    grades = _judgements(_find(folder, *QRELS))
    queries = {
        query: text for query, text in texts.items() if max(grades.get(query, {}).values(), default=0) > 0
    }
    if not documents or not queries:
        raise StorageError(
            f"{folder} holds no query with a relevant document.", "Check that the ids of its files agree."
        )
    return Collection(folder.name, documents, queries, {query: grades[query] for query in queries})


def _find(folder: Path, *names: str) -> Path:
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise StorageError(
        f"{folder} has no {names[0]}.",
        "Give a folder in BEIR's layout: corpus.jsonl, queries.jsonl, qrels.tsv.",
    )


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    with (
        gzip.open(path, "rt", encoding="utf-8")
        if path.suffix == ".gz"
        else path.open(encoding="utf-8") as file
    ):
        yield from ((number, line) for number, line in enumerate(file, 1) if line.strip())


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    for number, line in _lines(path):
        try:
            row = json.loads(line)
            yield {"_id": row["_id"], "title": row.get("title"), "text": row["text"]}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StorageError(
                f"Line {number} of {path} is not a JSON object with _id and text.", "Mend or remove the line."
            ) from error


def _judgements(path: Path) -> dict[str, dict[str, int]]:
    grades: dict[str, dict[str, int]] = {}
    for number, line in _lines(path):
        fields = line.rstrip("\r\n").split("\t")
        try:
            query, document, score = fields
            grades.setdefault(query, {})[document] = int(float(score))
        except ValueError as error:
            if number == 1 and len(fields) == 3:
                continue  # the header
            raise StorageError(
                f"Line {number} of {path} is not query-id, corpus-id and score with tabs between.",
                "Mend or remove the line.",
            ) from error
    return grades
