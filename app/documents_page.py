"""The Documents page: add, watch, read, retry and delete."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime

import streamlit as st

from app.answer_view import short
from app.chunks_view import open_chunks
from app.resources import USER, Resources, resources
from app.source_view import plain
from app.web_form import show_address, web_pages
from core.errors import NotFoundError, UnderstudyError
from core.jobs import Job
from rag.citations import safe_markdown
from rag.documents import Document
from rag.filetypes import KINDS
from rag.intake import Taken, take
from rag.quality import warnings
from rag.reader import Reader

LISTED = 100
READ = 20_000  # characters of a document shown at once
BADGES = {
    "ready": ("ready", ":material/check_circle:", "green"),
    "pending": ("waiting", ":material/hourglass_top:", "orange"),
    "failed": ("failed", ":material/error:", "red"),
}


def page() -> None:
    """Draw the page once."""
    parts = resources()
    st.title("Documents", anchor=False)
    st.caption("Answers come from these documents and from nothing else.")
    upload(parts)
    web_pages(parts)
    progress(parts)


def upload(parts: Resources) -> None:
    """Take files; each is accepted or refused with its reason."""
    round_ = st.session_state.setdefault("upload_round", 0)  # a new key empties the uploader
    files = st.file_uploader(
        f"Add documents, up to {parts.settings.upload_mb} MB each",
        type=sorted(suffix.removeprefix(".") for suffix in KINDS),
        accept_multiple_files=True,
        key=f"upload-{round_}",
    )
    if files and st.button(
        f"Add {len(files)} file{'s' if len(files) > 1 else ''}", type="primary", icon=":material/add:"
    ):
        outcomes: list[tuple[bool, str]] = []
        with st.spinner("Reading the files"), Reader(parts.settings) as reader:
            for file in files:
                outcomes += _add(parts, file.name, file.getvalue(), reader)
        if any(accepted for accepted, _ in outcomes):
            parts.jobs.submit("ingest", once=True)
        st.session_state["upload_outcomes"] = outcomes
        st.session_state["upload_round"] = round_ + 1
        st.rerun()
    for accepted, text in st.session_state.get("upload_outcomes", []):
        (st.success if accepted else st.warning)(
            text, icon=":material/check:" if accepted else ":material/block:"
        )


def _add(parts: Resources, name: str, data: bytes, reader: Reader) -> list[tuple[bool, str]]:
    """One outcome per file; an archive has as many as it holds files."""
    return [_outcome(taken) for taken in take(parts.documents, name, data, "upload", reader)]


def _outcome(taken: Taken) -> tuple[bool, str]:
    shown = safe_markdown(short(taken.name, 80))
    if taken.document is None:
        return False, f"**{shown}** was not added. {safe_markdown(str(taken.error))}"
    if taken.document.status == "ready":
        return True, f"**{shown}** is in the collection already."
    return True, f"**{shown}** was added and is being prepared for search."


def progress(parts: Resources) -> None:
    """The job at work, then every document."""
    job = latest_job(parts)
    if job is not None and job.open:
        # only this line ticks: redrawing the list would close a document that is being read
        watch_job(parts, job.id)
    elif job is not None and job.status == "failed":
        st.error(safe_markdown(f"Preparing the documents failed: {job.message}"), icon=":material/error:")
    documents = parts.documents.list()
    if any(d.status == "pending" for d in documents) and not (job and job.open):
        st.button(
            "Prepare what waits",
            key="retry_ingest",
            on_click=_submit,
            args=(parts,),
            icon=":material/refresh:",
        )
    show_list(parts, documents, counted=job is None or not job.open)


def latest_job(parts: Resources) -> Job | None:
    """The newest ingest job."""
    return next(iter(parts.jobs.list("ingest", limit=1)), None)


def _submit(parts: Resources) -> None:
    parts.jobs.submit("ingest", once=True)


@st.fragment(run_every=1.5)
def watch_job(parts: Resources, job_id: str) -> None:
    """How far the ingest job is; the whole page is drawn again when it ends."""
    job = parts.jobs.get(job_id)
    if not job.open:
        st.rerun()
    documents = parts.documents.list()
    ready = sum(document.status == "ready" for document in documents)
    text = f"{ready} of {len(documents)} documents are ready"
    if job.status == "queued":
        text += "; the worker starts in a moment"
    elif job.message:
        text += f". {safe_markdown(job.message)}"
    st.progress(min(1.0, job.progress), text=text)


def show_list(parts: Resources, documents: list[Document], *, counted: bool) -> None:
    """Every document, or those with a name; `counted` unless the line above counts them as they get ready."""
    ready = [document for document in documents if document.status == "ready"]
    passages = f"{sum(d.chunks for d in ready):,} passages"
    st.subheader(
        f"{len(ready)} ready, {passages}" if counted else f"{len(documents)} documents", anchor=False
    )
    wanted = st.text_input("Find by name", placeholder="Find by name", label_visibility="collapsed") or ""
    found = [d for d in documents if wanted.casefold() in f"{d.name} {d.title}".casefold()]
    for document in found[:LISTED]:
        row(parts, document)
    if len(found) > LISTED:
        st.caption(f"{len(found) - LISTED} more; narrow the list by name.")
    if not documents:
        st.info(
            "Nothing here yet. Add PDF, Office, HTML, Markdown, mail, e-book or text files above.",
            icon=":material/upload:",
        )


def row(parts: Resources, document: Document) -> None:
    """One document with its state and its actions."""
    with st.container(border=True, key=f"document-{document.id}"):
        left, right = st.columns([5, 2], vertical_alignment="center")
        with left:
            st.markdown(f"**{safe_markdown(document.name)}**")
            label, icon, color = BADGES[document.status]
            with st.container(horizontal=True, vertical_alignment="center", gap="small"):
                st.badge(label, icon=icon, color=color)  # type: ignore[arg-type]
                st.caption(details(document))
            show_address(parts, document)
            if document.error:
                st.caption(safe_markdown(document.error))
            if found := warnings(document.quality, document.same_as):
                st.caption(f":material/report: {safe_markdown('; '.join(found))}")
        with right, st.container(horizontal=True, horizontal_alignment="right", gap="small"):
            if document.status == "failed" and st.button("Retry", key=f"retry-{document.id}"):
                retry(parts, document)
            if st.button("", key=f"read-{document.id}", icon=":material/visibility:", help="Read the text"):
                read(parts, document)
            if st.button("", key=f"chunks-{document.id}", icon=":material/segment:", help="Passages"):
                open_chunks(parts, document)
            if st.button("", key=f"delete-{document.id}", icon=":material/delete:", help="Delete"):
                delete(parts, document)


def details(document: Document) -> str:
    """Size, passages, kind and date."""
    size = (
        f"{max(1, round(document.bytes / 1024)):,} KB"
        if document.bytes < 1 << 20
        else f"{document.bytes / (1 << 20):.1f} MB"
    )
    passages = f"{document.chunks} passage{'s' if document.chunks != 1 else ''}"
    added = datetime.fromtimestamp(document.created_at / 1000).strftime("%d %b %Y")
    origin = " · sample" if document.origin == "sample" else ""
    return f"{size} · {passages} · {document.kind} · {added}{origin}"


def retry(parts: Resources, document: Document) -> None:
    """Read a failed document again from its stored bytes."""
    try:
        parts.documents.add(document.name, parts.documents.original(document.id), document.origin)
        parts.jobs.submit("ingest", once=True)
    except UnderstudyError as error:
        st.warning(safe_markdown(str(error)))
    else:
        st.rerun()


@st.dialog("Document", width="large", icon=":material/description:")
def read(parts: Resources, document: Document) -> None:
    """The extracted text, as answers cite it."""
    st.markdown(f"**{safe_markdown(document.name)}**")
    st.caption(details(document))
    try:
        text = parts.documents.text(document.id)
    except UnderstudyError as error:
        st.info(safe_markdown(str(error)))
        return
    pages = max(1, -(-len(text) // READ))
    part = st.number_input("Part", 1, pages, key="read_part") if pages > 1 else 1
    st.markdown(plain(text[(part - 1) * READ : part * READ]))


@st.dialog("Delete this document?", icon=":material/delete:")
def delete(parts: Resources, document: Document) -> None:
    """Ask, then delete."""
    st.markdown(
        f"**{safe_markdown(document.name)}** and its passages are removed. Answers stop using it at once; "
        "earlier answers keep the words they quoted."
    )
    with st.container(horizontal=True):
        done = st.button(
            "Delete", type="primary", key="delete_yes", on_click=_delete, args=(parts, document.id)
        )
        if st.button("Keep it", key="delete_no") or done:
            st.rerun()


def _delete(parts: Resources, document_id: str) -> None:
    with suppress(NotFoundError):  # somebody else was quicker
        parts.documents.delete(document_id, USER)


page()
