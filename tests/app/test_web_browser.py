"""The web form in a real browser with real processes: a site on loopback becomes documents, as text alone."""

from __future__ import annotations

import re
from pathlib import Path

from tests.app.site import site
from tests.app.test_browser import Visit, browser, check_inert, pytestmark, visit
from tests.rag.webs import page as web_page
from tests.rag.webs import serving

__all__ = ["browser", "pytestmark", "visit"]


def test_a_site_is_fetched_from_the_page(tmp_path: Path, visit: Visit) -> None:
    with serving() as web:
        web.table = {
            "/docs/": web_page("Garden", "The garden opens at eight.", "fees"),
            "/docs/fees": web_page("Fees <img src=x onerror=alert(1)>", "Parking costs 3 EUR."),
        }
        hosts = f"127.0.0.1:{web.port}"
        with site(tmp_path / "data", UNDERSTUDY_CRAWL="true", UNDERSTUDY_CRAWL_HOSTS=hosts) as running:
            page = visit.page
            page.goto(f"{running.url}/documents")
            page.get_by_text("Web pages", exact=True).click()
            page.get_by_label("Address").fill("http://169.254.169.254/")
            page.get_by_role("button", name="Fetch", exact=True).click()
            page.get_by_text(re.compile("is not a public one")).wait_for()
            page.get_by_label("Address").fill(f"{web.address}/docs/")
            page.get_by_role("button", name="Fetch", exact=True).click()
            page.get_by_text(re.compile("2 pages seen, 2 added or updated")).wait_for()
            visit.shot("web-form")
            page.get_by_text("2 ready").wait_for(timeout=120_000)
            page.get_by_text("Garden.html").wait_for()
            check_inert(visit)
            visit.shot("web-documents")
