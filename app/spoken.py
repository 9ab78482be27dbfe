"""Words that screen readers alone read: a button's accessible name is its label, which here is often an icon.

Streamlit (1.67) calls a button with an icon and no label "delete icon", and takes no aria-label. Labels may
hold images, so a transparent dot with a text alternative names the button without being seen.
"""

from __future__ import annotations

from rag.citations import safe_markdown

LONGEST = 80
_DOT = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"


def spoken(text: str) -> str:
    """Markdown that is heard and not seen."""
    return f"![{safe_markdown(' '.join(text.split())[:LONGEST])}]({_DOT})"


def icon_label(icon: str, name: str) -> str:
    """The label of a button that shows an icon alone; `name` says what it does and to what."""
    return f"{spoken(name)}:material/{icon}:"
