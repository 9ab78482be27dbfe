"""The whole loop in a browser with the built-in model: vote, approve, train, and a new adapter answers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from app.demo import ROUNDS, ask_and_vote
from app.resources import Resources
from core.catalog import BUILTIN, installed
from core.files import read_jsonl
from core.settings import Settings
from rag.reader import Reader
from tests.app.site import Site, site, until
from tests.app.test_browser import Visit, ask, browser, visit

__all__ = ["browser", "visit"]  # fixtures
LONG = 900_000  # ms
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def samples_ready(resources: Resources) -> bool:
    documents = resources.documents.list()
    return bool(documents) and all(document.status == "ready" for document in documents)


def vote(running: Site) -> Resources:
    """What the users of the demonstration's first round do."""
    resources = Resources(running.settings)
    until(lambda: samples_ready(resources), "the samples", 300)
    notice = ROUNDS / "price-notice-2023.md"
    with Reader(resources.settings) as reader:
        resources.documents.add(notice.name, notice.read_bytes(), "upload", reader)
    resources.jobs.submit("ingest", once=True)
    until(lambda: samples_ready(resources), "the notice", 300)
    resources.assistant.warm()
    for row in read_jsonl(ROUNDS / "round1.jsonl"):
        ask_and_vote(resources, row)
    return resources


def test_a_run_started_in_the_browser_puts_a_new_adapter_under_the_next_answer(
    tmp_path: Path, visit: Visit
) -> None:
    if installed(Settings(data_dir=tmp_path), BUILTIN) is None:
        pytest.skip("the built-in model is not here")
    with site(tmp_path / "data", "--model", "builtin") as running:
        resources = vote(running)
        engine = running.part("engine")["pid"]
        page = visit.page
        page.goto(f"{running.url}/training")
        page.get_by_role("button", name=re.compile(r"Approve all \d+")).click()
        page.get_by_role("dialog").get_by_role("button", name="Approve all").click()
        page.get_by_text("No corrections wait.").wait_for()
        page.get_by_role("tab", name="Runs").click()
        page.get_by_role("button", name="Start training").click()
        page.get_by_role("button", name="Cancel").wait_for()
        page.locator("canvas, svg.marks").first.wait_for(timeout=LONG)  # the loss curve
        visit.shot("run-live")
        page.get_by_text("Finished runs").wait_for(timeout=LONG)
        visit.shot("run-report")
        stage = resources.registry.on_stage("builtin")
        assert stage is not None, "the gate refused it"
        assert stage.adapter_id is not None
        page.get_by_role("link", name="Chat").click()
        ask(page, "Which batteries do you refuse?")  # nobody corrected that one
        page.get_by_text(stage.adapter_id).first.wait_for()
        visit.shot("run-answer")
        assert running.part("engine")["pid"] == engine  # swapped in, not restarted
        page.goto(f"{running.url}/adapters")
        page.locator(".stMarkdownBadge", has_text="on stage").first.wait_for()
        visit.shot("run-adapters")
        page.get_by_role("button", name="Roll back").click()
        page.get_by_label("Why").fill("only a test")
        page.get_by_role("dialog").get_by_role("button", name="Roll back").click()
        page.get_by_role("heading", name="The bare base model").wait_for()
        resources.database.close()
