"""The Documents page: add, watch, read, retry and delete."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime

import streamlit as st

from app.access_view import access_badges, access_buttons, who
from app.chunks_view import open_chunks
from app.confirm import yes_or_no
from app.groups_view import show_groups
from app.list_view import decide_shown, find
from app.older_view import show_older
from app.queue_view import show_queue, submit
from app.resources import USER, Resources, resources
from app.source_view import plain
from app.spoken import icon_label, spoken
from app.web_form import show_address, web_pages
from app.wording import short
from core.errors import NotFoundError, UnderstudyError
from rag.access import new_access
from rag.approval import CHOSEN_AGAIN, Approval
from rag.citations import safe_markdown
from rag.documents import Document
from rag.filetypes import KINDS
from rag.namesakes import named, older
from rag.quality import warnings
from rag.versions import why_kept

NAMED = 5  # files named in one sentence
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
    show_groups(parts)
    busy = show_queue(parts)
    show_list(parts, counted=not busy)


def upload(parts: Resources) -> None:
    """Take files into the queue; what cannot be taken is named with the reason."""
    round_ = st.session_state.setdefault("upload_round", 0)  # a new key empties the uploader
    files = st.file_uploader(
        f"Add documents, up to {parts.settings.upload_mb} MB each",
        type=sorted(suffix.removeprefix(".") for suffix in KINDS),
        accept_multiple_files=True,
        key=f"upload-{round_}",
    )
    visibility, groups = who(parts, f"upload-{round_}") if files else ("everybody", ())
    if files and st.button(
        f"Add {len(files)} file{'s' if len(files) > 1 else ''}", type="primary", icon=":material/add:"
    ):
        st.session_state["upload_outcomes"] = enqueue(
            parts, ((file.name, file.getvalue()) for file in files), visibility, groups
        )
        st.session_state["upload_round"] = round_ + 1
        st.rerun()
    outcomes = st.session_state.get("upload_outcomes", [])
    st.session_state["upload_outcomes"] = [
        one for one in outcomes if not one[0]
    ]  # a refusal stays to be read
    for accepted, text in outcomes:
        (st.success if accepted else st.warning)(
            text, icon=":material/check:" if accepted else ":material/block:"
        )


def enqueue(
    parts: Resources,
    files: Iterable[tuple[str, bytes]],
    visibility: str = "everybody",
    groups: tuple[str, ...] = (),
) -> list[tuple[bool, str]]:
    """Put the files into the queue; returns (accepted, sentence), one for all that fared alike."""
    fared: dict[tuple[bool, str], list[str]] = {}
    for name, data in files:
        fared.setdefault(_put(parts, name, data, visibility, groups), []).append(
            safe_markdown(short(name, 80))
        )
    if parts.queue.active():
        submit(parts)
    return [(accepted, f"{_named(names)} {reason}") for (accepted, reason), names in fared.items()]


def _put(
    parts: Resources, name: str, data: bytes, visibility: str, groups: tuple[str, ...]
) -> tuple[bool, str]:
    access = new_access(parts.settings, USER, visibility, groups)
    try:
        known = parts.documents.known(data, access)
        if known is not None and known.status == "ready":
            # reads nothing; a folder that loses it keeps it now
            parts.documents.add(name, data, "upload", access=access)
            if Approval(parts.database).choose_again(known, access):
                submit(parts)  # brings the index up to date
                return True, CHOSEN_AGAIN
            return True, "in the collection already."
        namesake = named(parts.database, name, access)
        parts.queue.put(name, data, USER, visibility, groups)
    except UnderstudyError as error:
        return False, f"not added: {safe_markdown(str(error))}"
    if namesake is None:
        return True, "added to the queue."
    return True, (
        f"added to the queue. The version of {namesake.date} stays and answers, too,"
        " until you replace it in the list below."
    )


def _named(names: list[str]) -> str:
    if len(names) == 1:
        return f"**{names[0]}** was"
    if len(names) > NAMED:
        return f"**{', '.join(names[:NAMED])}** and {len(names) - NAMED} more were"
    return f"**{', '.join(names)}** were"


def show_list(parts: Resources, *, counted: bool) -> None:
    """A page of the documents; `counted` unless the line above counts them as they get ready."""
    totals = parts.listing.totals(USER)
    st.subheader(
        f"{totals.ready:,} ready, {totals.passages:,} passages"
        if counted
        else f"{totals.documents:,} documents",
        anchor=False,
    )
    if not totals.documents:
        st.info(
            "Nothing here yet. Add PDF, Office, HTML, Markdown, mail, e-book or text files above.",
            icon=":material/upload:",
        )
        return
    documents = find(parts)
    decide_shown(parts, documents)
    waiting = parts.queue.being_read_again()
    ids = [document.id for document in documents]
    kept, namesakes = why_kept(parts.database, ids), older(parts.database, ids, USER)
    for document in documents:
        row(parts, document, waits=document.id in waiting, kept=kept.get(document.id, ""))
        if document.id in namesakes:
            show_older(parts, document, namesakes[document.id])


def row(parts: Resources, document: Document, *, waits: bool = False, kept: str = "") -> None:
    """One document with its state and its actions; `waits` when it failed and is to be read again.

    `kept` says why an earlier version of a file still answers.
    """
    with st.container(border=True, key=f"document-{document.id}"):
        left, right = st.columns([2, 1], vertical_alignment="center")
        with left:
            st.markdown(f"**{safe_markdown(document.name)}**")
            label, icon, color = BADGES[document.status]
            with st.container(horizontal=True, vertical_alignment="center", gap="small"):
                st.badge(label, icon=icon, color=color)  # type: ignore[arg-type]
                access_badges(document)
                st.caption(details(document))
            show_address(parts, document)
            if document.error:
                st.caption(safe_markdown(document.error))
            if kept:
                st.caption(f":material/history: {safe_markdown(kept)}")
            if found := warnings(document.quality, document.same_as):
                st.caption(f":material/report: {safe_markdown('; '.join(found))}")
        with right, st.container(horizontal=True, horizontal_alignment="right", gap="small"):
            if document.status == "failed" and st.button(
                f"{'Waits to be read' if waits else 'Retry'}{spoken(document.name)}",
                key=f"retry-{document.id}",
                disabled=waits,
            ):
                retry(parts, document)
            access_buttons(parts, document)
            if _icon("read", "visibility", document, "Read the text"):
                read(parts, document)
            if _icon("chunks", "segment", document, "Passages"):
                open_chunks(parts, document)
            if _icon("delete", "delete", document, "Delete"):
                delete(parts, document)


def _icon(name: str, icon: str, document: Document, what: str) -> bool:
    return st.button(icon_label(icon, f"{what}: {document.name}"), key=f"{name}-{document.id}", help=what)


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
    """Let the worker read a failed document again; it stays in the list until that is done."""
    try:
        parts.queue.read_again(document.id, USER)
        submit(parts)
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
        text = parts.documents.text(document.id, USER)
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
    yes_or_no("Delete", "Keep it", "delete", _delete, (parts, document.id))


def _delete(parts: Resources, document_id: str) -> None:
    with suppress(NotFoundError):  # somebody else was quicker
        parts.documents.delete(document_id, USER)
        submit(parts)  # brings the index up to date


page()
