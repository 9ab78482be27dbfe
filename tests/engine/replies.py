"""Driving a backend by hand, step by step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from core.settings import Settings
from engine.backend import Begun, Finished, Part, Piece, Work
from engine.native import NativeModel
from engine.requests import parse
from engine.runtime import LlamaBackend

SETTINGS = Settings(threads=1, context=1024, slots=4)


def native(backend: LlamaBackend) -> NativeModel:
    assert backend._native is not None
    return backend._native


def load(backend: LlamaBackend, adapter_id: str, path: Path) -> None:
    backend.check_adapter(adapter_id, path)
    backend.load_adapter(adapter_id, path)


def begin(
    backend: LlamaBackend, text: str, adapter: str | None = None, owner: str = "", **options: Any
) -> Work:
    body = {"messages": [{"role": "user", "content": text}], "max_tokens": 24} | options
    request = parse("chat", body)
    work = Work(request, backend.prepare(request), adapter, owner)
    backend.begin(work)
    return work


def drain(backend: LlamaBackend) -> dict[Work, list[Part]]:
    """Step until nothing is in work."""
    parts: dict[Work, list[Part]] = {}
    while backend._running:
        for work, part in backend.step():
            parts.setdefault(work, []).append(part)
    return parts


def result(parts: list[Part]) -> tuple[str, Finished]:
    assert isinstance(parts[0], Begun)
    assert isinstance(parts[-1], Finished), parts[-1]
    return "".join(part.text for part in parts if isinstance(part, Piece)), parts[-1]


def ask(
    backend: LlamaBackend, text: str, adapter: str | None = None, owner: str = "", **options: Any
) -> tuple[str, Finished]:
    work = begin(backend, text, adapter, owner, **options)
    return result(drain(backend)[work])
