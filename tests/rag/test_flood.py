"""Many nearly alike documents of one account do not crowd out others, nor vanish where they are alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from core.catalog import BUILTIN
from core.settings import Settings
from rag import retrieve
from rag.access import OPERATOR, Access
from rag.index import Index
from rag.ingest import Ingestor
from rag.reader import Reader
from rag.retrieve import CANDIDATES, Retriever
from tests.rag.conftest import HANDBOOK

MALLORY = "api:mallory"
NOTE = "# Note {n}\n\nHow long is the notice period? The notice period is 5 days, as note {n} says.\n"
QUESTION = "How long is the notice period?"
WHOLE = replace(BUILTIN, units=0)


@pytest.fixture
def flooded(ingestor: Ingestor, reader: Reader, settings: Settings, index: Index) -> Retriever:
    ingestor.documents.add("guide.md", HANDBOOK, "upload", reader)
    access = Access(MALLORY, "everybody", "approved")
    for n in range(CANDIDATES + 30):
        ingestor.documents.add(f"{n}.md", NOTE.format(n=n).encode(), "upload", reader, access)
    ingestor.process_pending()
    return Retriever(settings, ingestor.passages.database, index, ingestor.embedder)


def notes(retriever: Retriever, viewer: str) -> tuple[int, int, bool]:
    """How many passages are read, how many of them are notes, and whether the guide's is among them."""
    found = retriever.read(QUESTION, WHOLE, viewer).passages
    planted = sum(passage.document.startswith("Note") for passage in found)
    return len(found), planted, any("30 days" in passage.text for passage in found)


def test_a_flood_leaves_room_for_what_others_say(flooded: Retriever, ingestor: Ingestor) -> None:
    read, planted, found = notes(flooded, "api:reader")
    assert found
    assert planted == 3 <= 0.4 * WHOLE.passages
    assert read > planted
    assert "owner" in {one.why for one in flooded.read(QUESTION, WHOLE, "api:reader").left_out}
    focused = flooded.read(QUESTION, BUILTIN, "api:reader").passages
    assert any("30 days" in unit.text for passage in focused for unit in passage.units)
    # nobody is kept from his own documents, and the operator's are the library
    assert notes(flooded, MALLORY) == (8, 8, False)
    with ingestor.passages.database.write() as connection:
        connection.execute("UPDATE document_access SET owner = ?", (OPERATOR,))
    assert notes(flooded, "api:reader") == (8, 8, False)


def test_a_flood_alone_is_read_as_before(flooded: Retriever, ingestor: Ingestor) -> None:
    guide = next(document for document in ingestor.documents.list() if document.title == "Staff guide")
    ingestor.documents.delete(guide.id)
    assert notes(flooded, "api:reader") == (8, 8, False)


def test_words_propose_again_without_a_flood_but_not_without_a_library(
    flooded: Retriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scores() -> dict[str, float]:
        found = flooded.read(QUESTION, WHOLE, "api:reader").passages
        return next(passage.scores for passage in found if "30 days" in passage.text)

    assert "lexical" in scores()
    monkeypatch.setattr(retrieve, "FLOOD", CANDIDATES)  # the account has more: its documents are a library
    assert "lexical" not in scores()
