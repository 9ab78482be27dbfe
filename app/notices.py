"""What pages say about the state of things: the model in use, an engine that is down, an error."""

from __future__ import annotations

import streamlit as st

from app.resources import Resources
from core.catalog import BUILTIN
from core.errors import EngineUnavailable, UnderstudyError
from rag.citations import safe_markdown


def model_notice(parts: Resources) -> None:
    """Name the built-in model and what to do for a stronger one, until it is dismissed."""
    if parts.model.warning:
        st.caption(f":material/warning: About this model: {safe_markdown(parts.model.warning)}.")
    if parts.model.id != BUILTIN.id or st.session_state.get("model_notice_closed"):
        return
    with st.container(border=True, key="model_notice", horizontal=True, vertical_alignment="center"):
        with st.container():
            name = safe_markdown(parts.model.name)
            st.markdown(
                f"You are talking to **{name}**, a small model that finds and quotes. For fluent answers"
                " choose one with `.venv/bin/understudy models list`, install it with `models pull ID`,"
                " and start with `UNDERSTUDY_MODEL=ID make run`."
            )
        st.button("Dismiss", key="close_model_notice", type="tertiary", on_click=_close_model_notice)


def _close_model_notice() -> None:
    st.session_state["model_notice_closed"] = True


def engine_notice(parts: Resources) -> None:
    """Say when the engine is starting again or was given up."""
    state = parts.supervisor_state().get("parts", {}).get("engine")
    if state is None or state.get("ready"):
        return
    if state.get("gave_up"):
        st.error(
            "The model keeps failing to start, so nothing can be answered. `data/logs/engine.log` says why.",
            icon=":material/error:",
        )
    else:
        st.info(
            "The model is starting. Questions are answered as soon as it is ready.",
            icon=":material/hourglass_top:",
        )


def error_notice(error: UnderstudyError) -> None:
    """An expected error, in its own words."""
    if isinstance(error, EngineUnavailable):
        st.warning(
            "The model is restarting, so this question was not answered. It is kept; "
            "ask it again in some seconds.",
            icon=":material/restart_alt:",
        )
    else:
        st.warning(safe_markdown(f"{error.message} {error.next_step}".strip()), icon=":material/warning:")
