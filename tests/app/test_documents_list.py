"""The list on the Documents page: filters with counts, pages, decisions on all that is shown, retries."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from streamlit.testing.v1 import AppTest

from app import list_view
from app.resources import USER, Resources
from core.settings import PROJECT
from rag.access import Access
from rag.approval import Approval
from rag.documents import Document
from rag.sources import Source, SourceStore
from rag.versions import Earlier, Version
from tests.app.test_pages import click, open_page, parts, shown

__all__ = ["parts"]


@pytest.fixture
def made(parts: Resources, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Document]]:
    """Five documents that wait for approval, and no worker that would go on."""
    monkeypatch.setattr(parts.jobs, "submit", lambda *_, **__: None)
    found = [
        parts.documents.add(f"row{n}.md", b"# Row %d\n\nRow." % n, "upload", access=waiting())
        for n in range(5)
    ]
    yield found
    for document in found:
        if parts.documents.find(document.id):
            parts.documents.delete(document.id)


def waiting() -> Access:
    return Access("api:rose", "everybody", "waiting")


def choose(at: AppTest, name: str) -> AppTest:
    at.segmented_control(key=list_view.FILTER).set_value(name).run()
    assert not at.exception
    return at


def rows(at: AppTest) -> list[str]:
    """The ids of the documents that are listed."""
    keys = [str(button.key) for button in at.button]
    return [key.removeprefix("read-") for key in keys if key.startswith("read-")]


def labels(at: AppTest) -> list[str]:
    return list(at.segmented_control(key=list_view.FILTER).options)


def test_filters_count_and_say_when_there_is_nothing(parts: Resources, made: list[Document]) -> None:
    parts.documents.fail(made[0].id, "It is *broken*.")
    at = open_page("documents")
    total = len(parts.documents.list(USER))
    assert f"All ({total})" in labels(at)
    assert "Waiting for approval (5)" in labels(at)
    assert set(rows(choose(at, "waiting"))) == {document.id for document in made}
    assert made[0].id in rows(choose(at, "problems"))
    assert made[1].id not in rows(at)
    assert "No document was rejected" in shown(choose(at, "rejected"))
    assert rows(at) == []
    assert "No document has a passage that is switched off" in shown(choose(at, "off"))
    at.text_input(key=list_view.WANTED).set_value("ROW3").run()
    assert "Waiting for approval (1)" in labels(at)
    assert "None of these documents is called that" in shown(at)
    assert rows(choose(at, "waiting")) == [made[3].id]


def test_pages(parts: Resources, made: list[Document], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(list_view, "LISTED", 2)
    at = choose(open_page("documents"), "waiting")
    first = rows(at)
    assert "1 to 2 of 5" in shown(at)
    at.pagination(key=list_view.PAGE).set_value(3).run()
    assert "5 to 5 of 5" in shown(at)
    assert len(rows(at)) == 1
    assert not set(rows(at)) & set(first)
    assert rows(choose(at, "all"))  # another filter begins at its first page
    assert "1 to 2 of" in shown(at)


def test_all_that_is_shown_is_decided_and_taken_back(
    parts: Resources, made: list[Document], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(list_view, "LISTED", 3)
    at = choose(open_page("documents"), "waiting")
    now, others = rows(at), {document.id for document in made}
    others -= set(now)
    click(at, "Approve all 3 shown")
    assert "added by api:rose" in shown(at).replace("\\", "")
    assert approvals(parts, now) == {"waiting"}  # asked first
    at.button(key="decide_yes").click().run()
    assert approvals(parts, now) == {"approved"}
    assert approvals(parts, others) == {"waiting"}
    assert "3 documents were approved" in shown(at)
    assert "Waiting for approval (2)" in labels(at)
    assert set(rows(at)) == others  # the filter stays although its label has changed
    Approval(parts.database).reject(now[0], USER)  # decided by itself since: undoing leaves it
    at.button(key="undo_decided").click().run()
    assert approvals(parts, now[:1]) == {"rejected"}
    assert approvals(parts, now[1:]) == {"waiting"}
    assert "were approved" not in shown(at)
    click(at, "Reject all 3 shown")
    at.button(key="decide_yes").click().run()
    assert "Rejected (4)" in labels(at)
    at.button(key="close_decided").click().run()
    assert "were rejected" not in shown(at)
    assert not any(str(button.key).startswith("all-") for button in choose(at, "rejected").button)


def approvals(parts: Resources, ids: list[str] | set[str]) -> set[str]:
    return {parts.documents.get(document_id).approval for document_id in ids}


def test_a_failed_document_is_read_again_by_the_worker(
    parts: Resources, made: list[Document], monkeypatch: pytest.MonkeyPatch
) -> None:
    def parsed(*_: object, **__: object) -> None:
        raise AssertionError("the page parses")

    parts.documents.fail(made[0].id, "It is broken.")
    monkeypatch.setattr("rag.reader.Reader.read_chunks", parsed)
    at = choose(open_page("documents"), "problems")
    at.button(key=f"retry-{made[0].id}").click().run()
    assert not at.exception
    [entry] = [one for one in parts.queue.list() if one.again == made[0].id]
    assert (entry.status, entry.owner, entry.name) == ("waiting", "api:rose", "row0.md")
    assert parts.documents.get(made[0].id).status == "failed"
    assert at.button(key=f"retry-{made[0].id}").disabled
    parts.queue.cancel(entry.id)
    at.run()
    assert not at.button(key=f"retry-{made[0].id}").disabled
    click(at, "Clear what is finished")


def test_an_earlier_version_says_why_it_still_answers(parts: Resources, made: list[Document]) -> None:
    sources = SourceStore(parts.database, "/nowhere")
    kept = Version(made[0].id, made[0].name, made[0].created_at)
    row = Source("row0.md", (0, 0, 0), "", (), "It is *broken*.", "2")
    assert sources.replace(row, [Earlier(kept, error=row.error)])
    at = choose(open_page("documents"), "problems")
    assert made[0].id in rows(at)
    told = f"The new version could not be read: It is *broken*. The version of {kept.date} goes on answering."
    assert told in shown(at).replace("\\", "")
    sources.remove(["row0.md"])
    assert made[0].id not in rows(choose(open_page("documents"), "problems"))


def test_the_list_has_one_place() -> None:
    """Only `rag.listing` counts and pages: the page would read every document's text otherwise."""
    for name in ("documents_page", "list_view", "queue_view"):
        assert "documents.list(" not in (PROJECT / "app" / f"{name}.py").read_text("utf-8")
