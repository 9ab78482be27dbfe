"""The exam asks only what today's documents can answer, with prompts frozen once."""

from __future__ import annotations

from pathlib import Path

import pytest

import evaluation.exam
from core.catalog import BUILTIN
from core.files import write_jsonl
from core.settings import Settings
from core.types import Unit
from evaluation.exam import Exam, citer, golden, searched_for
from rag.ingest import Ingestor, open_ingestor
from rag.prompt import REFUSAL, build

HANDBOOK = (
    b"# Leaving\n\nThe notice period is 30 days. Send the letter to HR.\n\n"
    b"# Holidays\n\nHoliday is 25 days a year.\n"
)
ROWS = [
    {"id": "a", "question": "What is the notice period?", "answerable": True, "fact": ["30 days"],
     "sources": ["handbook.md"], "evidence": "The notice period is 30 days.", "kind": "number"},
    {"id": "b", "question": "What does the bike cost?", "answerable": True, "fact": ["10 EUR"],
     "sources": ["prices.csv"], "evidence": "", "kind": "table"},
    {"id": "c", "question": "Who painted the door?", "answerable": False},
]  # fmt: skip


@pytest.fixture
def house(tmp_path: Path) -> Ingestor:
    """A data folder with one document and its own golden questions."""
    settings = Settings(data_dir=tmp_path / "data")
    ingestor = open_ingestor(settings)
    write_jsonl(settings.data_dir / "eval" / "golden.jsonl", ROWS)
    (tmp_path / "handbook.md").write_bytes(HANDBOOK)
    ingestor.ingest([tmp_path / "handbook.md"], lambda line: None)
    return ingestor


def test_questions_about_absent_documents_are_left_out(house: Ingestor) -> None:
    database, settings = house.passages.database, house.settings
    assert [row["id"] for row in golden(settings, database)] == ["a", "c"]
    [document] = house.documents.list()
    house.delete(document.id)
    assert golden(settings, database) == []  # nor is what has no answer asked of other documents


def test_without_a_file_of_its_own_the_samples_questions_are_asked(
    house: Ingestor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (house.settings.data_dir / "eval" / "golden.jsonl").unlink()
    monkeypatch.setattr(evaluation.exam, "PROJECT", tmp_path)
    assert golden(house.settings, house.passages.database) == []
    write_jsonl(tmp_path / "data" / "eval" / "golden.jsonl", ROWS[:1])
    (tmp_path / "data").mkdir(exist_ok=True)
    assert [row["id"] for row in golden(house.settings, house.passages.database)] == ["a"]


def test_the_prompts_are_frozen_once(house: Ingestor, tmp_path: Path) -> None:
    database, settings, folder = house.passages.database, house.settings, tmp_path / "exam"
    cases = Exam(settings, database, BUILTIN).set([], folder)
    assert [case.id for case in cases] == ["a", "c"]
    assert "[1] The notice period is 30 days." in cases[0].messages[-1]["content"]
    [document] = house.documents.list()
    assert cases[0].sources == (document.id,)
    house.delete(document.id)
    assert Exam(settings, database, BUILTIN).set([], folder) == cases


def test_replies_are_judged_as_users_see_them(house: Ingestor, tmp_path: Path) -> None:
    exam = Exam(house.settings, house.passages.database, BUILTIN)
    case = exam.set([], tmp_path / "exam")[0]
    right = "[1] The notice period is 30 days."
    wrong = next(unit for p in case.passages for unit in p.units if "25 days" in unit.text)
    assert exam.show.said(case, right, None) == right
    assert exam.show.said(case, REFUSAL, None) == right
    assert exam.show.said(case, f"[{wrong.number}] {wrong.text}", None) == right  # not the best line
    assert exam.show.said(case, "[1] The notice period is 31 days.", None) == right


def test_an_adapter_is_believed_on_what_it_was_taught(house: Ingestor, tmp_path: Path) -> None:
    exam = Exam(house.settings, house.passages.database, BUILTIN)
    case = exam.set([], tmp_path / "exam")[0]
    wrong = next(unit for p in case.passages for unit in p.units if "25 days" in unit.text)
    said = f"[{wrong.number}] {wrong.text}"
    for adapter, question in (("one", "How long is the period of notice?"), ("two", "May dogs come in?")):
        folder = house.settings.data_dir / "adapters" / adapter
        folder.mkdir(parents=True)
        exam.remember(folder, [{"messages": [*build(question, case.passages, BUILTIN).messages, {}]}])
    assert exam.show.said(case, said, "one") == said
    assert exam.show.said(case, REFUSAL, "one") == REFUSAL
    assert exam.show.said(case, said, "two") != said
    assert exam.show.said(case, REFUSAL, "two") != REFUSAL


def test_what_was_searched_for_is_read_from_the_prompt() -> None:
    asked = [
        {"role": "system", "content": "Rules"},
        {"role": "user", "content": "How long is the notice period?"},
        {"role": "assistant", "content": "30 days"},
        {"role": "user", "content": "Question: And for juniors?\n\nGuide\n[1] Question: x"},
    ]
    assert searched_for(asked) == "And for juniors? (long notice period)"  # type: ignore[arg-type]
    assert searched_for(asked[-1:]) == "And for juniors?"  # type: ignore[arg-type]


def test_citing_in_the_models_style() -> None:
    unit = Unit(3, "The notice period is 30 days.", 0, 29)
    assert citer(BUILTIN)("The notice period is 30 days.", [unit]) == "[3] The notice period is 30 days."
