"""The Adapters page: who is on stage, who waits in the wings, and the way back."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from functools import partial

import streamlit as st

from app.resources import USER, Resources, resources
from app.spoken import spoken
from core.adapters import Adapter, Promotion
from core.errors import UnderstudyError
from rag.citations import safe_markdown

VERDICTS = {
    "passed": (":material/check_circle:", "green"),
    "refused": (":material/block:", "orange"),
    "unjudged": (":material/help:", "gray"),
}


def page() -> None:
    """Draw the page once."""
    parts = resources()
    st.title("Adapters", anchor=False)
    st.caption(
        "An adapter is what a run learned. It answers while it is on stage, and can always be taken back."
    )
    stage = parts.registry.on_stage(parts.model.id)
    on_stage(parts, stage)
    message = st.session_state.pop("adapters_message", "")
    if message:
        st.warning(message, icon=":material/warning:")
    adapters = parts.registry.all(parts.model.id)
    if not adapters:
        st.info("No adapters yet. Start a run on the Training page.", icon=":material/school:")
    for adapter in adapters:
        card(parts, adapter, stage)
    history(parts)


def on_stage(parts: Resources, stage: Promotion | None) -> None:
    """Who answers now."""
    current = stage.adapter_id if stage else None
    with st.container(border=True, key="on_stage"):
        left, right = st.columns([3, 1], vertical_alignment="center")
        with left:
            st.caption("On stage")
            st.subheader(safe_markdown(current or "The bare base model"), anchor=False)
            st.caption(f"Base: {safe_markdown(parts.model.name)}")
        if current is not None and right.button(
            "Roll back", icon=":material/undo:", key="rollback", width="stretch"
        ):
            rollback(parts, current)


def card(parts: Resources, adapter: Adapter, stage: Promotion | None) -> None:
    """One adapter with its verdict, lineage and what can be done."""
    current = stage is not None and stage.adapter_id == adapter.id
    with st.container(border=True, key=f"adapter-{adapter.id}"):
        left, right = st.columns([3, 1], vertical_alignment="center")
        with left:
            st.markdown(f"**{safe_markdown(adapter.id)}**")
            icon, color = VERDICTS[adapter.verdict]
            with st.container(horizontal=True, gap="small"):
                st.badge(adapter.verdict, icon=icon, color=color)  # type: ignore[arg-type]
                if current:
                    st.badge("on stage", icon=":material/theater_comedy:", color="blue")
            st.caption(lineage(adapter))
            if judged := metrics(adapter):
                st.caption(judged)
        if not current and adapter.verdict != "refused":
            if right.button(
                f"Put on stage{spoken(adapter.id)}", key=f"promote-{adapter.id}", width="stretch"
            ):
                promote(parts, adapter.id, stage.seq if stage else 0)
        elif adapter.verdict == "refused":
            right.caption("The gate refused it; its run's report says why.")


def lineage(adapter: Adapter) -> str:
    """Adapter → run → data set → parent."""
    made = datetime.fromtimestamp(adapter.created_at / 1000).strftime("%d %b %Y, %H:%M")
    steps = {
        "made": made,
        "by": adapter.method,
        "run": adapter.run_id,
        "data set": adapter.dataset_version,
        "from": adapter.parent_id,
        "sha256": adapter.sha256[:12],
    }
    return " · ".join(f"{name} {safe_markdown(value)}" for name, value in steps.items() if value)


def metrics(adapter: Adapter) -> str:
    """What the judge found, in one line; empty when it has not judged."""
    figures = adapter.metrics
    try:
        before, after = figures["before"]["score"], figures["after"]["score"]
        low, high = figures["low"], figures["high"]
        cases = figures["cases"]
    except KeyError:
        return ""
    return safe_markdown(
        f"Score {before:.3f} before, {after:.3f} after, on {cases} cases; change {low:+.3f} to {high:+.3f}"
    )


@st.dialog("Put this adapter on stage?", icon=":material/theater_comedy:")
def promote(parts: Resources, adapter_id: str, seq: int) -> None:
    """Ask for the reason, then promote; somebody else's promotion in between stops it."""
    st.markdown(f"**{safe_markdown(adapter_id)}** will answer everybody within seconds, without a restart.")
    reason_form("Put on stage", partial(parts.registry.promote, adapter_id, USER, expected_seq=seq))


@st.dialog("Roll back?", icon=":material/undo:")
def rollback(parts: Resources, current: str) -> None:
    """Ask for the reason, then put back who was on stage before."""
    st.markdown(f"**{safe_markdown(current)}** leaves the stage, and who was there before it comes back.")
    reason_form("Roll back", partial(parts.registry.rollback, parts.model.id, USER))


def reason_form(label: str, change: Callable[..., Promotion]) -> None:
    """A form that wants a reason and then makes the change."""
    with st.form("reason_form", border=False):
        st.text_input("Why", key="stage_reason", max_chars=300, placeholder="For the audit log")
        sent = st.form_submit_button(label, type="primary", on_click=_change_stage, args=(change,))
    if sent and st.session_state.pop("stage_changed", False):
        st.rerun()
    if sent:
        st.caption("Say in a few words why; the audit log keeps it.")


def _change_stage(change: Callable[..., Promotion]) -> None:
    reason = str(st.session_state.get("stage_reason") or "").strip()
    if not reason:
        return
    st.session_state["stage_changed"] = True
    try:
        change(reason=reason)
    except UnderstudyError as error:
        st.session_state["adapters_message"] = safe_markdown(str(error))


def history(parts: Resources) -> None:
    """Every change of the stage, newest first."""
    entries = parts.registry.history(parts.model.id, limit=50)
    if not entries:
        return
    st.subheader("What happened on stage", anchor=False)
    for entry in entries:
        when = datetime.fromtimestamp(entry.created_at / 1000).strftime("%d %b %Y, %H:%M:%S")
        what = "put on stage" if entry.action == "promote" else "back after a rollback"
        who = entry.adapter_id or "the bare base model"
        why = f"by {safe_markdown(entry.actor)}: {safe_markdown(entry.reason)}"
        st.caption(f"{when} · **{safe_markdown(who)}** {what} {why}")


page()
