"""Word documents into an outline, read from the document's XML in order.

python-docx resolves styles and parts; its `paragraph.text` leaves out text boxes, content controls, tracked
insertions and equations, so the text is collected here (ECMA-376, part 1, chapter 17).
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from typing import Any

from core.errors import DocumentError, first_line
from rag.archives import check_package
from rag.ooxml import BROKEN, transitional
from rag.outline import Outline
from rag.xml import local

_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_SKIP = {"del", "moveFrom", "instrText", "Fallback", "pPr", "rPr", "rt"}
_WRAPPERS = {"sdt", "sdtContent", "ins", "moveTo", "customXml", "smartTag", "AlternateContent", "Choice"}


def read_docx(data: bytes, outline: Outline) -> None:
    """Word: headings by style, lists by numbering, tables with headers, footnotes at the end."""
    check_package(data, "word/document.xml", "DOCX")
    import docx

    try:
        document = docx.Document(io.BytesIO(transitional(data)))
        _Reader(document, outline).read()
    except BROKEN as error:
        raise DocumentError(f"The DOCX file is broken: {first_line(error)}.", "Save it again.") from error


class _Reader:
    def __init__(self, document: Any, outline: Outline) -> None:
        self.document = document
        self.outline = outline
        self.formats = _number_formats(document)
        self.counters: dict[tuple[str, int], int] = {}
        self.styles = {style.style_id: style for style in document.styles}

    def read(self) -> None:
        self.blocks(self.document.element.body)
        for relation in self.document.part.rels.values():
            if relation.reltype.endswith(("/footnotes", "/endnotes")) and not relation.is_external:
                from docx.oxml.parser import parse_xml

                self.blocks(parse_xml(relation.target_part.blob))

    def blocks(self, parent: Any) -> None:
        for node in parent:
            name = local(node)
            if name == "p":
                self.paragraph(node)
            elif name == "tbl":
                self.outline.table(self.table(node))
            elif name in _WRAPPERS or name in ("footnote", "endnote"):
                self.blocks(node)

    def paragraph(self, node: Any) -> None:
        boxes: list[Any] = []
        text = self.text(node, boxes)
        style = self.style(node)
        level, marked = self.numbering(node, style)
        if match := re.match(r"heading (\d)|title$", _heading_name(style)):
            self.outline.heading(int(match[1] or 1), text)
        elif marked is not None and text.strip():
            self.outline.item(text, self.number(marked, level))
        else:
            self.outline.paragraph(text)
        for box in boxes:
            self.blocks(box)

    def text(self, node: Any, boxes: list[Any]) -> str:
        """The visible text below `node`; text boxes are collected, and hidden runs counted."""
        parts: list[str] = []
        for child in node:
            name = local(child)
            if name == "t":
                parts.append(child.text or "")
            elif name in ("tab", "br", "cr"):
                parts.append(" ")
            elif name == "noBreakHyphen":
                parts.append("-")
            elif name == "txbxContent":
                boxes.append(child)
            elif name == "r" and _hidden(child):
                self.outline.count("hidden", len(self.text(child, [])))
            elif name not in _SKIP:
                parts.append(self.text(child, boxes))
        return "".join(parts)

    def table(self, node: Any) -> list[list[str]]:
        """Rows of cells. A cell merged downwards is repeated, one merged sideways only in the first row."""
        rows: list[list[str]] = []
        for row in _children(node, "tr"):
            cells: list[str] = []
            for cell in _children(row, "tc"):
                properties = cell.find(f"{_W}tcPr")
                span = (_number(properties, "gridSpan") if properties is not None else None) or 1
                merge = properties.find(f"{_W}vMerge") if properties is not None else None
                text = self.cell(cell)
                if merge is not None and merge.get(f"{_W}val") != "restart" and rows:
                    above = rows[-1]
                    text = above[len(cells)] if len(cells) < len(above) else text
                cells += [text, *([text if not rows else ""] * min(span - 1, 100))]
            rows.append(cells)
        return rows

    def cell(self, node: Any) -> str:
        parts: list[str] = []
        for child in node:
            name = local(child)
            boxes: list[Any] = []
            if name == "p":
                parts.append(self.text(child, boxes))
                parts += [self.cell(box) for box in boxes]
            elif name == "tbl":
                parts += [cell for row in self.table(child) for cell in row]
            elif name in _WRAPPERS:
                parts.append(self.cell(child))
        return " ".join(part for part in parts if part.strip())

    def style(self, node: Any) -> Any:
        found = node.find(f"{_W}pPr/{_W}pStyle")
        return self.styles.get(found.get(f"{_W}val")) if found is not None else None

    def numbering(self, node: Any, style: Any) -> tuple[int, str | None]:
        """Level and numbering id of a list paragraph, from itself or its style; (0, None) for others."""
        for element in (node, *(one.element for one in _chain(style))):
            found = element.find(f"{_W}pPr/{_W}numPr")
            if found is not None:
                id_ = found.find(f"{_W}numId")
                level = _number(found, "ilvl") or 0
                value = id_.get(f"{_W}val") if id_ is not None else None
                return (level, value) if value != "0" else (0, None)
        return 0, ("" if style is not None and str(style.name).lower().startswith("list") else None)

    def number(self, id_: str, level: int) -> int | None:
        if self.formats.get((id_, level), "bullet") in ("bullet", "none"):
            return None
        self.counters[id_, level] = self.counters.get((id_, level), 0) + 1
        for key in [key for key in self.counters if key[0] == id_ and key[1] > level]:
            del self.counters[key]
        return self.counters[id_, level]


def _number_formats(document: Any) -> dict[tuple[str, int], str]:
    """Number format by numbering id and level; empty for documents without lists."""
    relations = document.part.rels.values()
    part = next((r.target_part for r in relations if r.reltype.endswith("/numbering")), None)
    if part is None:
        return {}
    root = part.element
    levels: dict[str, dict[int, str]] = {}
    for abstract in root.findall(f"{_W}abstractNum"):
        levels[abstract.get(f"{_W}abstractNumId")] = {
            int(one.get(f"{_W}ilvl")): one.find(f"{_W}numFmt").get(f"{_W}val")
            for one in abstract.findall(f"{_W}lvl")
            if one.find(f"{_W}numFmt") is not None
        }
    formats: dict[tuple[str, int], str] = {}
    for one in root.findall(f"{_W}num"):
        link = one.find(f"{_W}abstractNumId")
        for level, kind in levels.get(link.get(f"{_W}val") if link is not None else "", {}).items():
            formats[one.get(f"{_W}numId"), level] = kind
    return formats


def _chain(style: Any) -> Iterator[Any]:
    """A style and those it is based on."""
    for _ in range(12):  # a file may make styles that are based on each other
        if style is None:
            return
        yield style
        style = style.base_style


def _heading_name(style: Any) -> str:
    names = [str(one.name or "").lower() for one in _chain(style)]
    return next((name for name in names if re.match(r"heading \d|title$", name)), "")


def _hidden(run: Any) -> bool:
    vanish = run.find(f"{_W}rPr/{_W}vanish")
    return vanish is not None and vanish.get(f"{_W}val") not in ("0", "false")


def _children(node: Any, name: str) -> Iterator[Any]:
    for child in node:
        if local(child) == name:
            yield child
        elif local(child) in _WRAPPERS:
            yield from _children(child, name)


def _number(node: Any, name: str) -> int | None:
    found = next(node.iter(f"{_W}{name}"), None)
    value = found.get(f"{_W}val") if found is not None else None
    return int(value) if value and value.isdigit() else None
