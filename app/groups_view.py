"""Groups of accounts on the Documents page: make and remove them, and choose their members."""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st

from app.resources import USER, Resources
from core.errors import UnderstudyError
from rag.access import OPERATOR
from rag.citations import safe_markdown
from rag.groups import Group, Groups

ACCOUNTS = (
    "What is given to a group is found by its members and its owner. Accounts are `local` (these pages and"
    " `understudy ask`), `api:NAME` (users of the API) and `api` (those who give no name). API users name"
    " themselves, so this is no wall between people who know the password."
)
PROBLEM = "groups_problem"


def show_groups(parts: Resources) -> None:
    """Every group with its members, and a form for a new one."""
    found = Groups(parts.database).all()
    known = sorted({OPERATOR, *(account for group in found for account in group.members)})
    with st.expander("Groups of accounts", icon=":material/group:"):
        st.caption(ACCOUNTS)
        if problem := st.session_state.pop(PROBLEM, ""):
            st.warning(safe_markdown(problem), icon=":material/block:")
        for group in found:
            _row(parts, group, known)
        with st.form("new_group", border=False, clear_on_submit=True):
            st.text_input("New group", key="new_group_name", placeholder="sales")
            st.form_submit_button("Make group", icon=":material/group_add:", on_click=_create, args=(parts,))


def _row(parts: Resources, group: Group, known: list[str]) -> None:
    key = f"members-{group.name}"
    st.session_state[key] = list(group.members)  # as they are now, whoever changed them
    with st.container(border=True, key=f"group-{group.name}"):
        st.multiselect(
            f"Members of {safe_markdown(group.name)}",
            known,
            key=key,
            accept_new_options=True,
            placeholder="api:NAME",
            on_change=_members,
            args=(parts, group, key),
        )
        documents = f"{group.documents} document{'s' if group.documents != 1 else ''}"
        st.button(
            f"Remove {safe_markdown(group.name)} ({documents})",
            key=f"ungroup-{group.name}",
            icon=":material/delete:",
            type="tertiary",
            help="What was given to this group alone is its owner's alone again",
            on_click=_try,
            args=(lambda: Groups(parts.database).remove(group.name, USER),),
        )


def _create(parts: Resources) -> None:
    _try(lambda: Groups(parts.database).create(st.session_state["new_group_name"] or "", USER))


def _members(parts: Resources, group: Group, key: str) -> None:
    """Callback: whoever was put in joins and whoever was taken out leaves; `group` is as it was shown."""
    wanted, shown = set(st.session_state[key]), set(group.members)
    groups = Groups(parts.database)
    _try(lambda: groups.change(group.name, join=wanted - shown, leave=shown - wanted, actor=USER))


def _try(act: Callable[[], object]) -> None:
    try:
        act()
    except UnderstudyError as error:
        st.session_state[PROBLEM] = str(error)
