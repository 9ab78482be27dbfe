"""Files into text: one parser per kind, all of them feeding the same outline.

The parsers meet hostile input, so files from outside go through `rag.reader`, which runs `extract` in a child
process with limits on memory and time. Type and content are checked before anything is parsed.
"""

from __future__ import annotations

import csv
import io
import re
import zipfile
from collections.abc import Callable
from typing import Any

from core.errors import DocumentError, first_line
from rag.filetypes import KINDS, check_archive, decode, kind_of
from rag.outline import Extracted, Outline
from rag.pages import Run, lay_out

__all__ = ["KINDS", "decode", "extract", "kind_of"]

MAX_PAGES = 2_000
MAX_DEPTH = 300
MAX_ROWS = 200_000


def extract(name: str, data: bytes) -> Extracted:
    """Read a document in this process (see `Reader` for files from outside).

    Raises DocumentError with the reason when it cannot be read.
    """
    kind = kind_of(name, data)
    outline = Outline(kind, name)
    _PARSERS[kind](data, outline)
    return outline.finish()


def _text(data: bytes, outline: Outline) -> None:
    for block in re.split(r"\n[ \t]*\n", decode(data).replace("\r\n", "\n").replace("\r", "\n")):
        lines = block.split("\n")
        if any(re.match(r"\s*(?:[-*•]|\d{1,3}[.)])\s", line) for line in lines):
            for line in lines:
                outline.line(line)
        else:
            outline.paragraph(" ".join(lines))


def _csv(data: bytes, outline: Outline) -> None:
    text = decode(data)
    try:
        dialect: Any = csv.Sniffer().sniff(text[:8192], delimiters=",;\t|")
    except csv.Error:
        dialect = csv.excel
    rows: list[list[str]] = []
    try:
        for row in csv.reader(io.StringIO(text, newline=""), dialect):
            rows.append(row)
            if len(rows) > MAX_ROWS:
                raise DocumentError(f"The table has more than {MAX_ROWS:,} rows.", "Split it.")
    except csv.Error as error:
        raise DocumentError(f"The table is broken: {error}.") from None
    outline.table(rows)


def _markdown(data: bytes, outline: Outline) -> None:
    from markdown_it import MarkdownIt

    text = re.sub(r"\A---\n.*?\n---\n", "", decode(data).replace("\r\n", "\n"), flags=re.DOTALL)
    tokens = MarkdownIt("commonmark", {"maxNesting": 20}).enable("table").parse(text)
    rows: list[list[str]] = []
    lists: list[int | None] = []
    opened: Any = None
    for token in tokens:
        if token.type in ("bullet_list_open", "ordered_list_open"):
            lists.append(int(token.attrs.get("start", 1)) - 1 if token.type[0] == "o" else None)
        elif token.type in ("bullet_list_close", "ordered_list_close"):
            lists.pop()
        elif token.type == "list_item_open" and lists[-1] is not None:
            lists[-1] += 1
        elif token.type == "tr_open":
            rows.append([])
        elif token.type == "table_close":
            outline.table(rows)
            rows = []
        elif token.type in ("fence", "code_block"):
            for line in token.content.splitlines():
                outline.line(line)
        elif token.type == "html_block":
            _html(token.content.encode(), outline)
        elif token.type == "inline":
            _inline(token, opened, (outline, rows, lists))
        opened = token


def _inline(token: Any, opened: Any, state: tuple[Outline, list[list[str]], list[int | None]]) -> None:
    outline, rows, lists = state
    text = "".join(
        " "
        if child.type in ("softbreak", "hardbreak")
        else ""
        if child.type == "html_inline"
        else child.content
        for child in token.children or ()
    )
    if opened.type in ("th_open", "td_open"):
        rows[-1].append(text)
    elif opened.type == "heading_open":
        outline.heading(int(opened.tag[1]), text)
    elif lists:
        outline.item(text, lists[-1])
    else:
        outline.paragraph(text)


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


def _html(data: bytes, outline: Outline) -> None:
    from bs4 import BeautifulSoup

    text = decode(data)
    _check_depth(text)
    soup = BeautifulSoup(text, "lxml")
    for tag in soup.find_all(_SKIP):
        tag.decompose()
    for tag in soup.find_all(True):
        style = str(tag.attrs.get("style", "") if tag.attrs else "").replace(" ", "").lower()
        if tag.attrs and ("hidden" in tag.attrs or "display:none" in style or "visibility:hidden" in style):
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


def _check_depth(text: str) -> None:
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
    rows = [[cell.get_text() for cell in row.find_all(["th", "td"])] for row in table.find_all("tr")]
    kinds = [[cell.name for cell in row.find_all(["th", "td"])] for row in table.find_all("tr")]
    beside = [row[:1] == ["th"] and "td" in row for row in kinds]
    if table.caption:
        outline.paragraph(table.caption.get_text())
    if rows and all(beside):  # the headers stand in the first column
        for row in rows:
            outline.line(f"{row[0].strip()}: {', '.join(cell.strip() for cell in row[1:])}.")
    else:
        outline.table(rows)


def _pdf(data: bytes, outline: Outline) -> None:
    import pypdf
    from pypdf.errors import PyPdfError

    try:
        reader = pypdf.PdfReader(io.BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            raise DocumentError("The PDF is encrypted and needs a password.", "Save a copy without one.")
        if len(reader.pages) > MAX_PAGES:
            raise DocumentError(f"The PDF has more than {MAX_PAGES:,} pages.", "Split it.")
        pages = [_runs(page) for page in reader.pages]
    except (PyPdfError, ValueError, KeyError, TypeError, AttributeError, IndexError, AssertionError) as error:
        raise DocumentError(f"The PDF is broken: {first_line(error)}.", "Save it again as PDF.") from error
    if not any(run.text.strip() for page in pages for run in page):
        raise DocumentError("No text found; scanned pages need OCR, which is not available.")
    lay_out(pages, outline)


def _runs(page: Any) -> list[Run]:
    runs: list[Run] = []

    def visit(text: str, cm: list[float], tm: list[float], font: Any, size: float) -> None:
        if text.strip() or "\x7f" in text:
            x = tm[4] * cm[0] + tm[5] * cm[2] + cm[4]
            y = tm[4] * cm[1] + tm[5] * cm[3] + cm[5]
            scale = (abs(tm[3]) or abs(tm[1]) or 1.0) * (abs(cm[3]) or abs(cm[1]) or 1.0)
            bold = "bold" in str((font or {}).get("/BaseFont", "")).lower()
            # reportlab and others write a bullet as a control character of a symbol font
            runs.append(Run(text.replace("\x7f", "•"), x, y, size * scale, bold))

    page.extract_text(visitor_text=visit)
    return runs


def _docx(data: bytes, outline: Outline) -> None:
    check_archive(data)
    import docx
    from docx.table import Table

    try:
        document = docx.Document(io.BytesIO(data))
        numbered = 0
        for block in document.iter_inner_content():
            if isinstance(block, Table):
                outline.table(_docx_rows(block))
                continue
            style = str(block.style.name if block.style is not None else "").lower()
            listed = style.startswith("list") or _numbering(block)
            numbered = numbered + 1 if listed and "number" in style else 0
            if match := re.match(r"heading (\d)|title$", style):
                outline.heading(int(match[1] or 1), block.text)
            elif listed:
                outline.item(block.text, numbered or None)
            else:
                outline.paragraph(block.text)
    except (
        KeyError,
        ValueError,
        AttributeError,
        IndexError,
        TypeError,
        SyntaxError,
        zipfile.BadZipFile,
    ) as error:
        raise DocumentError(f"The DOCX file is broken: {first_line(error)}.", "Save it again.") from error


def _numbering(block: Any) -> bool:
    properties = block._p.pPr
    return properties is not None and properties.numPr is not None


def _docx_rows(table: Any) -> list[list[str]]:
    rows: list[list[str]] = []
    for row in table.rows:
        cells: list[str] = []
        seen: list[Any] = []
        for cell in row.cells:  # a merged cell comes once per column it spans
            cells.append("" if any(cell._tc is other for other in seen) else cell.text)
            seen.append(cell._tc)
        rows.append(cells)
    return rows


_PARSERS: dict[str, Callable[[bytes, Outline], None]] = {
    "markdown": _markdown,
    "html": _html,
    "pdf": _pdf,
    "docx": _docx,
    "csv": _csv,
    "text": _text,
}
