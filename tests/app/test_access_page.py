"""Hidden and unapproved documents through pages and API: nothing of them reaches anybody else."""

from __future__ import annotations

import httpx
import pytest
from streamlit.testing.v1 import AppTest

from app.asking import Question, corrected_answer
from app.documents_page import enqueue
from app.resources import USER, Resources
from core.errors import NotFoundError
from rag.access import Access
from rag.documents import Document
from rag.groups import Groups
from rag.ingest import Ingestor
from tests.app.site import Site, ask, until
from tests.app.test_pages import open_page, parts, shown

__all__ = ["parts"]

PRIVATE = "The notice period is 777 days for the marmalade department."
QUESTION = "What is the notice period for the marmalade department?"


def add(parts: Resources, name: str, text: str, access: Access) -> Document:
    document = parts.documents.add(name, text.encode(), "upload", access=access)
    searching = parts.assistant.retriever
    Ingestor(parts.settings, parts.database, searching.index, searching.embedder).process_pending()
    return parts.documents.get(document.id)


def leaked(text: str) -> bool:
    return "777 days" in text or "marmalade department" in text.replace(QUESTION, "")


def asked_over_api(running: Site, user: str) -> str:
    return str(ask(running, QUESTION, user=user)["understudy"])


def test_a_private_document_does_not_leak(parts: Resources, running: Site) -> None:
    document = add(parts, "marmalade.md", f"# Marmalade\n\n{PRIVATE}", Access("api:anna", "owner"))
    for user in ("", "ben", "local", "Anna", "api:anna"):
        assert not leaked(asked_over_api(running, user)), user
    assert leaked(asked_over_api(running, "anna"))
    at = open_page("documents")
    assert "marmalade" not in shown(at)
    at = open_page("search")
    at.text_input[0].set_value(QUESTION).run()
    assert not leaked(shown(at))
    with pytest.raises(NotFoundError):  # what the source view and the list ask
        parts.documents.text(document.id, USER)
    parts.documents.delete(document.id)


def test_a_correction_does_not_carry_a_private_document_along(parts: Resources, running: Site) -> None:
    document = add(parts, "marmalade.md", f"# Marmalade\n\n{PRIVATE}", Access("api:anna", "owner"))
    exchange = ask(running, QUESTION, user="anna")["understudy"]["exchange_id"]
    correction = parts.feedback.correct(exchange, "api:anna", PRIVATE)
    parts.review.approve(correction, USER)
    for user, found in (("api:anna", True), ("api:ben", False), (USER, False)):
        answer = corrected_answer(parts, Question("c", user, QUESTION))
        assert (answer is not None) is found, user
    assert exchange not in {judged[0].id for judged in parts.feedback.judged()}  # nor is it trained on
    parts.documents.delete(document.id)
    assert corrected_answer(parts, Question("c", "api:ben", QUESTION)) is None
    assert exchange not in {judged[0].id for judged in parts.feedback.judged()}


def test_the_operator_approves_and_rejects(
    parts: Resources, running: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted = Access("api:mallory", "everybody", "waiting")
    document = add(parts, "marmalade.md", f"# Marmalade\n\n{PRIVATE}", planted)
    assert not leaked(asked_over_api(running, "ben"))
    at = open_page("documents")
    assert "waits for approval" in shown(at)
    next(e for e in at.button if e.key == f"approve-{document.id}").click()
    at.run()
    assert parts.documents.get(document.id).approval == "approved"
    until(lambda: leaked(asked_over_api(running, "ben")), "everybody finds it")
    at = open_page("documents")
    next(e for e in at.button if e.key == f"reject-{document.id}").click()
    at.run()
    assert not leaked(asked_over_api(running, "ben"))
    assert not leaked(asked_over_api(running, "mallory"))
    parts.documents.delete(document.id)


def test_the_operator_keeps_a_document_for_himself(parts: Resources, running: Site) -> None:
    document = add(parts, "marmalade.md", f"# Marmalade\n\n{PRIVATE}", Access())
    assert leaked(asked_over_api(running, "ben"))
    assert "only you" in shown(choose(document, "Only you"))
    assert not leaked(asked_over_api(running, "ben"))
    assert httpx.get(f"{running.url}/health", trust_env=False).status_code == 200
    choose(document, "Everybody")
    assert parts.documents.get(document.id).visibility == "everybody"
    parts.documents.delete(document.id)


def test_a_file_uploaded_again_goes_to_those_chosen_now(parts: Resources, running: Site) -> None:
    document = add(parts, "marmalade.md", f"# Marmalade\n\n{PRIVATE}", Access())
    data = f"# Marmalade\n\n{PRIVATE}".encode()
    [(accepted, text)] = enqueue(parts, [("marmalade.md", data)], "owner")
    assert accepted
    assert "who may find it was changed" in text
    assert parts.documents.get(document.id).access == Access(USER, "owner")
    assert not leaked(asked_over_api(running, "ben"))
    assert enqueue(parts, [("marmalade.md", data)], "owner")[0][1].endswith("in the collection already.")
    parts.documents.delete(document.id)


def choose(document: Document, who: str, *groups: str) -> AppTest:
    """Say on the Documents page who may find a document."""
    at = open_page("documents")
    at.button(key=f"who-{document.id}").click().run()
    at.radio(key=f"choose-{document.id}-who").set_value(who)
    if groups:  # AppTest redraws the whole page, which closes the dialog before it shows the groups
        at.session_state[f"choose-{document.id}-groups"] = list(groups)
    at.button(key="choose_save").click().run()
    assert not at.exception
    return at


def test_a_group_finds_what_is_given_to_it(parts: Resources, running: Site) -> None:
    """Made, filled, changed and removed on the page; each change counts at the next question."""
    document = add(parts, "marmalade.md", f"# Marmalade\n\n{PRIVATE}", Access())
    at = open_page("documents")
    at.text_input(key="new_group_name").set_value("jam [team](http://x.example)")
    next(button for button in at.button if button.label == "Make group").click().run()
    [group] = Groups(parts.database).all()
    members = f"members-{group.name}"
    at.multiselect(key=members).set_value(["api:dora"]).run()
    assert Groups(parts.database).all()[0].members == ("api:dora",)
    assert "only you" not in shown(choose(document, "Groups", group.name))
    assert parts.documents.get(document.id).access.groups == (group.name,)
    assert leaked(asked_over_api(running, "dora"))
    for user in ("", "emil", "local"):
        assert not leaked(asked_over_api(running, user)), user
    at = open_page("documents")
    at.multiselect(key=members).set_value(["api:emil", "nobody"]).run()
    assert "is no account" in shown(at)
    assert Groups(parts.database).all()[0].members == ("api:dora",)
    at.multiselect(key=members).set_value(["api:emil"]).run()
    assert not leaked(asked_over_api(running, "dora"))
    assert leaked(asked_over_api(running, "emil"))
    Groups(parts.database).change(group.name, leave=["api:emil"])  # elsewhere; this page still shows him
    at.multiselect(key=members).set_value(["api:emil", "api:fritz"]).run()
    assert Groups(parts.database).all()[0].members == ("api:fritz",)
    at.button(key=f"ungroup-{group.name}").click().run()
    assert "only you" in shown(open_page("documents"))
    assert not leaked(asked_over_api(running, "emil"))
    parts.documents.delete(document.id)
