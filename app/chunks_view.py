"""The passages of a document, as search finds them: read, edit, switch off, restore, undo.

The dialog is a fragment, so its buttons redraw only the dialog. Changing needs the embedding model; looking
does not.
"""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st

from app.resources import USER, Resources
from app.source_view import plain
from app.spoken import spoken
from core.errors import UnderstudyError
from rag.chunk_edits import ChunkEditor, ChunkStore, StoredChunk
from rag.citations import safe_markdown
from rag.documents import Document

SHOWN = 10  # passages at once
EDITING, PROBLEM = "passage_edited", "passage_problem"  # what the session remembers


def open_chunks(parts: Resources, document: Document) -> None:
    """Open the dialog on the first passages."""
    for key in (EDITING, PROBLEM, "passage_part"):
        st.session_state.pop(key, None)
    dialog(parts, document)


@st.dialog("Passages", width="large", icon=":material/segment:")
def dialog(parts: Resources, document: Document) -> None:
    """Some of the passages, with what can be done to them."""
    st.markdown(f"**{safe_markdown(document.name)}**")
    chunks = ChunkStore(parts.database).all(document.id, USER)
    if not chunks:
        st.info("This document has no passages (any more).")
        return
    st.caption(summary(chunks))
    if problem := st.session_state.pop(PROBLEM, ""):
        st.warning(safe_markdown(problem), icon=":material/warning:")
    cited = parts.feedback.cited_spans(document.id)
    pages = -(-len(chunks) // SHOWN)
    part = st.number_input("Part", 1, pages, key="passage_part") if pages > 1 else 1
    for chunk in chunks[(part - 1) * SHOWN : part * SHOWN]:
        times = sum(start < chunk.end and chunk.start < end for start, end in cited)
        _chunk(parts, chunk, times, fixed=document.status != "ready")


def summary(chunks: list[StoredChunk]) -> str:
    """How many there are, and what was done to them."""
    edited, off = sum(chunk.edited for chunk in chunks), sum(chunk.off for chunk in chunks)
    counts = [f"{len(chunks):,} passage{'s' if len(chunks) != 1 else ''}"]
    counts += [f"{edited:,} edited"] if edited else []
    counts += [f"{off:,} switched off"] if off else []
    return (
        " · ".join(counts)
        + ". Changes are searched at once and stay when the file is read again unchanged; when"
        " the file changes, they stay on the passages that did not."
    )


def _chunk(parts: Resources, chunk: StoredChunk, cited: int, *, fixed: bool) -> None:
    with st.container(border=True, key=f"passage-{chunk.document_id}-{chunk.ordinal}"):
        with st.container(horizontal=True, vertical_alignment="center", gap="small"):
            st.caption(safe_markdown(about(chunk, cited)))
            if chunk.edited:
                st.badge("edited", icon=":material/edit:", color="orange")
            if chunk.off:
                st.badge("switched off", icon=":material/visibility_off:", color="gray")
        if st.session_state.get(EDITING) == chunk.ordinal and not fixed:
            _form(parts, chunk)
            return
        st.markdown(plain(chunk.text))
        if chunk.edited:
            with st.expander("What the document says"):
                st.markdown(plain(chunk.source))
        if fixed:
            st.caption("It can be changed once the document is ready.")
        else:
            _actions(parts, chunk)


def about(chunk: StoredChunk, cited: int) -> str:
    """Place, heading, page, size and how often answers cited it."""
    facts = [
        f"{chunk.ordinal + 1}",
        chunk.heading,
        f"page {chunk.page}" if chunk.page else "",
        f"about {chunk.tokens} tokens",
        f"cited {cited} time{'s' if cited != 1 else ''}" if cited else "never cited",
    ]
    return " · ".join(fact for fact in facts if fact)


def _actions(parts: Resources, chunk: StoredChunk) -> None:
    number = spoken(f" passage {chunk.ordinal + 1}")

    def button(label: str, icon: str, act: Callable[[ChunkEditor], object]) -> None:
        key = f"{label.split()[0].lower()}-{chunk.document_id}-{chunk.ordinal}"
        st.button(
            f"{label}{number}",
            key=key,
            icon=f":material/{icon}:",
            type="tertiary",
            on_click=_do,
            args=(parts, act),
        )

    with st.container(horizontal=True, gap="medium"):
        st.button(
            f"Edit{number}",
            key=f"edit-{chunk.document_id}-{chunk.ordinal}",
            icon=":material/edit:",
            type="tertiary",
            on_click=_begin,
            args=(chunk.ordinal,),
        )
        if chunk.off:
            button("Switch on", "visibility", lambda editor: editor.switch(chunk.id, True, USER))
        else:
            button("Switch off", "visibility_off", lambda editor: editor.switch(chunk.id, False, USER))
        if chunk.changed:
            button("Undo", "undo", lambda editor: editor.undo(chunk.id, USER))
        if chunk.edited:
            button("Restore", "restore", lambda editor: editor.restore(chunk.id, USER))


def _form(parts: Resources, chunk: StoredChunk) -> None:
    # by place, not by id: when somebody else was quicker, what was typed stays
    key = f"text-{chunk.document_id}-{chunk.ordinal}"
    with st.form(f"form-{chunk.document_id}-{chunk.ordinal}", border=False):
        st.text_area("Text", value=chunk.text, height=220, key=key, help="One line is one citable item.")
        with st.container(horizontal=True, gap="small"):
            st.form_submit_button(
                "Save", type="primary", icon=":material/save:", on_click=_save, args=(parts, chunk, key)
            )
            st.form_submit_button("Cancel", on_click=_begin, args=(None,))


def _begin(ordinal: int | None) -> None:
    st.session_state[EDITING] = ordinal


def _save(parts: Resources, chunk: StoredChunk, key: str) -> None:
    text = st.session_state.get(key) or ""
    if _done(parts, lambda editor: editor.edit(chunk.id, text, USER)):
        _begin(None)


def _do(parts: Resources, act: Callable[[ChunkEditor], object]) -> None:
    """Callback of the buttons."""
    _done(parts, act)


def _done(parts: Resources, act: Callable[[ChunkEditor], object]) -> bool:
    """Whether the change was made; what went wrong is shown above the passages."""
    retriever = parts.assistant.retriever
    try:
        act(ChunkEditor(ChunkStore(parts.database), retriever.vectors, retriever.index))
    except UnderstudyError as error:
        st.session_state[PROBLEM] = str(error)
        return False
    return True
