"""What a search leaves out is told with its reason, and an answer says so where vectors had no part in it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from core.catalog import BUILTIN
from core.settings import Settings
from core.types import LeftOut
from rag.followup import FollowUp
from rag.index import Index
from rag.ingest import Ingestor
from rag.prompt import build
from rag.reader import Reader
from rag.retrieve import Retriever
from rag.trace import SILENT, Found, traced
from tests.rag.conftest import HANDBOOK

COPY = b"# Copy\n\n" + HANDBOOK[HANDBOOK.index(b"## Leaving") : HANDBOOK.index(b"## Prices")]
QUESTION = "How long is the notice period?"
WHOLE = replace(BUILTIN, units=0, passages=3)


@pytest.fixture
def retriever(ingestor: Ingestor, reader: Reader, settings: Settings, index: Index) -> Retriever:
    for name, data in (("guide.md", HANDBOOK), ("copy.md", COPY)):
        ingestor.documents.add(name, data, "upload", reader)
    ingestor.process_pending()
    return Retriever(settings, ingestor.passages.database, index, ingestor.embedder)


def reasons(left_out: tuple[LeftOut, ...]) -> set[str]:
    return {one.why for one in left_out}


def test_repeats_and_passages_without_a_chosen_line_are_told(retriever: Retriever) -> None:
    found = retriever.read(QUESTION, replace(BUILTIN, units=1))
    assert len(found.passages) == 1
    assert reasons(found.left_out) == {"repeat", "lines"}
    [repeat] = [one for one in found.left_out if one.why == "repeat"]
    assert (repeat.heading, repeat.page) == ("Leaving", None)
    assert repeat.document != found.passages[0].document
    assert found.words_only == ""


def test_passages_beyond_what_a_model_reads_are_told(retriever: Retriever) -> None:
    found = retriever.read(QUESTION, replace(WHOLE, passages=2))
    assert len(found.passages) == 2
    assert "rank" in reasons(found.left_out)


def test_passages_that_the_prompt_has_no_room_for_are_told(retriever: Retriever) -> None:
    found = retriever.read(QUESTION, WHOLE)
    put = FollowUp(QUESTION, QUESTION, 0)
    everything = build(QUESTION, found.passages, WHOLE)
    assert "budget" not in reasons(traced(put, found, 0, everything).left_out)  # neighbours are one block
    short = build(QUESTION, found.passages, WHOLE, room=150)
    assert 0 < len(short.passages) < len(everything.passages)
    told = traced(put, found, 2, short)
    assert "budget" in reasons(told.left_out)
    assert told.turns_cut == 2
    turns = [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Yes?"}]
    held = build(QUESTION, (), replace(WHOLE, history=2), turns)  # type: ignore[arg-type]
    assert traced(put, found, 2, held).turns_cut == 1
    assert traced(put, Found([]), 2).turns_cut == 2  # nobody was asked


def test_a_search_by_words_alone_says_why(retriever: Retriever, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Index, "query", lambda self, vector, limit: [])
    assert retriever.read(QUESTION, BUILTIN).words_only == SILENT
    assert retriever.read("zzz qqq", BUILTIN).words_only == ""
    retriever.passages.put_note(index_state="rebuilding")
    assert retriever.read(QUESTION, BUILTIN).words_only == "The vector index is being rebuilt."
    assert retriever.read("zzz qqq", BUILTIN).words_only == "The vector index is being rebuilt."
