"""Sources in a real browser: the page of a PDF with the words marked, and passages edited by hand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from core.db import Database
from core.jobs import Jobs
from core.settings import PROJECT, load_settings
from core.types import Answer, Citation
from feedback.store import FeedbackStore
from rag.chunk_edits import ChunkStore, StoredChunk
from rag.documents import DocumentStore
from tests.app.payloads import PAYLOADS
from tests.app.site import Site, until
from tests.app.test_browser import Visit, browser, check_inert, hostile_answer, pytestmark, visit

__all__ = ["browser", "pytestmark", "visit"]  # fixtures, and what skips without a browser

MANUAL = PROJECT / "data" / "samples" / "documents" / "flat-tyre-guide.pdf"
EDITED = "Everybody has 31 days of quokka leave a year."
WORDS = "Check the axle nuts again after 50 kilometres."


@pytest.fixture(scope="module")
def database(running: Site) -> Iterator[Database]:
    """The installation's."""
    opened = Database(running.settings.database)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def manual(running: Site, database: Database) -> tuple[DocumentStore, str]:
    """A PDF among the documents: its store and id."""
    store = DocumentStore(database, running.settings)
    document = store.add(MANUAL.name, MANUAL.read_bytes(), "upload")
    Jobs(database).submit("ingest", once=True)
    until(lambda: store.get(document.id).status == "ready", "the PDF is ready")
    return store, document.id


def cited(store: DocumentStore, document_id: str, page: int = 2) -> str:
    """A conversation with one answer that cites the PDF."""
    start = store.text(document_id).index(WORDS)
    citation = Citation(1, 1, document_id, "Flat tyre", "Test", page, start, start + len(WORDS), WORDS)
    answer: Answer = replace(hostile_answer(WORDS, document_id), text=f"{WORDS} [1]", citations=(citation,))
    feedback = FeedbackStore(store.database)
    conversation = feedback.start_conversation("local", "Axle nuts")
    feedback.record(conversation, "local", "When are the axle nuts checked?", answer)
    return conversation


def open_citation(running: Site, visit: Visit, conversation: str) -> None:
    visit.page.goto(f"{running.url}/?c={conversation}")
    visit.page.locator("[class*=st-key-cite-] button:visible").first.click()
    visit.page.get_by_role("dialog").get_by_text("Show more of the document").wait_for()


def test_the_page_of_a_pdf_is_shown_with_the_words_marked(
    running: Site, visit: Visit, manual: tuple[DocumentStore, str]
) -> None:
    open_citation(running, visit, cited(*manual))
    dialog = visit.page.get_by_role("dialog")
    picture = dialog.get_by_test_id("stImage").locator("img")
    picture.wait_for()
    visit.page.wait_for_function("() => document.querySelector('[role=dialog] img')?.naturalWidth > 800")
    # the picture has the colour of the mark, and the text beside it is marked, too
    marked = picture.evaluate(
        """image => {
            const canvas = Object.assign(document.createElement('canvas'),
                {width: image.naturalWidth, height: image.naturalHeight})
            const context = canvas.getContext('2d')
            context.drawImage(image, 0, 0)
            const data = context.getImageData(0, 0, canvas.width, canvas.height).data
            let count = 0
            for (let at = 0; at < data.length; at += 4) count += data[at] > 240 && data[at + 2] < 150
            return count
        }"""
    )
    assert marked > 500
    assert dialog.locator("span.stMarkdownColoredBackground").first.inner_text() == WORDS
    visit.shot("source-pdf")
    visit.page.set_viewport_size({"width": 390, "height": 860})
    visit.page.wait_for_timeout(500)
    visit.shot("source-pdf-phone")
    assert visit.outside == []
    assert visit.alarms == []


def test_words_on_another_page_and_a_lost_original_are_said(
    running: Site, visit: Visit, manual: tuple[DocumentStore, str]
) -> None:
    store, document_id = manual
    open_citation(running, visit, cited(store, document_id, page=1))
    dialog = visit.page.get_by_role("dialog")
    dialog.get_by_text("were not found on this page").wait_for()
    assert dialog.get_by_test_id("stImage").count() == 1
    original = store.folder / document_id
    kept = original.read_bytes()
    original.unlink()
    try:
        open_citation(running, visit, cited(store, document_id, page=3))  # not drawn before
        dialog.get_by_text("The original file is not stored here any more").wait_for()
        assert dialog.get_by_test_id("stImage").count() == 0
        assert dialog.locator("span.stMarkdownColoredBackground").first.inner_text() == WORDS
        visit.shot("source-lost")
    finally:
        original.write_bytes(kept)


def holidays(database: Database) -> StoredChunk:
    store = DocumentStore(database, load_settings({}))
    document = next(d.id for d in store.list() if d.name == "handbook.md")
    return next(c for c in ChunkStore(database).all(document) if c.heading == "Holidays")


def test_a_passage_is_edited_cited_and_undone(running: Site, visit: Visit, database: Database) -> None:
    page = visit.page
    chunk = holidays(database)
    document, ordinal = chunk.document_id, chunk.ordinal
    page.goto(f"{running.url}/documents")
    page.locator(f".st-key-chunks-{document} button:visible").first.click()
    dialog = page.get_by_role("dialog")
    passage = dialog.locator(f".st-key-passage-{document}-{ordinal}")
    passage.get_by_text("Unused days expire in March.").wait_for()
    visit.shot("passages")
    passage.get_by_role("button", name="Edit").click()
    passage.get_by_role("textbox", name="Text").fill("\n".join([EDITED, *PAYLOADS[:8]]))
    visit.shot("passage-form")
    passage.get_by_role("button", name="Save").click()
    passage.get_by_text("What the document says").wait_for()
    passage.get_by_text("31 days of quokka").wait_for()
    page.wait_for_timeout(700)
    visit.shot("passage-edited")
    check_inert(visit)

    citation = Citation(
        1, 1, document, "Employee Handbook", "Holidays", None, chunk.start, chunk.end, EDITED, edited=True
    )
    answer = replace(hostile_answer(EDITED, document), text=f"{EDITED} [1]", citations=(citation,))
    feedback = FeedbackStore(database)
    conversation = feedback.start_conversation("local", "Quokkas")
    feedback.record(conversation, "local", "How many days of quokka leave?", answer)
    cited = visit.page
    cited.goto(f"{running.url}/?c={conversation}")
    cited.locator("[class*=st-key-cite-] button:visible", has_text="(edited)").first.click()
    dialog = cited.get_by_role("dialog")
    dialog.get_by_text("In their place the document says").wait_for()
    marks = dialog.locator("span.stMarkdownColoredBackground").all_inner_texts()
    assert EDITED in marks
    assert any("28 days of holiday" in mark for mark in marks)
    visit.shot("source-edited")

    page.goto(f"{running.url}/documents")
    page.locator(f".st-key-chunks-{document} button:visible").first.click()
    passage = page.get_by_role("dialog").locator(f".st-key-passage-{document}-{ordinal}")
    passage.get_by_role("button", name="Undo").click()
    passage.get_by_text("Unused days expire in March.").wait_for()
    passage.get_by_role("button", name="Undo").wait_for(state="detached")
    page.set_viewport_size({"width": 390, "height": 860})
    page.wait_for_timeout(500)
    visit.shot("passages-phone")
    assert visit.outside == []
    assert visit.alarms == []
