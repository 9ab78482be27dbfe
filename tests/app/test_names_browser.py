"""Every button has a name that a screen reader can say, and no two that do different things have the same."""

from __future__ import annotations

from collections import Counter
from typing import Any

from core.db import Database
from feedback.store import FeedbackStore
from rag.access import Access
from rag.documents import DocumentStore
from rag.groups import Groups
from rag.queue import Queue
from tests.app.site import Site
from tests.app.test_browser import CHROMIUM, Visit, browser, hostile_answer, pytestmark, visit

__all__ = ["CHROMIUM", "browser", "pytestmark", "visit"]

BUTTONS = {"button", "DisclosureTriangle"}


def names(visit: Visit) -> Counter[str]:
    """The accessible name of every button on the page, as Chromium computes it."""
    session = visit.page.context.new_cdp_session(visit.page)
    nodes: list[dict[str, Any]] = session.send("Accessibility.getFullAXTree")["nodes"]
    session.detach()
    return Counter(
        str(node.get("name", {}).get("value", "")).strip()
        for node in nodes
        if not node.get("ignored") and node.get("role", {}).get("value") in BUTTONS
    )


def check(visit: Visit) -> Counter[str]:
    found = names(visit)
    assert found
    unnamed = [name for name in found if not name or (name.endswith(" icon") and len(name.split()) == 2)]
    assert unnamed == []
    # "Open" is the arrow in Streamlit's own select boxes, which have a name themselves
    assert [name for name, times in found.items() if times > 1 and name != "Open"] == []
    return found


def test_every_button_says_what_it_does_and_to_what(running: Site, visit: Visit) -> None:
    database, settings = Database(running.settings.database), running.settings
    documents = DocumentStore(database, settings)
    planted = documents.add(
        "plan [x](y).md", b"# Plan\n\nThe plan.", "upload", access=Access("api:eve", approval="waiting")
    )
    queue = Queue(database, documents, settings)
    for name in ("one.bin.md", "two.bin.md"):
        queue.cancel(queue.put(name, name.encode()).id)
    for name in ("sales", "legal"):
        Groups(database).create(name)
    store = FeedbackStore(database)
    conversation = store.start_conversation("local", "Which plan?")
    for asked in ("Which plan?", "Which other plan?"):
        exchange = store.record(conversation, "local", asked, hostile_answer(asked, planted.id))
        store.correct(exchange, "local", f"The answer to: {asked}")
    page = visit.page
    page.goto(f"{running.url}/documents")
    page.locator("[class*=st-key-queue-]", has_text="two.bin.md").wait_for()
    page.get_by_text("Groups of accounts").click()
    page.get_by_role("button", name="Remove legal").wait_for()
    page.locator(f".st-key-delete-{planted.id}").first.wait_for()
    visit.shot("names-documents")
    found = check(visit)
    for what in ("Read the text", "Passages", "Delete", "Reject: nobody finds it"):
        assert any(name.startswith(f"{what}: plan [x](y).md") for name in found), what
    page.get_by_role("button", name="Passages: handbook.md").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("button", name="Switch off").first.wait_for()
    check(visit)
    page.keyboard.press("Escape")
    dialog.wait_for(state="hidden")
    page.goto(f"{running.url}/?c={conversation}")
    page.get_by_role("button", name="Why this answer").nth(1).wait_for()
    check(visit)
    page.goto(f"{running.url}/training")
    page.locator("[class*=st-key-pending-]", has_text="Which other plan?").wait_for()
    check(visit)
    for path, heading in (("adapters", "Adapters"), ("search", "Search")):
        page.goto(f"{running.url}/{path}")
        page.get_by_role("heading", name=heading, exact=True).wait_for()
        page.wait_for_timeout(500)
        check(visit)
    assert visit.outside == []
    documents.delete(planted.id)
    for name in ("sales", "legal"):
        Groups(database).remove(name)
    queue.clear()
    database.close()
