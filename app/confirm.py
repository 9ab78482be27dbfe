"""The foot of a dialog that asks before something is done."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import streamlit as st


def yes_or_no(yes: str, no: str, key: str, act: Callable[..., None], args: tuple[Any, ...]) -> None:
    """Two buttons, `<key>_yes` and `<key>_no`, that close the dialog; the first calls `act` before."""
    with st.container(horizontal=True):
        done = st.button(yes, type="primary", key=f"{key}_yes", on_click=act, args=args)
        if st.button(no, key=f"{key}_no") or done:
            st.rerun()
