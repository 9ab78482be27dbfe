"""Row R11: eight clients ask, cancel and hang up while adapters are swapped; nobody gets another's reply.

Every question holds a canary of its own, and the tiny model's greedy text depends on the whole prompt, so a
reply made from another's tokens, cache or adapter is another text.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from core.adapters import AdapterRegistry
from core.db import Database
from tests.engine.serving import Engine, engine
from tests.tiny import TinyModel, register_adapter

CLIENTS = 8
CANARIES = ("amber", "birch", "copper", "dune", "ember", "flint", "garnet", "heron")
TOKENS = 24
ADAPTERS = ("tiny-adapter-1", "tiny-adapter-2")
MODELS = ("base", *ADAPTERS)
RULES = "Answer from the numbered lines of the documents only, and cite every one of them. " * 2
Expected = dict[tuple[str, str], str]


def body(model: str, question: str, key: str = "") -> dict[str, Any]:
    messages = [{"role": "system", "content": RULES}, {"role": "user", "content": question}]
    return {"model": model, "messages": messages, "max_tokens": TOKENS, "prompt_cache_key": key}


def act(running: Engine, expected: Expected, seed: int, turns: int) -> tuple[int, list[str]]:
    """One client's turns: how many replies it read to the end, and what was wrong with any."""
    rng, complete, faults = random.Random(seed), 0, []
    questions = sorted({question for _, question in expected})
    for _ in range(turns):
        model, question = rng.choice((*MODELS, "live", "live")), rng.choice(questions)
        request = body(model, question, rng.choice(("", f"talk-{seed}")))
        stop_after = rng.choice([None, None, None, 0, 1, 3])
        answer = whole if stop_after is None and rng.random() < 0.3 else read
        found, served, ended = answer(running, request, stop_after)
        if not served:
            continue  # hung up before anything came
        wanted = expected[served, question]
        complete += ended
        if (ended and found != wanted) or not wanted.startswith(found):
            faults.append(f"{model} as {served}: {question}: {found!r} instead of {wanted!r}")
        if model != "live" and served != model:
            faults.append(f"asked {model} and got {served}")
    return complete, faults


def whole(running: Engine, request: dict[str, Any], _stop: int | None) -> tuple[str, str, bool]:
    response = running.client.post("/v1/chat/completions", json=request)
    assert response.status_code == 200, response.text
    value = response.json()
    return value["choices"][0]["message"]["content"], value["system_fingerprint"].partition("@")[2], True


def read(running: Engine, request: dict[str, Any], stop_after: int | None) -> tuple[str, str, bool]:
    """Stream a reply, hanging up after so many lines: the text, who made it, whether it ended."""
    text, served = "", ""
    with running.client.stream("POST", "/v1/chat/completions", json=request | {"stream": True}) as response:
        assert response.status_code == 200, response.read()
        for number, line in enumerate(response.iter_lines()):
            if line == "data: [DONE]":
                return text, served, True
            if line.startswith("data: "):
                value = json.loads(line[6:])
                assert "error" not in value, value
                served = value["system_fingerprint"].partition("@")[2]
                text += value["choices"][0]["delta"].get("content", "")
            if number == stop_after:
                return text, served, False
    return text, served, False


def swapping(running: Engine, registry: AdapterRegistry, stop: threading.Event) -> Callable[[], int]:
    def swap() -> int:
        number = 0
        while not stop.wait(0.1):
            number += 1
            registry.promote(ADAPTERS[number % 2], "me", "test")
            assert running.client.post("/adapters/sync").json()["error"] == ""
        return number

    return swap


def interleave(tiny_model: TinyModel, folder: Path, turns: int) -> None:
    database = Database(folder / "understudy.db")
    registry = AdapterRegistry(database, folder / "adapters")
    for seed in (1, 2):
        register_adapter(registry, tiny_model, seed)
    with engine(folder, tiny_model.gguf) as running:
        running.client = httpx.Client(
            base_url=running.client.base_url, headers=running.client.headers, timeout=120, trust_env=False,
            limits=httpx.Limits(max_connections=CLIENTS + 1),
        )  # fmt: skip
        questions = [f"{word} {number} " * 5 for number, word in enumerate(CANARIES)]
        expected = {
            (model, question): whole(running, body(model, question), None)[0]
            for model in MODELS
            for question in questions
        }
        assert len(set(expected.values())) == len(expected)
        stop = threading.Event()
        with ThreadPoolExecutor(CLIENTS + 1) as pool:
            registry.promote(ADAPTERS[0], "me", "test")
            running.client.post("/adapters/sync")
            swaps = pool.submit(swapping(running, registry, stop))
            acts = [pool.submit(act, running, expected, seed, turns) for seed in range(CLIENTS)]
            results = [future.result() for future in acts]
            stop.set()
            assert swaps.result() > 0
        assert [fault for _, faults in results for fault in faults] == []
        assert sum(complete for complete, _ in results) > CLIENTS * turns / 4
        deadline = time.monotonic() + 10
        while (queue := running.health()["queue"])["waiting"] + queue["running"]:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert running.process.poll() is None
        assert running.health()["adapter_error"] == ""
    database.close()


def test_two_hundred_interleavings(tiny_model: TinyModel, tmp_path: Path) -> None:
    interleave(tiny_model, tmp_path, 200 // CLIENTS)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_thousand_interleavings(tiny_model: TinyModel, tmp_path: Path) -> None:
    interleave(tiny_model, tmp_path, 2000 // CLIENTS)
