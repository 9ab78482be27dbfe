"""OpenDocument text, sheets and slides into an outline, from `content.xml` (OASIS OpenDocument 1.3, part 3).

Read with lxml alone: the one library for it, odfpy, has had no release since 2020.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from typing import Any

from core.errors import DocumentError, first_line
from rag.archives import check_package
from rag.outline import Outline, blocks
from rag.xml import attribute, local, parse_xml

MAX_REPEAT = 200  # empty rows and cells are declared by the million
_SKIP = {
    "annotation",
    "tracked-changes",
    "sequence-decls",
    "forms",
    "desc",
    "title",
    "notes",
    "table-of-content",
}


def read_odf(data: bytes, outline: Outline) -> None:
    """ODT, ODS or ODP: headings, lists, tables with headers, one section per sheet, pages for slides."""
    check_package(data, "content.xml", "OpenDocument")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if b"manifest:encryption-data" in archive.read("META-INF/manifest.xml"):
                raise DocumentError("The file is encrypted and needs a password.", "Save a copy without one.")
            root = parse_xml(archive.read("content.xml"), "OpenDocument")
    except (KeyError, zipfile.BadZipFile) as error:
        raise DocumentError(
            f"The OpenDocument file is broken: {first_line(error)}.", "Save it again."
        ) from error
    body = next((node for node in root if local(node) == "body"), None)
    for part in body if body is not None else ():
        _blocks(part, outline)


def _blocks(parent: Any, outline: Outline) -> None:
    slides = 0
    for node in parent:
        name = local(node)
        if name == "h":
            level = attribute(node, "outline-level")
            outline.heading(int(level) if level.isdigit() else 1, _text(node))
        elif name == "p":
            _paragraph(node, outline)
        elif name == "list":
            _list(node, outline)
        elif name == "table":
            _table(node, outline)
        elif name == "page":
            slides += 1
            outline.page(slides)
            outline.count("pages")
            before = outline.length
            _blocks(node, outline)
            outline.count("empty_pages", outline.length == before)
        elif name not in _SKIP:
            if attribute(node, "class") == "title":  # a slide's title
                outline.heading(1, _text(node))
            else:
                _blocks(node, outline)


def _paragraph(node: Any, outline: Outline) -> None:
    style = attribute(node, "style-name")
    if style in ("Title", "Subtitle"):
        outline.heading(1 if style == "Title" else 2, _text(node))
    else:
        outline.paragraph(_text(node))
    for box in node.iter():
        if local(box) == "text-box":
            _blocks(box, outline)


def _list(node: Any, outline: Outline) -> None:
    for item in node:
        if local(item) == "list-header":
            _blocks(item, outline)
        for child in item if local(item) == "list-item" else ():
            if local(child) == "list":
                _list(child, outline)
            elif local(child) == "h":
                _blocks([child], outline)
            else:
                outline.item(_text(child))


def _table(node: Any, outline: Outline) -> None:
    name = attribute(node, "name")
    if local(node.getparent()) == "spreadsheet":
        outline.heading(1, name)
        outline.count("pages")
    for block in blocks(list(_cells(row)) for row in _rows(node)):
        _flush(block, outline)


def _flush(block: list[list[str]], outline: Outline) -> None:
    while len(block) > 2 and sum(map(bool, block[0])) == 1 < max(sum(map(bool, row)) for row in block):
        outline.paragraph(next(filter(None, block.pop(0))))
    outline.table(block)


def _rows(node: Any) -> Iterator[Any]:
    for child in node:
        if local(child) == "table-row":
            yield child
        elif local(child) in ("table-header-rows", "table-rows", "table-row-group"):
            yield from _rows(child)


def _cells(row: Any) -> Iterator[str]:
    for cell in row:
        if local(cell) in ("table-cell", "covered-table-cell"):
            text = " ".join(filter(None, (_text(child) for child in cell if local(child) != "annotation")))
            repeat = attribute(cell, "number-columns-repeated")
            yield from [text] * min(int(repeat) if repeat.isdigit() else 1, MAX_REPEAT)


def _text(node: Any) -> str:
    """Text below a paragraph; text boxes in it are blocks of their own."""
    parts = [node.text or ""]
    for child in node:
        name = local(child)
        if name in ("s", "tab", "line-break"):
            parts.append(" ")
        elif name in ("p", "h", "list", "list-item"):
            parts += [" ", _text(child)]
        elif name == "note":
            parts += [f" ({_text(body).strip()})" for body in child if local(body) == "note-body"]
        elif name not in _SKIP and (name != "frame" or local(node) in ("list-item", "frame")):
            parts.append(_text(child))
        parts.append(child.tail or "")
    return "".join(parts)
