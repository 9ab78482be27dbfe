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
from evaluation.exam import golden
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
    questions = [row["question"] for row in golden(parts.settings, parts.database)]
    train, held = lessons(
        parts.database, partial(cite, model=parts.model), exclude=questions, seed=parts.settings.seed
    )
    st.caption(
        f"Votes and approved corrections name the right passages of {len(train)} questions to learn from"
        f" (at least {FEWEST} are needed) and {len(held)} for the judge, who also asks the golden questions"
        " and the gold set you measured last. Only an embedder with which the whole search finds more serves."
    )
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        st.info("Training needs requirements-train.txt installed.", icon=":material/info:")
    with st.container(horizontal=True):
        st.button(
            "Train on votes", type="primary", icon=":material/school:", key="train_embedder",
            disabled=bool(missing) or len(train) < FEWEST or not parts.settings.vote_embedder,
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
    return {
        "embedder": card["id"],
        "trained": f"{datetime.fromtimestamp(card['created_at'] / 1000):%d %b %Y, %H:%M}",
        "questions": card.get("questions"),
        "before": verdict.get("before"),
        "after": verdict.get("after"),
        "verdict": {True: "better", False: "not better"}.get(verdict.get("passed", ""), "unjudged"),
    }
