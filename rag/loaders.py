"""Files into text: one parser per kind, all of them feeding the same outline.

The parsers meet hostile input, so files from outside go through `rag.reader`, which runs `extract` in a child
process with limits on memory and time. Type and content are checked before anything is parsed.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from typing import Any

from core.errors import DocumentError, first_line
from rag.filetypes import kind_of
from rag.loaders_docx import read_docx
from rag.loaders_html import read_html
from rag.loaders_mail import read_eml, read_msg
from rag.loaders_markup import read_epub, read_rst, read_rtf
from rag.loaders_odf import read_odf
from rag.loaders_office import read_pptx
from rag.loaders_pdf import read_pdf
from rag.loaders_xlsx import read_xlsx
from rag.ocr import LANGUAGES
from rag.outline import Extracted, Outline, row_text

MAX_ROWS = 200_000
LONG_VALUE = 200


def extract(name: str, data: bytes, languages: str = LANGUAGES) -> Extracted:
    """Read a document in this process (see `Reader` for files from outside).

    `languages` are those of scanned pages, see `rag.ocr`. Raises DocumentError with the reason when it
    cannot be read.
    """
    kind = kind_of(name, data)
    if kind == "zip":
        raise DocumentError("An archive is no document.", "Its files are read one by one.")
    outline = Outline(kind, name)
    if kind == "pdf":
        read_pdf(data, outline, languages)
    else:
        _PARSERS[kind](data, outline)
    return outline.finish()


def _text(data: bytes, outline: Outline) -> None:
    for block in re.split(r"\n[ \t]*\n", outline.decode(data).replace("\r\n", "\n").replace("\r", "\n")):
        lines = block.split("\n")
        if any(re.match(r"\s*(?:[-*•]|\d{1,3}[.)])\s", line) for line in lines):
            for line in lines:
                outline.line(line)
        else:
            outline.paragraph(" ".join(lines))


def _csv(data: bytes, outline: Outline) -> None:
    text = outline.decode(data)
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

    text = re.sub(r"\A---\n.*?\n---\n", "", outline.decode(data).replace("\r\n", "\n"), flags=re.DOTALL)
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
            read_html(token.content.encode(), outline)
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


def _json(data: bytes, outline: Outline) -> None:
    _value(_parsed(outline.decode(data), "file"), outline, 1)


def _jsonl(data: bytes, outline: Outline) -> None:
    lines = outline.decode(data).splitlines()
    if len(lines) > MAX_ROWS:
        raise DocumentError(f"The file has more than {MAX_ROWS:,} lines.", "Split it.")
    _value([_parsed(line, f"line {n}") for n, line in enumerate(lines, 1) if line.strip()], outline, 1)


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DocumentError(f"The {where} is not valid JSON: {first_line(error)}.", "Mend it.") from None


def _value(value: Any, outline: Outline, level: int) -> None:
    """Records of short values become table rows; keys of nested values become headings."""
    if isinstance(value, list) and len(value) > 1 and all(_flat(item) for item in value):
        keys = list(dict.fromkeys(key for item in value for key in item))
        outline.table([keys, *([_words(item.get(key)) for key in keys] for item in value)])
    elif isinstance(value, list):
        for item in value:
            if isinstance(item, dict | list):
                _value(item, outline, level)
            else:
                outline.item(_words(item))
    elif isinstance(value, dict):
        short = {key: _words(item) for key, item in value.items() if _short(item) and _words(item)}
        if short:
            outline.line(row_text(list(short), list(short.values())))
        for key, item in value.items():
            if isinstance(item, dict | list):
                outline.heading(min(level, 9), str(key))
                _value(item, outline, level + 1)
            elif not _short(item):
                outline.paragraph(f"{key}: {item}")
    else:
        outline.paragraph(_words(value))


def _short(value: Any) -> bool:
    return not isinstance(value, dict | list) and len(_words(value)) <= LONG_VALUE


def _flat(item: Any) -> bool:
    return isinstance(item, dict) and all(_short(value) for value in item.values())


def _words(value: Any) -> str:
    return (
        "" if value is None else {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
    )


_PARSERS: dict[str, Callable[[bytes, Outline], None]] = {
    "markdown": _markdown,
    "html": read_html,
    "docx": read_docx,
    "pptx": read_pptx,
    "xlsx": read_xlsx,
    "csv": _csv,
    "text": _text,
    "rst": read_rst,
    "rtf": read_rtf,
    "odt": read_odf,
    "ods": read_odf,
    "odp": read_odf,
    "epub": read_epub,
    "eml": read_eml,
    "msg": read_msg,
    "json": _json,
    "jsonl": _jsonl,
}
