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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import ModelError
from engine.backend import Begun, Finished, Output, Piece, Prompt, Work
from engine.requests import BadRequest, Request
from engine.text import TextStream

NO_REPLY = "The script holds no reply to this."
SLOTS = 4
NAP_SECONDS = 0.02
CRASH_SECONDS = 0.2  # spent on the fatal word, as in native code: what was said before is on its way


@dataclass(frozen=True)
class Line:
    """One entry of the script."""

    match: str
    reply: str
    delay_ms: float = 0.0
    crash: bool = False
    adapter: str = ""


@dataclass
class _Reading:
    """One reply being read out."""

    line: Line
    words: list[str]
    text: TextStream
    limit: int
    due: float
    made: int = 0
    began: bool = False


class ScriptedBackend:
    """Answers from a script, several at once; adapters are loaded in name only. A token is a word."""

    def __init__(self, path: Path, slots: int = SLOTS) -> None:
        self._path = path
        self._slots = slots
        self._lines: list[Line] = []
        self._works: list[Work] = []
        self._stopped = False

    @property
    def slots(self) -> int:
        """How many replies are read out at once."""
        return self._slots

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

    def check_adapter(self, adapter_id: str, path: Path) -> None:
        """Pretend."""

    def load_adapter(self, adapter_id: str, path: Path) -> None:
        """Pretend."""

    def scale_adapter(self, adapter_id: str, scale: float) -> None:
        """Pretend."""

    def free_adapter(self, adapter_id: str) -> None:
        """Pretend."""

    def prepare(self, request: Request) -> Prompt:
        """A token for every word (raises BadRequest for a schema, which scripted text does not keep to)."""
        if request.schema:
            raise BadRequest("Scripted replies keep to no schema.", "response_format")
        texts = [request.prompt, *(message["content"] for message in request.messages)]
        return Prompt(tuple(range(sum(len(text.split()) for text in texts))))

    def begin(self, work: Work) -> None:
        """Find the reply; its first word is due after the line's delay."""
        request = work.request
        question = request.messages[-1]["content"] if request.messages else request.prompt
        line = self._line(question, work.adapter_id)
        words = re.findall(r"\s*\S+|\s+$", line.reply)
        text = TextStream(request.sampling.stop)
        due = time.monotonic() + line.delay_ms / 1000
        work.state = _Reading(line, words, text, request.sampling.max_tokens, due)
        self._works.append(work)

    def step(self) -> list[Output]:
        """The words that are due; a short nap when there are none."""
        outputs: list[Output] = []
        for work in list(self._works):
            outputs += self._read(work)
        if not outputs and self._works and not self._stopped:
            soonest = min(work.state.due for work in self._works)
            time.sleep(max(0.0, min(NAP_SECONDS, soonest - time.monotonic())))
        return outputs

    def _read(self, work: Work) -> list[Output]:
        reading: _Reading = work.state
        outputs: list[Output] = []
        if not reading.began:
            reading.began = True
            outputs.append((work, Begun(len(work.prompt.tokens))))
        now = time.monotonic()
        while reading.due <= now:
            if reading.made >= min(len(reading.words), reading.limit) or reading.text.stopped:
                return [*outputs, *self._close(work)]
            word = reading.words[reading.made]
            reading.made += 1
            if reading.line.crash and reading.made > len(reading.words) // 2:
                time.sleep(CRASH_SECONDS)
                os.abort()
            if piece := reading.text.push(word.encode()):
                outputs.append((work, Piece(piece)))
            if reading.line.delay_ms:
                reading.due = time.monotonic() + reading.line.delay_ms / 1000
                break
        return outputs

    def _close(self, work: Work) -> list[Output]:
        reading: _Reading = work.state
        self._works.remove(work)
        last = reading.text.push(b"", final=True)
        cut = len(reading.words) > reading.limit and not reading.text.stopped
        end = Finished("length" if cut else "stop", len(work.prompt.tokens), reading.made)
        return [(work, Piece(last)), (work, end)] if last else [(work, end)]

    def end(self, work: Work) -> Finished:
        """Stop reading it out."""
        if work in self._works:
            self._works.remove(work)
        return Finished("cancelled", len(work.prompt.tokens), work.state.made)

    def interrupt(self) -> None:
        """Nap no more."""
        self._stopped = True

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
