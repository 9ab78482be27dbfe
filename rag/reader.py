"""The parsers' jail: a child process with limits, reused from file to file, replaced when one kills it.

It has 1 GiB of memory, 30 s of processor time and 60 s in all per file, may not write files, and, where the
kernel lets users make namespaces, lives in a network namespace of its own that has no way out.

Protocol on the child's pipes: a JSON line `{"name", "size", "tokens", "ocr"}` and the bytes go in, one JSON
line comes out; `"ocr"` has the languages of scanned pages.
With `"scan"` in the line a page's links or a sitemap's are read instead (`rag.loaders_links`).
With `"place"` in the line a page of the PDF is drawn instead (`rag.page_image`).
"""

from __future__ import annotations

import base64
import ctypes
import json
import resource
import select
import subprocess
import sys
import time
from dataclasses import asdict
from types import TracebackType
from typing import Any

from core.errors import DocumentError
from core.settings import PROJECT, Settings, child_environment
from rag.chunks import Chunk, chunk
from rag.loaders_links import Scan, Sitemap, scan_html, scan_sitemap
from rag.outline import Extracted, Section
from rag.page_image import Place, draw

MEMORY_BYTES = 1 << 30
CPU_SECONDS = 30
WALL_SECONDS = 60.0
DRAW_SECONDS = 20.0  # a person is waiting
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000  # linux/sched.h


class StoppedError(DocumentError):
    """Reading was stopped for its time or memory, which may be the machine's fault and not the file's."""


class Reader:
    """Reads documents in a child process; a context manager. One thread at a time."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def read(self, name: str, data: bytes) -> Extracted:
        """The document's text and outline.

        Raises DocumentError with the reason when it cannot be read, or costs more than the limits allow.
        """
        return self.read_chunks(name, data, 0)[0]

    def read_chunks(self, name: str, data: bytes, tokens: int) -> tuple[Extracted, list[Chunk]]:
        """The same, and the document cut into chunks of at most so many tokens (see `rag.chunks`)."""
        answer = self._answer(
            {"name": name, "tokens": tokens, "ocr": self._settings.ocr_languages}, data, WALL_SECONDS
        )
        sections = tuple(Section(**section) for section in answer["sections"])
        text = answer["text"]
        extracted = Extracted(answer["kind"], answer["title"], text, sections, answer["quality"])
        places = answer["chunks"]
        return extracted, [
            Chunk(heading, page, start, end, text[start:end]) for heading, page, start, end in places
        ]

    def draw(self, data: bytes, place: Place) -> tuple[bytes, int]:
        """A page of a PDF as PNG, and how many places were marked on it (see `rag.page_image.draw`).

        Raises DocumentError as `read` does; a page has DRAW_SECONDS.
        """
        answer = self._answer({"name": "page.pdf", "place": asdict(place)}, data, DRAW_SECONDS)
        return base64.b64decode(answer["png"]), int(answer["marks"])

    def scan(self, data: bytes) -> Scan:
        """What a crawl needs of a web page (raises DocumentError as `read`)."""
        answer = self._answer({"name": "page.html", "scan": "page"}, data, WALL_SECONDS)
        return Scan(**(answer | {"links": tuple(answer["links"])}))

    def sitemap(self, data: bytes) -> Sitemap:
        """The addresses that a sitemap lists (raises DocumentError as `read`)."""
        answer = self._answer({"name": "sitemap.xml", "scan": "sitemap"}, data, WALL_SECONDS)
        return Sitemap(tuple(answer["pages"]), tuple(answer["sitemaps"]))

    def close(self) -> None:
        """End the child."""
        if self._child is not None:
            self._child.kill()
            self._child.communicate()
            self._child = None

    def _answer(self, request: dict[str, Any], data: bytes, seconds: float) -> dict[str, Any]:
        child = self._start()
        try:
            answer = self._ask(child, request | {"size": len(data)}, data, seconds)
        except (OSError, ValueError):
            self.close()
            raise StoppedError(
                "Reading this file took too much memory or time, so it was stopped.",
                "The file may be damaged or made to do harm; save it again from the program that wrote it.",
            ) from None
        if "message" in answer:
            raise DocumentError(answer["message"], answer["next_step"])
        return answer

    def _start(self) -> subprocess.Popen[bytes]:
        if self._child is None or self._child.poll() is not None:
            self.close()
            self._child = subprocess.Popen(
                [sys.executable, "-m", "rag.reader"],
                cwd=PROJECT,
                env=child_environment(self._settings),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        return self._child

    def _ask(
        self, child: subprocess.Popen[bytes], request: dict[str, Any], data: bytes, seconds: float
    ) -> dict[str, Any]:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(json.dumps(request).encode() + b"\n" + data)
        child.stdin.flush()
        deadline = time.monotonic() + seconds
        answer = bytearray()
        while not answer.endswith(b"\n"):
            ready, _, _ = select.select([child.stdout], [], [], max(0.0, deadline - time.monotonic()))
            piece = child.stdout.read1(1 << 20) if ready else b""  # type: ignore[attr-defined]
            if not piece:
                raise TimeoutError
            answer += piece
        value = json.loads(answer)
        return value if isinstance(value, dict) else {}


def _limit() -> None:
    """Give the next file its own processor time on top of what earlier ones used; memory is fixed."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(used.ru_utime + used.ru_stime) + CPU_SECONDS
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def _answer(request: dict[str, Any], data: bytes) -> dict[str, Any]:
    from rag.loaders import extract

    try:
        if "scan" in request:
            return asdict(scan_html(data) if request["scan"] == "page" else scan_sitemap(data))
        if "place" in request:
            png, marks = draw(data, Place(**request["place"]))
            return {"png": base64.b64encode(png).decode("ascii"), "marks": marks}
        extracted = extract(request["name"], data, request["ocr"])
        tokens = request["tokens"]
        found = chunk(extracted, tokens) if tokens else []
        places = [(piece.heading, piece.page, piece.start, piece.end) for piece in found]
        return {**vars(extracted), "sections": [vars(one) for one in extracted.sections], "chunks": places}
    except DocumentError as error:
        return {"message": error.message, "next_step": error.next_step}
    except MemoryError:
        raise
    except Exception as error:  # a parser met something its authors did not foresee
        return {
            "message": f"The file could not be read ({type(error).__name__}).",
            "next_step": "It may be damaged; save it again from the program that wrote it.",
        }


def leave_network() -> bool:
    """Move this process into an empty network namespace (Linux, unshare(2)); False where that is refused."""
    try:
        done = ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWUSER | CLONE_NEWNET)
    except (OSError, AttributeError):
        return False
    return bool(done == 0)


def main() -> None:
    """Answer requests until the parent closes the pipe."""
    leave_network()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # a parser has nothing to write
    while line := sys.stdin.buffer.readline():
        request = json.loads(line)
        _limit()
        reply = _answer(request, sys.stdin.buffer.read(request["size"]))
        sys.stdout.buffer.write(json.dumps(reply).encode() + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
