"""Builds the PDF and DOCX sample documents from `sources/*.md`.

    python data/samples/build.py            # writes into data/samples/documents
    python data/samples/build.py OUT_DIR    # writes somewhere else

The built files are committed, so only whoever edits a source needs this script and its two
development requirements, reportlab and python-docx. Two runs give the same bytes: a rebuild that
changes nothing must not show up as a change in git, and content hashes of the samples stay put.
"""

from __future__ import annotations

import re
import sys
import zipfile
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

HERE = Path(__file__).resolve().parent
SOURCES = HERE / "sources"
DOCUMENTS = HERE / "documents"

PDF = ("annual-report-2024", "brightbox-500-manual", "course-programme", "flat-tyre-guide")
DOCX = ("bylaws", "emergency-plan", "fleet-agreement", "supplier-standards")

ORGANISATION = "Kestrel Wharf Cooperative"
# A fixed date stands in for "now" wherever a file format insists on a time stamp.
STAMP = datetime(2025, 7, 1, 12, 0, 0)

Kind = Literal["title", "heading", "text", "bullets", "steps", "table"]


@dataclass(frozen=True)
class Block:
    """One block of a source: `rows` has one cell a row, except in a table."""

    kind: Kind
    rows: tuple[tuple[str, ...], ...]


def blocks(markdown: str) -> list[Block]:
    """Reads the small part of Markdown that the sources use; anything else is plain text."""
    found = []
    for part in re.split(r"\n\s*\n", markdown.strip()):
        lines = [line.strip() for line in part.splitlines()]
        first = lines[0]
        if first.startswith("# "):
            found.append(Block("title", ((first[2:],),)))
        elif first.startswith("## "):
            found.append(Block("heading", ((first[3:],),)))
        elif first.startswith("- "):
            found.append(Block("bullets", tuple((line[2:],) for line in lines)))
        elif re.match(r"\d+\. ", first):
            found.append(Block("steps", tuple((line.split(". ", 1)[1],) for line in lines)))
        elif first.startswith("|"):
            cells = [tuple(c.strip() for c in line.strip("|").split("|")) for line in lines]
            found.append(Block("table", (cells[0], *cells[2:])))
        else:
            found.append(Block("text", ((" ".join(lines),),)))
    return found


def build_pdf(source: Path, target: Path) -> None:
    """A4 pages with a text layer and a page number at the foot of each."""
    from reportlab.lib import colors
    from reportlab.lib.pagesizes import A4
    from reportlab.lib.styles import getSampleStyleSheet
    from reportlab.lib.units import cm
    from reportlab.platypus import ListFlowable, Paragraph, SimpleDocTemplate, Spacer, Table

    style = getSampleStyleSheet()

    def flowable(block: Block) -> Any:
        first = block.rows[0][0]
        if block.kind == "title":
            return Paragraph(first, style["Title"])
        if block.kind == "heading":
            return Paragraph(first, style["Heading2"])
        if block.kind == "text":
            return Paragraph(first, style["BodyText"])
        if block.kind == "table":
            grid = [("GRID", (0, 0), (-1, -1), 0.5, colors.grey)]
            shade = [("BACKGROUND", (0, 0), (-1, 0), colors.lightgrey)]
            return Table([list(row) for row in block.rows], style=grid + shade, hAlign="LEFT")
        items = [Paragraph(row[0], style["BodyText"]) for row in block.rows]
        if block.kind == "bullets":
            return ListFlowable(items, bulletType="bullet", start="•")
        return ListFlowable(items, bulletType="1")

    def foot(canvas: Any, document: Any) -> None:
        canvas.setFont("Helvetica", 8)
        canvas.drawString(2 * cm, 1.2 * cm, ORGANISATION)
        canvas.drawRightString(A4[0] - 2 * cm, 1.2 * cm, f"Page {document.page}")

    content = blocks(source.read_text(encoding="utf-8"))
    story = []
    for block in content:
        story += [flowable(block), Spacer(1, 0.15 * cm)]
    SimpleDocTemplate(
        str(target),
        pagesize=A4,
        leftMargin=2 * cm,
        rightMargin=2 * cm,
        topMargin=2 * cm,
        bottomMargin=2 * cm,
        title=content[0].rows[0][0],
        author=ORGANISATION,
        invariant=1,  # reportlab's own switch for output without clock or random ids
    ).build(story, onFirstPage=foot, onLaterPages=foot)


def build_docx(source: Path, target: Path) -> None:
    """A Word file with real heading, list and table styles, as a loader would meet in the wild."""
    from docx import Document

    document = Document()
    content = blocks(source.read_text(encoding="utf-8"))
    for block in content:
        if block.kind == "table":
            table = document.add_table(rows=0, cols=len(block.rows[0]), style="Table Grid")
            for row in block.rows:
                for cell, text in zip(table.add_row().cells, row, strict=True):
                    cell.text = text
            continue
        for (text,) in block.rows:
            if block.kind == "title":
                document.add_heading(text, level=1)
            elif block.kind == "heading":
                document.add_heading(text, level=2)
            else:
                styles = {"bullets": "List Bullet", "steps": "List Number"}
                document.add_paragraph(text, style=styles.get(block.kind, "Normal"))
    properties = document.core_properties
    properties.title = content[0].rows[0][0]
    properties.author = properties.last_modified_by = ORGANISATION
    properties.created = properties.modified = STAMP
    document.save(str(target))
    freeze_zip(target)


def freeze_zip(path: Path) -> None:
    """Rewrites a zip with fixed time stamps; python-docx stamps every member with the clock."""
    with zipfile.ZipFile(path) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members:
            info = zipfile.ZipInfo(name, date_time=STAMP.timetuple()[:6])
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, data)


def build(target: Path = DOCUMENTS) -> list[Path]:
    """Builds all PDF and DOCX files into `target` and returns their paths."""
    target.mkdir(parents=True, exist_ok=True)
    written = []
    for name in PDF:
        written.append(target / f"{name}.pdf")
        build_pdf(SOURCES / f"{name}.md", written[-1])
    for name in DOCX:
        written.append(target / f"{name}.docx")
        build_docx(SOURCES / f"{name}.md", written[-1])
    return written


if __name__ == "__main__":
    for path in build(Path(sys.argv[1]) if len(sys.argv) > 1 else DOCUMENTS):
        print(path)
