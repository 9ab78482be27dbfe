"""The papers of the evaluation's domains: complete, well formed, and never what the built-in model read."""

from __future__ import annotations

from pathlib import Path

from finetune.base_papers import PAPERS, domains
from core.settings import PROJECT
from finetune import base_data, base_qa


def test_every_question_has_its_line_in_a_document() -> None:
    found = domains()
    assert len(found) == 24
    assert sum(len(domain.asked) for domain in found) > 7000
    for domain in found:
        text = "\n".join(domain.documents.values())
        assert len(domain.documents) >= 3, domain.name
        assert all(text.startswith("# ") for text in domain.documents.values())
        assert sum(asked.line is None for asked in domain.asked) > 10
        for asked in domain.asked:
            assert asked.question.strip() == asked.question != ""
            assert asked.line is None or f"\n{asked.line}\n" in text


def test_documents_are_written_as_files(tmp_path: Path) -> None:
    domain = domains()[0]
    paths = domain.write(tmp_path)
    assert [path.read_text("utf-8") for path in paths] == list(domain.documents.values())


def test_the_built_in_model_was_not_trained_on_them() -> None:
    papers = base_qa.grams(PAPERS.read_text("utf-8"))
    ours = base_qa.grams((PROJECT / "finetune" / "base_facts.txt").read_text("utf-8"))
    for rows in base_data.written().values():
        for _, question in rows:
            ours |= base_qa.grams(question)
    assert len(papers) > 50_000
    assert not papers & ours
