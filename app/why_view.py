"""Why an answer came out so: what was found, left out and read, how well it holds, and the prompt as sent.

Words of documents, users and models are shown as text, never rendered.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

import streamlit as st

from app.resources import USER, Resources
from app.wording import place, short
from core.types import Answer, Passage
from feedback.records import Exchange
from rag.citations import safe_markdown, supports
from rag.prompt import ignored_roles, is_refusal, question_line
from rag.quality import unseen
from rag.sources import Provenance, provenances

REASONS = {
    "repeat": "another passage holds its words",
    "document": "its document has its share",
    "owner": "other sources had passages that fit",
    "lines": "none of its lines is among the few that this model reads",
    "rank": "this model reads fewer passages",
    "budget": "the prompt was full",
}


def why(parts: Resources, exchange: Exchange) -> None:
    """Everything that the answer was made from."""
    answer = exchange.answer
    used = {passage.document_id for passage in answer.passages}
    found = provenances(parts.database, used, USER)
    if answer.trace.searched not in ("", question_line(exchange.question)):
        st.caption(safe_markdown(f"Searched for: {answer.trace.searched}"))
    st.markdown("**Passages the model read**")
    if not answer.passages:
        st.caption("None.")
    for passage in answer.passages:
        read(passage, found.get(passage.document_id))
    if answer.trace.left_out or answer.trace.turns_cut:
        left_out(answer)
    support(parts, answer)
    written(answer)
    prompt(parts, answer)


def read(passage: Passage, source: Provenance | None) -> None:
    """A passage with its scores, and of its document the date, the one who loaded it, and hidden text."""
    st.markdown(safe_markdown(place(passage)))
    scores = ", ".join(f"{name} {value:.3g}" for name, value in passage.scores.items())
    st.caption(safe_markdown(short(passage.text, 160) + (f" ({scores})" if scores else "")))
    if source is None:
        st.caption("This version of the document is gone, or no longer for you.")
        return
    loaded = f"Loaded {datetime.fromtimestamp(source.created_at / 1000, UTC):%d %b %Y}"
    by = f" by {short(source.owner, 40)}" if source.owner != USER else ""
    st.caption(safe_markdown(loaded + by))
    if hidden := unseen(source.quality):
        text = f"This document holds text that its readers do not see: {', '.join(hidden)}."
        st.caption(f":material/visibility_off: {safe_markdown(text)}")


def left_out(answer: Answer) -> None:
    """What was found or said before, and is not in the prompt."""
    st.markdown("**Left out**")
    lines = [f"{place(one)}: {REASONS[one.why]}" for one in answer.trace.left_out]
    if turns := answer.trace.turns_cut:
        lines.append(f"{turns} earlier question{'s' if turns > 1 else ''} of this conversation")
    st.caption("  \n".join(safe_markdown(line) for line in lines))


def support(parts: Resources, answer: Answer) -> None:
    """How far the cited lines hold each sentence of the model's own reply."""
    if not answer.raw or answer.mode == "correction" or is_refusal(answer.raw):
        return
    st.markdown("**How well the cited lines hold the model's reply**")
    lines = [f"{share:.2f}  {one.text}" for one, share in supports(answer.raw, answer.passages)]
    st.caption("  \n".join(safe_markdown(line) for line in lines) or "It says nothing.")
    st.caption(f"A reply is believed from {parts.settings.support_threshold:.2f} on, each sentence counted.")


def written(answer: Answer) -> None:
    """Who wrote it, and what that took."""
    st.markdown("**How it was written**")
    times = ", ".join(
        f"{name.removesuffix('_ms')} {value:,.0f} ms"
        for name, value in answer.timings.items()
        if name.endswith("_ms")
    )
    counted = ", ".join(
        f"{answer.timings[name]:.0f} {name.removesuffix('_tokens')}"
        for name in ("prompt_tokens", "completion_tokens")
        if name in answer.timings
    )
    replied = answer.raw and answer.mode != "correction"
    rows: Mapping[str, str] = {
        "Model": answer.model,
        "Adapter": answer.adapter or "none",
        "Kind": answer.mode,
        "The model's own reply was believed": ("yes" if answer.supported else "no") if replied else "",
        "Prompt version": answer.prompt_version,
        "Times": times,
        "Tokens": counted,
    }
    st.caption("  \n".join(f"{name}: {safe_markdown(value)}" for name, value in rows.items() if value))


def prompt(parts: Resources, answer: Answer) -> None:
    """The whole prompt, message by message, and what the model wrote."""
    if answer.mode == "correction" or not answer.prompt_version or not answer.raw:
        return  # nobody was asked
    unread = ignored_roles(parts.model) if answer.model == parts.model.id else ()
    with st.expander("The whole prompt", icon=":material/notes:"):
        for message in answer.messages:
            role = message["role"]
            st.caption(f"{role} (left out by this model's template)" if role in unread else role)
            st.code(message["content"], language=None, wrap_lines=True)
        st.caption("What the model wrote")
        st.code(answer.raw, language=None, wrap_lines=True)
