"""PDF into an outline by PDFium, the engine of Chromium's viewer: the text layer, or OCR for scans."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from core.errors import DocumentError, first_line
from rag.ocr import LANGUAGES, Ocr
from rag.outline import Outline
from rag.page_lines import Run, is_marker
from rag.pages import lay_out

MAX_PAGES = 2_000
MAX_CHARS = 400_000  # on one page; PDFium lays out what a bomb unpacks to
CELL_GAP = 1.0  # of the type size; wider than any space between words
JUSTIFIED = 2.0  # the same where the file itself has a space, which justified lines stretch
MARKER_GAP = 0.3  # after a bullet or number
INVISIBLE = 3  # text rendering mode of ISO 32000-1, table 106: what OCR programs lay under a scan
_WHITE = 250


@dataclass(frozen=True)
class _Style:
    size: float
    bold: bool
    invisible: bool
    white: bool


def read_pdf(data: bytes, outline: Outline, languages: str = LANGUAGES) -> None:
    """Text by its place on the page. Pages without text are read by Tesseract when it is installed.

    `languages` are those of scanned pages, see `rag.ocr`.
    Raises DocumentError for broken and encrypted files and for scans that cannot be read.
    """
    import pypdfium2

    try:
        document = pypdfium2.PdfDocument(data)
    except pypdfium2.PdfiumError as error:
        if "password" in str(error).lower() or "security" in str(error).lower():
            raise DocumentError(
                "The PDF is encrypted and needs a password.", "Save a copy without one."
            ) from None
        raise DocumentError(f"The PDF is broken: {first_line(error)}.", "Save it again as PDF.") from None
    if len(document) > MAX_PAGES:
        raise DocumentError(f"The PDF has more than {MAX_PAGES:,} pages.", "Split it.")
    if len(document) == 0:
        raise DocumentError("The PDF is broken: it has no pages.", "Save it again as PDF.")
    if not data.rstrip(b"\0\r\n\t ")[-1024:].rstrip().endswith(b"%%EOF") and b"%%EOF" not in data[-4096:]:
        raise DocumentError("The PDF is cut off: its end is missing.", "Copy it again, whole.")
    _read(document, outline, Ocr(languages))


def _read(document: Any, outline: Outline, ocr: Ocr) -> None:
    import pypdfium2

    pages: list[list[Run]] = []
    scanned = 0
    for number in range(len(document)):
        outline.count("pages")
        try:
            page = document[number]
            runs = _runs(page, outline)
            if not runs and _has_image(page):
                scanned += 1
                runs = ocr.runs(page)
                outline.count("ocr_pages", bool(runs))
                outline.count("unread_scans", not runs)
        except pypdfium2.PdfiumError:
            outline.count("broken_pages")
            runs = []
        outline.count("empty_pages", not runs)
        pages.append(runs)
    if not any(pages):
        raise DocumentError(*_nothing(scanned, ocr))
    lay_out(pages, outline)


def _nothing(scanned: int, ocr: Ocr) -> tuple[str, str]:
    if scanned and ocr.lacking:
        message = f"No text found; scanned pages need OCR, and {ocr.lack}."
        return message, f"Install it {ocr.mend} and add the file again."
    if scanned:
        return "No text was found on the scanned pages.", "Scan them again, straight and at 300 dpi."
    return "No text found; the pages hold drawings only, and OCR reads scanned pages.", ""


def _has_image(page: Any) -> bool:
    from pypdfium2 import raw

    return any(page.get_objects(filter=[raw.FPDF_PAGEOBJ_IMAGE], max_depth=4))


def _runs(page: Any, outline: Outline) -> list[Run]:
    text_page = page.get_textpage()
    try:
        total = text_page.count_chars()
        if total > MAX_CHARS:
            raise DocumentError(f"A page holds more than {MAX_CHARS:,} characters.", "Save it again as PDF.")
        chars = list(_chars(text_page.raw, total, page.get_rotation()))
    finally:
        text_page.close()
    visible = [char for char in chars if not char[4].invisible]
    hidden = sum(not char[0].isspace() for char in chars) - sum(not char[0].isspace() for char in visible)
    if hidden and 2 * hidden < len(chars):  # more is the layer of an OCR program over a scan: the text itself
        chars = visible
        outline.count("hidden", hidden)
    outline.count("white", sum(char[4].white and not char[0].isspace() for char in chars))
    return list(_join(chars))


_Char = tuple[str, float, float, float, _Style]  # character, left, right, baseline


def _chars(handle: Any, total: int, rotation: int) -> Iterator[_Char]:
    from pypdfium2 import raw

    styles: dict[int, _Style] = {}
    x, y = ctypes.c_double(), ctypes.c_double()
    box = raw.FS_RECTF()
    style = _Style(10.0, False, False, False)
    for at in range(total):
        code = raw.FPDFText_GetUnicode(handle, at)
        if raw.FPDFText_IsGenerated(handle, at) == 1:
            if code in (10, 13):
                yield "\n", 0.0, 0.0, 0.0, style
            else:
                yield " ", 0.0, 0.0, 0.0, style
            continue
        key = ctypes.cast(raw.FPDFText_GetTextObject(handle, at), ctypes.c_void_p).value or 0
        if key not in styles:
            styles[key] = _style(handle, at)
        style = styles[key]
        raw.FPDFText_GetCharOrigin(handle, at, x, y)
        raw.FPDFText_GetLooseCharBox(handle, at, box)
        left, right, base = x.value, box.right, y.value
        if rotation == 90:
            left, right, base = y.value, box.top, -x.value
        elif rotation == 180:
            left, right, base = -x.value, -box.left, -y.value
        elif rotation == 270:
            left, right, base = -y.value, -box.bottom, x.value
        # reportlab and others write a bullet as a control character of a symbol font
        char = "•" if code == 0x7F else "-" if code in (2, 0xAD) else chr(code) if code else ""
        if char and (char == " " or not char.isspace()):
            yield char, left, right, base, style


def _style(handle: Any, at: int) -> _Style:
    from pypdfium2 import raw

    matrix = raw.FS_MATRIX()
    scale = 1.0
    if raw.FPDFText_GetMatrix(handle, at, matrix):
        scale = (matrix.c**2 + matrix.d**2) ** 0.5 or 1.0
    name = ctypes.create_string_buffer(256)
    flags = ctypes.c_int()
    raw.FPDFText_GetFontInfo(handle, at, name, 256, flags)
    bold = b"bold" in name.value.lower() or raw.FPDFText_GetFontWeight(handle, at) >= 650
    red, green, blue, alpha = (ctypes.c_uint() for _ in range(4))
    white = bool(raw.FPDFText_GetFillColor(handle, at, red, green, blue, alpha)) and (
        min(red.value, green.value, blue.value) >= _WHITE or alpha.value < 8
    )
    mode = raw.FPDFTextObj_GetTextRenderMode(raw.FPDFText_GetTextObject(handle, at))
    return _Style(raw.FPDFText_GetFontSize(handle, at) * scale, bold, mode == INVISIBLE, white)


def _join(chars: list[_Char]) -> Iterator[Run]:
    """Characters into runs: one ends with its line, and where a gap says that a new cell begins."""
    text: list[str] = []
    first: _Char | None = None
    last: _Char | None = None
    for char in chars:
        if char[0] == "\n" or (char[0] == " " and not text):
            continue
        if char[0] == " ":
            # PDFium puts a space of its own where it sees a gap; one from the file says "same sentence"
            text.append(" " if char[2] else "\t")
            continue
        if first is not None and last is not None:
            size = max(first[4].size, char[4].size)
            gap = min(abs(char[1] - last[2]), abs(last[1] - char[2]))  # to the right, or to the left
            same = char[1] == last[1] and char[2] == last[2]
            wide = MARKER_GAP if is_marker("".join(text)) else JUSTIFIED if text[-1] == " " else CELL_GAP
            if abs(char[3] - first[3]) > size * 0.6 or (gap > wide * size and not same):
                yield _run(text, first, last)
                text, first = [], None
            elif same and char[0] == "ل" and last[0] in "اأإآ":
                text.insert(-1, char[0])  # one glyph, lam-alef, which PDFium takes apart from left to right
                continue
        first = first or char
        text.append(char[0])
        last = char
    if first is not None and last is not None:
        yield _run(text, first, last)


def _run(text: list[str], first: _Char, last: _Char) -> Run:
    left, right = min(first[1], last[1]), max(first[2], last[2])
    return Run("".join(text).replace("\t", " ").strip(), left, first[3], first[4].size, first[4].bold, right)
