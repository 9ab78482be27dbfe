"""The page that a citation of a PDF stands on, drawn from the stored original and kept for the next look."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass

from core.errors import DocumentError
from rag.access import NOBODY
from rag.documents import DocumentStore
from rag.page_image import Place
from rag.page_words import CONTEXT
from rag.reader import Reader

KEPT = 48  # pictures of some 100 to 400 KB
AT_ONCE = 2  # children that draw; each may take a gigabyte


@dataclass(frozen=True)
class PageView:
    """A page as PNG (empty: there is none) and what the reader should be told about it."""

    png: bytes
    note: str = ""


NO_ORIGINAL = PageView(b"", "The original file is not stored here any more, so only its text is shown.")
NOT_FOUND = "The cited words were not found on this page; they are marked in the text."


class PageViewer:
    """Draws pages of stored PDFs; safe in threads. Failures are kept too: a bad page costs its limit once."""

    def __init__(self, documents: DocumentStore) -> None:
        self._documents = documents
        self._kept: OrderedDict[tuple[str, int, int, int], PageView] = OrderedDict()
        self._lock = threading.Lock()
        self._drawing = threading.Semaphore(AT_ONCE)

    def view(
        self, document_id: str, page: int | None, start: int, end: int, viewer: str = NOBODY
    ) -> PageView | None:
        """The page with the stored text from `start` to `end` marked; None where there are no pages.

        Raises NotFoundError when there is no such document that the viewer may read.
        """
        text = self._documents.text(document_id, viewer)  # asked at every look: pictures are kept for all
        if self._documents.get(document_id).kind != "pdf" or page is None:
            return None
        key = (document_id, page, start, end)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        with self._drawing:
            view = self._draw(document_id, viewer, _place(text, page, start, end))
        with self._lock:
            self._kept[key] = view
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return view

    def _draw(self, document_id: str, viewer: str, place: Place) -> PageView:
        try:
            data = self._documents.original(document_id, viewer)
        except OSError:
            return NO_ORIGINAL
        try:
            with Reader(self._documents.settings) as reader:
                png, marks = reader.draw(data, place)
        except DocumentError as error:
            return PageView(b"", f"The page cannot be shown. {error.message}")
        return PageView(png, "" if marks else NOT_FOUND)


def _place(text: str, page: int, start: int, end: int) -> Place:
    return Place(page, text[start:end], text[max(0, start - CONTEXT) : start], text[end : end + CONTEXT])
