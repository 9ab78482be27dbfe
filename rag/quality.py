"""The quality report of a document: what its extraction counted, in words for the person who added it."""

from __future__ import annotations

import json
from collections.abc import Mapping

_SENTENCES = {
    "lost_edits": (
        "{n} edit of the earlier version was dropped: its passage changed",
        "{n} edits of the earlier version were dropped: their passages changed",
    ),
    "empty_pages": ("{n} page without text", "{n} pages without text"),
    "broken_pages": ("{n} broken page", "{n} broken pages"),
    "ocr_pages": ("{n} scanned page read by OCR", "{n} scanned pages read by OCR"),
    "unread_scans": ("{n} scanned page not read (no OCR)", "{n} scanned pages not read (no OCR)"),
    "lost_tables": ("{n} table kept as plain lines", "{n} tables kept as plain lines"),
    "repaired": ("{n} damaged character", "{n} damaged characters"),
    "hidden": ("{n} hidden character", "{n} hidden characters"),
    "white": ("{n} character in white", "{n} characters in white"),
    "repeated": ("{n} repeated passage", "{n} repeated passages"),
}


UNSEEN = ("hidden", "white")


def unseen(report: str) -> list[str]:
    """Text that a reader of the document does not see: hidden or white characters, counted."""
    counts = json.loads(report or "{}")
    return warnings(json.dumps({key: counts[key] for key in UNSEEN if key in counts}))


def warnings(report: str, duplicate_of: str = "") -> list[str]:
    """What to look at in a document, worst first; `report` is the JSON that was stored with it."""
    counts: Mapping[str, int] = json.loads(report or "{}")
    pages = counts.get("pages", 0)
    found = []
    for key, (one, many) in _SENTENCES.items():
        if number := counts.get(key, 0):
            share = key in ("empty_pages", "broken_pages") and pages > 1
            shown = f"{number:,} of {pages:,}" if share else f"{number:,}"
            found.append((one if number == 1 and not share else many).format(n=shown))
    if duplicate_of:
        found.append(f"the same text as {duplicate_of}")
    return found
