"""PDF pages into an outline: a PDF holds positioned words, not paragraphs, so layout says what is what.

Larger type is a heading, aligned columns are a table, a lone bullet or number starts a list item, a repeated
line at the edge of pages is a header or footer. Units are points, y grows upwards.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from statistics import median

from rag.outline import Outline
from rag.page_lines import MARKER, Line, Run, is_marker
from rag.page_tables import grid, has_header
from rag.words import one_line

_PAGE_NUMBER = re.compile(r"(?:page|seite|p\.)\s*\d{1,4}(?:\s*(?:/|of|von)\s*\d{1,4})?", re.IGNORECASE)
_BARE_NUMBER = re.compile(r"[-–]?\s*\d{1,4}\s*[-–]?")
_LEFTWARDS = re.compile("[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]")
ROW_DROP = 4.0  # of the type size: rows further apart belong to different tables
BACK = 4  # rows: cells of several lines come one after another, but so do text boxes side by side
EDGE = 4  # lines from the top or bottom in which running headers and footers are looked for
_LED = re.compile(r"(?:[•●○■□▪◦‣➢✓]|[-–*](?=\s)|(\d{1,3})[.)](?=\s))\s*")


def lay_out(pages: Sequence[Sequence[Run]], outline: Outline) -> None:
    """Add the pages' text to `outline`, headings, tables and lists told apart."""
    lines = [_without_page_numbers(_lines(page)) for page in pages]
    repeated = _repeated(lines)
    body = _body_size(lines)
    sizes = sorted(
        {round(line.size) for page in lines for line in page if line.size > body * 1.15}, reverse=True
    )
    for number, page in enumerate(lines, 1):
        outline.page(number)
        kept = [line for line in page if _place(line) not in repeated]
        for block in _blocks(kept, body):
            _add(block, outline, body, sizes)


def _lines(runs: Sequence[Run]) -> list[Line]:
    """Group runs by baseline, keeping the order in which baselines first appear (it follows columns)."""
    rows: list[list[Run]] = []
    for run in runs:
        if not one_line(run.text) and not run.text.strip():
            continue
        same = next((row for row in rows[-BACK:] if abs(row[0].y - run.y) < run.size * 0.4), None)
        if same is None:
            rows.append([run])
        else:
            same.append(run)
    return [Line(tuple(_in_reading_order(row))) for row in rows]


def _in_reading_order(row: list[Run]) -> list[Run]:
    letters = "".join(run.text for run in row)
    leftwards = len(_LEFTWARDS.findall(letters)) > len(letters) / 3
    return sorted(row, key=lambda run: run.x, reverse=leftwards)


def _without_page_numbers(lines: list[Line]) -> list[Line]:
    """Leave out `Page 3` and lone numbers at the top or bottom edge."""
    heights = [line.y for line in lines]
    edges = {max(heights, default=0.0), min(heights, default=0.0)}
    return [line for line in lines if line.y not in edges or not _is_page_number(line)]


def _is_page_number(line: Line) -> bool:
    alone = len(line.cells) == 1 and _BARE_NUMBER.fullmatch(line.text)
    return bool(alone) or any(_PAGE_NUMBER.fullmatch(one_line(run.text)) for run in line.cells)


def _blurred(text: str) -> str:
    return re.sub(r"\d+", "#", text)


def _repeated(pages: Sequence[Sequence[Line]]) -> set[tuple[str, int]]:
    """Lines that stand at the same height near the edge of most pages: running headers and footers.

    None when nothing else would be left of a page: then the pages themselves are alike.
    """
    counts = Counter(key for page in pages for key in {_place(line) for line in _edges(page)})
    found = {key for key, count in counts.items() if count > max(1, len(pages) // 2)}
    alike = any(page and all(_place(line) in found for line in page) for page in pages)
    return set() if alike else found


def _place(line: Line) -> tuple[str, int]:
    return _blurred(line.text), round(line.y / 4)


def _edges(page: Sequence[Line]) -> list[Line]:
    byheight = sorted(page, key=lambda line: line.y)
    return byheight[:EDGE] + byheight[-EDGE:]


def _body_size(pages: Sequence[Sequence[Line]]) -> float:
    sizes = [line.size for page in pages for line in page for _ in range(len(line.text))]
    return median(sizes) if sizes else 10.0


def _blocks(lines: Sequence[Line], body: float) -> Iterator[list[Line]]:
    """Runs of lines that belong together: a table, a heading, a paragraph, a list item."""
    block: list[Line] = []
    for line in lines:
        if block and not _continues(block, line, body):
            yield block
            block = []
        block.append(line)
    if block:
        yield block


def _continues(block: list[Line], line: Line, body: float) -> bool:
    last = block[-1]
    if _is_row(last) or _is_row(line):
        return _is_row(last) and _is_row(line) and 0 < last.y - line.y < ROW_DROP * max(line.size, last.size)
    if _heading(line, body) or _heading(last, body):
        return _heading(line, body) and _heading(last, body) and abs(line.size - last.size) < 0.5
    led = _LED.match(line.text)
    if is_marker(line.cells[0].text) or (led and not (led[1] and _runs_on(last.text))):
        return False
    if is_marker(last.text):
        return True
    drop = last.y - line.y
    if len(block) > 1 and abs(drop - (block[-2].y - last.y)) < 0.1 * drop < 0.3 * line.size:
        return True  # widely spaced lines, all the same distance apart
    return 0 < drop < max(line.size, last.size) * 1.6


def _runs_on(text: str) -> bool:
    """Whether a line stops in mid-sentence, so that a number that follows is no item's."""
    return text[-1:].isalnum() or text.endswith((",", "-"))


def _is_row(line: Line) -> bool:
    return len(line.cells) >= 2 and not is_marker(line.cells[0].text)


def _heading(line: Line, body: float) -> bool:
    return line.size > body * 1.15 and not is_marker(line.text) and len(line.text) <= 120


def _add(block: Sequence[Line], outline: Outline, body: float, sizes: Sequence[int]) -> None:
    text = " ".join(line.text for line in block)
    if _is_row(block[0]) and len(block) > 1:
        _add_rows(block, outline)
    elif _heading(block[0], body):
        outline.heading(1 + sizes.index(round(block[0].size)), text)
    elif is_marker(block[0].cells[0].text) and (len(block) > 1 or len(block[0].cells) > 1):
        marker = MARKER.fullmatch(one_line(block[0].cells[0].text))
        rest = " ".join(run.text for line in block for run in line.cells[line is block[0] :])
        outline.item(rest, int(marker[1]) if marker and marker[1] else None)
    elif led := _LED.match(text):
        outline.item(text[led.end() :], int(led[1]) if led[1] else None)
    elif (
        len(block) == 1 and block[0].cells[0].bold and len(text) <= 80 and not text.endswith((".", ",", ";"))
    ):
        outline.heading(9, text)
    else:
        outline.paragraph(_unhyphenated(block))


def _add_rows(block: Sequence[Line], outline: Outline) -> None:
    rows = grid(block)
    if rows is None:
        outline.paragraph(_unhyphenated(block))
    elif has_header(block, rows):
        outline.table(rows)
    else:  # a form, or a table without headings: its rows are kept as they stand
        outline.count("lost_tables")
        for row in rows:
            outline.line(" ".join(cell for cell in row if cell))


def _unhyphenated(block: Sequence[Line]) -> str:
    """Join lines; a word broken at a line's end is put together again."""
    text = ""
    for line in block:
        if re.search(r"[a-zà-ÿ]-$", text) and line.text[:1].islower():
            text = text[:-1] + line.text
        else:
            text = f"{text} {line.text}".strip()
    return text
