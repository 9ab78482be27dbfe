"""A page of a PDF as a picture with the cited words marked; runs in the reader's child (`rag.reader`)."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt
from typing import Any

from core.errors import DocumentError
from rag.page_words import find, joined, letters

SCALE = 2.0  # pixels per point: a page of A4 becomes 1190 pixels wide
MOST_PIXELS = 4_000_000  # whatever size the page claims
LONGEST_SIDE = 6_000  # pixels
MAX_CHARS = 400_000  # as the loader's
MARK, FRAME = (255, 236, 110), (217, 119, 6)
PAD = 1.0  # points around the words

Box = tuple[float, float, float, float]
"""Left, bottom, right, top in points; y grows upwards."""


@dataclass(frozen=True)
class Place:
    """What to look for: the page (from 1), the stored text to mark and what stands around it."""

    page: int
    wanted: str
    before: str = ""
    after: str = ""


def draw(data: bytes, place: Place) -> tuple[bytes, int]:
    """The page as PNG and how many rectangles were marked on it (none when the words are not found).

    Raises DocumentError when the PDF or the page cannot be opened or has no sensible size.
    """
    import pypdfium2

    try:
        document = pypdfium2.PdfDocument(data)
        if not 1 <= place.page <= len(document):
            raise DocumentError(f"The PDF has no page {place.page}.")
        page = document[place.page - 1]
        boxes = list(_boxes(page, place))
        for box in boxes:
            _mark(page, box)
        return _png(page.render(scale=_scale(*page.get_size()), rev_byteorder=True)), len(boxes)
    except pypdfium2.PdfiumError:
        raise DocumentError(f"Page {place.page} of the PDF cannot be drawn.") from None


def _scale(width: float, height: float) -> float:
    """Pixels per point, within the limits (raises DocumentError for a page without area)."""
    if not (width >= 1 and height >= 1):
        raise DocumentError("The page has no size that could be drawn.")
    return min(SCALE, sqrt(MOST_PIXELS / (width * height)), LONGEST_SIDE / max(width, height))


def _boxes(page: Any, place: Place) -> Iterator[Box]:
    from pypdfium2 import raw

    text = page.get_textpage()
    try:
        total = text.count_chars()
        if total > MAX_CHARS:
            return
        codes = (raw.FPDFText_GetUnicode(text.raw, at) for at in range(total))
        found = letters(chr(code) if code < 0x110000 else "" for code in codes)
        for start, end in joined(find(found, place.wanted, place.before, place.after)):
            for number in range(text.count_rects(start, end - start)):
                yield text.get_rect(number)
    finally:
        text.close()


def _mark(page: Any, box: Box) -> None:
    """Lay a coloured rectangle over the words that leaves them legible, and a frame for dark grounds."""
    from pypdfium2 import raw

    left, bottom, right, top = box[0] - PAD, box[1] - PAD, box[2] + PAD, box[3] + PAD
    for filled in (True, False):
        shape = raw.FPDFPageObj_CreateNewRect(left, bottom, right - left, top - bottom)
        if filled:
            raw.FPDFPageObj_SetFillColor(shape, *MARK, 255)
            raw.FPDFPageObj_SetBlendMode(shape, b"Multiply")
        else:
            raw.FPDFPageObj_SetStrokeColor(shape, *FRAME, 255)
            raw.FPDFPageObj_SetStrokeWidth(shape, 0.7)
        raw.FPDFPath_SetDrawMode(shape, raw.FPDF_FILLMODE_WINDING if filled else 0, not filled)
        raw.FPDFPage_InsertObject(page.raw, shape)


def _png(bitmap: Any) -> bytes:
    """The bitmap as PNG (W3C recommendation, 2003): one filter byte a row, true colour of 8 bits."""
    rows = memoryview(bitmap.buffer).cast("B")
    channels = bitmap.n_channels
    lines = (rows[y * bitmap.stride :][: bitmap.width * channels] for y in range(bitmap.height))
    body = b"".join(b"\0" + bytes(line) for line in lines)
    kind = {1: 0, 3: 2, 4: 6}[channels]
    head = struct.pack(">2I5B", bitmap.width, bitmap.height, 8, kind, 0, 0, 0)
    parts = ((b"IHDR", head), (b"IDAT", zlib.compress(body, 6)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(part)) + name + part + struct.pack(">I", zlib.crc32(name + part))
        for name, part in parts
    )
