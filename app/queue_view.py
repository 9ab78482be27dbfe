"""The queue on the Documents page: what is read, what waits, what failed, and what can be done about it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import datetime

import streamlit as st

from app.resources import USER, Resources
from app.spoken import icon_label
from app.wording import short
from core.errors import ConflictError, NotFoundError
from core.jobs import Job
from rag.citations import safe_markdown
from rag.queue import ACTIVE, Entry

SHOWN = 20
BUSY_S, IDLE_S = 1.5, 5.0
BADGES = {
    "waiting": (":material/hourglass_top:", "gray"),
    "reading": (":material/auto_stories:", "blue"),
    "embedding": (":material/memory:", "blue"),
    "ready": (":material/check_circle:", "green"),
    "failed": (":material/error:", "red"),
    "cancelled": (":material/block:", "gray"),
}


def show_queue(parts: Resources) -> bool:
    """Draw the queue, which then keeps itself up to date; returns whether there is work."""
    busy = at_work(parts)
    st.session_state["queue_busy"] = busy
    # only this part ticks: redrawing the list would close a document that is being read
    st.fragment(_draw, run_every=BUSY_S if busy else IDLE_S)(parts)
    return busy


def at_work(parts: Resources) -> bool:
    """Whether files wait or documents are being prepared."""
    job = latest_job(parts)
    return bool(parts.queue.active() or (job and job.open) or parts.documents.pending())


def latest_job(parts: Resources) -> Job | None:
    """The newest ingest job."""
    return next(iter(parts.jobs.list("ingest", limit=1)), None)


def submit(parts: Resources) -> None:
    """Let the worker read what waits."""
    parts.jobs.submit("ingest", once=True)


def _draw(parts: Resources) -> None:
    busy = at_work(parts)
    if st.session_state.get("queue_busy") and not busy:
        st.rerun()  # the whole page: the list below has grown
    counts = parts.queue.counts()
    if busy:
        _progress(parts, counts)
    entries = parts.queue.list(SHOWN)
    if not entries:
        if not busy:
            st.caption(":material/inbox: The queue is empty: no file waits to be read.")
        return
    place = 0
    for entry in entries:
        place += entry.status == "waiting"
        _row(parts, entry, place)
    left = sum(counts[status] for status in ACTIVE) - sum(entry.active for entry in entries)
    if left > 0:
        st.caption(f"{left} more wait.")
    _all(parts, counts)


def _progress(parts: Resources, counts: dict[str, int]) -> None:
    """How far it is, or why it does not go on."""
    job = latest_job(parts)
    if job is not None and job.open:
        st.progress(min(1.0, job.progress), text=_summary(parts, counts) + _doing(job))
        return
    if job is not None and job.status == "failed":
        st.error(safe_markdown(f"Reading stopped: {job.message}"), icon=":material/error:")
    st.button(
        "Prepare what waits", key="retry_ingest", on_click=submit, args=(parts,), icon=":material/refresh:"
    )


def _summary(parts: Resources, counts: dict[str, int]) -> str:
    active = sum(counts[status] for status in ACTIVE)
    if active:
        return f"{counts['done']} of {counts['done'] + active} files are done"
    totals = parts.listing.totals(USER)
    return f"{totals.ready} of {totals.documents} documents are ready"


def _doing(job: Job) -> str:
    if job.status == "queued":
        return "; the worker starts in a moment"
    return f". {safe_markdown(job.message)}" if job.message else ""


def _row(parts: Resources, entry: Entry, place: int) -> None:
    """One file; `place` is its place in the line when it waits."""
    with st.container(border=True, key=f"queue-{entry.id}"):
        left, right = st.columns([6, 1], vertical_alignment="center")
        with left:
            with st.container(horizontal=True, vertical_alignment="center", gap="small"):
                icon, color = BADGES[entry.status]
                st.badge(entry.status, icon=icon, color=color)  # type: ignore[arg-type]
                st.markdown(f"**{safe_markdown(short(entry.name, 80))}**")
                st.caption(_details(entry, place))
            if entry.error:
                st.caption(safe_markdown(f"{entry.error} {entry.next_step}".strip()))
        with right, st.container(horizontal=True, horizontal_alignment="right"):
            if entry.active:
                _button(parts, entry, "cancel", "close", _cancel)
            elif entry.status != "ready":
                _button(parts, entry, "again", "refresh", _retry)


def _details(entry: Entry, place: int) -> str:
    """Place, who queued it, and when."""
    when = datetime.fromtimestamp(entry.created_at / 1000)
    where = "next" if place == 1 else f"number {place} in line"
    parts = [
        where if entry.status == "waiting" else "",
        f"by {safe_markdown(short(entry.owner, 40))}" if entry.owner != USER else "",
        f"queued {when:%d %b, %H:%M}",
    ]
    return " · ".join(part for part in parts if part)


def _button(
    parts: Resources, entry: Entry, name: str, icon: str, act: Callable[[Resources, str], None]
) -> None:
    what = {"cancel": "Cancel", "again": "Try again"}[name]
    label = icon_label(icon, f"{what}: {entry.name}")
    st.button(label, key=f"{name}-{entry.id}", help=what, on_click=act, args=(parts, entry.id))


def _all(parts: Resources, counts: dict[str, int]) -> None:
    """What may be done with all files of a kind."""
    with st.container(horizontal=True, gap="small"):
        if counts["waiting"]:
            st.button(
                f"Cancel all waiting ({counts['waiting']})",
                key="cancel_waiting",
                icon=":material/close:",
                on_click=_cancel_waiting,
                args=(parts,),
            )
        if counts["finished"]:
            st.button(
                "Clear what is finished",
                key="clear_queue",
                icon=":material/clear_all:",
                on_click=parts.queue.clear,
                args=(USER,),
            )


def _cancel(parts: Resources, entry_id: str) -> None:
    with suppress(NotFoundError, ConflictError):  # it was done, or somebody else was quicker
        parts.queue.cancel(entry_id, USER)


def _cancel_waiting(parts: Resources) -> None:
    parts.queue.cancel_waiting(USER)


def _retry(parts: Resources, entry_id: str) -> None:
    with suppress(NotFoundError, ConflictError):
        parts.queue.retry(entry_id, USER)
        submit(parts)
