"""Slides into an outline: a slide is a section, a table keeps its headers."""

from __future__ import annotations

import io
from typing import Any

from core.errors import DocumentError, first_line
from rag.archives import check_package
from rag.ooxml import BROKEN, transitional
from rag.outline import Outline
from rag.xml import local

MAX_GROUPS = 20


def read_pptx(data: bytes, outline: Outline) -> None:
    """PowerPoint: the slide's number is the page, its title a heading; speaker notes follow the slide."""
    check_package(data, "ppt/presentation.xml", "PPTX")
    from pptx import Presentation

    try:
        for number, slide in enumerate(Presentation(io.BytesIO(transitional(data))).slides, 1):
            outline.page(number)
            outline.count("pages")
            before = outline.length
            title = slide.shapes.title
            for shape in slide.shapes:
                if title is not None and shape.shape_id == title.shape_id:
                    outline.heading(1, shape.text_frame.text)
                else:
                    _shape(shape, outline, MAX_GROUPS)
            if slide.has_notes_slide and slide.notes_slide.notes_text_frame is not None:
                for paragraph in slide.notes_slide.notes_text_frame.paragraphs:
                    outline.paragraph(paragraph.text)
            outline.count("empty_pages", outline.length == before)
    except BROKEN as error:
        raise DocumentError(f"The PPTX file is broken: {first_line(error)}.", "Save it again.") from error


def _shape(shape: Any, outline: Outline, depth: int) -> None:
    if hasattr(shape, "shapes"):
        for inner in shape.shapes if depth else ():
            _shape(inner, outline, depth - 1)
    elif getattr(shape, "has_table", False):
        outline.table(_slide_table(shape.table))
    elif getattr(shape, "has_chart", False):
        _chart(shape.chart, outline)
    elif getattr(shape, "has_text_frame", False):
        numbered = 0
        for paragraph in shape.text_frame.paragraphs:
            properties = paragraph._p.pPr
            kinds = {local(child) for child in properties} if properties is not None else set()
            numbered = numbered + 1 if "buAutoNum" in kinds else 0
            if kinds & {"buChar", "buAutoNum"} or paragraph.level or _is_body(shape, kinds):
                outline.item(paragraph.text, numbered or None)
            else:
                outline.paragraph(paragraph.text)
    else:  # SmartArt and shapes newer than the library: their text stands in `a:t`
        texts = [node.text or "" for node in shape._element.iter() if str(node.tag).endswith("/main}t")]
        outline.paragraph(" ".join(texts))


def _is_body(shape: Any, kinds: set[str]) -> bool:
    """Whether the layout gives the paragraph a bullet: PowerPoint's own body placeholders do."""
    if not shape.is_placeholder or "buNone" in kinds:
        return False
    return str(shape.placeholder_format.type).split(" ")[0] in ("OBJECT", "BODY")


def _slide_table(table: Any) -> list[list[str]]:
    """Cells; a cell merged over several rows or columns is repeated where a reader would look for it."""
    grid = [[cell.text for cell in row.cells] for row in table.rows]
    for y, row in enumerate(table.rows):
        for x, cell in enumerate(row.cells):
            if cell.is_merge_origin:
                for down in range(y, min(len(grid), y + cell.span_height)):
                    for right in range(x, min(len(grid[down]), x + cell.span_width)):
                        if right == x or y == 0:
                            grid[down][right] = cell.text
    return grid


def _chart(chart: Any, outline: Outline) -> None:
    if chart.has_title and chart.chart_title.has_text_frame:
        outline.paragraph(chart.chart_title.text_frame.text)
    for plot in chart.plots:
        names = [str(category) for category in plot.categories]
        series = [[one.name, *("" if v is None else f"{v:g}" for v in one.values)] for one in plot.series]
        outline.table([["", *names], *series])
