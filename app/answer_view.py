"""One answer: its text, the control for each citation, why it came out so, the vote and the correction."""

from __future__ import annotations

from pathlib import Path

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from app.lessons import fate
from app.resources import USER, Resources
from app.source_view import open_source
from app.spoken import spoken
from app.why_view import why
from app.wording import short
from core.errors import UnderstudyError
from core.types import Answer
from feedback.records import Exchange
from feedback.store import LONGEST, REASONS
from rag.citations import safe_markdown
from rag.trace import search_notice

MARK = str(Path(__file__).parent / "mark.svg")
MEMORY = (
    "The documents do not hold the answer. This is what votes taught the model, and nothing here proves it."
)
THANKS_UP = "Thank you. Your vote goes into the next training set."
THANKS_MEMORY = "Thank you. No passage holds this answer, so it is counted and not trained on."
THANKS_DOWN = "Thank you. Say below what it should have said: a correction teaches more than a vote."


def show_question(question: str) -> None:
    """What the user asked."""
    with st.chat_message("user", avatar=":material/person:"):
        st.markdown(safe_markdown(question))


def assistant_message() -> DeltaGenerator:
    """The frame of an answer."""
    return st.chat_message("assistant", avatar=MARK)


@st.fragment
def show_answer(parts: Resources, exchange: Exchange) -> None:
    """One answer with its controls; a vote redraws only this fragment."""
    answer = exchange.answer
    mode_line(parts, exchange)
    if notice := search_notice(answer):
        st.caption(f":material/match_word: {safe_markdown(notice)}")
    st.markdown(safe_markdown(answer.text) if answer.text else "*(nothing)*")
    if answer.citations:
        citations(parts, exchange)
    if exchange.status == "complete" and answer.mode != "chat":
        vote(parts, exchange)
    st.caption(caption(answer))


def mode_line(parts: Resources, exchange: Exchange) -> None:
    """Say what kind of answer this is when it is not simply the model's."""
    if exchange.status != "complete":
        lost = exchange.answer.finish_reason == "engine_lost"
        st.badge(
            "Cut off: the model stopped" if lost else "Stopped", icon=":material/stop_circle:", color="orange"
        )
    elif exchange.answer.mode == "correction":
        reviewed = correction_status(parts, exchange.answer) == "approved"
        st.badge(
            "Reviewed correction" if reviewed else "Corrected by a reader, awaiting review",
            icon=":material/edit_note:",
            color="green" if reviewed else "orange",
        )
    elif exchange.answer.mode == "quotes":
        st.badge("Quoted from the documents", icon=":material/format_quote:", color="blue")
    elif exchange.answer.mode == "memory":
        st.badge("From memory, not from the documents", icon=":material/psychology:", color="orange")
        st.caption(MEMORY)
    elif exchange.answer.mode == "refusal":
        st.badge("Not found in the documents", icon=":material/search_off:", color="gray")


def correction_status(parts: Resources, answer: Answer) -> str:
    """The state of the correction behind an answer, as it is now."""
    try:
        return parts.review.get(str(answer.sampling.get("correction", ""))).status
    except UnderstudyError:
        return "gone"


def citations(parts: Resources, exchange: Exchange) -> None:
    """A button for each citation that opens its place in the source."""
    with st.container(horizontal=True, gap="small"):
        for citation in exchange.answer.citations:
            where = f"{citation.document} › {citation.heading}" if citation.heading else citation.document
            label = f"[{citation.number}] {short(where, 46)}"
            if citation.page:
                label += f", p. {citation.page}"
            if citation.edited:
                label += " (edited)"
            if st.button(
                safe_markdown(label),
                key=f"cite-{exchange.id}-{citation.number}",
                help=safe_markdown(short(citation.quote, 120)),
                icon=":material/article:",
            ):
                open_source(parts, citation)


def vote(parts: Resources, exchange: Exchange) -> None:
    """Thumbs, why, and after a thumb down the reasons and the corrected answer."""
    known = parts.feedback.vote_of(exchange.id, USER)
    key = f"vote-{exchange.id}"
    if key not in st.session_state and known is not None:
        st.session_state[key] = 1 if known.value == 1 else 0
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.feedback("thumbs", key=key, on_change=save_vote, args=(parts, exchange.id, key))
        with st.popover(
            f"Why this answer{spoken(exchange.question)}", icon=":material/info:", type="tertiary"
        ):
            why(parts, exchange)
    value = st.session_state.get(key)
    correction = parts.feedback.correction_of(exchange.id, USER)
    if value == 1:
        st.caption(THANKS_MEMORY if exchange.answer.mode == "memory" else THANKS_UP)
    elif value == 0:
        st.caption(fate(parts, correction) if correction else THANKS_DOWN)
        if correction:
            with st.expander(f"Your correction{spoken(exchange.question)}", icon=":material/edit:"):
                correction_form(parts, exchange, correction.text)
        else:
            correction_form(parts, exchange, "")


def save_vote(parts: Resources, exchange_id: str, key: str) -> None:
    """Callback of the thumbs: an upsert, or nothing when the thumb was taken back."""
    value = st.session_state.get(key)
    if value is None:
        parts.feedback.unvote(exchange_id, USER)
    else:
        known = parts.feedback.vote_of(exchange_id, USER)
        parts.feedback.vote(
            exchange_id, USER, 1 if value == 1 else -1, known.reason if known and value == 0 else ""
        )


def correction_form(parts: Resources, exchange: Exchange, text: str) -> None:
    """Reason chips and the answer it should have been."""
    known = parts.feedback.vote_of(exchange.id, USER)
    reason = st.pills(
        "What was wrong?",
        REASONS,
        default=(known.reason or None) if known else None,
        key=f"reason-{exchange.id}",
    )
    if known is not None and (reason or "") != known.reason:
        parts.feedback.vote(exchange.id, USER, -1, reason or "", known.comment)
    key = f"corrected-{exchange.id}"
    with st.form(f"correct-{exchange.id}", border=False):
        st.text_area(
            "What should it have said?",
            value=text,
            max_chars=LONGEST,
            height=90,
            key=key,
            placeholder="The right answer in a sentence or two, or: Not in the documents.",
        )
        st.form_submit_button(
            f"Save correction{spoken(exchange.question)}",
            icon=":material/save:",
            on_click=save_correction,
            args=(parts, exchange.id, key),
        )
    if problem := st.session_state.pop(f"problem-{key}", ""):
        st.warning(problem)


def save_correction(parts: Resources, exchange_id: str, key: str) -> None:
    """Callback of the form."""
    try:
        parts.feedback.correct(exchange_id, USER, st.session_state.get(key) or "")
    except UnderstudyError as error:
        st.session_state[f"problem-{key}"] = safe_markdown(str(error))


def caption(answer: Answer) -> str:
    """Who answered: model, adapter, time."""
    if answer.mode == "correction":
        return "From a reader's correction, not from the model"
    if answer.mode == "chat":
        return "Not from the documents"
    who = f"{answer.model} · {answer.adapter or 'no adapter'}"
    total = answer.timings.get("total_ms")
    return safe_markdown(who + (f" · {total / 1000:.1f} s" if total else ""))
