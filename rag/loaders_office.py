"""Slides and spreadsheets into an outline: a slide or sheet is a section, a table keeps its headers."""

from __future__ import annotations

import datetime
import io
import re
import zipfile
from collections.abc import Iterator
from typing import Any

from core.errors import DocumentError, first_line
from rag.archives import check_package
from rag.ooxml import BROKEN, transitional
from rag.outline import Outline, blocks
from rag.xml import local

MAX_CELLS = 2_000_000
MAX_GROUPS = 20
LARGE = 1 << 20  # bytes of a workbook, or cells of its area, beyond which it is read row by row


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


def read_xlsx(data: bytes, outline: Outline) -> None:
    """Excel: one section per sheet, formulas as their last computed values; only real cells are read.

    Blank rows part tables. A row with one cell above a table is its caption. In workbooks up to LARGE bytes
    merged cells are repeated downwards and comments kept; larger ones are read row by row without them.
    """
    check_package(data, "xl/workbook.xml", "XLSX")
    try:
        left = MAX_CELLS
        for sheet in _workbook(transitional(data)).worksheets:
            outline.heading(1, sheet.title)
            outline.count("pages")
            before = outline.length
            merged = _merged(sheet)
            rows: list[list[str]] = []
            notes: list[str] = []
            for y, cells in enumerate(sheet.iter_rows(), 1):
                row = [_cell(cell) or merged.get((y, x), "") for x, cell in enumerate(cells, 1)]
                notes += _comments(cells)
                left -= len(row)
                if left < 0:
                    raise DocumentError(f"The workbook has more than {MAX_CELLS:,} cells.", "Split it.")
                rows.append(row)
            for block in blocks(rows):
                _island(block, outline)
            for note in notes:
                outline.line(note)
            outline.count("empty_pages", outline.length == before)
    except (*BROKEN, zipfile.error, EOFError) as error:
        raise DocumentError(f"The XLSX file is broken: {first_line(error)}.", "Save it again.") from error


def _workbook(data: bytes) -> Any:
    """The workbook; one that is large, or that has cells far apart, is opened for reading row by row."""
    import openpyxl

    if len(data) <= LARGE:
        book = openpyxl.load_workbook(io.BytesIO(data), data_only=True, keep_links=False)
        if sum(sheet.max_row * sheet.max_column for sheet in book.worksheets) <= LARGE:
            return book
    book = openpyxl.load_workbook(io.BytesIO(data), read_only=True, data_only=True, keep_links=False)
    for sheet in book.worksheets:
        sheet.reset_dimensions()  # what the file says of its size may be far more than there is
    return book


def _merged(sheet: Any) -> dict[tuple[int, int], str]:
    """Text by (row, column), from 1, of the cells that hang below the first of a merged range."""
    texts: dict[tuple[int, int], str] = {}
    for area in getattr(sheet, "merged_cells", None) or ():
        text = _cell(sheet.cell(area.min_row, area.min_col))
        for y in range(area.min_row + 1, min(area.max_row, sheet.max_row) + 1):
            texts[y, area.min_col] = text
    return texts


def _comments(cells: Any) -> list[str]:
    found = ((cell.coordinate, cell.comment) for cell in cells if getattr(cell, "comment", None))
    return [f"Comment on {place}: {comment.text}" for place, comment in found]


def _island(rows: list[list[str]], outline: Outline) -> None:
    width = max((len(row) for row in rows), default=0)
    grid = [row + [""] * (width - len(row)) for row in rows]
    for columns in _column_groups(grid):
        part = [[row[x] for x in columns] for row in grid]
        while len(columns) > 1 and part and sum(map(bool, part[0])) == 1 and len(part) > 1:
            outline.paragraph(next(filter(None, part.pop(0))))
        outline.table(part)


def _column_groups(grid: list[list[str]]) -> Iterator[list[int]]:
    """Runs of columns with something in them: tables that stand side by side are read one by one."""
    group: list[int] = []
    for x in range(len(grid[0]) if grid else 0):
        if any(row[x] for row in grid):
            group.append(x)
        elif group:
            yield group
            group = []
    if group:
        yield group


def _cell(cell: Any) -> str:
    value = cell.value
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float | int) and str(cell.number_format).endswith("%"):
        return f"{value * 100:.6g}%"
    if isinstance(value, float):
        return f"{value:.12g}"
    if isinstance(value, datetime.datetime):
        return re.sub(r" 00:00:00$", "", value.isoformat(" ", "seconds"))
    return str(value)
