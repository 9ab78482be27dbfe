"""A citation opened: the cited words marked, in the text of their document."""

from __future__ import annotations

import streamlit as st

from app.resources import USER, Resources
from core.errors import UnderstudyError
from core.types import Citation
from rag.citations import safe_markdown

AROUND = 700  # characters shown before and after the cited words
FURTHER = 6000


def open_source(parts: Resources, citation: Citation) -> None:
    """Open the dialog with the cited place."""
    st.session_state["source_further"] = False
    _dialog(parts, citation)


@st.dialog("Source", width="large", icon=":material/article:")
def _dialog(parts: Resources, citation: Citation) -> None:
    st.markdown(f"**{safe_markdown(citation.document)}**")
    where = [citation.heading, f"page {citation.page}" if citation.page else ""]
    st.caption(safe_markdown(" · ".join(part for part in where if part)))
    try:
        text = parts.documents.text(citation.document_id, USER)
    except UnderstudyError:
        st.info("This document has been removed since. The cited words were:")
        st.markdown(marked(citation.quote))
        return
    around = FURTHER if st.toggle("Show more of the document", key="source_further") else AROUND
    st.markdown(excerpt(text, citation.start, citation.end, around))


def excerpt(text: str, start: int, end: int, around: int) -> str:
    """Markdown of `text[start:end]` marked, with whole lines or words before and after."""
    first = _boundary(text, max(0, start - around), forward=True) if start > around else 0
    last = (
        _boundary(text, min(len(text), end + around), forward=False)
        if end + around < len(text)
        else len(text)
    )
    first, last = min(first, start), max(last, end)
    before = ("… " if first else "") + text[first:start]
    after = text[end:last] + (" …" if last < len(text) else "")
    return plain(before) + marked(text[start:end]) + plain(after)


def plain(text: str) -> str:
    """Document text as Markdown that shows it as it is; white space at the ends stays."""
    lead = text[: len(text) - len(text.lstrip())]
    trail = text[len(text.rstrip()) :] if text.strip() else ""
    return _gap(lead) + safe_markdown(text.strip()) + _gap(trail)


def marked(text: str) -> str:
    """Every line of the text on a yellow ground (a mark cannot span paragraphs)."""
    lines = [" ".join(line.split()) for line in text.splitlines()]
    return "  \n".join(f":yellow-background[{safe_markdown(line)}]" for line in lines if line)


def _gap(white: str) -> str:
    return "\n\n" if white.count("\n") > 1 else "  \n" if "\n" in white else " " if white else ""


def _boundary(text: str, position: int, *, forward: bool) -> int:
    """The nearest place to cut: after white space (forward) or before it."""
    if forward:
        found = next(
            (i for i in range(position, min(position + 80, len(text))) if text[i].isspace()), position
        )
        return found + 1 if found != position else position
    return next((i for i in range(position, max(position - 80, 0), -1) if text[i].isspace()), position)
