"""Spreadsheets into an outline: a sheet is a section, a table keeps its headers, a chart its title."""

from __future__ import annotations

import datetime
import io
import re
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from core.errors import DocumentError, first_line
from rag.archives import check_package
from rag.ooxml import BROKEN, transitional
from rag.outline import Outline, blocks

MAX_CELLS = 2_000_000
MAX_POINTS = 200  # of a chart with more only the title is kept; its numbers stand in a sheet
LARGE = 1 << 20  # bytes of a workbook, or cells of its area, beyond which it is read row by row
# what Excel writes before a threaded comment, for versions that know none
_THREADED = re.compile(r"\A\[Threaded comment\].*?Comment:\s*", re.DOTALL)

Points = dict[int, str]


class _Spread(str):
    """The text of a merged cell, in a column right of its own."""


def read_xlsx(data: bytes, outline: Outline) -> None:
    """Excel: one section per sheet, formulas as their last computed values; only real cells are read.

    Blank rows part tables. A row with one cell above a table is its caption. In workbooks up to LARGE bytes
    merged cells are repeated downwards, in headers also to the right, and charts are kept; larger ones are
    read row by row without them. Comments are kept where nothing is read row by row.
    """
    check_package(data, "xl/workbook.xml", "XLSX")
    try:
        left = MAX_CELLS
        book, whole = _workbook(transitional(data))
        for name in book.sheetnames:
            sheet = book[name]
            outline.heading(1, name)
            outline.count("pages")
            before = outline.length
            merged = _merged(whole[name])
            rows: list[list[str]] = []
            notes: list[str] = []
            for y, cells in enumerate(sheet.iter_rows() if hasattr(sheet, "iter_rows") else (), 1):
                row = [_cell(cell) or merged.get((y, x), "") for x, cell in enumerate(cells, 1)]
                notes += _comments(cells)
                left -= len(row)
                if left < 0:
                    raise DocumentError(f"The workbook has more than {MAX_CELLS:,} cells.", "Split it.")
                rows.append(row)
            for block in blocks(rows):
                _island(block, outline)
            for chart in _charts(whole[name]):
                with suppress(*BROKEN):  # an odd chart does not make the sheets unreadable
                    _chart(chart, whole, outline)
            for note in notes:
                outline.line(note)
            outline.count("empty_pages", outline.length == before)
    except (*BROKEN, zipfile.error, EOFError) as error:
        raise DocumentError(f"The XLSX file is broken: {first_line(error)}.", "Save it again.") from error


def _workbook(data: bytes) -> tuple[Any, Any]:
    """The workbook for its rows, and for its merged cells and charts.

    One that is large, or that has cells far apart, is opened for reading row by row.
    """
    import openpyxl

    whole = None
    if len(data) <= LARGE:
        whole = openpyxl.load_workbook(io.BytesIO(data), data_only=True, keep_links=False)
        if sum(sheet.max_row * sheet.max_column for sheet in whole.worksheets) <= LARGE:
            return whole, whole
    book = openpyxl.load_workbook(io.BytesIO(data), read_only=True, data_only=True, keep_links=False)
    for sheet in book.worksheets:
        sheet.reset_dimensions()  # what the file says of its size may be far more than there is
    return book, whole or book


def _merged(sheet: Any) -> dict[tuple[int, int], str]:
    """Text by (row, column), from 1, of the cells below and right of the first of a merged range."""
    texts: dict[tuple[int, int], str] = {}
    for area in getattr(sheet, "merged_cells", None) or ():
        text = _cell(sheet.cell(area.min_row, area.min_col))
        for y in range(area.min_row, min(area.max_row, sheet.max_row) + 1):
            texts[y, area.min_col] = text
            for x in range(area.min_col + 1, min(area.max_col, sheet.max_column) + 1):
                texts[y, x] = _Spread(text)
            if len(texts) > LARGE:  # no table that anybody made
                return {}
    return texts


def _comments(cells: Any) -> Iterator[str]:
    for cell in cells:
        if comment := getattr(cell, "comment", None):
            author = comment.author or ""
            by = f" by {author}" if author and not author.startswith("tc=") else ""  # else no name but an id
            yield f"Comment on {cell.coordinate}{by}: {_THREADED.sub('', comment.text or '')}"


def _island(rows: list[list[str]], outline: Outline) -> None:
    width = max((len(row) for row in rows), default=0)
    grid = [row + [""] * (width - len(row)) for row in rows]
    for columns in _column_groups(grid):
        part = [[row[x] for x in columns] for row in grid if any(_own(row[x]) for x in columns)]
        while len(columns) > 1 and len(part) > 1 and sum(map(_own, part[0])) == 1:
            outline.paragraph(next(filter(None, part.pop(0))))
        below = [[cell if _own(cell) else "" for cell in row] for row in part[1:]]
        outline.table([*part[:1], *below])


def _own(cell: str) -> bool:
    return bool(cell) and not isinstance(cell, _Spread)


def _column_groups(grid: list[list[str]]) -> Iterator[list[int]]:
    """Runs of columns with something in them: tables that stand side by side are read one by one."""
    group: list[int] = []
    for x in range(len(grid[0]) if grid else 0):
        if any(_own(row[x]) for row in grid):
            group.append(x)
        elif group:
            yield group
            group = []
    if group:
        yield group


def _charts(sheet: Any) -> list[Any]:
    """Those that openpyxl has read, for which it has no public name, from top to bottom."""

    def place(chart: Any) -> tuple[int, int]:
        corner = getattr(chart.anchor, "_from", None)
        return (corner.row, corner.col) if corner else (0, 0)

    return sorted(getattr(sheet, "_charts", ()), key=place)


def _chart(chart: Any, book: Any, outline: Outline) -> None:
    """Its title, and a table with a row for each category and a column for each series."""
    x_axis, y_axis = (_title(getattr(chart, name, None), book) for name in ("x_axis", "y_axis"))
    outline.paragraph(", ".join(filter(None, (_title(chart, book), y_axis))))
    categories: Points = {}
    columns: list[tuple[str, Points]] = []
    for plot in chart._charts:  # itself, and those laid over it
        for series in plot.series:
            categories = categories or _points(series.cat or series.xVal, book)
            name = _points(series.tx, book).get(0) or getattr(series.tx, "v", None) or ""
            columns.append((name, _points(series.val or series.yVal, book)))
    places = sorted({place for _, points in columns for place in points})
    if 0 < len(places) <= MAX_POINTS:
        rows = [[categories.get(at, ""), *(points.get(at, "") for _, points in columns)] for at in places]
        outline.table([[x_axis, *(name for name, _ in columns)], *rows])


def _title(part: Any, book: Any) -> str:
    """The title of a chart or an axis: its own text, or that of a cell."""
    text = getattr(getattr(part, "title", None), "tx", None)
    if text is None:
        return ""
    if text.rich is None:
        return " ".join(_points(text, book).values())
    return " ".join(run.t for paragraph in text.rich.p for run in paragraph.r or ())


def _points(source: Any, book: Any) -> Points:
    """Texts of what a chart refers to, by their place: as the file keeps them, or else from the cells."""
    reference = getattr(source, "strRef", None) or getattr(source, "numRef", None)
    if reference is None:
        return {}
    cache = getattr(reference, "strCache", None) or getattr(reference, "numCache", None)
    if cache is not None and cache.pt:
        return {point.idx: _number(point.v) for point in cache.pt}
    return _cells(reference.f or "", book)


def _cells(reference: str, book: Any) -> Points:
    """Texts of a range such as `'Sheet 1'!$A$2:$A$9`; none for a name, another file, or too many cells."""
    from openpyxl.utils.cell import range_to_tuple

    try:
        name, (left, top, right, bottom) = range_to_tuple(reference)
        sheet = book[name]
    except (KeyError, ValueError):
        return {}
    if (right - left + 1) * (bottom - top + 1) > MAX_POINTS:
        return {}
    rows = sheet.iter_rows(top, bottom, left, right)
    return {place: text for place, text in enumerate(_cell(cell) for row in rows for cell in row) if text}


def _number(value: Any) -> str:
    return f"{value:.12g}" if isinstance(value, float) else str(value)


def _cell(cell: Any) -> str:
    value = cell.value
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float | int) and str(cell.number_format).endswith("%"):
        return f"{value * 100:.6g}%"
    if isinstance(value, datetime.datetime):
        return re.sub(r" 00:00:00$", "", value.isoformat(" ", "seconds"))
    return _number(value)
