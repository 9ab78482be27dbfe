"""The offer, below an uploaded document in the list, to have it replace its older namesake."""

from __future__ import annotations

import streamlit as st

from app.confirm import yes_or_no
from app.queue_view import submit
from app.resources import USER, Resources
from app.spoken import spoken
from core.errors import UnderstudyError
from rag.citations import safe_markdown
from rag.documents import Document
from rag.namesakes import replace_older
from rag.versions import Version


def show_older(parts: Resources, document: Document, version: Version) -> None:
    """Say that both answer, and offer to end that."""
    with st.container(horizontal=True, vertical_alignment="center", key=f"older-{document.id}"):
        st.caption(f":material/history: The version of {version.date} has the same name, and both answer.")
        if st.button(f"Replace the older version{spoken(document.name)}", key=f"replace-{document.id}"):
            confirm(parts, document, version)


@st.dialog("Replace the older version?", icon=":material/history:")
def confirm(parts: Resources, document: Document, version: Version) -> None:
    """Ask, then replace."""
    st.markdown(
        f"The version of {version.date} of **{safe_markdown(document.name)}** is removed. Passages changed"
        " by hand stay changed where the newer one says the same. To have it back, add its file again."
    )
    yes_or_no("Replace", "Keep both", "replace", _replace, (parts, document.id))


def _replace(parts: Resources, document_id: str) -> None:
    try:
        replace_older(parts.documents, document_id, USER)
        submit(parts)  # makes it ready where edits were handed on, and brings the index up to date
    except UnderstudyError as error:
        st.warning(safe_markdown(str(error)))
