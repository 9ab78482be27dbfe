"""The search's embedder on the page: which one serves, training it on votes, and going back."""

from __future__ import annotations

import importlib.util
from datetime import datetime
from functools import partial
from typing import Any

import streamlit as st

from app.resources import Resources
from app.run_view import cancel_button, progress
from core.errors import UnderstudyError
from core.files import read_json
from core.jobs import Job
from evaluation.search_exam import written
from feedback.folds import outlook
from feedback.triples import FEWEST, lessons
from rag.citations import safe_markdown
from rag.embedders import Embedders
from rag.prompt import cite

KINDS = ("embedder", "reindex")
NEEDED = ("datasets", "accelerate")  # of the training libraries, what the embedder's trainer wants


def embedder(parts: Resources) -> None:
    """Draw the tab."""
    embedders = Embedders(parts.settings, parts.database)
    if reason := embedders.mismatch():
        st.warning(
            safe_markdown(f"{reason} Search goes by words alone until then."), icon=":material/warning:"
        )
    else:
        st.markdown(f"In service: **{safe_markdown(embedders.in_service().id)}**")
    latest = [job for kind in KINDS for job in parts.jobs.list(kind, limit=1)]
    at_work = next((job for job in latest if job.open), None)
    if at_work is not None:
        live(parts, at_work.id)
    else:
        for job in sorted(latest, key=lambda job: job.created_at)[-1:]:
            outcome(job)
        controls(parts, embedders)
    history(embedders)


@st.fragment(run_every=1.5)
def live(parts: Resources, job_id: str) -> None:
    """The job at work; the whole page is drawn again when it ends."""
    job = parts.jobs.get(job_id)
    if not job.open:
        st.rerun()
    with st.container(border=True):
        progress(job)
        cancel_button(parts, job, "Cancelling. The embedder in service stays.")


def outcome(job: Job) -> None:
    """How the last job ended."""
    if job.status == "failed":
        st.error(safe_markdown(job.message), icon=":material/error:")
    else:
        st.info(safe_markdown(job.message), icon=":material/school:")


def controls(parts: Resources, embedders: Embedders) -> None:
    """Train, or go back to the one before."""
    judging = [question.text for question in written(parts.settings, parts.database)]
    known = lessons(parts.database, partial(cite, model=parts.model), exclude=judging)
    st.caption(
        f"{outlook(len(known))} The judge also asks the golden questions and the gold set you measured last."
        " An embedder serves only when the search's own order certainly improves and the order shown, after"
        " the cross-encoder, loses next to nothing."
    )
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        st.info("Training needs requirements-train.txt installed.", icon=":material/info:")
    with st.container(horizontal=True):
        st.button(
            "Train on votes", type="primary", icon=":material/school:", key="train_embedder",
            disabled=bool(missing) or len(known) < FEWEST or not parts.settings.vote_embedder,
            on_click=order, args=(parts, "embedder"),
        )  # fmt: skip
        if before := embedders.before():
            st.button(
                "Go back to the one before", icon=":material/undo:", key="rollback_embedder",
                on_click=order, args=(parts, "reindex", {"embedder": before}),
            )  # fmt: skip


def order(parts: Resources, kind: str, payload: dict[str, Any] | None = None) -> None:
    """Callback of the buttons: a second click orders nothing more."""
    parts.jobs.submit(kind, payload, once=True)


def history(embedders: Embedders) -> None:
    """What earlier trainings came to."""
    rows = [_row(embedders, card) for card in embedders.cards()[:20]]
    if rows:
        st.dataframe(rows, hide_index=True)


def _row(embedders: Embedders, card: dict[str, Any]) -> dict[str, Any]:
    try:
        verdict = dict(read_json(embedders.folder / card["id"] / "verdict.json"))
    except UnderstudyError:
        verdict = {}
    both = "shown_before" in verdict  # else one of the first, about the order shown alone
    shown = "shown_" if both else ""
    return {
        "embedder": card["id"],
        "trained": f"{datetime.fromtimestamp(card['created_at'] / 1000):%d %b %Y, %H:%M}",
        "learnt from": card.get("questions"),
        "judged on": verdict.get("cases"),
        "search before": verdict.get("before") if both else None,
        "search after": verdict.get("after") if both else None,
        "shown before": verdict.get(f"{shown}before"),
        "shown after": verdict.get(f"{shown}after"),
        "verdict": {True: "better", False: "not better"}.get(verdict.get("passed", ""), "unjudged"),
    }
