"""A citation opened: the cited words marked on the page of a PDF, and in the text of their document."""

from __future__ import annotations

import streamlit as st

from app.resources import USER, Resources
from core.errors import UnderstudyError
from core.types import Citation
from rag.citations import safe_markdown
from rag.newer import newer
from rag.sources import web_address

AROUND = 700  # characters shown before and after the cited words
FURTHER = 6000


def open_source(parts: Resources, citation: Citation) -> None:
    """Open the dialog with the cited place."""
    st.session_state["source_further"] = st.session_state["source_newer"] = False
    _dialog(parts, citation)


@st.dialog("Source", width="large", icon=":material/article:")
def _dialog(parts: Resources, citation: Citation) -> None:
    st.markdown(f"**{safe_markdown(citation.document)}**")
    where = [citation.heading, f"page {citation.page}" if citation.page else ""]
    st.caption(safe_markdown(" · ".join(part for part in where if part)))
    if address := web_address(parts.database, citation.document_id):
        st.code(address, language=None, wrap_lines=True)  # to be copied: text of a page is never a link
    try:
        text = parts.documents.text(citation.document_id, USER)
    except UnderstudyError:
        replaced(parts, citation)
    else:
        _place(parts, citation, text)


def replaced(parts: Resources, citation: Citation) -> None:
    """Of a document that is gone the cited words, and its newer version where there is one."""
    found = newer(parts.documents, citation, USER)
    if found is None:
        st.info("This document has been removed since. The cited words were:")
        st.markdown(marked(citation.quote))
        return
    st.info("A newer version has replaced this document since; its text may differ. The cited words were:")
    st.markdown(marked(citation.quote))
    if not st.toggle("Open the newer version", key="source_newer"):
        return
    if found.citation is None:
        st.caption("The newer version does not hold these words any more. It begins:")
        st.markdown(excerpt(found.text, 0, 0, AROUND))
    else:
        _place(parts, found.citation, found.text)


def _place(parts: Resources, citation: Citation, text: str) -> None:
    """The cited place in the document's text, and on its page where it has pages."""
    if citation.edited:
        st.badge("Edited passage", icon=":material/edit:", color="orange")
        st.caption("These words were written by hand on the Documents page:")
        st.markdown(marked(citation.quote))
        st.caption("In their place the document says:")
    picture = page_picture(parts, citation)
    # beside each other where there is room; columns stand below each other on a phone
    left, right = st.columns([3, 2]) if picture else (None, st.container())
    if left is not None and picture is not None:
        with left.container(border=True):  # a white page on a white ground has no edge of its own
            st.image(picture, width="stretch")
    with right:
        around = FURTHER if st.toggle("Show more of the document", key="source_further") else AROUND
        st.markdown(excerpt(text, citation.start, citation.end, around))


def page_picture(parts: Resources, citation: Citation) -> bytes | None:
    """The page of a PDF with the cited words marked, as PNG; what is wrong with it is said."""
    with st.spinner("Drawing the page"):
        place = (citation.document_id, citation.page, citation.start, citation.end)
        view = parts.pages.view(*place, viewer=USER)
    if view is not None and view.note:
        st.caption(f":material/info: {safe_markdown(view.note)}")
    return view.png or None if view is not None else None


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
