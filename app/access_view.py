"""Whose a document is and who may find it, on the Documents page: badges, and buttons to decide."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import streamlit as st

from app.answer_view import short
from app.queue_view import submit
from app.resources import USER, Resources
from core.errors import ConflictError, NotFoundError
from rag.access import OPERATOR
from rag.approval import Approval
from rag.citations import safe_markdown
from rag.documents import Document

PRIVATE = "Answers use it on these pages and for `understudy ask`; users of the API do not find it."
APPROVALS = {
    "waiting": ("waits for approval", ":material/pending:", "orange"),
    "rejected": ("rejected", ":material/block:", "red"),
}

Act = Callable[[Approval, str], None]


def access_badges(document: Document) -> None:
    """What is out of the ordinary: private, not approved, or somebody else's."""
    if document.visibility == "owner":
        st.badge("only you", icon=":material/lock:", color="gray")
    elif document.approval in APPROVALS:
        label, icon, color = APPROVALS[document.approval]
        st.badge(label, icon=icon, color=color)  # type: ignore[arg-type]
    if document.owner != USER:
        st.caption(f"by {safe_markdown(short(document.owner, 40))}")


def access_buttons(parts: Resources, document: Document) -> None:
    """Approve and reject what waits for a reviewer; choose who may find one's own."""
    if document.visibility == "everybody" and USER == OPERATOR and document.owner != USER:
        if document.approval != "approved":
            _button(parts, document, "approve", ":material/check:", "Approve: everybody finds it", _approve)
        if document.approval != "rejected":
            _button(parts, document, "reject", ":material/block:", "Reject: nobody finds it", _reject)
    elif document.owner == USER and document.visibility == "owner":
        _button(parts, document, "share", ":material/lock:", "Only you find it; give it to everybody", _share)
    elif document.owner == USER:
        _button(
            parts, document, "keep", ":material/lock_open:", "Everybody finds it; keep it for yourself", _keep
        )


def _button(parts: Resources, document: Document, name: str, icon: str, label: str, act: Act) -> None:
    st.button(
        "", key=f"{name}-{document.id}", icon=icon, help=label, on_click=_do, args=(parts, document.id, act)
    )


def _do(parts: Resources, document_id: str, act: Act) -> None:
    with suppress(NotFoundError, ConflictError):  # somebody else was quicker
        act(Approval(parts.database), document_id)
        submit(parts)  # brings the index up to date


def _approve(approval: Approval, document_id: str) -> None:
    approval.approve(document_id, USER)


def _reject(approval: Approval, document_id: str) -> None:
    approval.reject(document_id, USER)


def _share(approval: Approval, document_id: str) -> None:
    approval.show_to(document_id, "everybody", USER)


def _keep(approval: Approval, document_id: str) -> None:
    approval.show_to(document_id, "owner", USER)
