"""What the Documents page lists: by name, by filter, a page at a time; and decisions on all that is shown."""

from __future__ import annotations

import streamlit as st

from app.confirm import yes_or_no
from app.queue_view import submit
from app.resources import USER, Resources
from app.wording import short
from rag.access import OPERATOR
from rag.approval import Approval
from rag.citations import safe_markdown
from rag.documents import Document

LISTED = 100
NAMED = 5
FILTERS = {  # of rag.listing: the label, and what is said where nothing is found
    "all": ("All", ""),
    "waiting": (
        "Waiting for approval",
        "Nothing waits for approval: what others add for everybody or a group would stand here.",
    ),
    "problems": ("With problems", "No document failed, and none has a warning."),
    "rejected": ("Rejected", "No document was rejected."),
    "off": ("With passages off", "No document has a passage that is switched off."),
}
FILTER, PAGE, WANTED, DECIDED = "documents_filter", "documents_page", "documents_wanted", "documents_decided"
VERBS = {"approved": "Approve", "rejected": "Reject"}


def find(parts: Resources) -> list[Document]:
    """Ask for name, filter and page, and give the documents to list."""
    wanted = st.text_input(
        "Find by name",
        placeholder="Find by name",
        label_visibility="collapsed",
        key=WANTED,
        on_change=_first_page,
    )
    counts = parts.listing.counts(USER, wanted or "")
    choice = st.segmented_control(
        "Which documents",
        list(FILTERS),
        required=True,
        default="all",
        format_func=lambda name: f"{FILTERS[name][0]} ({counts[name]:,})",
        key=FILTER,
        on_change=_first_page,
        label_visibility="collapsed",
    )
    choice = choice or "all"
    if not counts[choice]:
        text = "None of these documents is called that." if wanted else FILTERS[choice][1]
        st.caption(f":material/inbox: {text}")
        return []
    pages = -(-counts[choice] // LISTED)
    page = 1
    if pages > 1:
        page = st.pagination(pages, key=PAGE)
        last = min(page * LISTED, counts[choice])
        st.caption(f"{(page - 1) * LISTED + 1:,} to {last:,} of {counts[choice]:,}, newest first")
    return parts.listing.page(USER, choice, wanted or "", LISTED, (page - 1) * LISTED)


def _first_page() -> None:
    st.session_state[PAGE] = 1


def decide_shown(parts: Resources, documents: list[Document]) -> None:
    """Approve or reject at once what is listed and waits, where that was asked for; and take it back."""
    if DECIDED in st.session_state:
        after, ids = st.session_state[DECIDED]
        with st.container(horizontal=True, vertical_alignment="center"):
            st.success(f"{_many(len(ids))} {after}.", icon=":material/check:")
            st.button("Undo", key="undo_decided", icon=":material/undo:", on_click=_undo, args=(parts,))
            st.button("Close", key="close_decided", on_click=_close)
    if USER != OPERATOR or st.session_state.get(FILTER) != "waiting" or not documents:
        return
    with st.container(horizontal=True):
        for after, icon in (("approved", ":material/done_all:"), ("rejected", ":material/block:")):
            label = f"{VERBS[after]} all {len(documents)} shown"
            if st.button(label, key=f"all-{after}", icon=icon):
                confirm(parts, documents, after)


@st.dialog("Decide about all that is shown?", icon=":material/done_all:")
def confirm(parts: Resources, documents: list[Document], after: str) -> None:
    """Name the documents, then decide about these and no others."""
    names = ", ".join(safe_markdown(short(document.name, 60)) for document in documents[:NAMED])
    more = f" and {len(documents) - NAMED} more" if len(documents) > NAMED else ""
    owners = sorted({document.owner for document in documents})
    shown = safe_markdown(short(", ".join(owners), 200))
    what = "Those they are for find them." if after == "approved" else "Nobody finds them, nor their owners."
    st.markdown(f"**{names}**{more}, added by {shown}. {what}")
    yes_or_no(
        f"{VERBS[after]} {len(documents)}",
        "Leave them",
        "decide",
        _decide,
        (parts, [document.id for document in documents], after),
    )


def _decide(parts: Resources, ids: list[str], after: str) -> None:
    decided = Approval(parts.database).decide_all(ids, "waiting", after, USER)
    st.session_state[DECIDED] = (after, decided)
    submit(parts)  # brings the index up to date


def _undo(parts: Resources) -> None:
    """Let wait again what was decided at once and was not decided otherwise since."""
    after, ids = st.session_state.pop(DECIDED)
    Approval(parts.database).decide_all(ids, after, "waiting", USER)
    submit(parts)


def _close() -> None:
    st.session_state.pop(DECIDED, None)


def _many(count: int) -> str:
    return "1 document was" if count == 1 else f"{count} documents were"
