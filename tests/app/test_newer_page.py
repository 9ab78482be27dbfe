"""A citation whose document was replaced since by the worker, opened on the Chat page."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from streamlit.testing.v1 import AppTest

from app.resources import USER, Resources
from core.types import Citation
from rag.documents import SYNCED
from rag.sources import Source, SourceStore
from rag.versions import Earlier, Version
from tests.app.site import until
from tests.app.test_pages import MAIN, parts, shown
from tests.feedback.made import answer

__all__ = ["parts"]

KEPT = "Quinces keep until spring."
CHANGED = "Quinces are yellow."
OLD = f"# Quinces\n\n{CHANGED}\n\n{KEPT}"
NEW = f"# Quinces\n\nQuinces are golden.\n\nThey are hard. {KEPT}"


def bring(parts: Resources, sources: SourceStore, text: str, earlier: tuple[Version, ...] = ()) -> Version:
    """Have the file hold this text, ready to be searched."""
    document = parts.documents.add("quinces.md", text.encode(), SYNCED)
    row = Source("quinces.md", (0, 0, 0), text, (document.id,), "", "2")
    assert sources.replace(row, [Earlier(one, successor=document.id) for one in earlier])
    parts.jobs.submit("ingest", once=True)
    until(lambda: parts.documents.get(document.id).status == "ready", "the document is ready")
    return Version(document.id, document.name, document.created_at)


@pytest.fixture
def replaced(parts: Resources) -> Iterator[str]:
    """The id of a document that a newer version has replaced."""
    sources = SourceStore(parts.database, "/orchard")
    old = bring(parts, sources, OLD)
    new = bring(parts, sources, NEW, (old,))
    assert parts.documents.find(old.id) is None
    yield old.id
    sources.remove(["quinces.md"])
    parts.documents.delete(new.id)


def cited(document_id: str, words: str) -> Citation:
    start = OLD.index(words)
    return Citation(1, 1, document_id, "Quinces", "", None, start, start + len(words), words)


def drawn(citation: Citation) -> AppTest:
    """What the dialog shows, without the dialog: a test's reruns are of whole pages, which close it."""

    def draw(citation):  # type: ignore[no-untyped-def]  # its source is run alone, without our imports
        from app.resources import resources
        from app.source_view import replaced

        replaced(resources(), citation)

    at = AppTest.from_function(draw, args=(citation,), default_timeout=60).run()
    at.toggle(key="source_newer").set_value(True).run()
    assert not at.exception
    return at


def test_the_source_says_that_there_is_a_newer_version(parts: Resources, replaced: str) -> None:
    conversation = parts.feedback.start_conversation(USER, "Quinces")
    said = replace(answer("Quinces?"), text=f"{KEPT} [1]", citations=(cited(replaced, KEPT),))
    exchange = parts.feedback.record(conversation, USER, "Quinces?", said)
    at = AppTest.from_file(MAIN, default_timeout=60)
    at.query_params["c"] = conversation
    at.run()
    at.button(key=f"cite-{exchange}-1").click().run()
    assert not at.exception
    assert "A newer version has replaced this document since" in shown(at)
    assert "has been removed" not in shown(at)
    assert at.toggle(key="source_newer").label == "Open the newer version"


def test_the_newer_version_opens_at_the_cited_words(parts: Resources, replaced: str) -> None:
    told = shown(drawn(cited(replaced, KEPT))).replace("\\", "")
    assert told.count(f":yellow-background[{KEPT}]") == 2  # as cited, and in the newer version
    assert "They are hard." in told


def test_words_that_are_not_there_any_more_are_said_to_be_gone(parts: Resources, replaced: str) -> None:
    told = shown(drawn(cited(replaced, CHANGED))).replace("\\", "")
    assert told.count(f":yellow-background[{CHANGED}]") == 1
    assert "does not hold these words any more" in told
    assert "Quinces are golden." in told
