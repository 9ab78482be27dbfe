"""HTML into an outline: what a reader sees, without scripts, navigation and hidden parts."""

from __future__ import annotations

import re
from typing import Any

from core.errors import DocumentError
from rag.outline import Outline

MAX_DEPTH = 300
MAX_SPAN = 1_000

_SKIP = (
    "script",
    "style",
    "noscript",
    "template",
    "nav",
    "footer",
    "form",
    "svg",
    "iframe",
    "object",
    "head",
)
_BLOCKS = ("p", "div", "li", "blockquote", "pre", "dt", "dd", "figcaption", "caption", "td", "th")
_OPENED = (*_BLOCKS, "table", "ul", "ol", "h1", "h2", "h3", "h4", "h5", "h6")


def read_html(data: bytes, outline: Outline) -> None:
    """A web page; a main element counts before the body. Hidden text is left out and counted."""
    from bs4 import BeautifulSoup

    text = outline.decode(data)
    check_depth(text)
    soup = BeautifulSoup(text, "lxml")
    for tag in soup.find_all(_SKIP):
        tag.decompose()
    for tag in soup.find_all(True):
        style = str(tag.attrs.get("style", "") if tag.attrs else "").replace(" ", "").lower()
        if tag.attrs and ("hidden" in tag.attrs or "display:none" in style or "visibility:hidden" in style):
            outline.count("hidden", sum(not char.isspace() for char in tag.get_text()))
            tag.decompose()
    root = soup.find("main") or soup.find("body") or soup
    for tag in root.find_all("br"):
        tag.replace_with("\n")
    for tag in root.find_all(_BLOCKS):
        tag.append(" ")  # keeps the words of neighbouring blocks apart in get_text
    for tag in root.find_all("header"):
        if tag.find("h1") is None:
            tag.decompose()
    _walk(root, outline)


def check_depth(text: str) -> None:
    """Refuse nesting that no page has: walking it would take time quadratic in its depth."""
    depth = 0
    for closing, _ in re.findall(
        r"<(/?)(div|span|section|table|ul|ol|b|i|em|font|blockquote|a)\b", text.lower()
    ):
        depth += -1 if closing else 1
        if depth > MAX_DEPTH:
            raise DocumentError(
                f"The page nests more than {MAX_DEPTH} elements.", "Save it again, simplified."
            )


def _walk(root: Any, outline: Outline) -> None:
    """Add the blocks below `root` in order; text between blocks becomes paragraphs of its own."""
    from bs4 import Tag
    from bs4.element import Comment, NavigableString

    loose: list[str] = []

    def flush() -> None:
        outline.paragraph("".join(loose))
        loose.clear()

    stack: list[Any] = list(reversed(list(root.children)))
    while stack:
        node = stack.pop()
        if isinstance(node, NavigableString):
            if type(node) is NavigableString and not isinstance(node, Comment):
                loose.append(str(node))
        elif isinstance(node, Tag):
            if re.fullmatch(r"h[1-6]", node.name):
                flush()
                outline.heading(int(node.name[1]), node.get_text())
            elif node.name == "table":
                flush()
                _html_table(node, outline)
            elif node.name == "li" and not node.find(["ul", "ol", "table"]):
                flush()
                ordered = node.parent is not None and node.parent.name == "ol"
                number = 1 + len(node.find_previous_siblings("li")) if ordered else None
                outline.item(node.get_text(), number)
            elif node.name == "hr":
                flush()
            elif node.name in _BLOCKS or node.find(_OPENED):
                # a block of blocks is opened up; None marks where it closes
                flush()
                stack += [None, *reversed(list(node.children))]
            else:
                loose.append(node.get_text())
        else:
            flush()
    flush()


def _html_table(table: Any, outline: Outline) -> None:
    rows = [row for row in table.find_all("tr") if row.find_parent("table") is table]
    cells = [[cell for cell in row.find_all(["th", "td"]) if cell.find_parent("tr") is row] for row in rows]
    kinds = [[cell.name for cell in row] for row in cells]
    beside = [row[:1] == ["th"] and "td" in row for row in kinds]
    if table.caption:
        outline.paragraph(table.caption.get_text())
    if kinds and all(beside):  # the headers stand in the first column
        for row in cells:
            texts = [cell.get_text().strip() for cell in row]
            outline.line(f"{texts[0]}: {', '.join(texts[1:])}.")
    else:
        outline.table(_grid(cells))


def _grid(rows: list[list[Any]]) -> list[list[str]]:
    """Cells in their columns: one over several rows is repeated, one over several columns in the header."""
    grid: list[list[str]] = []
    hanging: dict[int, tuple[int, str]] = {}  # column: rows still to fill, and the text
    for row in rows:
        line: list[str] = []
        for cell in [*row, None]:
            while len(line) in hanging:
                left, text = hanging.pop(len(line))
                if left > 1:
                    hanging[len(line)] = (left - 1, text)
                line.append(text)
            if cell is None:
                break
            text, down, across = cell.get_text(), _span(cell, "rowspan"), _span(cell, "colspan")
            for step in range(across):
                shown = text if step == 0 or not grid else ""
                if down > 1:
                    hanging[len(line)] = (down - 1, shown)
                line.append(shown)
        grid.append(line)
    return grid


def _span(cell: Any, name: str) -> int:
    value = str(cell.attrs.get(name, "1"))
    return min(max(int(value), 1), MAX_SPAN) if value.isdecimal() else 1
