"""The Chat page: ask, watch the answer come, open its sources, judge it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

import streamlit as st

from app.answer_view import assistant_message, show_answer, show_question
from app.asking import Asked, Question, Turn, history_of
from app.notices import engine_notice, error_notice, model_notice
from app.resources import USER, Resources, resources
from app.wording import short
from core.errors import UnderstudyError
from feedback.records import Exchange
from rag.citations import safe_markdown

EXAMPLES = (
    "What does a diagnosis cost?",
    "Which batteries do you refuse?",
    "How old must I be to rent an e-bike?",
    "Who can become a member?",
)
SHOWN = 8  # exchanges drawn at once; each costs the browser some widgets
LISTED = 12  # conversations in the sidebar
REMEMBERED = 20  # earlier exchanges that a follow-up may lean on
STREAM_S = 0.1
PLACE_S = 0.4  # how often a waiting question's place is looked up: it is to be seen within half a second


def page() -> None:
    """Draw the page once."""
    parts = resources()
    end_earlier_turn()
    conversation = current_conversation(parts)
    sidebar(parts, conversation)
    model_notice(parts)
    exchanges = parts.feedback.exchanges(conversation, USER) if conversation else []
    show_exchanges(exchanges, parts)
    typed = st.chat_input("Ask about your documents", key="question", max_chars=4000, submit_mode="disable")
    asked = st.session_state.pop("asked", None)
    start = st.empty()  # so that the examples leave the page as soon as a question is asked
    if not (exchanges or typed or asked or "problem" in st.session_state):
        with start.container():
            empty_state(parts)
    if "problem" not in st.session_state:
        engine_notice(parts)
    if typed or asked:
        take_turn(parts, conversation, (typed or asked or "").strip(), exchanges)
    else:
        show_problem(exchanges)


def end_earlier_turn() -> None:
    """Wait until an answer that this rerun interrupts is recorded.

    Streamlit starts the new run beside the old one, which is still on its way out.
    """
    turn = st.session_state.pop("turn", None)
    if turn is not None:
        turn.stop(wait=5)


def current_conversation(parts: Resources) -> str | None:
    """The conversation in the session, or the one that the address names when it is this user's."""
    if "conversation" not in st.session_state:
        wanted = st.query_params.get("c")
        mine = {conversation.id for conversation in parts.feedback.conversations(USER)} if wanted else set()
        st.session_state["conversation"] = wanted if wanted in mine else None
    conversation: str | None = st.session_state["conversation"]
    if conversation:
        st.query_params["c"] = conversation
    else:
        st.query_params.clear()
    return conversation


def open_conversation(conversation: str | None) -> None:
    """Callback of the sidebar."""
    st.session_state["conversation"] = conversation
    st.session_state.pop("problem", None)
    st.session_state.pop("shown", None)


def sidebar(parts: Resources, current: str | None) -> None:
    """New chat and the latest conversations."""
    with st.sidebar:
        st.button(
            "New chat",
            icon=":material/add:",
            width="stretch",
            on_click=open_conversation,
            args=(None,),
            key="new_chat",
        )
        conversations = parts.feedback.conversations(USER, limit=LISTED)
        if conversations:
            st.caption("Recent")
        titles = numbered([short(conversation.title, 30) for conversation in conversations])
        for conversation, title in zip(conversations, titles, strict=True):
            st.button(
                safe_markdown(title),
                key=f"open-{conversation.id}",
                type="secondary" if conversation.id == current else "tertiary",
                width="stretch",
                on_click=open_conversation,
                args=(conversation.id,),
            )


def numbered(titles: Sequence[str]) -> list[str]:
    """Titles, newest first, that can be told apart: the second of the same is `title (2)`."""
    times: Counter[str] = Counter()
    found = []
    for title in reversed(titles):
        times[title] += 1
        found.append(title if times[title] == 1 else f"{title} ({times[title]})")
    return found[::-1]


def show_exchanges(exchanges: list[Exchange], parts: Resources) -> None:
    """The latest exchanges; earlier ones on request."""
    shown = st.session_state.setdefault("shown", SHOWN)
    if len(exchanges) > shown and st.button("Show earlier", icon=":material/history:", type="tertiary"):
        st.session_state["shown"] = shown + 20
        st.rerun()
    for exchange in exchanges[-shown:]:
        show_question(exchange.question)
        with assistant_message():
            show_answer(parts, exchange)


def empty_state(parts: Resources) -> None:
    """What to do first."""
    st.title("Ask your documents", anchor=False)
    ready = [document for document in parts.documents.list(USER) if document.status == "ready"]
    waiting = [document for document in parts.documents.list(USER) if document.status == "pending"]
    if waiting:
        st.caption(
            f"{len(ready)} of {len(ready) + len(waiting)} documents are ready; the rest are being read."
        )
    elif ready:
        st.caption(
            f"{len(ready)} documents are ready. Every answer names its sources, and your vote improves it."
        )
    else:
        st.info("There are no documents yet. Add some on the Documents page.", icon=":material/description:")
    if any(document.origin == "sample" for document in ready + waiting):
        left, right = st.columns(2)
        for number, example in enumerate(EXAMPLES):
            column = left if number % 2 == 0 else right
            column.button(
                example, key=f"example-{number}", width="stretch", on_click=ask_again, args=(example,)
            )


def ask_again(question: str) -> None:
    """Callback: put a question as if it were typed."""
    st.session_state["asked"] = question
    st.session_state.pop("problem", None)


def take_turn(parts: Resources, conversation: str | None, question: str, exchanges: list[Exchange]) -> None:
    """Answer one question on the page; whatever happens to the page, the exchange is recorded."""
    st.session_state.pop("problem", None)
    if not question:
        return
    if conversation is None:
        conversation = parts.feedback.start_conversation(USER, question)
        st.session_state["conversation"] = conversation
    show_question(question)
    done = [e for e in exchanges if e.status == "complete"]
    history = history_of([(e.question, e.answer.text) for e in done[-REMEMBERED:]])
    with assistant_message():
        turn = Turn(parts, Question(conversation, USER, question, history))
        st.session_state["turn"] = turn
        problem = stream(turn, parts)
    if problem is not None:
        st.session_state["problem"] = (question, problem)
    st.rerun()


def stream(turn: Turn, parts: Resources) -> UnderstudyError | None:
    """Draw the answer as it comes; returns what went wrong, if something did."""
    place = st.empty()
    st.button("Stop", icon=":material/stop_circle:", key="stop", type="tertiary")
    began, text = time.monotonic(), ""
    asked, ahead = began, None
    try:
        while True:
            # drawing also lets Streamlit interrupt this run when somebody presses Stop
            item = turn.next(STREAM_S)
            if isinstance(item, Asked):
                return None
            if isinstance(item, UnderstudyError):
                return item
            text += item or ""
            if text:
                place.markdown(safe_markdown(text))
            else:
                if time.monotonic() - asked > PLACE_S:
                    asked, ahead = time.monotonic(), turn.place()
                place.caption(f"{doing(parts, ahead)} … {time.monotonic() - began:.0f} s")
    finally:
        turn.stop()


def doing(parts: Resources, ahead: int | None) -> str:
    """What a question without an answer waits for; `ahead` is its place in the engine's line."""
    if ahead:
        return f"Place {ahead} in the line"
    return "Looking through the documents" if parts.warm else "Starting: loading the reading models"


def show_problem(exchanges: list[Exchange]) -> None:
    """A question that could not be answered stays, with a way to ask it again."""
    problem = st.session_state.get("problem")
    if problem is None:
        return
    question, error = problem
    if not exchanges or exchanges[-1].question != question:  # a partial answer shows it already
        show_question(question)
    with assistant_message():
        error_notice(error)
        st.button("Ask again", icon=":material/refresh:", on_click=ask_again, args=(question,), key="retry")


page()
