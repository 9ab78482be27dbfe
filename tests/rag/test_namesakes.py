"""Uploads of one name: both answer until their owner has the newer one replace the older."""

from __future__ import annotations

import pytest

from core.errors import NotFoundError
from rag.access import EVERYBODY, Access
from rag.chunk_edits import ChunkEditor, ChunkStore
from rag.documents import Document
from rag.ingest import Ingestor
from rag.namesakes import named, older, replace_older
from rag.newer import newer
from rag.versions import Version
from tests.rag.test_kill import problems
from tests.rag.test_newer import KEEPING, cite
from tests.rag.test_versions import EDITED, NEW, NEWER, OLD, edits, ready, rows

ROSE = Access("api:rose")


def add(ingestor: Ingestor, text: str, access: Access = EVERYBODY, origin: str = "upload") -> Document:
    document = ingestor.documents.add("a.md", text.encode(), origin, access=access)
    ingestor.process_pending()
    with ingestor.passages.database.write() as connection:  # a clock of milliseconds may not have moved
        connection.execute(
            "UPDATE documents SET created_at = created_at - 1000 WHERE id != ?", (document.id,)
        )
    return ingestor.documents.get(document.id)


def older_version(document: Document) -> Version:
    return Version(document.id, document.name, document.created_at)


def namesakes(ingestor: Ingestor, document: Document, owner: str = "local") -> list[str]:
    return [one.id for one in older(ingestor.passages.database, [document.id], owner).values()]


def test_the_newer_one_replaces_the_older_when_it_is_told_to(ingestor: Ingestor) -> None:
    first, second, third = (add(ingestor, text) for text in (OLD, NEW, NEWER))
    assert ready(ingestor) == ["Apples are green.", "Apples are red.", "Apples are yellow."]
    assert [namesakes(ingestor, one) for one in (first, second, third)] == [[], [first.id], [second.id]]
    citations = [cite(ingestor, one, KEEPING) for one in (first, second)]
    replace_older(ingestor.documents, second.id, "local")
    assert replace_older(ingestor.documents, third.id, "local").id == second.id
    assert ready(ingestor) == ["Apples are yellow."]
    ingestor.process_pending()
    assert problems(ingestor.settings, ingestor) == []
    for citation in citations:
        found = newer(ingestor.documents, citation, "local")
        assert found is not None
        assert found.citation is not None
        assert found.citation.document_id == third.id
    with pytest.raises(NotFoundError, match="no older version"):
        replace_older(ingestor.documents, third.id, "local")
    assert named(ingestor.passages.database, "in/a.md", EVERYBODY) == older_version(third)
    assert named(ingestor.passages.database, "b.md", EVERYBODY) is None
    assert named(ingestor.passages.database, "a.md", Access(groups=("sales",))) is None
    back = add(ingestor, OLD)
    assert back.id == first.id
    assert ready(ingestor) == ["Apples are red.", "Apples are yellow."]
    ingestor.delete(third.id)
    assert rows(ingestor.passages.database) == 0


def test_edits_are_handed_on_and_the_older_one_answers_until_they_are_embedded(ingestor: Ingestor) -> None:
    first = add(ingestor, OLD)
    store = ChunkStore(ingestor.passages.database)
    (chunk,) = [one for one in store.all(first.id) if one.heading.endswith("Keeping")]
    ChunkEditor(store, ingestor.vectors, ingestor.index).edit(chunk.id, EDITED, "ada")
    second = add(ingestor, NEW)
    replace_older(ingestor.documents, second.id, "local")
    assert ready(ingestor) == ["Apples are red."]
    ingestor.process_pending()
    assert ready(ingestor) == ["Apples are green."]
    assert edits(ingestor) == [EDITED]
    with ingestor.passages.database.read() as connection:
        assert connection.execute("SELECT 1 FROM audit WHERE action = 'chunk.drop'").fetchone() is None
    assert problems(ingestor.settings, ingestor) == []


def test_what_is_added_again_before_it_goes_stays(ingestor: Ingestor) -> None:
    first = add(ingestor, OLD)
    store = ChunkStore(ingestor.passages.database)
    (chunk,) = [one for one in store.all(first.id) if one.heading.endswith("Keeping")]
    ChunkEditor(store, ingestor.vectors, ingestor.index).edit(chunk.id, EDITED, "ada")
    replace_older(ingestor.documents, add(ingestor, NEW).id, "local")
    ingestor.documents.add("a.md", OLD.encode(), "upload")
    ingestor.process_pending()
    assert ready(ingestor) == ["Apples are green.", "Apples are red."]


@pytest.mark.parametrize(
    ("access", "origin"),
    [(EVERYBODY, "sync"), (Access(visibility="owner"), "upload"), (ROSE, "upload")],
)
def test_others_of_that_name_are_no_versions_of_it(ingestor: Ingestor, access: Access, origin: str) -> None:
    add(ingestor, OLD, access, origin)
    second = add(ingestor, NEW)
    assert namesakes(ingestor, second) == []
    with pytest.raises(NotFoundError):
        replace_older(ingestor.documents, second.id, "local")
    assert ready(ingestor) == ["Apples are green.", "Apples are red."]


def test_only_their_owner_replaces(ingestor: Ingestor) -> None:
    first, second = add(ingestor, OLD, ROSE), add(ingestor, NEW, ROSE)
    assert namesakes(ingestor, second, "local") == []
    with pytest.raises(NotFoundError):
        replace_older(ingestor.documents, second.id, "api:tom")
    assert replace_older(ingestor.documents, second.id, "api:rose").id == first.id
    assert ready(ingestor) == ["Apples are green."]
