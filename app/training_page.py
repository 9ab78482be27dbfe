"""The Training page: review corrections, see the data set they make, train, and read the judge's report."""

from __future__ import annotations

import importlib.util
import logging
import subprocess
import sys
import time
from collections import Counter
from functools import partial

import streamlit as st

from app.confirm import yes_or_no
from app.resources import USER, Resources, resources
from app.run_view import history, live
from app.source_view import marked
from app.spoken import spoken
from app.wording import place, short
from core.errors import UnderstudyError
from core.jobs import Job
from core.settings import METHODS, PROJECT, child_environment
from evaluation.exam import golden
from feedback.dataset import FEWEST, Split, split
from feedback.review import Pending
from rag.citations import safe_markdown
from rag.prompt import cite

log = logging.getLogger("understudy.web")
QUEUED = 20  # corrections drawn at once
FAST_CLICKS = 10  # approvals a minute from which a reviewer is reminded to read
ROWS = 30
LABELS = {
    "sft": "SFT: imitate approved answers",
    "dpo": "DPO: prefer the correction to what it corrects",
    "grpo": "GRPO: try answers, keep what is right and cited",
}


def page() -> None:
    """Draw the page once."""
    parts = resources()
    st.title("Training", anchor=False)
    st.caption(
        "Votes and approved corrections become a data set, the data set an adapter; a judge decides its fate."
    )
    counts(parts)
    today = feedback_today(parts)
    review_tab, data_tab, run_tab = st.tabs(["Review", "Data set", "Runs"], key="training_tab")
    with review_tab:
        review(parts)
    with data_tab:
        dataset(today)
    with run_tab:
        runs(parts, today)


def counts(parts: Resources) -> None:
    """What feedback there is."""
    numbers = parts.feedback.counts()
    shown = {
        "Answers": numbers["exchanges"],
        "Up": numbers["up"],
        "Down": numbers["down"],
        "To review": numbers["pending"],
        "Approved": numbers["approved"],
    }
    with st.container(horizontal=True, gap="small"):
        for label, number in shown.items():
            st.metric(label, number, border=True, width=106)


def review(parts: Resources) -> None:
    """Corrections that wait, each beside what it corrects."""
    waiting = parts.review.pending(limit=QUEUED)
    message = st.session_state.pop("review_message", "")
    if message:
        st.warning(message, icon=":material/warning:")
    if not waiting:
        st.info(
            "No corrections wait. They appear here when somebody corrects an answer.",
            icon=":material/done_all:",
        )
        return
    if too_fast():
        st.warning(
            "You are approving quickly. What you approve answers everybody and trains the model.",
            icon=":material/speed:",
        )
    for pending in waiting:
        card(parts, pending)
    total = parts.feedback.counts()["pending"]
    if total > 1 and st.button(f"Approve all {total}", icon=":material/done_all:", key="approve_all"):
        approve_all(parts, total)


def card(parts: Resources, pending: Pending) -> None:
    """One correction: question, answer given, correction, and the passages to check it by."""
    correction, exchange = pending.correction, pending.exchange
    with st.container(border=True, key=f"pending-{correction.id}"):
        st.markdown(f"**{safe_markdown(short(exchange.question, 400))}**")
        left, right = st.columns(2)
        with left:
            st.caption("Was answered")
            st.markdown(safe_markdown(exchange.answer.text) or "(nothing)")
        with right:
            st.caption("Should be")
            st.markdown(safe_markdown(correction.text))
        about = spoken(f": {correction.text}")
        with st.expander(f"The passages that were shown{about}"):
            for passage in exchange.answer.passages:
                st.caption(safe_markdown(place(passage)))
                st.markdown(safe_markdown(passage.text))
            if not exchange.answer.passages:
                st.caption("None.")
        with st.container(horizontal=True):
            decide = {"parts": parts, "correction_id": correction.id, "text": correction.text}
            st.button(
                f"Approve{about}", key=f"approve-{correction.id}", type="primary", icon=":material/check:",
                on_click=decided, kwargs={**decide, "approve": True},
            )  # fmt: skip
            st.button(
                f"Reject{about}", key=f"reject-{correction.id}", icon=":material/close:",
                on_click=decided, kwargs={**decide, "approve": False},
            )  # fmt: skip


def decided(*, parts: Resources, correction_id: str, text: str, approve: bool) -> None:
    """Callback: decide on the text that was read."""
    try:
        if approve:
            parts.review.approve(correction_id, USER, text=text)
            st.session_state.setdefault("approvals", []).append(time.monotonic())
        else:
            parts.review.reject(correction_id, USER, text=text)
    except UnderstudyError as error:
        st.session_state["review_message"] = safe_markdown(str(error))


def too_fast() -> bool:
    """Whether this reviewer approved more in the last minute than a person can read."""
    recent = [moment for moment in st.session_state.get("approvals", []) if time.monotonic() - moment < 60]
    st.session_state["approvals"] = recent
    return len(recent) >= FAST_CLICKS


@st.dialog("Approve all?", icon=":material/done_all:")
def approve_all(parts: Resources, total: int) -> None:
    """Ask, then approve everything that waits."""
    st.markdown(
        f"All {total} corrections will answer everybody and go into the next data set. "
        "The judge still decides whether what was trained on them takes the stage."
    )
    yes_or_no("Approve all", "Cancel", "approve_all", _approve_all, (parts,))


def _approve_all(parts: Resources) -> None:
    parts.review.approve_all(USER)


def feedback_today(parts: Resources) -> Split:
    """What a run that started now would be trained on and judged by."""
    questions = [row["question"] for row in golden(parts.settings, parts.database)]
    return split(
        parts.database, partial(cite, model=parts.model), exclude=questions, seed=parts.settings.seed
    )


def dataset(today: Split) -> None:
    """The rows of a run that started now, and what is left out of it."""
    rows = today.imitate
    st.markdown(
        f"A run that starts now imitates **{len(rows)}** answers, learns from **{len(today.prefer)}** pairs, "
        f"and keeps **{len(today.heldout)}** back for the judge. At least {FEWEST} answers are needed."
    )
    if reasons := Counter(drop.reason for drop in today.drops):
        st.caption(
            "Left out: " + safe_markdown("; ".join(f"{n} × {reason}" for reason, n in reasons.items())) + "."
        )
    for example in rows[:ROWS]:
        with st.container(border=True):
            st.markdown(f"**{safe_markdown(short(example.exchange.question, 300))}**")
            st.markdown(marked(example.completion))
            if example.pair:
                st.caption("Instead of: " + safe_markdown(short(example.rejected, 300)))
            st.caption(f"From a {example.provenance['kind']}")
    if len(rows) > ROWS:
        st.caption(f"{len(rows) - ROWS} more.")


def runs(parts: Resources, today: Split) -> None:
    """Start a run, or watch the one at work; below, what earlier ones came to."""
    job = next((job for job in parts.jobs.list("retrain", limit=1)), None)
    if job is not None and job.open:
        live(parts, job.id)
    else:
        if job is not None:
            outcome(job)
        start_form(parts, len(today.imitate))
    history(parts)


def outcome(job: Job) -> None:
    """How the last run's job ended, when it did not end in a verdict."""
    if job.status == "failed":
        st.error(safe_markdown(f"The last run failed: {job.message}"), icon=":material/error:")
    elif job.status == "cancelled":
        st.info("The last run was cancelled.", icon=":material/cancel:")


def start_form(parts: Resources, answers: int) -> None:
    """Choose the stages and go, once there are `answers` enough to imitate."""
    if importlib.util.find_spec("trl") is None or importlib.util.find_spec("peft") is None:
        st.info(
            "This installation can chat but not train. Install `requirements-train.txt` to train.",
            icon=":material/school:",
        )
        return
    ready = answers >= FEWEST
    if not ready:
        st.info(
            f"A run needs {FEWEST} answers to imitate, and there are {answers}. Vote answers up, correct "
            "wrong ones, and approve the corrections on the Review tab.",
            icon=":material/school:",
        )
    with st.form("start_run"):
        methods = st.pills(
            "Stages, in this order",
            METHODS,
            selection_mode="multi",
            default=[method for method in METHODS if method in parts.settings.method_list],
            format_func=lambda method: LABELS[method],
        )
        four_bit = st.toggle(
            "4-bit base (QLoRA)",
            value=parts.settings.four_bit,
            help="Less GPU memory, somewhat slower. On a CPU it saves nothing.",
        )
        st.caption(duration(parts))
        with st.container(horizontal=True):
            start = st.form_submit_button(
                "Start training", type="primary", icon=":material/play_arrow:", disabled=not ready
            )
            ask_plan = st.form_submit_button("Show the plan", icon=":material/list_alt:")
    chosen = [method for method in METHODS if method in methods]
    if (start or ask_plan) and not chosen:
        st.warning("Choose at least one stage.", icon=":material/warning:")
    elif start:
        parts.jobs.submit("retrain", {"methods": chosen, "four_bit": bool(four_bit)}, once=True)
        st.rerun()
    elif ask_plan:
        with st.spinner("Looking at the data and the machine"):
            st.code(plan(parts, chosen, bool(four_bit)), language=None, wrap_lines=True)


def plan(parts: Resources, methods: list[str], four_bit: bool) -> str:
    """Rows, memory and time of a run, as the training side sees them (it is not imported here)."""
    command = [sys.executable, "-m", "finetune.retrain", "--dry-run", "--methods", ",".join(methods)]
    command += ["--four-bit"] if four_bit else []
    environment = child_environment(parts.settings)
    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=300)
    if done.returncode:
        log.error("the plan failed\n%s", done.stderr)
        if done.returncode < 0 or "Traceback" in done.stderr:
            return "The plan could not be made; the web log says why."
        return done.stderr.strip().splitlines()[-1]  # an expected error is one sentence with its next step
    return done.stdout.strip()


def duration(parts: Resources) -> str:
    """How long the last finished run took, or what to expect of the first."""
    done = next((job for job in parts.jobs.list("retrain") if job.status == "done"), None)
    if done is None:
        return "With the built-in model a run takes a few minutes on a CPU. Chat stays usable meanwhile."
    minutes = (done.updated_at - done.created_at) / 60_000
    return f"The last run took {minutes:.1f} minutes. Chat stays usable meanwhile."


page()
