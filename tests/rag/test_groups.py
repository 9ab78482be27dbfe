"""Groups: every query that can return something of a document is compared with a plain model.

The walk changes members, groups, visibility, approval and documents at random, and asks after each change.
"""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from core.db import Database
from core.errors import ConflictError, NotFoundError
from core.settings import Settings
from rag.access import OPERATOR, Access
from rag.approval import Approval
from rag.documents import Document
from rag.embed import Embedder
from rag.groups import Group
from rag.ingest import Ingestor
from rag.intake import kept_access
from rag.reader import Reader
from rag.retrieve import Retriever
from tests.rag.test_kill import HashedVectors
from tests.rag.visible import ANNA, BEN, CARA, NAMES, OWNERS, VIEWERS, World, check


@pytest.fixture
def embedder() -> Embedder:
    return HashedVectors()


@pytest.fixture
def world(ingestor: Ingestor, settings: Settings, database: Database, reader: Reader) -> World:
    plain = replace(settings, cross_encoder=False)
    made = World(ingestor, Retriever(plain, database, ingestor.index, ingestor.embedder))
    for name in NAMES[:3]:
        made.groups.create(name)
        made.model.members[name] = set()
    made.groups.change("sales", [ANNA, OPERATOR])
    made.model.members["sales"] = {ANNA, OPERATOR}
    made.groups.change("legal", [CARA])  # in a group, but not in that of most documents
    made.model.members["legal"] = {CARA}
    shapes = [
        Access(),
        Access(OPERATOR, "owner", groups=("sales",)),
        Access(OPERATOR, "owner", groups=("legal", "sales")),
        Access(OPERATOR, "owner"),
        Access(ANNA, "everybody", "waiting"),
        Access(ANNA, "owner", "waiting", ("sales",)),
        Access(ANNA, "owner", groups=("sales",)),
        Access(BEN),
        Access("api", "owner"),
        Access(CARA, "owner", "rejected"),
    ]
    for number, access in enumerate(shapes):
        made.add(number, access, reader)
    ingestor.process_pending()
    return made


def step(world: World, dice: random.Random, reader: Reader) -> None:
    """One random change to installation and model; what may not be is refused and changes nothing."""
    if dice.random() < 0.4:
        change_group(
            world, dice.choice(NAMES), dice.choice(OWNERS), dice.choice(("make", "remove", "join", "leave"))
        )
        return
    document = dice.choice(sorted(world.model.documents))
    groups = tuple(sorted(dice.sample(NAMES, dice.randint(0, 3))))
    match dice.choice(("show", "show", "decide", "delete")):
        case "show":
            show(world, document, dice.choice(("everybody", "owner", "owner", "owner")), groups)
        case "decide":
            decide(world, document, dice.choice(("approved", "rejected")))
        case "delete":
            world.ingestor.delete(document)
            del world.model.documents[document]
            replace_with(world, Access(dice.choice(OWNERS), "owner", groups=groups), reader)


def change_group(world: World, name: str, account: str, what: str) -> None:
    members = world.model.members
    if what == "make" and name not in members:
        world.groups.create(name)
        members[name] = set()
    elif name not in members:
        with pytest.raises(NotFoundError):
            world.groups.change(name, join=[account])
    elif what == "make":
        with pytest.raises(ConflictError):
            world.groups.create(name)
    elif what == "join":
        world.groups.change(name, join=[account])
        members[name].add(account)
    elif what == "leave":
        world.groups.change(name, leave=[account])
        members[name].discard(account)
    else:
        world.groups.remove(name)
        del members[name]
        for other, one in world.model.documents.items():
            left = tuple(group for group in one.groups if group != name)
            world.model.documents[other] = replace(one, groups=left)


def show(world: World, document: str, visibility: str, groups: tuple[str, ...]) -> None:
    access = world.model.documents[document]
    groups = groups if visibility == "owner" else ()
    approval = Approval(world.database)
    if groups == world.model.own_groups(access.owner, groups):
        approval.show_to(document, visibility, access.owner, groups)
        world.model.documents[document] = replace(access, visibility=visibility, groups=groups)
    else:
        with pytest.raises(NotFoundError):
            approval.show_to(document, visibility, access.owner, groups)


def decide(world: World, document: str, decision: str) -> None:
    access, approval = world.model.documents[document], Approval(world.database)
    act = approval.approve if decision == "approved" else approval.reject
    if world.model.offered(access) and access.approval != decision:
        act(document, OPERATOR)
        world.model.documents[document] = replace(access, approval=decision)
    else:
        with pytest.raises(NotFoundError):
            act(document, OPERATOR)


def replace_with(world: World, access: Access, reader: Reader) -> None:
    document = world.add(len(world.exchanges), access, reader)
    known = world.model.own_groups(access.owner, access.groups)
    world.model.documents[document] = replace(access, groups=known)
    world.ingestor.process_pending()


@pytest.mark.parametrize("seed", [1, 2, 3, pytest.param(4, marks=pytest.mark.slow)])
def test_every_query_agrees_with_the_model(world: World, reader: Reader, seed: int) -> None:
    dice = random.Random(seed)
    check(world, synced=True)
    for _ in range(60 if seed == 4 else 12):
        for _ in range(3):
            step(world, dice, reader)
        check(world)
        world.ingestor.index.sync()
        check(world, synced=True)


OPEN, OWNER_ONLY = "(1 OR ? = '')", "(access.owner = ?)"


@pytest.mark.parametrize(
    ("place", "mutant"),
    [
        ("rag.documents.FINDABLE", OPEN),
        ("rag.documents.READABLE", "(1 OR ?1 = '')"),
        ("rag.chunk_edits.READABLE", "(1 OR ?1 = '')"),
        ("rag.passages._READY", "all"),
        ("rag.passages.OWN", "access.visibility != 'everybody' AND access.owner = ?"),
        ("rag.passages.SHARED", "1"),
    ],
)
def test_the_check_sees_a_clause_that_is_dropped(
    world: World, monkeypatch: pytest.MonkeyPatch, place: str, mutant: str
) -> None:
    import rag.passages

    if mutant == "all":
        mutant = f"{rag.passages._ALL} AND {OPEN}"
    monkeypatch.setattr(place, mutant)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        check(world)


@pytest.mark.parametrize("mutant", [OPEN, OWNER_ONLY])
def test_the_check_sees_it_dropped_from_the_search_by_words(
    world: World, monkeypatch: pytest.MonkeyPatch, mutant: str
) -> None:
    monkeypatch.setattr("rag.passages.FINDABLE", mutant)
    with pytest.raises(AssertionError):
        check(world)


@pytest.mark.parametrize("forgetful", ["rag.groups", "rag.approval", "rag.documents"])
def test_the_check_sees_a_change_that_is_not_counted(
    world: World, reader: Reader, monkeypatch: pytest.MonkeyPatch, forgetful: str
) -> None:
    """What is kept in memory holds until `chunks_version` grows."""
    check(world)
    monkeypatch.setattr(f"{forgetful}.bump_version", lambda connection: None)
    document = only(world, Access(OPERATOR, "owner", groups=("sales",))).id
    match forgetful:
        case "rag.groups":
            change_group(world, "sales", ANNA, "leave")
        case "rag.approval":
            show(world, document, "owner", ())
        case "rag.documents":
            replace_with(world, Access(BEN, "owner", groups=("sales",)), reader)
    with pytest.raises(AssertionError):
        check(world)


def test_a_removed_group_leaves_documents_to_their_owner(world: World) -> None:
    world.groups.remove("sales")
    world.groups.remove("legal")
    found = world.ingestor.passages
    private = [d for d in world.ingestor.documents.list() if d.visibility == "owner"]
    assert private
    for document in private:
        assert document.access.groups == ()
        for viewer in set(VIEWERS) - {document.owner}:
            assert world.ingestor.documents.hidden([document.id], viewer) == {document.id}
    world.groups.create("sales")  # the name again is another group
    world.groups.change("sales", [ANNA])
    assert {p.document_id for p in found.get(range(1, 99), ANNA).values()} == {
        d.id for d in world.ingestor.documents.list() if d.access.reaches(ANNA)
    }


def test_what_the_operator_alone_may_do(world: World) -> None:
    for refused in (
        lambda: world.groups.create("mine", ANNA),
        lambda: world.groups.remove("sales", ANNA),
        lambda: world.groups.change("sales", [BEN], actor=BEN),
    ):
        with pytest.raises(ConflictError, match="operator"):
            refused()
    assert world.groups.all()[-1] == Group("sales", (ANNA, OPERATOR), 4)


@pytest.mark.parametrize("name", ["", "  ", "x" * 61])
def test_names_that_are_none(world: World, name: str) -> None:
    with pytest.raises(ConflictError, match="1 to 60"):
        world.groups.create(name)


@pytest.mark.parametrize("account", ["", "anna", "api:", "local ", "api:a\nb"])
def test_accounts_that_are_none(world: World, account: str) -> None:
    with pytest.raises(ConflictError, match="is no account"):
        world.groups.change("sales", [BEN, account])
    assert BEN not in world.groups.all()[-1].members


def test_unknown_groups(world: World) -> None:
    with pytest.raises(NotFoundError):
        world.groups.remove("none")
    with pytest.raises(NotFoundError):
        world.groups.change("none", [ANNA])
    document = only(world, Access(ANNA, "owner", groups=("sales",)))
    for groups in (["none"], ["legal"], ["sales", "legal"]):  # Anna is not in legal
        with pytest.raises(NotFoundError):
            Approval(world.database).show_to(document.id, "owner", ANNA, groups)
    with pytest.raises(ConflictError, match="every group"):
        Approval(world.database).show_to(document.id, "everybody", ANNA, ["sales"])
    assert world.ingestor.documents.get(document.id).access == document.access


def only(world: World, access: Access) -> Document:
    [found] = [d for d in world.ingestor.documents.list() if d.access == access]
    return found


def test_a_hint_of_the_same_text_names_no_document_that_a_member_may_not_see(
    world: World, reader: Reader
) -> None:
    secret, given = Access(ANNA, "owner"), Access(ANNA, "owner", groups=("sales",))
    for name, access in (("secret.md", secret), ("b.md", given)):
        world.ingestor.documents.add(name, f"# {name}\n\nSame words.".encode(), "upload", reader, access)
    assert next(d for d in world.ingestor.documents.list(OPERATOR) if d.name == "b.md").same_as == ""


def test_the_queue_keeps_groups_and_forgets_those_removed(world: World) -> None:
    queue = world.ingestor.queue
    entry = queue.put("q.md", b"# Q\n\nQueued words.", OPERATOR, "owner", ("sales", "legal"))
    assert entry.group_names == ("legal", "sales")
    assert queue.put("q.md", b"# Q\n\nQueued words.", OPERATOR, "owner", ["legal", "sales"]).id == entry.id
    queue.put("r.md", b"# R\n\nWords of Ben.", BEN, "owner", ["sales"])  # of which he is no member
    world.groups.remove("legal")
    world.ingestor.drain()
    found = {document.name: document.access for document in world.ingestor.documents.list()}
    assert found["q.md"] == Access(OPERATOR, "owner", "approved", ("sales",))
    assert found["r.md"] == Access(BEN, "owner", "waiting")


def test_a_files_new_version_is_given_to_the_groups_of_the_old_one(world: World) -> None:
    both = only(world, Access(OPERATOR, "owner", groups=("legal", "sales")))
    one = only(world, Access(OPERATOR, "owner", groups=("sales",)))
    none, shared = only(world, Access(OPERATOR, "owner")), only(world, Access())
    store = world.ingestor.documents
    assert kept_access(store, [both.id]) == both.access
    assert kept_access(store, [both.id, one.id, shared.id]) == one.access
    assert kept_access(store, [both.id, none.id]) == none.access
    assert kept_access(store, [shared.id]) == Access()


def test_a_document_deleted_and_added_again_is_given_to_nobody(world: World, reader: Reader) -> None:
    document = only(world, Access(OPERATOR, "owner", groups=("sales",)))
    data = world.ingestor.documents.original(document.id, OPERATOR)
    world.ingestor.delete(document.id)
    again = world.ingestor.documents.add("1.md", data, "upload", reader, Access(OPERATOR, "owner"))
    assert again.id == document.id
    assert again.access.groups == ()
