"""The scripted engine: the same protocol, replies read from a file. For tests and demos, without llama.cpp.

The file is a JSON list; the first entry whose `match` occurs in the last user message answers:
    {"match": "notice period", "reply": "[1] It is 30 days.", "delay_ms": 20, "crash": false, "adapter": "*"}
`delay_ms` is waited before each word. `crash` kills the process in the middle of the reply, as a native crash
would. `adapter` restricts the entry to an adapter id, to `base`, or with `*` to any adapter.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import ModelError
from engine.backend import Begun, Finished, Part, Piece, StopFlag
from engine.requests import Request
from engine.text import TextStream

NO_REPLY = "The script holds no reply to this."


@dataclass(frozen=True)
class Line:
    """One entry of the script."""

    match: str
    reply: str
    delay_ms: float = 0.0
    crash: bool = False
    adapter: str = ""


class ScriptedBackend:
    """Answers from a script; adapters are loaded in name only."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines: list[Line] = []

    def load(self) -> None:
        """Read the script (raises ModelError naming the entry that is wrong)."""
        from core.files import read_json

        entries = read_json(self._path)
        if not isinstance(entries, list):
            raise ModelError(f"{self._path} must hold a JSON list.", "See engine/scripted.py.")
        for number, entry in enumerate(entries):
            try:
                self._lines.append(Line(**entry))
            except TypeError as error:
                raise ModelError(f"Entry {number} of {self._path} is wrong: {error}.") from error

    def load_adapter(self, adapter_id: str, path: Path) -> None:
        """Pretend."""

    def free_adapter(self, adapter_id: str) -> None:
        """Pretend."""

    def generate(self, request: Request, adapter_id: str | None, stop: StopFlag) -> Iterator[Part]:
        """The matching reply word by word; a token is a word."""
        question = request.messages[-1]["content"] if request.messages else request.prompt
        prompt_tokens = sum(len(message["content"].split()) for message in request.messages)
        yield Begun(prompt_tokens)
        line = self._line(question, adapter_id)
        words = re.findall(r"\s*\S+|\s+$", line.reply)
        text = TextStream(request.sampling.stop)
        made = 0
        for made, word in enumerate(words[: request.sampling.max_tokens], 1):
            if not _wait(line.delay_ms / 1000, stop):
                break
            if line.crash and made > len(words) // 2:
                os.abort()
            if piece := text.push(word.encode()):
                yield Piece(piece)
            if text.stopped:
                break
        if piece := text.push(b"", final=True):
            yield Piece(piece)
        cut = len(words) > request.sampling.max_tokens and not text.stopped
        yield Finished("cancelled" if stop.is_set else "length" if cut else "stop", prompt_tokens, made)

    def _line(self, question: str, adapter_id: str | None) -> Line:
        for line in self._lines:
            if line.match in question and line.adapter in (
                "",
                adapter_id or "base",
                "*" if adapter_id else "",
            ):
                return line
        return Line("", NO_REPLY)

    def facts(self) -> dict[str, Any]:
        """What /health reports."""
        return {"name": "Scripted replies", "file": self._path.name, "context": 0, "backend": "script"}

    def close(self) -> None:
        """Nothing to free."""


def _wait(seconds: float, stop: StopFlag) -> bool:
    """Sleep in short steps; False when somebody asked to stop."""
    until = time.monotonic() + seconds
    while not stop.is_set and (left := until - time.monotonic()) > 0:
        time.sleep(min(left, 0.02))
    return not stop.is_set
