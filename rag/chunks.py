"""Documents into chunks, chunks into units: the smallest pieces that an answer can cite.

A unit is a sentence, a list item or a table row. Spans are character offsets, always into the text they
were made from, so that a citation opens its source at the right place. A chunk is a run of whole units
under one heading on one page; a table row is never cut off from its header (loaders write it into the row).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil

from rag.outline import Extracted, Section
from rag.words import token_estimate

ITEM_CHARS = 240
UNIT_CHARS = 400
WINDOW = 60
ESTIMATE = 1.25  # token_estimate is at least this multiple of MiniLM's count for nearly all sample chunks

_BULLET = re.compile(r"\s*(?:[-*•–▪◦]\s+)?")
_ROW = re.compile(r"[^:;]{1,80}: [^;]*(?:; [^:;]{1,80}: [^;]*)+")
_ITEM = re.compile(r"\s*(?:[-*•–▪◦]|\d{1,3}[.)])\s+")
_STOP = re.compile(r"[.!?…]+[\"'”’)\]]*(?=\s)|[。！？]+[」』”]?")
_SPACE = re.compile(r"\s*")
_LAST_WORD = re.compile(r"(?:[^\W\d_]+\.)*[^\W_]+$")
_ABBREVIATION_LIST = """
    mr mrs ms dr prof st jr sr vs e.g i.e eg ie cf approx ca fig sec art dept tel ext incl excl al resp
    max min z.b d.h bzw
"""
_ABBREVIATIONS = frozenset(_ABBREVIATION_LIST.split())
_BEFORE_NUMBER = frozenset({"no", "nr", "p", "pp", "vol", "ch", "para", "ver", "v", "par", "tab"})


@dataclass(frozen=True)
class Chunk:
    """A retrievable piece of a document; `text` is `Extracted.text[start:end]`."""

    heading: str
    page: int | None
    start: int
    end: int
    text: str


def units(text: str) -> list[tuple[int, int]]:
    """Spans (start, end) of the units of `text`, in order, without overlap.

    Bullets and surrounding space are left out, as are pieces without a letter or digit. No unit is longer
    than UNIT_CHARS.
    """
    spans: list[tuple[int, int]] = []
    offset = 0
    for line in text.split("\n"):
        for start, end in _line(line):
            spans += _shorten(text, offset + start, offset + end)
        offset += len(line) + 1
    return [span for span in spans if any(char.isalnum() for char in text[span[0] : span[1]])]


def _line(line: str) -> Iterator[tuple[int, int]]:
    end = len(line.rstrip())
    bullet = _BULLET.match(line)
    start = min(bullet.end() if bullet else 0, end)
    if _ROW.fullmatch(line, start, end) or (_ITEM.match(line) and end - start <= ITEM_CHARS):
        yield start, end
        return
    for stop in _STOP.finditer(line, start, end):
        next_word = _SPACE.match(line, stop.end(), end)
        resume = next_word.end() if next_word else stop.end()
        # a window on both sides is enough, and keeps a document of one long line linear
        before = line[max(start, stop.start() - WINDOW) : stop.start()]
        if resume < end and _ends_sentence(before, stop.group(), line[resume]):
            yield start, stop.end()
            start = resume
    if start < end:
        yield start, end


def _ends_sentence(before: str, stop: str, after: str) -> bool:
    """Whether `stop`, between `before` and the character `after`, closes a sentence."""
    if after.islower() or after in ",;:)":
        return False
    if not stop.startswith(".") or len(stop.rstrip("\"'”’)]")) > 1:
        return True
    match = _LAST_WORD.search(before)
    last = match.group() if match else ""
    if last.lower() in _ABBREVIATIONS or (last.lower() in _BEFORE_NUMBER and after.isdigit()):
        return False
    if before.strip() == last and (last.isdigit() or len(last) == 1):
        return False  # "3. Loosen the nut": the number of a list item
    return not (len(last) == 1 and last.isupper())  # an initial: "J. Smith"


def _shorten(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    while end - start > UNIT_CHARS:
        window = text[start : start + UNIT_CHARS]
        cuts = (window.rfind(mark) + len(mark) for mark in ("; ", ", ", " "))
        cut = next((at for at in cuts if at > UNIT_CHARS // 3), UNIT_CHARS)
        yield start, start + len(window[:cut].rstrip())
        start += cut
    if start < end:
        yield start, end


def chunk(extracted: Extracted, max_tokens: int) -> list[Chunk]:
    """Cut a document into chunks of about equal size per section, none over `max_tokens` (estimated).

    Only a single unit longer than that becomes a larger chunk of its own.
    """
    return [
        piece for section in extracted.sections for piece in _section(extracted.text, section, max_tokens)
    ]


def _section(text: str, section: Section, max_tokens: int) -> Iterator[Chunk]:
    body = text[section.start : section.end]
    spans = [(section.start + start, section.start + end) for start, end in units(body)]
    sizes = [token_estimate(text[start:end]) for start, end in spans]
    if not spans:
        return
    # an even share avoids a last chunk of half a sentence
    most = max_tokens * ESTIMATE
    share = sum(sizes) / ceil(sum(sizes) / most)
    first, filled = 0, 0
    for index, size in enumerate(sizes):
        if index > first and (filled + size > most or filled >= share):
            yield _chunk(text, section, spans[first][0], spans[index - 1][1])
            first, filled = index, 0
        filled += size
    yield _chunk(text, section, spans[first][0], spans[-1][1])


def _chunk(text: str, section: Section, start: int, end: int) -> Chunk:
    return Chunk(section.heading, section.page, start, end, text[start:end])
