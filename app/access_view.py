"""Whose a document is and who may find it, on the Documents page: badges, and controls to decide."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import streamlit as st

from app.queue_view import submit
from app.resources import USER, Resources
from app.spoken import icon_label
from app.wording import short
from core.errors import ConflictError, NotFoundError
from rag.access import EVERYBODY, OPERATOR, Access
from rag.approval import Approval
from rag.citations import safe_markdown
from rag.documents import Document
from rag.groups import Groups

EVERYONE, ALONE, GROUPS = "Everybody", "Only you", "Groups"
PRIVATE = (
    "What is only yours is used on these pages and by `understudy ask`; users of the API do not find it."
    " What is given to groups their members find too."
)
APPROVALS = {
    "waiting": ("waits for approval", ":material/pending:", "orange"),
    "rejected": ("rejected", ":material/block:", "red"),
}

Act = Callable[[Approval, str], None]


def access_badges(document: Document) -> None:
    """What is out of the ordinary: not for everybody, not approved, or somebody else's."""
    if document.access.groups:
        names = short(", ".join(document.access.groups), 40)
        st.badge(safe_markdown(names), icon=":material/group:", color="gray")
    elif document.visibility == "owner":
        st.badge("only you", icon=":material/lock:", color="gray")
    if document.access.offered and document.approval in APPROVALS:
        label, icon, color = APPROVALS[document.approval]
        st.badge(label, icon=icon, color=color)  # type: ignore[arg-type]
    if document.owner != USER:
        st.caption(f"by {safe_markdown(short(document.owner, 40))}")


def access_buttons(parts: Resources, document: Document) -> None:
    """Approve and reject what waits for a reviewer; choose who may find one's own."""
    if document.owner == USER:
        icon = "lock_open" if document.visibility == "everybody" else "lock"
        icon = "group" if document.access.groups else icon
        label = icon_label(icon, f"Who may find it: {document.name}")
        if st.button(label, key=f"who-{document.id}", help="Who may find it"):
            choose(parts, document)
    elif document.access.offered and USER == OPERATOR:
        if document.approval != "approved":
            _button(parts, document, "approve", "check", "Approve: those it is for find it", _approve)
        if document.approval != "rejected":
            _button(parts, document, "reject", "block", "Reject: nobody finds it", _reject)


def who(parts: Resources, key: str, access: Access = EVERYBODY) -> tuple[str, tuple[str, ...]]:
    """Ask who may find a document: its visibility and the groups that it is given to."""
    names = [group.name for group in Groups(parts.database).all()]
    options = [EVERYONE, ALONE, *([GROUPS] if names else [])]
    kept = [name for name in access.groups if name in names]
    now = EVERYONE if access.visibility == "everybody" else GROUPS if kept else ALONE
    chosen = st.radio(
        "Who may find it", options, index=options.index(now), key=f"{key}-who", horizontal=True, help=PRIVATE
    )
    if chosen == GROUPS:
        st.multiselect("Groups", names, default=kept, key=f"{key}-groups")
    return _chosen(key)


def _chosen(key: str) -> tuple[str, tuple[str, ...]]:
    chosen = st.session_state[f"{key}-who"]
    groups = st.session_state.get(f"{key}-groups", ()) if chosen == GROUPS else ()
    return ("everybody" if chosen == EVERYONE else "owner"), tuple(groups)


@st.dialog("Who may find this document?", icon=":material/group:")
def choose(parts: Resources, document: Document) -> None:
    """Ask, then change it."""
    st.markdown(f"**{safe_markdown(document.name)}**")
    key = f"choose-{document.id}"
    who(parts, key, document.access)
    if st.button(
        "Save",
        key="choose_save",
        type="primary",
        icon=":material/save:",
        on_click=_choose,
        args=(parts, document.id, key),
    ):
        st.rerun()


def _choose(parts: Resources, document_id: str, key: str) -> None:
    visibility, groups = _chosen(key)
    _do(parts, document_id, lambda approval, one: approval.show_to(one, visibility, USER, groups))


def _button(parts: Resources, document: Document, name: str, icon: str, label: str, act: Act) -> None:
    st.button(
        icon_label(icon, f"{label}: {document.name}"),
        key=f"{name}-{document.id}",
        help=label,
        on_click=_do,
        args=(parts, document.id, act),
    )


def _do(parts: Resources, document_id: str, act: Act) -> None:
    with suppress(NotFoundError, ConflictError):  # somebody else was quicker
        act(Approval(parts.database), document_id)
        submit(parts)  # brings the index up to date


def _approve(approval: Approval, document_id: str) -> None:
    approval.approve(document_id, USER)


def _reject(approval: Approval, document_id: str) -> None:
    approval.reject(document_id, USER)
