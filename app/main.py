"""The entry of the pages: navigation, and nothing else."""

from pathlib import Path

import streamlit as st

from core.settings import load_settings

FOLDER = Path(__file__).parent

st.set_page_config(page_title="Understudy", page_icon=str(FOLDER / "mark.svg"), layout="centered")
st.logo(str(FOLDER / "mark.svg"), size="large")
pages = st.navigation(
    [
        st.Page(FOLDER / "chat_page.py", title="Chat", icon=":material/chat:", default=True),
        st.Page(
            FOLDER / "documents_page.py",
            url_path="documents",
            title="Documents",
            icon=":material/description:",
        ),
        st.Page(FOLDER / "search_page.py", url_path="search", title="Search", icon=":material/search:"),
        st.Page(FOLDER / "training_page.py", url_path="training", title="Training", icon=":material/school:"),
        st.Page(
            FOLDER / "adapters_page.py",
            url_path="adapters",
            title="Adapters",
            icon=":material/theater_comedy:",
        ),
    ]
)
if load_settings().password:
    st.sidebar.link_button("Log out", "/logout", icon=":material/logout:", type="tertiary")
pages.run()
