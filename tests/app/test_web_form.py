"""Web pages on the Documents page, driven by AppTest on a data folder of its own; the worker is played."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from app import resources as shared
from app.resources import Resources, resources
from core.jobs import Job, Jobs
from core.settings import PROJECT, load_settings
from core.types import Citation
from rag.documents import SYNCED, Document
from rag.sources import Source, SourceStore

SITE = "https://shop.example/docs/"
ADDRESS = f"{SITE}fees?a=1&b=*"


@pytest.fixture(params=[True])
def parts(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Resources]:
    monkeypatch.setenv("UNDERSTUDY_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("UNDERSTUDY_CRAWL", str(request.param))
    made = resources(load_settings())
    yield made
    made.database.close()
    shared._made.clear()


@pytest.fixture
def document(parts: Resources) -> Document:
    """A page that was crawled."""
    made = parts.documents.add("Fees.html", b"<h1>Fees</h1><p>Parking costs 3 EUR.</p>", SYNCED)
    rows = SourceStore(parts.database, SITE)
    rows.put(Source(ADDRESS, (1, 0, 0), "x", (made.id,), "", "1"))
    return made


def open_page() -> AppTest:
    at = AppTest.from_file(str(PROJECT / "app" / "main.py"), default_timeout=60).run()
    at.switch_page(str(PROJECT / "app" / "documents_page.py")).run()
    assert not at.exception
    return at


def shown(at: AppTest) -> str:
    kinds = ("markdown", "caption", "warning", "success")
    return "\n".join(str(getattr(element, "value", "")) for kind in kinds for element in at.get(kind))


def press(at: AppTest, label: str) -> AppTest:
    next(element for element in at.button if element.label.split("![")[0] == label).click()
    at.run()
    assert not at.exception
    return at


def queued(parts: Resources) -> list[Job]:
    return parts.jobs.list("crawl")


@pytest.mark.parametrize("parts", [False], indirect=True)
def test_it_is_off_and_says_how_it_is_switched_on(parts: Resources) -> None:
    at = open_page()
    assert "Web pages are not fetched" in shown(at)
    assert "UNDERSTUDY\\_CRAWL" in shown(at)
    assert not any(element.label == "Fetch" for element in at.button)


def test_a_crawl_is_queued_watched_and_cancelled(parts: Resources) -> None:
    at = open_page()
    at.text_input(key="crawl_url").set_value(" HTTPS://Shop.example/docs/#top ")
    at.number_input(key="crawl_pages").set_value(7)
    press(at, "Fetch")
    (job,) = queued(parts)
    assert job.payload == {"url": SITE, "pages": 7, "depth": 3}
    assert next(element for element in at.button if element.label == "Fetch").disabled
    press(at, "Cancel")
    assert queued(parts)[0].status == "cancelled"
    assert "Cancelled" in shown(open_page())


@pytest.mark.parametrize("url", ["", "nonsense", "file:///etc/passwd", "http://a@b/", "http://2130706433/"])
def test_what_is_no_address_is_refused_at_once(parts: Resources, url: str) -> None:
    at = open_page()
    at.text_input(key="crawl_url").set_value(url)
    press(at, "Fetch")
    assert queued(parts) == []
    assert "cannot be fetched" in shown(at)


def test_the_outcome_is_told(parts: Resources) -> None:
    parts.jobs.submit("crawl", {"url": SITE})
    job = Jobs(parts.database).lease(("crawl",))
    assert job is not None
    parts.jobs.finish(job, "failed", "[x](http://evil.example) could not be reached.")
    text = shown(open_page())
    assert "could not be reached" in text
    assert "[x](" not in text


def test_a_crawled_site_is_fetched_again_or_removed(parts: Resources, document: Document) -> None:
    press(open_page(), "Fetch again")
    assert queued(parts)[0].payload == {"url": SITE, "pages": 200, "depth": 3}
    parts.jobs.cancel(queued(parts)[0].id)
    press(open_page(), "Remove the documents")
    assert queued(parts)[0].payload == {"url": SITE, "forget": True}


def test_a_page_shows_its_address_as_text(parts: Resources, document: Document) -> None:
    text = shown(open_page())
    assert "shop.example/docs/fees?a\\=1\\&b\\=\\*" in text
    assert ADDRESS not in text  # unbroken it would become a link


def test_a_citation_shows_the_address(parts: Resources, document: Document) -> None:
    def dialog() -> None:
        import streamlit as st

        from app.resources import resources
        from app.source_view import open_source

        open_source(resources(), st.session_state["citation"])

    at = AppTest.from_function(dialog, default_timeout=60)
    at.session_state["citation"] = Citation(1, 1, document.id, "Fees", "", None, 0, 4, "Fees")
    at.run()
    assert not at.exception
    assert [element.value for element in at.code] == [ADDRESS]
