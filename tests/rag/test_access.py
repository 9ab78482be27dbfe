"""Who finds what: planted documents stay with who planted them (row S13), private ones with their owner."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from core.db import Database
from core.errors import ConflictError, DocumentError, NotFoundError
from core.schema import MIGRATIONS
from core.settings import Settings, load_settings
from rag import lexical
from rag.access import EVERYBODY, NOBODY, OPERATOR, Access, new_access
from rag.approval import CHOSEN_AGAIN, Approval
from rag.documents import Document
from rag.embed import Embedder, Step, Vectors
from rag.groups import Groups
from rag.ingest import Ingestor
from rag.passages import PassageStore
from rag.reader import Reader
from rag.retrieve import CANDIDATES, Retriever
from tests.rag.conftest import HANDBOOK
from tests.rag.test_kill import HashedVectors

MALLORY, ANNA = "api:mallory", "api:anna"
PLANTED = Access(MALLORY, "everybody", "waiting")
QUESTION = "How long is the notice period?"


class Worded(HashedVectors):
    """A text that repeats a question has the question's own vector: no planted text could be nearer."""

    def encode(self, texts: Sequence[str], step: Step = lambda: None) -> Vectors:
        found = (re.search(r"How many seats has plan number \d+\?", text) for text in texts)
        return super().encode([hit[0] if hit else text for hit, text in zip(found, texts, strict=True)])


@pytest.fixture
def embedder() -> Embedder:
    return Worded()


@pytest.fixture
def retriever(ingestor: Ingestor, settings: Settings, database: Database) -> Retriever:
    plain = replace(settings, cross_encoder=False)  # it only orders what was found
    return Retriever(plain, database, ingestor.index, ingestor.embedder)


@pytest.fixture
def approval(database: Database) -> Approval:
    return Approval(database)


@pytest.fixture(autouse=True)
def one_reader(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    """All documents are parsed by the session's child."""
    monkeypatch.setattr(f"{__name__}.READER", [reader])


READER: list[Reader] = []


def add(ingestor: Ingestor, text: str, access: Access = EVERYBODY, name: str = "x.md") -> Document:
    document = ingestor.documents.add(name, text.encode(), "upload", READER[0], access)
    ingestor.process_pending()
    return ingestor.documents.get(document.id)


def seen(retriever: Retriever, viewer: str, question: str = QUESTION) -> set[str]:
    """Documents that any way of asking shows to the viewer."""
    found = {passage.document_id for passage in retriever.search(question, 20, viewer)}
    for passages in retriever.stages(question, 100, viewer).values():
        found |= {passage.document_id for passage in passages}
    ids = [i for i, _ in lexical.search(retriever.database, question, 100, viewer)]
    found |= {passage.document_id for passage in retriever.passages.get(ids, viewer).values()}
    assert len(ids) == len(retriever.passages.get(ids, viewer))
    return found


def planted_texts(questions: list[str], each: int, as_one: bool) -> list[str]:
    """`each` texts for every question, or `each` that hold a section for every question."""
    wanted = [[f"## {q}\n\n{f'{q} It has {n} seats. ' * 6}" for q in questions] for n in range(each)]
    return ["\n\n".join(parts) for parts in wanted] if as_one else [text for row in wanted for text in row]


@pytest.mark.parametrize(
    ("asked", "each", "as_one"), [(10, 12, True), pytest.param(50, 5, False, marks=pytest.mark.slow)]
)
def test_planted_documents_are_nobody_elses_answer_until_approved(
    ingestor: Ingestor,
    retriever: Retriever,
    approval: Approval,
    reader: Reader,
    asked: int,
    each: int,
    as_one: bool,
) -> None:
    """Documents worded to win, more of them than there are candidates."""
    questions = [f"How many seats has plan number {number}?" for number in range(asked)]
    honest = add(ingestor, "# Plans\n\n" + "\n\n".join(f"Plan number {n} has 40 seats." for n in range(50)))
    planted = [
        ingestor.documents.add(f"p{n}.md", text.encode(), "upload", reader, PLANTED)
        for n, text in enumerate(planted_texts(questions, each, as_one))
    ]
    ingestor.process_pending()
    bad = {document.id for document in planted}
    assert sum(ingestor.documents.get(i).chunks for i in bad) > CANDIDATES
    for question in questions:
        for viewer in (NOBODY, OPERATOR, ANNA):
            assert {p.document_id for p in retriever.search(question, 8, viewer)} == {honest.id}
    for viewer in (NOBODY, OPERATOR, ANNA):
        assert seen(retriever, viewer, questions[7]) == {honest.id}
    # more planted chunks than candidates do not push the honest ones out of the nearest
    vector = ingestor.embedder.encode([questions[7]])[0]
    assert len(retriever.near(vector, OPERATOR)) == honest.chunks
    assert bad & seen(retriever, MALLORY, questions[7])
    assert ingestor.index.ids() == ingestor.passages.ready_ids()

    one = next(d for d in planted if questions[7] in ingestor.documents.text(d.id, MALLORY))
    approval.approve(one.id, OPERATOR)
    ingestor.index.sync()
    assert seen(retriever, ANNA, questions[7]) == {honest.id, one.id}
    approval.reject(one.id, OPERATOR)
    assert seen(retriever, ANNA, questions[7]) == {honest.id}  # before the index follows
    assert one.id not in seen(retriever, MALLORY, questions[7])
    ingestor.index.sync()
    assert seen(retriever, ANNA, questions[7]) == {honest.id}


def test_a_private_document_is_its_owners_alone(ingestor: Ingestor, retriever: Retriever) -> None:
    shared = add(ingestor, HANDBOOK.decode())
    mine = add(ingestor, "# My notes\n\nThe notice period is 90 days for me.", Access(ANNA, "owner"))
    for viewer in (NOBODY, OPERATOR, MALLORY, "api:ann", "api:anna ", "API:ANNA", "' OR 1=1 --"):
        assert seen(retriever, viewer) == {shared.id}
        with pytest.raises(NotFoundError):
            ingestor.documents.text(mine.id, viewer)
        with pytest.raises(NotFoundError):
            ingestor.documents.original(mine.id, viewer)
        assert [document.id for document in ingestor.documents.list(viewer)] == [shared.id]
        assert ingestor.documents.hidden([mine.id, shared.id], viewer) == {mine.id}
    assert seen(retriever, ANNA) == {shared.id, mine.id}
    assert "90 days" in ingestor.documents.text(mine.id, ANNA)
    assert {document.id for document in ingestor.documents.list(ANNA)} == {shared.id, mine.id}
    assert retriever.search("notice period for me", 1, ANNA)[0].scores["dense"]
    ingestor.delete(mine.id)
    assert ingestor.documents.hidden([mine.id], MALLORY) == {mine.id}  # old answers may quote it


def test_only_private_documents_and_words_alone(
    ingestor: Ingestor, retriever: Retriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = add(ingestor, HANDBOOK.decode(), Access(ANNA, "owner"))
    assert ingestor.index.ids() == set()
    assert seen(retriever, ANNA) == {mine.id}
    assert seen(retriever, OPERATOR) == set()
    ingestor.passages.put_note(index_state="rebuilding")
    assert seen(retriever, ANNA) == {mine.id}
    assert seen(retriever, OPERATOR) == set()


def test_own_vectors_are_as_exact_as_the_index(ingestor: Ingestor, retriever: Retriever) -> None:
    add(ingestor, HANDBOOK.decode())
    shared = {p.text: p.scores["dense"] for p in retriever.search(QUESTION, 9) if "dense" in p.scores}
    add(ingestor, HANDBOOK.decode() + " ", Access(ANNA, "owner"))
    own = {p.text: p.scores["dense"] for p in retriever.search(QUESTION, 9, ANNA) if "dense" in p.scores}
    assert set(shared) <= set(own)
    np.testing.assert_allclose([own[t] for t in shared], list(shared.values()), atol=1e-4)


def test_a_hint_of_the_same_text_elsewhere_names_no_hidden_document(ingestor: Ingestor) -> None:
    add(ingestor, "# A\n\nThe very same words.", Access(ANNA, "owner"), "anna-secret-plan.md")
    copy = add(ingestor, "# B\n\nThe very same words.", name="copy.md")
    assert copy.same_as == ""
    assert add(ingestor, "# C\n\nThe very same words.", name="c.md").same_as == "copy.md"
    own = add(ingestor, "# D\n\nThe very same words.", Access(ANNA, "owner"), "d.md")
    assert own.same_as == "anna-secret-plan.md"


def test_the_same_bytes_of_two_owners_stay_two_documents(ingestor: Ingestor, retriever: Retriever) -> None:
    text = HANDBOOK.decode()
    annas = add(ingestor, text, Access(ANNA, "owner"))
    mallorys = add(ingestor, text, PLANTED)
    assert annas.id != mallorys.id
    assert add(ingestor, text, Access(ANNA, "owner")).id == annas.id  # again: nothing new
    shared = add(ingestor, text)
    assert shared.id not in (annas.id, mallorys.id)
    assert seen(retriever, NOBODY) == {shared.id}
    assert add(ingestor, text, Access("api:ben", "owner")).id == shared.id  # everybody has it anyway


def test_bytes_kept_by_the_operator_can_be_shared_by_another(
    ingestor: Ingestor, retriever: Retriever
) -> None:
    kept = add(ingestor, HANDBOOK.decode())
    Approval(ingestor.passages.database).show_to(kept.id, "owner", OPERATOR)
    assert seen(retriever, ANNA) == set()
    assert seen(retriever, OPERATOR) == {kept.id}
    other = add(ingestor, HANDBOOK.decode(), Access(ANNA))
    assert other.id != kept.id
    assert seen(retriever, NOBODY) == {other.id}


def test_decisions(ingestor: Ingestor, approval: Approval, database: Database) -> None:
    document = add(ingestor, HANDBOOK.decode(), PLANTED)
    private = add(ingestor, "# Mine\n\nText.", Access(ANNA, "owner", "waiting"))
    with pytest.raises(ConflictError, match="Only a reviewer"):
        approval.approve(document.id, MALLORY)
    with pytest.raises(NotFoundError):
        approval.approve(private.id, OPERATOR)  # nobody asked for that
    with pytest.raises(NotFoundError):
        approval.show_to(private.id, "everybody", MALLORY)
    with pytest.raises(ConflictError, match="is no visibility"):
        approval.show_to(private.id, "world", ANNA)
    assert "30 days" in ingestor.documents.text(document.id, OPERATOR)  # to decide, one has to read
    approval.approve(document.id, OPERATOR)
    with pytest.raises(NotFoundError):
        approval.approve(document.id, OPERATOR)  # a second click
    approval.show_to(private.id, "everybody", ANNA)
    assert ingestor.documents.get(private.id).access == Access(ANNA, "everybody", "waiting")
    with database.read() as connection:
        actions = [row["action"] for row in connection.execute("SELECT action FROM audit ORDER BY seq")]
    assert actions == ["document.approved", "document.everybody"]


def test_who_needs_approval(tmp_path: Path, settings: Settings) -> None:
    assert new_access(settings, OPERATOR).shared
    assert new_access(settings, ANNA).approval == "waiting"
    trusting = load_settings({}, data_dir=str(tmp_path), approve_documents=False)
    assert new_access(trusting, ANNA).shared
    with pytest.raises(DocumentError, match="is no visibility"):
        new_access(settings, ANNA, "world")


def test_the_queue_keeps_owner_and_visibility(ingestor: Ingestor) -> None:
    ingestor.queue.put("a.md", b"# A\n\nText a.", ANNA)
    ingestor.queue.put("b.md", b"# B\n\nText b.", OPERATOR, "owner")
    ingestor.queue.put("c.md", b"# C\n\nText c.")
    ingestor.drain()
    found = {document.name: document.access for document in ingestor.documents.list()}
    assert found == {
        "a.md": Access(ANNA, "everybody", "waiting"),
        "b.md": Access(OPERATOR, "owner", "approved"),
        "c.md": EVERYBODY,
    }


def test_a_file_that_comes_again_goes_to_those_chosen_now(ingestor: Ingestor) -> None:
    Groups(ingestor.passages.database).create("sales")
    queue, documents = ingestor.queue, ingestor.documents
    for name in ("a.md", "b.md"):
        queue.put(name, f"# {name}\n\nText.".encode())
    ingestor.drain()
    queue.put("a.md", b"# a.md\n\nText.", OPERATOR, "owner", ["sales", "gone"])
    queue.put("b.md", b"# b.md\n\nText.", ANNA, "owner")  # is somebody else's
    ingestor.drain()
    assert [(one.name, one.error) for one in queue.list()] == [("a.md", f"a.md was {CHOSEN_AGAIN}")]
    found = {document.name: document.access for document in documents.list()}
    assert found == {"a.md": Access(OPERATOR, "owner", groups=("sales",)), "b.md": EVERYBODY}
    queue.put("a.md", b"# a.md\n\nText.")  # everybody is where forms begin: it widens nothing
    ingestor.drain()
    assert {document.name: document.access for document in documents.list()} == found


def test_a_changed_file_of_a_folder_stays_with_its_owner(tmp_path: Path, ingestor: Ingestor) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.md").write_text("# A\n\nOld.")
    ingestor.sync(folder, lambda line: None)
    [document] = ingestor.documents.list()
    Approval(ingestor.passages.database).show_to(document.id, "owner", OPERATOR)
    (folder / "a.md").write_text("# A\n\nNew words.")
    ingestor.sync(folder, lambda line: None)
    [document] = ingestor.documents.list()
    assert document.visibility == "owner"
    assert "New" in ingestor.documents.text(document.id, OPERATOR)


def test_documents_of_an_older_installation_are_everybodys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import core.db

    with monkeypatch.context() as patch:
        patch.setattr(core.db, "MIGRATIONS", MIGRATIONS[:2])
        old = Database(tmp_path / "d.db")
        with old.write() as connection:
            connection.execute(
                "INSERT INTO documents (id, name, kind, bytes, origin, status, text, created_at, updated_at)"
                " VALUES ('a', 'a.md', 'markdown', 1, 'upload', 'ready', 'A', 1, 1)"
            )
            connection.execute(
                'INSERT INTO chunks (document_id, ordinal, heading, start, "end", text, vector)'
                " VALUES ('a', 0, '', 0, 1, 'A', x'')"
            )
        old.close()
    passages = PassageStore(Database(tmp_path / "d.db"))
    assert passages.counts() == (1, 1)
    assert len(passages.ready_ids()) == 1
