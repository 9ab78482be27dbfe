"""Why an answer came out so, and a follow-up, in a real browser."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.app.site import Site
from tests.app.test_browser import CHROMIUM, Visit, ask, browser, visit

__all__ = ["browser", "visit"]  # fixtures
pytestmark = pytest.mark.skipif(not Path(CHROMIUM).exists(), reason=f"{CHROMIUM} is not installed")


def test_why_shows_the_prompt_of_a_follow_up(running: Site, visit: Visit) -> None:
    page = visit.page
    page.goto(running.url)
    ask(page, "What is the notice period?")
    page.get_by_text("Why this answer").nth(0).wait_for()
    ask(page, "And for juniors?")
    page.get_by_text("Why this answer").nth(1).wait_for()
    page.get_by_text("Why this answer").nth(1).click()
    popover = page.get_by_test_id("stPopoverBody")
    popover.get_by_text("Searched for: And for juniors? (notice period)").wait_for()
    popover.get_by_text("Passages the model read").wait_for()
    assert "Loaded " in popover.inner_text()
    popover.get_by_text("The whole prompt").click()
    prompt = popover.get_by_test_id("stCode").nth(1)
    prompt.scroll_into_view_if_needed()
    visit.shot("why")
    text = prompt.inner_text()
    assert text.startswith("Question: And for juniors? (notice period)")
    assert "Employee Handbook > Leaving\n[1] The notice period is 30 days." in text
    assert not visit.outside
    assert not visit.alarms
