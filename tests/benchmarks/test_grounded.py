"""Question files are read or refused with the row, and the figures are those of the product's scoring."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.grounded import SAMPLE, figures, read_cases
from benchmarks.reader import showing
from core.catalog import BUILTIN
from core.errors import StorageError
from core.settings import load_settings
from rag.model import engine_client
from rag.prompt import REFUSAL

ROWS = [
    {
        "question": "How long is the notice period?",
        "passages": [
            {"id": "p", "title": "Handbook", "text": "The notice period is 30 days. Write to HR."},
            "Tea is free.",
        ],
        "facts": ["30 days"],
        "sources": ["p"],
    },
    {"id": "two", "question": "Who founded the firm?", "passages": ["Tea is free."], "facts": []},
]  # fmt: skip


def written(folder: Path, *rows: object) -> Path:
    path = folder / "set.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows), "utf-8")
    return path


def test_a_file_becomes_cases(tmp_path: Path) -> None:
    first, second = read_cases(written(tmp_path, *ROWS), BUILTIN)
    assert (first.id, first.facts, first.sources, first.answerable) == ("1", ("30 days",), ("p",), True)
    assert {passage.document for passage in first.passages} <= {"Handbook", "Passage 2"}
    assert (second.id, second.answerable, second.sources) == ("two", False, ("1",))
    assert len(read_cases(written(tmp_path, *ROWS * 4), BUILTIN, limit=2)) == 2


def test_the_sample_can_be_read() -> None:
    cases = read_cases(SAMPLE, BUILTIN)
    assert len(cases) == 8
    assert {case.answerable for case in cases} == {True, False}


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"question": "Why?", "facts": []}, "Row 2 .* has no list of passages"),
        ({"question": "Why?", "passages": ["x"]}, "no list of facts"),
        ({"question": " ", "passages": ["x"], "facts": []}, "has no question"),
        ({"question": "Why?", "passages": ["x", {"title": "y"}], "facts": []}, "without text, the 2"),
        ({"question": "Why?", "passages": ["x"], "facts": ["x"], "sources": ["q"]}, "the source 'q'"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, row: dict[str, object], words: str) -> None:
    with pytest.raises(StorageError, match=words):
        read_cases(written(tmp_path, ROWS[1], row), BUILTIN)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="holds no question"):
        read_cases(written(tmp_path), BUILTIN)


def test_model_and_quoting_stand_side_by_side(tmp_path: Path) -> None:
    script = tmp_path / "script.json"
    script.write_text(
        json.dumps(
            [
                {"match": "notice period", "reply": "[1] The notice period is 30 days."},
                {"match": "founded", "reply": REFUSAL},
            ]
        )
    )
    cases = read_cases(written(tmp_path, *ROWS), BUILTIN)
    settings = load_settings({}, data_dir=tmp_path)
    show = showing(settings, replace(BUILTIN, second_look=False))
    with engine_client(settings, scripted=script) as client:
        rows = {row.measure: row for row in figures("set", cases, client, show)}
    assert rows["set: fact right"].value == 1.0
    assert rows["set: fact and citation right"].value == 1.0
    assert rows["set: rightly refused"].value == 1.0
    refusals = next(row for name, row in rows.items() if "only when" in name)
    assert (refusals.value, refusals.unit) == (1.0, "of all")
    assert rows["set: fact right"].reference is not None
