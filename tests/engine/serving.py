"""Engine processes for tests."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from core.settings import PROJECT, Settings, child_environment, engine_key

START_SECONDS = 90.0


class Engine:
    """A running engine process and a client of it."""

    def __init__(self, settings: Settings, process: subprocess.Popen[str]) -> None:
        self.settings = settings
        self.process = process
        self.client = httpx.Client(
            base_url=f"http://127.0.0.1:{settings.engine_port}",
            headers={"Authorization": f"Bearer {engine_key(settings)}"},
            timeout=60,
            trust_env=False,
        )

    def health(self) -> dict[str, Any]:
        return dict(self.client.get("/health").json())

    def chat(self, text: str, **options: Any) -> httpx.Response:
        body = {"messages": [{"role": "user", "content": text}], "max_tokens": 16} | options
        return self.client.post("/v1/chat/completions", json=body)

    def text(self, question: str, **options: Any) -> str:
        response = self.chat(question, **options)
        assert response.status_code == 200, response.text
        return str(response.json()["choices"][0]["message"]["content"])

    def stream(self, text: str, **options: Any) -> list[dict[str, Any]]:
        body = {"messages": [{"role": "user", "content": text}], "max_tokens": 16, "stream": True} | options
        with self.client.stream("POST", "/v1/chat/completions", json=body) as response:
            assert response.status_code == 200
            lines = [line[6:] for line in response.iter_lines() if line.startswith("data: ")]
        return [json.loads(line) for line in lines if line != "[DONE]"]

    def wait_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.process.communicate()[0]
            try:
                health = self.health()
            except httpx.HTTPError:
                health = {"state": "loading"}
            if health["state"] == "ready":
                return
            assert health["state"] == "loading", health
            time.sleep(0.05)
        raise AssertionError("the engine did not become ready")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def engine(
    data_dir: Path, model: Path | str, *arguments: str, wait: bool = True, **more: Any
) -> Iterator[Engine]:
    """Start `python -m engine.server` on a free port, and end it whatever happens."""
    settings = Settings(
        data_dir=data_dir, model=str(model), engine_port=free_port(), threads=1, context=512, **more
    )  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "engine.server", *arguments],
        cwd=PROJECT,
        env=child_environment(settings),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    running = Engine(settings, process)
    try:
        if wait:
            running.wait_ready()
        yield running
    finally:
        running.client.close()
        process.kill()
        process.communicate()


@contextmanager
def scripted(data_dir: Path, lines: list[dict[str, Any]]) -> Iterator[Engine]:
    """A scripted engine."""
    script = data_dir / "script.json"
    data_dir.mkdir(parents=True, exist_ok=True)
    script.write_text(json.dumps(lines), "utf-8")
    with engine(data_dir, "builtin", "--scripted", str(script)) as running:
        yield running
