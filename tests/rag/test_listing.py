"""The list of documents: filters, names, pages and counts agree with the plain list of all documents."""

from __future__ import annotations

import json

import pytest

from core.db import Database
from core.errors import ConflictError, NotFoundError
from core.settings import Settings
from rag.access import OPERATOR
from rag.approval import Approval
from rag.documents import DocumentStore
from rag.groups import Groups
from rag.listing import FILTERS, Listing, Totals
from rag.quality import warnings

ANNA, BEN = "api:anna", "api:ben"


@pytest.fixture
def store(database: Database, settings: Settings) -> DocumentStore:
    return DocumentStore(database, settings)


@pytest.fixture
def listing(database: Database) -> Listing:
    groups = Groups(database)
    groups.create("sales")
    groups.change("sales", [ANNA])
    rows = [
        # id, name, title, status, owner, visibility, approval, quality, text_hash, groups
        ("a", "plan.md", "Übersicht", "ready", OPERATOR, "everybody", "approved", {"pages": 3}, "h1", ()),
        ("b", "copy.md", "Plan", "ready", OPERATOR, "everybody", "approved", {}, "h1", ()),
        ("c", "scan.pdf", "Scan", "ready", OPERATOR, "everybody", "approved", {"unread_scans": 1}, "h2", ()),
        ("d", "broken.pdf", "", "failed", OPERATOR, "everybody", "approved", {}, "", ()),
        ("e", "offer.md", "Offer", "ready", ANNA, "everybody", "waiting", {"tables": 1}, "h3", ()),
        ("f", "mine.md", "Mine", "ready", ANNA, "owner", "waiting", {}, "h1", ()),
        ("g", "ours.md", "Ours", "ready", ANNA, "owner", "waiting", {}, "h5", ("sales",)),
        ("h", "spam.md", "Spam", "ready", BEN, "everybody", "rejected", {}, "h6", ()),
        ("i", "sales.md", "Sales", "pending", OPERATOR, "owner", "approved", {}, "h7", ("sales",)),
    ]
    with database.write() as connection:
        for number, (i, name, title, status, owner, visible, approval, quality, text, given) in enumerate(
            rows
        ):
            connection.execute(
                "INSERT INTO documents (id, name, kind, bytes, origin, status, text, created_at, updated_at,"
                " quality, text_hash) VALUES (?,?,'markdown',9,'upload',?,?,?,0,?,?)",
                (i, name, status, f"{title}\nText.", number // 2, json.dumps(quality), text),
            )
            connection.execute("INSERT INTO document_access VALUES (?,?,?,?)", (i, owner, visible, approval))
            connection.executemany(
                "INSERT INTO document_groups VALUES (?,?)", [(i, group) for group in given]
            )
            connection.execute(
                'INSERT INTO chunks (document_id, ordinal, heading, start, "end", text, vector, off)'
                " VALUES (?, 0, '', 0, 1, 'x', x'', ?)",
                (i, i == "b"),
            )
    return Listing(database)


def ids(listing: Listing, viewer: str, choice: str = "all", wanted: str = "") -> str:
    return "".join(document.id for document in listing.page(viewer, choice, wanted))


def test_filters_and_their_counts(listing: Listing, store: DocumentStore) -> None:
    found = {choice: "".join(sorted(ids(listing, OPERATOR, choice))) for choice in FILTERS}
    assert found == {"all": "abcdeghi", "waiting": "eg", "problems": "bcd", "rejected": "h", "off": "b"}
    for viewer in (OPERATOR, ANNA, BEN, ""):
        everything = store.list(viewer)
        assert listing.page(viewer) == everything  # in the same order
        assert listing.counts(viewer) == {choice: len(listing.page(viewer, choice)) for choice in FILTERS}
        problems = {d.id for d in everything if d.status == "failed" or warnings(d.quality, d.same_as)}
        assert set(ids(listing, viewer, "problems")) == problems
    assert listing.totals(OPERATOR) == Totals(8, 6, 6)
    assert listing.totals("api:nobody") == Totals(4, 3, 3)


def test_names_and_titles_are_found_whatever_the_case(listing: Listing) -> None:
    assert ids(listing, OPERATOR, wanted="ÜBER") == "a"
    assert sorted(ids(listing, OPERATOR, wanted="plan")) == ["a", "b"]
    assert ids(listing, OPERATOR, "problems", "pLAN") == "b"
    assert listing.counts(OPERATOR, "plan")["all"] == 2
    for odd in ("%", "_", "'", "nothing"):
        assert listing.counts(OPERATOR, odd)["all"] == 0


def test_pages_hold_everything_once(listing: Listing) -> None:
    order = ids(listing, OPERATOR)
    paged = [listing.page(OPERATOR, limit=3, offset=offset) for offset in (0, 3, 6, 9)]
    assert "".join(document.id for page in paged for document in page) == order
    for number, document_id in enumerate(order):
        after = "".join(document.id for document in listing.after(OPERATOR, document_id, 4))
        assert after == order[number + 1 : number + 5]
    assert listing.after(OPERATOR, "gone", 4) == []


def test_what_may_not_be_read_is_as_if_it_were_not_there(listing: Listing) -> None:
    assert listing.readable(OPERATOR, "f") is None
    assert listing.readable(BEN, "e") is None
    found = listing.readable(ANNA, "i")
    assert found is not None
    assert found.name == "sales.md"
    assert "f" not in ids(listing, OPERATOR)


def test_many_are_decided_at_once_and_taken_back(listing: Listing, database: Database) -> None:
    approval = Approval(database)
    with pytest.raises(ConflictError, match="Only a reviewer"):
        approval.decide_all(["e"], "waiting", "approved", ANNA)
    # f is for its owner alone, h was rejected already
    assert sorted(approval.decide_all(["e", "f", "g", "h"], "waiting", "approved", OPERATOR)) == ["e", "g"]
    assert listing.counts(OPERATOR)["waiting"] == 0
    assert listing.counts("api:nobody", "offer")["all"] == 1
    approval.reject("g", OPERATOR)
    assert approval.decide_all(["e", "g"], "approved", "waiting", OPERATOR) == ["e"]  # g was decided since
    assert (ids(listing, OPERATOR, "waiting"), sorted(ids(listing, OPERATOR, "rejected"))) == (
        "e",
        ["g", "h"],
    )
    assert listing.counts("api:nobody", "offer")["all"] == 0
    with database.read() as connection:
        last = connection.execute("SELECT action, detail FROM audit ORDER BY seq DESC LIMIT 1").fetchone()
    assert tuple(last) == ("document.waiting", "e")


def test_only_the_indices_decide_what_is_listed(listing: Listing, database: Database) -> None:
    """A row holds its document's whole text: reading all rows for a page would read the library."""
    from rag.listing import _FROM, _ORDER

    with database.read() as connection:
        for condition in FILTERS.values():
            rows = connection.execute(
                f"EXPLAIN QUERY PLAN SELECT documents.id {_FROM} AND {condition} {_ORDER} LIMIT 9",
                (OPERATOR, ""),
            )
            plan = [row["detail"] for row in rows]
            assert plan[0].startswith("SCAN documents USING")
            assert "documents_listed" in plan[0]
            assert not any("TEMP B-TREE FOR ORDER BY" in line for line in plan)


def test_members_alone_give_to_a_group(database: Database) -> None:
    groups = Groups(database)
    groups.create("sales")
    groups.change("sales", [ANNA])
    groups.require_member(ANNA, ["sales"])
    groups.require_member(BEN, [])
    for account, name in ((BEN, "sales"), (ANNA, "legal")):
        with pytest.raises(NotFoundError, match="no such group of yours"):
            groups.require_member(account, [name])
