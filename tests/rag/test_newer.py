"""Citations of a document that was replaced lead to its newer version, and to the cited words there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from core.types import Citation
from feedback.store import FeedbackStore
from rag.approval import Approval
from rag.documents import Document
from rag.ingest import Ingestor
from rag.newer import newer
from rag.versions import later
from tests.feedback.made import answer
from tests.rag.files import archive
from tests.rag.test_versions import (
    BROKEN,
    EDITED,
    NEW,
    NEWER,
    OLD,
    edit,
    folder,
    named,
    quiet,
    rows,
)

__all__ = ["folder"]
KEEPING = "They keep for a month."


def cite(ingestor: Ingestor, document: Document, words: str, *, edited: bool = False) -> Citation:
    """A citation, which an answer on record has, too."""
    start = max(0, ingestor.documents.text(document.id).find(words))
    citation = Citation(1, 1, document.id, "Apples", "Old", None, start, start + len(words), words, edited)
    feedback = FeedbackStore(ingestor.passages.database)
    conversation = feedback.start_conversation("local", "Apples")
    feedback.record(conversation, "local", "Which?", replace(answer("Which?"), citations=(citation,)))
    return citation


def sync(ingestor: Ingestor, folder: Path, text: str) -> None:
    (folder / "a.md").write_text(text)
    ingestor.sync(folder, quiet)


def test_the_same_words_are_found_in_the_newest_version(ingestor: Ingestor, folder: Path) -> None:
    sync(ingestor, folder, OLD)
    citation = cite(ingestor, named(ingestor, "a.md"), KEEPING)
    assert later(ingestor.passages.database, citation.document_id) is None
    sync(ingestor, folder, NEW)
    sync(ingestor, folder, NEWER.replace("# Apples", "# Apples of all kinds"))
    found = newer(ingestor.documents, citation, "local")
    assert found is not None
    assert found.citation is not None
    assert "yellow" in found.text
    assert found.text[found.citation.start : found.citation.end] == KEEPING
    assert found.citation.start != citation.start
    assert (found.citation.document_id, found.citation.heading) == (named(ingestor, "a.md").id, "Keeping")


def test_words_that_changed_are_not_found_and_repeated_ones_are_the_nearest(
    ingestor: Ingestor, folder: Path
) -> None:
    sync(ingestor, folder, OLD)
    old = named(ingestor, "a.md")
    red, keeping = cite(ingestor, old, "Apples are red."), cite(ingestor, old, KEEPING)
    sync(
        ingestor, folder, NEW + "\n\nOn straw, they\nsay: They keep for a month. They keep for a monthly fee."
    )
    found = newer(ingestor.documents, red, "local")
    assert found is not None
    assert found.citation is None
    found = newer(ingestor.documents, keeping, "local")
    assert found is not None
    assert found.citation is not None
    assert found.citation.start == found.text.index(KEEPING)


def test_an_edited_passage_is_found_where_its_edit_went(ingestor: Ingestor, folder: Path) -> None:
    sync(ingestor, folder, OLD)
    edit(ingestor)
    citation = cite(ingestor, named(ingestor, "a.md"), EDITED, edited=True)
    sync(ingestor, folder, NEW)
    found = newer(ingestor.documents, citation, "local")
    assert found is not None
    assert found.citation is not None
    assert KEEPING in found.text[found.citation.start : found.citation.end]


def test_what_the_viewer_may_not_read_is_not_offered(ingestor: Ingestor, folder: Path) -> None:
    sync(ingestor, folder, OLD)
    citation = cite(ingestor, named(ingestor, "a.md"), KEEPING)
    sync(ingestor, folder, NEW)
    assert newer(ingestor.documents, citation, "api:rose") is not None
    Approval(ingestor.passages.database).show_to(named(ingestor, "a.md").id, "owner", "local")
    assert newer(ingestor.documents, citation, "api:rose") is None
    assert newer(ingestor.documents, citation, "local") is not None


def test_a_file_that_is_gone_has_no_newer_version(ingestor: Ingestor, folder: Path) -> None:
    sync(ingestor, folder, OLD)
    citation = cite(ingestor, named(ingestor, "a.md"), KEEPING)
    sync(ingestor, folder, NEW)
    (folder / "a.md").unlink()
    ingestor.sync(folder, quiet)
    assert newer(ingestor.documents, citation, "local") is None
    assert rows(ingestor.passages.database) == 0


def test_a_member_of_an_archive_leads_to_its_namesake_alone(ingestor: Ingestor, folder: Path) -> None:
    (folder / "a.zip").write_bytes(archive({"c.md": b"# C\n\nOld c.", "d.md": b"# D\n\nOld d."}))
    ingestor.sync(folder, quiet)
    kept, gone = (cite(ingestor, named(ingestor, name), "Old") for name in ("c.md", "d.md"))
    (folder / "a.zip").write_bytes(archive({"c.md": b"# C\n\nNew c.", "e.md": b"# E\n\nNew e."}))
    ingestor.sync(folder, quiet)
    assert later(ingestor.passages.database, kept.document_id) == named(ingestor, "c.md").id
    assert later(ingestor.passages.database, gone.document_id) is None


@pytest.mark.parametrize("cited", [True, False])
def test_rows_of_versions_that_nobody_cited_go(ingestor: Ingestor, folder: Path, cited: bool) -> None:
    sync(ingestor, folder, OLD)
    if cited:
        cite(ingestor, named(ingestor, "a.md"), KEEPING)
    for number in range(4):
        sync(ingestor, folder, f"{NEW} It is {number}.")
    assert rows(ingestor.passages.database) == 1 + cited
    (folder / "a.md").write_bytes(BROKEN)
    ingestor.sync(folder, quiet)
    assert rows(ingestor.passages.database) == 1 + cited
