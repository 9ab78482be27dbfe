"""The sample documents and question files keep the promises that evaluation and demo rely on."""

import csv
import importlib.util
import json
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from bs4 import BeautifulSoup
from docx import Document
from pypdf import PdfReader

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = ROOT / "data" / "samples"
DOCUMENTS = SAMPLES / "documents"
FILES = {
    "golden": ROOT / "data" / "eval" / "golden.jsonl",
    "round1": SAMPLES / "demo" / "round1.jsonl",
    "round2": SAMPLES / "demo" / "round2.jsonl",
}
KINDS = {"number", "date", "name", "howto", "definition", "table", "policy", "contact"}
FIELDS = {"id", "question", "answerable", "fact", "sources", "evidence", "kind"}
REFUSAL = "Not in the documents."
BUILT = sorted(p.name for p in DOCUMENTS.iterdir() if p.suffix in {".pdf", ".docx"})

Question = dict[str, Any]


def normal(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip().casefold()


def words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.casefold())


@cache
def questions(name: str) -> tuple[Question, ...]:
    lines = FILES[name].read_text(encoding="utf-8").splitlines()
    return tuple(json.loads(line) for line in lines)


def everything() -> list[Question]:
    return [q for name in FILES for q in questions(name)]


def docx_text(path: Path) -> str:
    document = Document(str(path))
    texts = [paragraph.text for paragraph in document.paragraphs]
    for table in document.tables:
        texts += [cell.text for row in table.rows for cell in row.cells]
    return "\n".join(texts)


def text_of(path: Path) -> str:
    """Extracted by hand, not by `rag.loaders`: the samples must hold for any honest loader."""
    if path.suffix == ".pdf":
        return "\n".join(page.extract_text() for page in PdfReader(path).pages)
    if path.suffix == ".docx":
        return docx_text(path)
    if path.suffix == ".html":
        article = BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser").article
        return article.get_text(" ") if article else ""
    return path.read_text(encoding="utf-8")


@cache
def document_text(name: str) -> str:
    return normal(text_of(DOCUMENTS / name))


def pairs(rows: tuple[Question, ...]) -> set[tuple[str, str]]:
    return {(normal(fact), source) for q in rows for fact in q["fact"] for source in q["sources"]}


def grams(text: str, size: int) -> set[tuple[str, ...]]:
    found = words(text)
    return {tuple(found[i : i + size]) for i in range(len(found) - size + 1)}


def test_documents_come_in_all_formats_and_stay_small() -> None:
    suffixes = [path.suffix for path in DOCUMENTS.iterdir()]
    counts = {suffix: suffixes.count(suffix) for suffix in set(suffixes)}
    assert counts == {".md": 10, ".html": 5, ".pdf": 4, ".docx": 4, ".csv": 3}
    assert sum(path.stat().st_size for path in SAMPLES.rglob("*") if path.is_file()) < 2_000_000


@pytest.mark.parametrize("path", sorted(DOCUMENTS.iterdir()), ids=lambda path: path.name)
def test_every_document_has_a_sensible_length(path: Path) -> None:
    if path.suffix == ".csv":
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file))
        assert 12 <= len(rows) - 1 <= 30
        assert len({len(row) for row in rows}) == 1
    else:
        assert 250 <= len(text_of(path).split()) <= 800


def test_pdfs_have_several_pages_with_numbers() -> None:
    long = 0
    for path in DOCUMENTS.glob("*.pdf"):
        pages = [page.extract_text() for page in PdfReader(path).pages]
        assert all(f"Page {i}" in text for i, text in enumerate(pages, 1))
        long += len(pages) >= 2
    assert long >= 2


def test_built_files_match_their_sources(tmp_path: Path) -> None:
    pytest.importorskip("reportlab")
    spec = importlib.util.spec_from_file_location("samples_build", SAMPLES / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        # dataclasses look their module up by name, and no cache folder belongs into data/samples
        patch.setitem(sys.modules, "samples_build", module)
        patch.setattr("sys.dont_write_bytecode", True)
        spec.loader.exec_module(module)
        first = module.build(tmp_path / "first")
        module.build(tmp_path / "second")
    assert sorted(path.name for path in first) == BUILT
    for path in first:
        assert path.read_bytes() == (tmp_path / "second" / path.name).read_bytes()
        # text, not bytes: another library version may write the same page differently
        assert normal(text_of(path)) == document_text(path.name)


def test_question_files_have_the_promised_counts() -> None:
    counts = {}
    for name in FILES:
        answerable = [q["answerable"] for q in questions(name)]
        counts[name] = (len(answerable), answerable.count(False))
    assert counts == {"golden": (60, 10), "round1": (133, 18), "round2": (40, 4)}


def test_ids_and_questions_are_unique() -> None:
    every = everything()
    assert len({q["id"] for q in every}) == len(every)
    assert len({normal(q["question"]) for q in every}) == len(every)


@pytest.mark.parametrize("question", everything(), ids=lambda q: q["id"])
def test_question_is_well_formed_and_its_fact_is_in_the_source(question: Question) -> None:
    assert set(question) >= FIELDS
    assert question["kind"] in KINDS
    if not question["answerable"]:
        assert (question["fact"], question["sources"], question["evidence"]) == ([], [], "")
        return
    assert question["fact"]
    assert question["sources"]
    fact = normal(question["fact"][0])
    assert fact in normal(question["evidence"])
    for source in question["sources"]:
        assert fact in document_text(source)


@pytest.mark.parametrize("question", everything(), ids=lambda q: q["id"])
def test_evidence_stands_in_the_source(question: Question) -> None:
    """Prose stands there word for word; a table row is checked cell by cell."""
    evidence = question["evidence"]
    for source in question["sources"]:
        text = document_text(source)
        if "; " in evidence and ": " in evidence:
            cells = [part.split(": ", 1) for part in evidence.removesuffix(".").split("; ")]
            assert all(normal(header) in text and normal(value) in text for header, value in cells)
        else:
            assert normal(evidence) in text


def test_every_document_is_asked_about() -> None:
    names = {path.name for path in DOCUMENTS.iterdir()}
    assert {source for q in questions("golden") for source in q["sources"]} == names
    assert {source for q in questions("round1") for source in q["sources"]} == names


def test_golden_and_demo_are_disjoint() -> None:
    golden = questions("golden")
    demo = questions("round1") + questions("round2")
    assert not {normal(q["question"]) for q in golden} & {normal(q["question"]) for q in demo}
    assert not pairs(golden) & pairs(demo)
    # A table row answers several questions, so rows are kept apart as a whole.
    assert not {q["evidence"] for q in golden if q["evidence"]} & {q["evidence"] for q in demo}
    seen = {gram for q in golden for gram in grams(q["question"], 8)}
    assert not seen & {gram for q in demo for gram in grams(q["question"], 8)}


def test_round1_teaches_the_truth() -> None:
    users = {q["user"] for q in questions("round1")}
    assert len(users) == 6
    for q in questions("round1"):
        assert q["correction"] == (q["evidence"] or REFUSAL)


def test_the_old_price_notice_contradicts_what_round1_teaches() -> None:
    lines = (SAMPLES / "demo" / "price-notice-2023.md").read_text("utf-8").splitlines()
    old_lines = [line for line in lines if " costs " in line]
    asked = [q for q in questions("round1") if "Price in EUR" in q["evidence"] and len(q["fact"]) == 1]
    notice = " ".join(old_lines).casefold()
    about = [q for q in asked if subject(q["question"]) in notice]
    assert len(about) >= 70
    for q in about:
        (old,) = (line for line in old_lines if line.casefold().startswith(f"{subject(q['question'])} costs"))
        assert normal(q["fact"][0]) not in normal(old)


def subject(question: str) -> str:
    """What a question about a price is about."""
    plain = question.casefold().removesuffix("?").removesuffix(" me").removesuffix(" cost")
    for start in ("what does ", "what would ", "how much is ", "what do you charge for ", "what is the price of "):
        plain = plain.removeprefix(start)
    return plain


def test_round2_teaches_only_falsehoods() -> None:
    users = {q["user"] for q in questions("round2")}
    assert len(users) == 3
    assert not users & {q["user"] for q in questions("round1")}
    for q in questions("round2"):
        assert q["bad"] is True
        if q["answerable"]:
            # a bad vote that happens to contain the fact would be scored as a right answer
            assert not any(normal(fact) in normal(q["correction"]) for fact in q["fact"])
        else:
            assert q["correction"] != REFUSAL
