"""The pages in a real browser: the loop a person walks; nothing shown can call home (rows S11, S12, W08)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from core.db import Database
from core.types import Answer, Citation, Passage, Unit
from engine.scripted import SLOTS
from feedback.store import FeedbackStore
from rag.model import client_of
from tests.app.payloads import PAYLOADS
from tests.app.site import Site, site

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Dialog, Page

CHROMIUM = "/usr/bin/chromium"
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--no-first-run",
]  # fmt: skip
SHOTS = os.environ.get("TEST_SHOTS", "")
THUMBS = "[class*=st-key-vote-] button"
PATIENCE = 90_000  # ms; two cores may be busy with other things

pytestmark = pytest.mark.skipif(not Path(CHROMIUM).exists(), reason=f"{CHROMIUM} is not installed")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


@dataclass
class Visit:
    """A page that notes everything it should not do."""

    page: Page
    outside: list[str] = field(default_factory=list)
    alarms: list[str] = field(default_factory=list)

    def shot(self, name: str) -> None:
        """Keep a picture when somebody wants to look."""
        if SHOTS:
            self.page.screenshot(path=f"{SHOTS}/{name}.png")


@pytest.fixture
def visit(browser: Browser, request: pytest.FixtureRequest) -> Iterator[Visit]:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    noted = Visit(page)

    def requested(url: str) -> None:
        if not re.match(r"(http|ws)://127\.0\.0\.1:\d+/|data:|blob:", url):
            noted.outside.append(url)

    def alarm(dialog: Dialog) -> None:
        noted.alarms.append(dialog.message)
        dialog.dismiss()

    context.on("request", lambda request: requested(request.url))
    context.on("page", lambda extra: noted.alarms.append(f"window {extra.url}"))
    page.on("websocket", lambda socket: requested(socket.url))
    page.on("dialog", alarm)
    noted.alarms.clear()
    yield noted
    noted.shot(f"last-{request.node.name}")
    context.close()


def ask(page: Page, question: str) -> None:
    page.get_by_test_id("stChatInputTextArea").fill(question)
    page.keyboard.press("Enter")


def test_the_loop_of_one_answer(running: Site, visit: Visit) -> None:
    """Ask, watch it stream, open the source, vote down, correct, approve on the Training page."""
    page = visit.page
    page.goto(running.url)
    page.get_by_role("heading", name="Ask your documents").wait_for()
    visit.shot("empty")
    ask(page, "What is the notice period? Tell me slowly.")
    stop = page.get_by_role("button", name="Stop", exact=True)
    stop.wait_for()
    answer = page.get_by_test_id("stChatMessage").last
    page.wait_for_function(
        "n => document.querySelectorAll('[data-testid=stChatMessage]')[1]?.innerText.includes(n)",
        arg="30 days",
    )
    early = answer.inner_text()
    visit.shot("streaming")
    page.wait_for_function(
        "n => document.querySelectorAll('[data-testid=stChatMessage]')[1].innerText.length > n",
        arg=len(early) + 20,
    )
    assert stop.is_visible()  # it grew while it was still being written
    page.get_by_role("button", name="Why this answer").wait_for()
    visit.shot("answer")

    page.get_by_role("button", name=re.compile(r"\[1\] Employee Handbook › Leaving")).click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_text("Send the letter to the office").wait_for()
    marked = dialog.locator("span.stMarkdownColoredBackground")
    assert marked.first.inner_text() == "The notice period is 30 days."
    visit.shot("source")
    page.keyboard.press("Escape")
    dialog.wait_for(state="hidden")

    page.get_by_role("button", name="Why this answer").click()
    page.get_by_text("Passages the model read").wait_for()
    visit.shot("why")
    page.keyboard.press("Escape")

    page.locator(THUMBS).nth(1).click()
    page.get_by_text("badly written", exact=True).click()
    page.get_by_label("What should it have said?").fill("The notice period is 30 days, in writing.")
    page.get_by_role("button", name="Save correction").click()
    page.get_by_text("From now on you get this correction").wait_for()
    visit.shot("corrected")

    page.get_by_role("link", name="Training").click()
    card = page.locator("[class*=st-key-pending-]", has_text="in writing")
    card.wait_for()
    visit.shot("review")
    card.get_by_role("button", name="Approve").click()
    card.wait_for(state="detached")
    page.get_by_role("link", name="Chat").click()
    ask(page, "What is the notice period? Tell me slowly.")
    page.get_by_text("Reviewed correction").wait_for()
    assert visit.outside == []
    assert visit.alarms == []


def test_stop_keeps_what_had_arrived(running: Site, visit: Visit) -> None:
    page = visit.page
    page.goto(running.url)
    ask(page, "How long is the notice, slowly and again?")
    page.wait_for_function(
        "() => document.querySelectorAll('[data-testid=stChatMessage]')[1]?.innerText.includes('30 days')"
    )
    page.get_by_role("button", name="Stop", exact=True).click()
    page.get_by_text("Stopped").first.wait_for()
    assert page.locator(THUMBS).count() == 0  # nobody votes on half an answer
    page.reload()
    page.get_by_text("Stopped").first.wait_for()
    visit.shot("stopped")


def test_who_waits_sees_the_place_in_the_line(running: Site, visit: Visit) -> None:
    page = visit.page
    page.goto(running.url)
    ask(page, "What is the notice period?")  # now everything is loaded
    page.get_by_role("button", name="Why this answer").wait_for()
    client = client_of(running.settings)
    others = [client.stream([{"role": "user", "content": "slowly"}]) for _ in range(SLOTS)]
    for stream in others:
        next(stream)
    ask(page, "How many days of holiday are there, please?")
    page.get_by_text("Place 1 in the line").wait_for()
    visit.shot("waiting")
    for stream in others:
        stream.close()
    client.close()
    page.get_by_text("Everybody has 28 days of holiday a year").first.wait_for()
    page.get_by_role("button", name="Why this answer").nth(1).wait_for()
    assert page.get_by_text("in the line").count() == 0


def test_the_engine_dies_and_the_question_is_kept(running: Site, visit: Visit) -> None:
    page = visit.page
    page.goto(running.url)
    ask(page, "How long until the engine crashes?")
    page.get_by_text("The model is restarting").wait_for()
    visit.shot("restarting")
    page.get_by_text("Cut off: the model stopped").wait_for()
    assert page.locator(THUMBS).count() == 0
    ask(page, "What is the notice period?")
    page.get_by_role("button", name="Why this answer").wait_for()


def test_the_other_pages(running: Site, visit: Visit) -> None:
    page = visit.page
    for width, name in ((1280, "desktop"), (390, "phone")):
        page.set_viewport_size({"width": width, "height": 860})
        for path, heading in (("documents", "Documents"), ("training", "Training"), ("adapters", "Adapters")):
            page.goto(f"{running.url}/{path}")
            page.get_by_role("heading", name=heading, exact=True).wait_for()
            page.wait_for_timeout(500)
            visit.shot(f"{name}-{path}")
            wide = page.evaluate(
                "document.documentElement.scrollWidth - document.documentElement.clientWidth"
            )
            assert wide <= 0, f"{path} scrolls sideways on a {name}"
    assert visit.outside == []


def hostile_answer(text: str, document_id: str) -> Answer:
    """An answer in which everything that the pages show is hostile."""
    unit = Unit(1, text, 0, len(text))
    passage = Passage(1, document_id, text, text, 1, 0, len(text), text, (unit,), {text[:20]: 1.0})
    citation = Citation(1, 1, document_id, text, text, 1, 0, len(text), text)
    return Answer(
        text=text, raw=text, mode="answer", citations=(citation,), passages=(passage,),
        messages=({"role": "user", "content": text},), model=text, adapter=text, prompt_version=text,
        supported=True, finish_reason="stop", sampling={}, timings={"total_ms": 1.0},
    )  # fmt: skip


def test_a_hostile_model_streams_only_text(running: Site, visit: Visit) -> None:
    """What the model writes is drawn at every token, so half-finished markup must be inert too."""
    page = visit.page
    page.goto(running.url)
    ask(page, "Tell me everything hostile about the notice period.")
    for _ in range(20):
        page.wait_for_timeout(100)
        check_inert(visit)
    page.get_by_role("button", name="Why this answer").wait_for()
    check_inert(visit)


def test_the_password_is_asked_for_first(tmp_path: Path, visit: Visit) -> None:
    password = "a long test password"
    with site(tmp_path / "data", UNDERSTUDY_PASSWORD=password) as locked:
        page = visit.page
        page.goto(f"{locked.url}/documents")
        page.get_by_label("Password").fill("a wrong password")
        page.get_by_role("button", name="Log in").click()
        page.get_by_text("That is not the password.").wait_for()
        visit.shot("login")
        page.get_by_label("Password").fill(password)
        page.get_by_role("button", name="Log in").click()
        page.get_by_role("heading", name="Ask your documents").wait_for()
        page.reload()  # a reload does not ask again
        page.get_by_role("heading", name="Ask your documents").wait_for()
        models = f"{locked.url}/v1/models"
        assert httpx.get(models, trust_env=False).status_code == 401
        key = {"authorization": f"Bearer {password}"}
        assert httpx.get(models, headers=key, trust_env=False).status_code == 200
        page.goto(f"{locked.url}/logout")
        page.get_by_label("Password").wait_for()


def test_nothing_shown_can_call_home_or_run(running: Site, visit: Visit) -> None:
    """Sixty Markdown and HTML variants in every place that shows what a model, document or user wrote."""
    database = Database(running.settings.database)
    store = FeedbackStore(database)
    document = running_document(running, database)
    conversation = store.start_conversation("local", PAYLOADS[0])
    step = 10
    groups = ["\n\n".join(PAYLOADS[at : at + step]) for at in range(0, len(PAYLOADS), step)]
    exchanges = [
        store.record(conversation, "local", text, hostile_answer(text, document if number == 0 else "gone"))
        for number, text in enumerate(groups)
    ]
    store.correct(exchanges[0], "local", "\n\n".join(PAYLOADS))
    page = visit.page
    page.goto(f"{running.url}/?c={conversation}")
    page.get_by_role("button", name="Why this answer").nth(len(groups) - 1).wait_for()
    page.wait_for_timeout(1500)
    visit.shot("hostile")
    for number in range(len(groups)):
        page.get_by_role("button", name="Why this answer").nth(number).click()
        page.get_by_text("Passages the model read").last.wait_for()
        page.keyboard.press("Escape")
    for exchange in exchanges[:2]:  # the first one's document is there, the second one's is gone
        page.locator(f".st-key-cite-{exchange}-1 button:visible").first.click()
        page.get_by_role("dialog").wait_for()
        page.wait_for_timeout(700)
        check_inert(visit)
        page.keyboard.press("Escape")
        page.get_by_role("dialog").wait_for(state="hidden")
    check_inert(visit)
    page.goto(f"{running.url}/training")
    page.locator("[class*=st-key-pending-]").first.wait_for()
    page.get_by_text("The passages that were shown").first.click()
    page.wait_for_timeout(700)
    check_inert(visit)
    page.goto(f"{running.url}/documents")
    page.locator(f".st-key-read-{document} button:visible").first.click()
    page.get_by_role("dialog").wait_for()
    page.wait_for_timeout(700)
    visit.shot("hostile-document")
    check_inert(visit)
    database.close()


def running_document(running: Site, database: Database) -> str:
    """A stored document whose name and text are hostile."""
    from rag.documents import DocumentStore

    text = "\n\n".join(PAYLOADS).encode("utf-8", "replace")
    return (
        DocumentStore(database, running.settings).add("<img src=x onerror=alert(9)>.txt", text, "upload").id
    )


def check_inert(visit: Visit) -> None:
    """No request left, nothing ran, and no element that could load or run something stands in the page."""
    assert visit.outside == []
    assert visit.alarms == []
    # but for what images are called, which is only read out
    found = visit.page.evaluate(
        "() => [...document.querySelectorAll('[data-testid=stMarkdownContainer] :is(img, a, script, iframe,"
        " svg, link, style, form, object, embed, video, audio, base, meta, math)')].map(n => {"
        " const own = n.cloneNode(true); own.removeAttribute('alt'); return own.outerHTML; })"
    )
    harmless = re.compile(r"<img[^>]*src=\"data:|<svg[^>]*class=\"[^\"]*(?:icon|Icon)")
    assert [html for html in found if "sink" in html or not harmless.match(html)] == []
