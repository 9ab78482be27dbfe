"""Web pages on the Documents page: a form that starts a crawl, how far it is, and the crawled sites.

Nothing is fetched here: the worker does it, so the pages have no way out of this machine.
"""

from __future__ import annotations

import streamlit as st

from app.resources import Resources
from app.spoken import spoken
from core.errors import UnderstudyError
from core.jobs import Job
from rag.citations import safe_markdown
from rag.crawl import Limits
from rag.crawl_command import MOST_PAGES, SWITCH_ON
from rag.documents import SYNCED, Document
from rag.sources import Site, sites, web_address
from rag.urls import parse_url

DEEPEST = 10


def web_pages(parts: Resources) -> None:
    """The form, or one line that says how it is switched on."""
    if not parts.settings.crawl:
        st.caption(f"Web pages are not fetched. {safe_markdown(SWITCH_ON)}")
        return
    job = next(iter(parts.jobs.list("crawl", limit=1)), None)
    known = sites(parts.database)
    # whoever saw it at work also wants to see the outcome
    st.session_state["crawl_open"] = st.session_state.get("crawl_open", False) or bool(job and job.open)
    with st.expander("Web pages", icon=":material/language:", expanded=st.session_state["crawl_open"]):
        _form(parts, job)
        if job is not None and job.open:
            _watch(parts, job.id)
        elif job is not None:
            _outcome(job)
        for site in known:
            _row(parts, site, busy=job is not None and job.open)


def show_address(parts: Resources, document: Document) -> None:
    """Where on the web a document came from, as text."""
    if document.origin == SYNCED and (address := web_address(parts.database, document.id)):
        st.caption(safe_markdown(address))


def _form(parts: Resources, job: Job | None) -> None:
    limits = Limits()
    with st.form("crawl", border=False):
        url = st.text_input("Address", placeholder="https://example.org/docs/", key="crawl_url")
        left, right = st.columns(2)
        pages = left.number_input(
            "Pages at most", 1, MOST_PAGES, limits.pages, help="1 for this page alone", key="crawl_pages"
        )
        depth = right.number_input(
            "Links deep", 0, DEEPEST, limits.depth, help="Counted from the address", key="crawl_depth"
        )
        st.caption(
            "Pages on the same host, in the folder of the address and below, as far as robots.txt allows. Do"
            " it again to update them: pages that are gone are removed."
        )
        busy = job is not None and job.open
        if st.form_submit_button("Fetch", icon=":material/download:", disabled=busy, key="crawl_start"):
            _submit(parts, url or "", int(pages), int(depth))
    if problem := st.session_state.pop("crawl_problem", ""):
        st.warning(safe_markdown(problem), icon=":material/block:")


def _submit(parts: Resources, url: str, pages: int, depth: int) -> None:
    """Queue a crawl of an address that could be one; whether it may be fetched shows when it is tried."""
    try:
        place = parse_url(url)
    except UnderstudyError as error:
        st.session_state["crawl_problem"] = str(error)
    else:
        parts.jobs.submit("crawl", {"url": str(place), "pages": pages, "depth": depth}, once=True)
    st.rerun()


@st.fragment(run_every=1.5)
def _watch(parts: Resources, job_id: str) -> None:
    """How far the crawl is; the whole page is drawn again when it ends."""
    job = parts.jobs.get(job_id)
    if not job.open:
        st.rerun()
    waiting = "The worker starts in a moment" if job.status == "queued" else job.message or "Starting"
    st.progress(min(1.0, job.progress), text=safe_markdown(waiting))
    st.button("Cancel", key="crawl_cancel", on_click=parts.jobs.cancel, args=(job_id,))


def _outcome(job: Job) -> None:
    show, icon = (st.success, "check") if job.status == "done" else (st.warning, "block")
    show(safe_markdown(job.message or "The last crawl did not finish."), icon=f":material/{icon}:")


def _row(parts: Resources, site: Site, *, busy: bool) -> None:
    """A crawled site: fetch it again, or remove it."""
    with st.container(border=True, key=f"site-{site.address}"):
        st.markdown(safe_markdown(site.address))
        st.caption(f"{site.documents} document{'s' if site.documents != 1 else ''}")
        pages = min(MOST_PAGES, max(Limits().pages, 2 * site.pages))
        again = {"url": site.address, "pages": pages, "depth": Limits().depth}
        with st.container(horizontal=True, gap="small"):
            _job_button(parts, "Fetch again", again, busy)
            with st.popover(f"Remove{spoken(site.address)}", disabled=busy):
                st.caption("Its documents are removed; answers stop using them.")
                _job_button(parts, "Remove the documents", {"url": site.address, "forget": True}, busy)


def _job_button(parts: Resources, label: str, payload: dict[str, object], busy: bool) -> None:
    key = f"{label}-{payload['url']}"
    named = f"{label}{spoken(str(payload['url']))}"
    st.button(named, key=key, disabled=busy, on_click=_again, args=(parts, payload))


def _again(parts: Resources, payload: dict[str, object]) -> None:
    parts.jobs.submit("crawl", payload, once=True)
