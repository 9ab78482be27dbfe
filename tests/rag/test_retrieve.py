from __future__ import annotations

import pytest

from core.settings import Settings
from rag.embed import DIMENSIONS, Embedder
from rag.index import Index
from rag.ingest import Ingestor
from rag.reader import Reader
from rag.retrieve import Retriever
from tests.rag.conftest import HANDBOOK

OTHER = b"# Canteen\n\n## Food\n\nSoup is served at noon.\n\n## Free\n\nLunch is free. Parking costs 3 EUR.\n"


@pytest.fixture
def retriever(ingestor: Ingestor, reader: Reader, settings: Settings, index: Index) -> Retriever:
    for name, data in (("guide.md", HANDBOOK), ("canteen.md", OTHER)):
        ingestor.documents.add(name, data, "upload", reader)
    ingestor.process_pending()
    return Retriever(settings, ingestor.passages.database, index, ingestor.embedder)


def test_vectors_have_their_shape_and_unit_length(embedder: Embedder) -> None:
    vectors = embedder.encode(["one", "two"])
    assert vectors.shape == (2, DIMENSIONS)
    assert str(vectors.dtype) == "float32"
    assert abs(float((vectors[0] ** 2).sum()) - 1.0) < 1e-4
    assert embedder.encode([]).shape == (0, DIMENSIONS)
    assert embedder.similarity("cat", ["kitten", "tax law"])[0] > embedder.similarity("cat", ["tax law"])[0]


def test_words_and_meaning_both_find(retriever: Retriever) -> None:
    by_words = retriever.search("notice period", 3)[0]
    assert "30 days" in by_words.text
    assert set(by_words.scores) == {"lexical", "dense", "fused", "reranked"}
    by_meaning = retriever.search("When can I have a midday meal?", 3)
    assert any("Soup is served at noon" in passage.text for passage in by_meaning)


def test_the_same_question_gives_the_same_passages(retriever: Retriever) -> None:
    first = retriever.search("What does parking cost?", 5)
    assert retriever.search("What does parking cost?", 5) == first
    order = [(-passage.scores["reranked"], passage.chunk_id) for passage in first]
    assert order == sorted(order)


def test_k_is_the_most(retriever: Retriever) -> None:
    assert len(retriever.search("parking", 1)) == 1
    assert retriever.search("", 5) == [] or len(retriever.search("", 5)) <= 5


def test_passages_with_the_same_words_count_once(
    retriever: Retriever, ingestor: Ingestor, reader: Reader
) -> None:
    ingestor.documents.add("copy.txt", b"Soup is served at noon.", "upload", reader)
    ingestor.process_pending()
    texts = [passage.text for passage in retriever.search("soup at noon", 10)]
    assert sum("Soup is served" in text for text in texts) == 1


def test_without_the_index_words_still_find(retriever: Retriever) -> None:
    assert retriever.status() == {"dense": True, "reason": "", "documents": 2, "chunks": 5}
    retriever.passages.put_note(index_state="rebuilding")
    status = retriever.status()
    assert status["dense"] is False
    assert "rebuilt" in str(status["reason"])
    found = retriever.search("notice period", 3)
    assert "30 days" in found[0].text
    assert set(found[0].scores) == {"lexical", "fused", "reranked"}


def test_a_passage_that_only_words_propose_has_its_cosine_too(
    retriever: Retriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = {p.chunk_id: p.scores["dense"] for p in retriever.search("notice period", 5)}
    query = Index.query
    monkeypatch.setattr(Index, "query", lambda self, vector, limit: query(self, vector, limit)[-1:])
    found = retriever.search("notice period", 5)
    assert "30 days" in found[0].text
    assert found[0].scores["dense"] == wanted[found[0].chunk_id]


def test_an_index_that_fails_while_it_is_asked_leaves_words(
    retriever: Retriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Index, "query", lambda self, vector, limit: [])
    found = retriever.search("notice period", 3)
    assert "30 days" in found[0].text
    assert "dense" not in found[0].scores


def test_a_deleted_document_is_not_found_at_once(retriever: Retriever, ingestor: Ingestor) -> None:
    canteen = next(d for d in ingestor.documents.list() if d.title == "Canteen")
    ingestor.documents.delete(canteen.id)  # the index still holds its vectors
    assert all(passage.document != "Canteen" for passage in retriever.search("soup at noon", 10))
