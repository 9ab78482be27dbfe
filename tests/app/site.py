"""A real `understudy serve` for tests: three processes, a scripted model, two small documents."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx

from core.db import Database
from core.jobs import Jobs
from core.settings import PROJECT, Settings
from rag.documents import DocumentStore
from tests.app.payloads import PAYLOADS

T = TypeVar("T")

HANDBOOK = """# Employee Handbook

## Leaving

The notice period is 30 days. Send the letter to the office in Port Lane.

## Holidays

Everybody has 28 days of holiday a year. Unused days expire in March.
"""
PRICES = """# Price List

## Plans

The basic plan costs 10 EUR a month. The large plan costs 25 EUR a month and has 40 seats.
"""
# `match` is looked for in the whole prompt, so it must not occur in a document
SCRIPT: list[dict[str, Any]] = [
    {
        "match": "until the engine crashes",
        "reply": "[1] The notice period is 30 days. " * 9,
        "delay_ms": 100,
        "crash": True,
    },
    {"match": "slowly", "reply": "[1] The notice period is 30 days. " * 12, "delay_ms": 150},
    {"match": "What is the notice period?", "reply": "[1] The notice period is 30 days.", "delay_ms": 40},
    {
        "match": "How many days of holiday",
        "reply": "[1] Everybody has 28 days of holiday a year.",
        "delay_ms": 5,
    },
    {
        "match": "What does the basic plan cost",
        "reply": "[1] The basic plan costs 10 EUR a month.",
        "delay_ms": 5,
    },
    {"match": "everything hostile", "reply": "[1] " + " ".join(PAYLOADS), "delay_ms": 1},
    {"match": "moon", "reply": "Not in the documents."},
]


def until(condition: Callable[[], T], what: str, seconds: float = 180) -> T:
    """Wait until `condition` gives something true, and return it."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.1)


@dataclass
class Site:
    """A running installation."""

    process: subprocess.Popen[bytes]
    data_dir: Path
    output: Path

    def state(self) -> dict[str, Any]:
        """What the supervisor says of its processes."""
        path = self.data_dir / "serve.json"
        return dict(json.loads(path.read_text())) if path.exists() else {}

    def part(self, name: str) -> dict[str, Any]:
        """One process: pid, ready, restarts."""
        return dict(self.state().get("parts", {}).get(name, {"pid": 0, "ready": False, "restarts": 0}))

    @property
    def url(self) -> str:
        """Where it is served (the address it printed)."""
        words = self.output.read_text().split()
        return next((word for word in words if word.startswith("http://")), "")

    @property
    def settings(self) -> Settings:
        """Its settings, as its own processes see them."""
        import psutil

        environ = psutil.Process(self.part("web")["pid"]).environ()
        values = {key: value for key, value in environ.items() if key.startswith("UNDERSTUDY_")}
        from core.settings import load_settings

        return load_settings(values)

    def log(self, name: str) -> str:
        """What a process has logged."""
        return (self.data_dir / "logs" / f"{name}.log").read_text("utf-8", "replace")


@contextmanager
def site(data_dir: Path, *options: str, **environment: str) -> Iterator[Site]:
    """Start one, wait until its pages and its engine answer, and stop it at the end.

    Without `options` its model is scripted and it has no documents.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    scripted = data_dir / "script.json"
    scripted.write_text(json.dumps(SCRIPT))
    output = data_dir / "serve.out"
    with output.open("wb") as stream:
        process = subprocess.Popen(
            serve_command(*(options or ("--scripted", str(scripted), "--no-samples"))),
            cwd=PROJECT,
            env=serve_environment(data_dir, **environment),
            stdout=stream,
            stderr=subprocess.STDOUT,
        )
    running = Site(process, data_dir, output)
    try:
        until(
            lambda: running.part("web")["ready"] and running.part("engine")["ready"] and running.url, "serve"
        )
        yield running
    finally:
        process.terminate()
        process.wait(30)


def serve_command(*options: str) -> list[str]:
    """`understudy serve` on free ports."""
    code = "import sys; from app.commands import main; sys.exit(main())"
    return [sys.executable, "-c", code, "serve", "--port", "0", *options]


def serve_environment(data_dir: Path, **environment: str) -> dict[str, str]:
    """An environment with nothing of the developer's own settings in it."""
    clean = {
        key: value for key, value in os.environ.items() if not key.startswith(("UNDERSTUDY_", "STREAMLIT_"))
    }
    own = {"UNDERSTUDY_DATA_DIR": str(data_dir), "UNDERSTUDY_ENGINE_PORT": "0", "OMP_NUM_THREADS": "1"}
    return clean | own | environment


def add_documents(running: Site, documents: dict[str, str]) -> None:
    """Add documents as an upload does, and wait until the worker has made them searchable."""
    settings = running.settings
    database = Database(settings.database)
    store = DocumentStore(database, settings)
    for name, text in documents.items():
        store.add(name, text.encode(), "upload")
    Jobs(database).submit("ingest", once=True)
    until(lambda: all(d.status == "ready" for d in store.list()), "documents ready")
    database.close()


def ask(running: Site, question: str, **body: Any) -> dict[str, Any]:
    """One question over HTTP."""
    messages = [{"role": "user", "content": question}]
    response = httpx.post(
        f"{running.url}/v1/chat/completions", json={"messages": messages} | body, timeout=120, trust_env=False
    )
    response.raise_for_status()
    return dict(response.json())
