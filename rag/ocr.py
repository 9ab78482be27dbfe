"""Scanned pages into runs of text by Tesseract, when it is installed (`apt install tesseract-ocr`).

It runs as a program fed through pipes: no wrapper library, no temporary files.
"""

from __future__ import annotations

import csv
import io
import shutil
import subprocess
import time
from functools import cache
from typing import Any

from rag.page_lines import Run

DPI = 300
SECONDS = 45.0  # for all pages of a document; the reader's own limit is 60
LANGUAGES = "eng"


class Ocr:
    """Reads page images until its time is used up. `languages` are Tesseract's names, joined by `+`."""

    def __init__(self, languages: str = LANGUAGES) -> None:
        self._program = shutil.which("tesseract")
        self._languages = languages
        self._until = time.monotonic() + SECONDS

    @property
    def available(self) -> bool:
        """Whether Tesseract was found."""
        return self._program is not None

    @property
    def installed(self) -> list[str]:
        """The languages that Tesseract has data for, in order."""
        return sorted(_installed(self._program)) if self._program else []

    @property
    def lacking(self) -> list[str]:
        """Those of the wanted languages that it has no data for."""
        return [one for one in self._languages.split("+") if one not in self.installed]

    @property
    def lack(self) -> str:
        """What is not there, in words; only where something is `lacking`."""
        if not self.available:
            return "Tesseract is not installed"
        return f"Tesseract has no data for {', '.join(self.lacking)}"

    @property
    def mend(self) -> str:
        """How to install what is lacking."""
        names = [f"tesseract-ocr-{one.lower().replace('_', '-')}" for one in self.lacking]
        return f"(Debian: apt install {' '.join(['tesseract-ocr', *names])})"

    def runs(self, page: Any) -> list[Run]:
        """The words of a PDFium page, line by line, in points; none when there is no time left."""
        left = self._until - time.monotonic()
        if self._program is None or left <= 0:
            return []
        scale = DPI / 72
        bitmap = page.render(scale=scale, grayscale=True)
        rows = memoryview(bitmap.buffer).cast("B")
        packed = b"".join(
            rows[y * bitmap.stride : y * bitmap.stride + bitmap.width] for y in range(bitmap.height)
        )
        image = b"P5 %d %d 255\n" % (bitmap.width, bitmap.height) + packed
        try:
            done = subprocess.run(
                [self._program, "stdin", "stdout", "-l", self._languages, "--dpi", str(DPI), "tsv"],
                input=image,
                capture_output=True,
                timeout=left,
                check=False,
            )
        except (subprocess.TimeoutExpired, OSError):
            return []
        return _lines(done.stdout.decode("utf-8", "replace"), scale, bitmap.height)


@cache
def _installed(program: str) -> frozenset[str]:
    """The languages that `tesseract --list-langs` names, below a line that says where they lie."""
    try:
        done = subprocess.run([program, "--list-langs"], capture_output=True, timeout=10, check=False)
    except (subprocess.TimeoutExpired, OSError):
        return frozenset()
    return frozenset(line for line in done.stdout.decode("utf-8", "replace").split("\n")[1:] if line)


def _lines(table: str, scale: float, height: int) -> list[Run]:
    """Tesseract's TSV: level 5 is a word; block, paragraph and line numbers say which belong together."""
    lines: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for row in csv.DictReader(io.StringIO(table), delimiter="\t", quoting=csv.QUOTE_NONE):
        if row.get("level") == "5" and (row.get("text") or "").strip():
            key = (row["block_num"], row["par_num"], row["line_num"])
            lines.setdefault(key, []).append(row)
    runs = []
    for words in lines.values():
        top = min(int(word["top"]) for word in words)
        tall = max(int(word["height"]) for word in words)
        text = " ".join(word["text"] for word in words)
        # one size for all: the height of a line's letters says little about its type size
        runs.append(Run(text, int(words[0]["left"]) / scale, (height - top - tall) / scale, 10.0, False))
    return runs
