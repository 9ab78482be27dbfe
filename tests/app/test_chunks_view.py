"""The passages of a document on the Documents page: edited, switched off, undone."""

from __future__ import annotations

from dataclasses import replace

import pytest
from streamlit.testing.v1 import AppTest

from app.resources import USER, Resources
from core.errors import ConflictError
from core.types import Citation
from feedback.store import FeedbackStore
from rag.chunk_edits import ChunkEditor, ChunkStore, StoredChunk
from tests.app.test_browser import hostile_answer
from tests.app.test_pages import click, open_page, parts, shown

__all__ = ["parts"]  # a fixture

EDITED = "Everybody has 31 days of quokka leave a year."


@pytest.fixture
def document(parts: Resources) -> str:
    """The handbook, as it was read."""
    found = next(d.id for d in parts.documents.list() if d.name == "handbook.md")
    store = ChunkStore(parts.database)
    editor = ChunkEditor(store, parts.assistant.retriever.vectors, parts.assistant.retriever.index)
    for chunk in store.all(found):
        editor.restore(chunk.id, "tests")
    with parts.database.write() as connection:
        connection.execute("DELETE FROM chunk_history")
    return found


def script(document: str) -> None:
    """The open dialog: AppTest runs whole scripts, and a page would close it."""
    from app.chunks_view import dialog
    from app.resources import resources

    dialog(resources(), resources().documents.get(document))


def open_chunks(document: str) -> AppTest:
    at = AppTest.from_function(script, args=(document,), default_timeout=60).run()
    assert not at.exception
    return at


def test_the_page_opens_the_passages(parts: Resources, document: str) -> None:
    at = open_page("documents")
    at.button(key=f"chunks-{document}").click().run()
    assert not at.exception
    assert "2 passages" in shown(at)


def holidays(parts: Resources, document: str) -> StoredChunk:
    return next(c for c in ChunkStore(parts.database).all(document) if c.heading == "Holidays")


def test_a_passage_is_edited_found_and_undone(parts: Resources, document: str) -> None:
    at = open_chunks(document)
    assert "2 passages" in shown(at)
    assert "2 · Holidays · about " in shown(at)
    ordinal = holidays(parts, document).ordinal
    at.button(key=f"edit-{document}-{ordinal}").click().run()
    at.text_area[0].set_value(EDITED)
    at = click(at, "Save")
    assert "1 edited" in shown(at)
    assert "Unused days expire" in shown(at)  # what the document says
    assert parts.assistant.retriever.search("quokka leave", 1)[0].text == EDITED
    at.button(key=f"undo-{document}-{ordinal}").click().run()
    assert not at.exception
    assert "edited" not in shown(at)
    assert not holidays(parts, document).edited
    with parts.database.read() as connection:
        row = connection.execute("SELECT * FROM audit ORDER BY seq DESC LIMIT 1").fetchone()
    assert (row["actor"], row["action"]) == (USER, "chunk.undo")


def test_a_passage_is_switched_off_and_on(parts: Resources, document: str) -> None:
    at = open_chunks(document)
    ordinal = holidays(parts, document).ordinal
    at.button(key=f"switch-{document}-{ordinal}").click().run()
    assert "1 switched off" in shown(at)
    assert all(p.heading != "Holidays" for p in parts.assistant.retriever.search("holiday", 5))
    at.button(key=f"switch-{document}-{ordinal}").click().run()
    assert "switched off" not in shown(at)
    assert parts.assistant.retriever.search("days of holiday", 1)[0].heading == "Holidays"


def test_what_cannot_be_saved_is_said_and_kept(
    parts: Resources, document: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = open_chunks(document)
    at.button(key=f"edit-{document}-{holidays(parts, document).ordinal}").click().run()
    at.text_area[0].set_value("...")
    at = click(at, "Save")
    assert "Switch it off instead" in shown(at)
    assert at.text_area[0].value == "..."

    def meanwhile(*_: object) -> int:
        raise ConflictError("This passage was changed meanwhile; nothing was saved.", "Look at it again.")

    monkeypatch.setattr(ChunkEditor, "edit", meanwhile)
    at.text_area[0].set_value(EDITED)
    at = click(at, "Save")
    assert "changed meanwhile" in shown(at)
    assert at.text_area[0].value == EDITED
    at = click(at, "Cancel")
    assert not at.text_area
    assert not holidays(parts, document).edited


def test_citations_are_counted_by_passage(parts: Resources, document: str) -> None:
    chunk = holidays(parts, document)
    citation = Citation(
        1, 1, document, "Handbook", "Holidays", None, chunk.start, chunk.start + 9, "Everybody"
    )
    other = replace(citation, start=0, end=chunk.start)
    feedback = FeedbackStore(parts.database)
    before = len(feedback.cited_spans(document))
    conversation = feedback.start_conversation(USER, "Counting")
    answer = replace(
        hostile_answer("x", document), citations=(citation, other, replace(citation, document_id="gone"))
    )
    feedback.record(conversation, USER, "How many?", answer)
    assert len(feedback.cited_spans(document)) == before + 2
    assert "cited " in shown(open_chunks(document))
