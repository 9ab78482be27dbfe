"""Row R11: eight clients ask, cancel and hang up while adapters are swapped; nobody gets another's reply.

So once with two adapters that stay loaded, and once with five of which three have room: those are loaded,
evicted, unloaded and scaled all the while, and no request may fail of it. Every question holds a canary of
its own, and the tiny model's greedy text depends on the whole prompt, so a reply made from another's tokens,
cache or adapter is another text.
"""

from __future__ import annotations

import codecs
import json
import random
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
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
PAUSE = 0.05  # seconds between two things done to adapters
ADAPTERS = tuple(f"tiny-adapter-{seed}" for seed in range(1, 6))
SCALED, SCALE = ADAPTERS[-1], 0.5  # the only adapter whose scale changes, and what it becomes besides 1
RULES = "Answer from the numbered lines of the documents only, and cite every one of them. " * 2
# decoding with others goes through other kernels than decoding alone, which moves a logit by up to 0.005;
# where the two best tokens are no further apart than this, either may be chosen
TIE = 0.01


@dataclass(frozen=True)
class Said:
    """A reply up to its first near-tie; `exact` when it has none, so that this is all of it."""

    text: str
    exact: bool

    def fits(self, found: str, ended: bool) -> bool:
        """Whether another run of the same may have said this, so far or to its end."""
        if self.exact:
            return found == self.text if ended else self.text.startswith(found)
        return found.startswith(self.text) or (not ended and self.text.startswith(found))


Expected = dict[tuple[str, str], tuple[Said, ...]]  # what a model may answer a question with


def body(model: str, question: str, key: str = "") -> dict[str, Any]:
    messages = [{"role": "system", "content": RULES}, {"role": "user", "content": question}]
    return {"model": model, "messages": messages, "max_tokens": TOKENS, "prompt_cache_key": key}


def act(running: Engine, expected: Expected, seed: int, turns: int) -> tuple[int, list[str]]:
    """One client's turns: how many replies it read to the end, and what was wrong with any."""
    rng, complete, faults = random.Random(seed), 0, []
    models, questions = (sorted(set(names)) for names in zip(*expected, strict=True))
    for _ in range(turns):
        model, question = rng.choice((*models, "live", "live")), rng.choice(questions)
        request = body(model, question, rng.choice(("", f"talk-{seed}")))
        stop_after = rng.choice([None, None, None, 0, 1, 3])
        answer = whole if stop_after is None and rng.random() < 0.3 else read
        found, served, ended = answer(running, request, stop_after)
        if not served:
            continue  # hung up before anything came
        wanted = expected[served, question]
        complete += ended
        if not any(said.fits(found, ended) for said in wanted):
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


def expect(running: Engine, models: tuple[str, ...]) -> Expected:
    """What each model says to each question when nothing else goes on."""
    expected: Expected = {}
    questions = [f"{word} {number} " * 5 for number, word in enumerate(CANARIES)]
    for model in models:
        scales = (1.0, SCALE) if model == SCALED else (1.0,)
        for scale in reversed(scales):
            if len(scales) > 1:
                assert running.client.post(f"/adapters/{model}", json={"scale": scale}).status_code == 200
            for question in questions:
                said = alone(running, body(model, question))
                expected[model, question] = (*expected.get((model, question), ()), said)
    every = [said for some in expected.values() for said in some]
    exact = [said.text for said in every if said.exact]
    assert len(set(exact)) == len(exact)
    assert len(exact) > len(every) / 2
    return expected


def alone(running: Engine, request: dict[str, Any]) -> Said:
    """What is said when nothing else goes on."""
    response = running.client.post(
        "/v1/chat/completions", json=request | {"logprobs": True, "top_logprobs": 2}
    )
    assert response.status_code == 200, response.text
    (choice,) = response.json()["choices"]
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = ""
    for token in choice["logprobs"]["content"]:
        best, second = token["top_logprobs"]
        if best["logprob"] - second["logprob"] < TIE:
            return Said(text, exact=False)
        text += decoder.decode(bytes(token["bytes"]))
    return Said(choice["message"]["content"], exact=True)


Disturb = Callable[[Engine, AdapterRegistry, int], str]


def swap(running: Engine, registry: AdapterRegistry, number: int) -> str:
    """The first two adapters take turns on stage."""
    promote(running, registry, ADAPTERS[number % 2])
    return "swapped"


def promote(running: Engine, registry: AdapterRegistry, adapter: str) -> None:
    registry.promote(adapter, "me", "test")
    assert running.client.post("/adapters/sync").json()["error"] == ""


def rotate(running: Engine, registry: AdapterRegistry, number: int) -> str:
    """Anything that may be done to adapters while they answer: what was done."""
    rng = random.Random(number)
    act, adapter = rng.choice(("promote", "load", "unload", "unload", "scale")), rng.choice(ADAPTERS)
    path = f"/adapters/{adapter}"
    if act == "promote":
        promote(running, registry, adapter)
    elif act == "unload":
        status = running.client.delete(path).status_code
        assert status in (200, 404, 409)  # freed, not loaded, in use
        return f"unload {status}"
    elif act == "load":
        assert running.client.post(path).status_code == 200
    else:
        scale = rng.choice((SCALE, 1.0))
        assert running.client.post(f"/adapters/{SCALED}", json={"scale": scale}).status_code == 200
    return act


def interleave(
    tiny_model: TinyModel, folder: Path, turns: int, adapters: tuple[str, ...], disturb: Disturb
) -> tuple[set[str], float]:
    """Run it: what was done to adapters meanwhile, and how many were loaded for it."""
    database = Database(folder / "understudy.db")
    registry = AdapterRegistry(database, folder / "adapters")
    for seed, adapter in enumerate(adapters, 1):
        register_adapter(registry, tiny_model, seed, adapter)
    stop = threading.Event()

    def disturbing(running: Engine) -> set[str]:
        done: set[str] = set()
        number = 0
        while not stop.wait(PAUSE):
            number += 1
            done.add(disturb(running, registry, number))
        return done

    with engine(folder, tiny_model.gguf) as running:
        running.client = httpx.Client(
            base_url=running.client.base_url, headers=running.client.headers, timeout=120, trust_env=False,
            limits=httpx.Limits(max_connections=CLIENTS + 1),
        )  # fmt: skip
        expected = expect(running, ("base", *adapters))
        promote(running, registry, adapters[0])
        before = loads(running)
        with ThreadPoolExecutor(CLIENTS + 1) as pool:
            disturbed = pool.submit(disturbing, running)
            acts = [pool.submit(act, running, expected, seed, turns) for seed in range(CLIENTS)]
            wait(acts)
            stop.set()
            results = [future.result() for future in acts]
        assert [fault for _, faults in results for fault in faults] == []
        assert sum(complete for complete, _ in results) > CLIENTS * turns / 4
        deadline = time.monotonic() + 10
        while (queue := running.health()["queue"])["waiting"] + queue["running"]:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert running.process.poll() is None
        assert running.health()["adapter_error"] == ""
        loaded = loads(running) - before
    database.close()
    return disturbed.result(), loaded


def loads(running: Engine) -> float:
    (found,) = re.findall(
        r"^understudy_engine_adapter_loads (\S+)$", running.client.get("/metrics").text, re.M
    )
    return float(found)


def test_two_hundred_interleavings(tiny_model: TinyModel, tmp_path: Path) -> None:
    done, loaded = interleave(tiny_model, tmp_path, 200 // CLIENTS, ADAPTERS[:2], swap)
    assert (done, loaded) == ({"swapped"}, 0)


def test_two_hundred_interleavings_of_more_adapters_than_have_room(
    tiny_model: TinyModel, tmp_path: Path
) -> None:
    done, loaded = interleave(tiny_model, tmp_path, 200 // CLIENTS, ADAPTERS, rotate)
    assert done
    assert loaded > len(ADAPTERS)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_thousand_interleavings(tiny_model: TinyModel, tmp_path: Path) -> None:
    interleave(tiny_model, tmp_path, 2000 // CLIENTS, ADAPTERS[:2], swap)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_thousand_interleavings_of_more_adapters_than_have_room(
    tiny_model: TinyModel, tmp_path: Path
) -> None:
    done, loaded = interleave(tiny_model, tmp_path, 2000 // CLIENTS, ADAPTERS, rotate)
    assert done >= {"promote", "load", "scale", "unload 200", "unload 404", "unload 409"}
    assert loaded > 20
