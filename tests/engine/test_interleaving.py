"""Eight clients ask, cancel and hang up at random; nobody gets another's reply and nothing crashes."""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from core.adapters import AdapterRegistry
from core.db import Database
from tests.engine.serving import Engine, engine
from tests.tiny import TinyModel, register_adapter

CLIENTS, TURNS = 8, 25


def act(running: Engine, expected: dict[tuple[str, str], str], seed: int, faults: list[str]) -> int:
    """One client's turns; returns how many replies it read to the end."""
    rng, complete = random.Random(seed), 0
    for _ in range(TURNS):
        (model, question), wanted = rng.choice(list(expected.items()))
        stop_after = rng.choice([None, None, 0, 1, 3])
        if rng.random() < 0.3 and stop_after is None:
            found = running.text(question, model=model, max_tokens=24)
        else:
            found, ended = read(running, question, model, stop_after)
            if not ended:
                if not wanted.startswith(found):
                    faults.append(f"{model} {question}: {found!r} does not begin {wanted!r}")
                continue
        complete += 1
        if found != wanted:
            faults.append(f"{model} {question}: {found!r} instead of {wanted!r}")
    return complete


def read(running: Engine, question: str, model: str, stop_after: int | None) -> tuple[str, bool]:
    """Stream a reply, hanging up after so many lines; the text and whether it was read to the end."""
    import json

    text = ""
    body: dict[str, Any] = {
        "model": model, "messages": [{"role": "user", "content": question}], "max_tokens": 24, "stream": True,
    }  # fmt: skip
    with running.client.stream("POST", "/v1/chat/completions", json=body) as response:
        for number, line in enumerate(response.iter_lines()):
            if line == "data: [DONE]":
                return text, True
            if line.startswith("data: "):
                text += json.loads(line[6:])["choices"][0]["delta"].get("content", "")
            if number == stop_after:
                return text, False
    return text, False


def test_random_interleavings(tiny_model: TinyModel, tmp_path: Path) -> None:
    database = Database(tmp_path / "understudy.db")
    registry = AdapterRegistry(database, tmp_path / "adapters")
    register_adapter(registry, tiny_model, 1)
    register_adapter(registry, tiny_model, 2)
    with engine(tmp_path, tiny_model.gguf) as running:
        running.client = httpx.Client(
            base_url=running.client.base_url, headers=running.client.headers, timeout=120, trust_env=False,
            limits=httpx.Limits(max_connections=CLIENTS),
        )  # fmt: skip
        expected = {
            (model, f"canary {number} of this conversation"): ""
            for number in range(CLIENTS)
            for model in ("base", "tiny-adapter-1")
        }
        for model, question in expected:
            expected[model, question] = running.text(question, model=model, max_tokens=24)
        assert len(set(expected.values())) == len(expected)
        faults: list[str] = []
        swapping = threading.Event()

        def swap() -> None:
            number = 0
            while not swapping.wait(0.2):
                number += 1
                registry.promote(f"tiny-adapter-{number % 2 + 1}", "me", "test")
                running.client.post("/adapters/sync")

        swapper = threading.Thread(target=swap)
        swapper.start()
        with ThreadPoolExecutor(CLIENTS) as pool:
            complete = sum(pool.map(lambda seed: act(running, expected, seed, faults), range(CLIENTS)))
        swapping.set()
        swapper.join()
        assert faults == []
        assert complete > CLIENTS * TURNS / 4
        deadline = time.monotonic() + 10
        while sum(running.health()["queue"].values()):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert running.process.poll() is None
        assert running.health()["adapter_error"] == ""
    database.close()
