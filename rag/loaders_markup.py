"""reStructuredText, RTF and EPUB into an outline."""

from __future__ import annotations

import io
import posixpath
import re
import zipfile
from functools import cache
from typing import Any
from urllib.parse import unquote

from core.errors import DocumentError, first_line
from rag.archives import check_package
from rag.loaders_html import read_html
from rag.outline import Outline
from rag.xml import attribute, local, parse_xml

_RST_SKIP = (
    "comment",
    "substitution_definition",
    "system_message",
    "problematic",
    "target",
    "raw",
    "image",
    "pending",
    "meta",
)
_QUIET = {
    "report_level": 5,
    "halt_level": 5,
    "file_insertion_enabled": False,
    "raw_enabled": False,
    "_disable_config": True,
    "doctitle_xform": False,
    "smart_quotes": False,
    "line_length_limit": 1_000_000,
}


def read_rst(data: bytes, outline: Outline) -> None:
    """reStructuredText by docutils, without includes or raw parts; unknown directives keep their content."""
    from docutils import nodes
    from docutils.core import publish_doctree

    text = outline.decode(data)
    _accept_unknown_markup()
    try:
        tree = publish_doctree(text, settings_overrides=_QUIET)
    except (RecursionError, ValueError, AttributeError, KeyError, IndexError, TypeError) as error:
        raise DocumentError(f"The RST file is broken: {first_line(error)}.", "Mend it.") from error
    _rst(tree, outline, 0, nodes)


def _rst(parent: Any, outline: Outline, level: int, nodes: Any) -> None:
    for node in parent.children:
        if isinstance(node, nodes.section):
            _rst(node, outline, level + 1, nodes)
        elif isinstance(node, nodes.title):
            outline.heading(min(max(level, 1), 9), node.astext())
        elif isinstance(node, nodes.list_item):
            _rst_item(node, outline, nodes)
            _rst(node, outline, level, nodes)
        elif isinstance(node, nodes.table):
            _rst_table(node, outline, nodes)
        elif isinstance(node, nodes.literal_block | nodes.doctest_block | nodes.line_block):
            for line in node.astext().splitlines():
                outline.line(line)
        elif isinstance(node, nodes.field | nodes.option_list_item):
            outline.line(": ".join(child.astext() for child in node.children))
        elif node.tagname in _RST_SKIP:
            continue
        elif isinstance(node, nodes.TextElement):
            outline.paragraph(node.astext())
        elif isinstance(node, nodes.Element):
            _rst(node, outline, level, nodes)


def _rst_item(node: Any, outline: Outline, nodes: Any) -> None:
    """A list item's first paragraph; what follows it are blocks of their own."""
    parent = node.parent
    ordered = isinstance(parent, nodes.enumerated_list)
    first = node.children[0] if node.children else None
    if isinstance(first, nodes.paragraph):
        outline.item(first.astext(), parent.get("start", 1) + parent.index(node) if ordered else None)
        node.remove(first)


def _rst_table(node: Any, outline: Outline, nodes: Any) -> None:
    for title in node.findall(nodes.title):
        outline.paragraph(title.astext())
    outline.table(
        [
            [cell.astext().replace("\n", " ") for cell in row.children if isinstance(cell, nodes.entry)]
            for row in node.findall(nodes.row)
        ]
    )


@cache
def _accept_unknown_markup() -> None:
    """Once a process. Sphinx and others bring directives and roles of their own; their text must stay."""
    from docutils import nodes
    from docutils.parsers.rst import Directive, directives, roles

    class Unknown(Directive):  # type: ignore[misc]
        has_content = True
        optional_arguments = 100
        final_argument_whitespace = True

        def run(self) -> list[Any]:
            box = nodes.container()
            if self.arguments and self.name not in ("toctree", "code-block", "highlight", "image", "figure"):
                box += nodes.paragraph("", " ".join(self.arguments))
            if self.name in ("raw", "toctree", "highlight", "index", "currentmodule", "module"):
                return []
            if self.name in ("code-block", "sourcecode", "math", "testcode", "prompt", "parsed-literal"):
                return [nodes.literal_block("", "\n".join(self.content))]
            options = [line for line in self.content if not re.match(r":[\w-]+:( |$)", line)]
            self.state.nested_parse(type(self.content)(options, source="text"), self.content_offset, box)
            return [box]

    def role(name: str, raw: str, text: str, *rest: Any, **more: Any) -> tuple[list[Any], list[Any]]:
        shown = re.sub(r"\s*<[^<>]*>$", "", text).lstrip("~!")
        return [nodes.inline(raw, shown)], []

    find_directive, find_role = directives.directive, roles.role
    directives.directive = lambda name, language, document: (
        find_directive(name, language, document) if _known(name, directives) else (Unknown, [])
    )
    roles.role = lambda name, language, number, reporter: (
        find_role(name, language, number, reporter) if name in roles._role_registry else (role, [])
    )


def _known(name: str, directives: Any) -> bool:
    return name.lower() in directives._directive_registry and name not in ("code-block", "sourcecode", "raw")


def read_rtf(data: bytes, outline: Outline) -> None:
    """RTF's text by striprtf: paragraphs and table rows; it keeps no styles, so there are no headings."""
    from striprtf.striprtf import rtf_to_text

    source = data.decode("cp1252", "replace")
    if not re.search(r"\\ansi|\\mac|\\pc|\\rtf1", source[:200]):
        raise DocumentError("The RTF file is broken: its header is missing.", "Save it again.")
    try:
        text = rtf_to_text(source, encoding="cp1252", errors="replace")
    except (ValueError, IndexError, KeyError, TypeError, LookupError) as error:
        raise DocumentError(f"The RTF file is broken: {first_line(error)}.", "Save it again.") from error
    rows: list[list[str]] = []
    for line in [*text.splitlines(), ""]:
        cells = line.rstrip().rstrip("|").split("|") if line.rstrip().endswith("|") else []
        if len(cells) > 1:
            rows.append(cells)
            continue
        if rows:
            outline.table(rows)
            rows = []
        if re.match(r"\s*[•·]\s", line):
            outline.item(re.sub(r"^\s*[•·]\s+", "", line))
        else:
            outline.paragraph(line)


def read_epub(data: bytes, outline: Outline) -> None:
    """EPUB: the chapters in the order of the spine (EPUB 3.3, section 5.6), each read like a web page."""
    check_package(data, "META-INF/container.xml", "EPUB")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if "META-INF/encryption.xml" in archive.namelist() and b"xmlenc#aes" in archive.read(
                "META-INF/encryption.xml"
            ):
                raise DocumentError(
                    "The book is encrypted.", "Only books without copy protection can be read."
                )
            chapters = _spine(archive)
            for name in chapters:
                read_html(archive.read(name), outline)
    except (KeyError, zipfile.BadZipFile, StopIteration) as error:
        raise DocumentError(f"The EPUB file is broken: {first_line(error)}.", "Save it again.") from error


def _spine(archive: zipfile.ZipFile) -> list[str]:
    container = parse_xml(archive.read("META-INF/container.xml"), "EPUB")
    package = next(attribute(node, "full-path") for node in container.iter() if local(node) == "rootfile")
    root = parse_xml(archive.read(package), "EPUB")
    folder = posixpath.dirname(package)
    files = {
        attribute(node, "id"): posixpath.normpath(posixpath.join(folder, unquote(attribute(node, "href"))))
        for node in root.iter()
        if local(node) == "item" and "html" in attribute(node, "media-type")
    }
    order = [attribute(node, "idref") for node in root.iter() if local(node) == "itemref"]
    present = set(archive.namelist())
    return [files[id_] for id_ in order if id_ in files and files[id_] in present]
