"""The OpenAI protocol as its own client library speaks it, and the engine's own routes beside it."""

from __future__ import annotations

import json
import math
import os
import queue
import re
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from core.adapters import AdapterRegistry
from core.db import Database
from tests.engine.serving import Engine, engine, scripted
from tests.tiny import TinyModel, register_adapter

HELLO: list[Any] = [{"role": "user", "content": "hello"}]
CRASHES = [3, pytest.param(50, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])]


@pytest.fixture(scope="module")
def running(tiny_model: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    folder = tmp_path_factory.mktemp("engine")
    database = Database(folder / "understudy.db")
    registry = AdapterRegistry(database, folder / "adapters")
    for seed in (1, 2):
        register_adapter(registry, tiny_model, seed)
    registry.promote("tiny-adapter-1", "me", "test")
    with engine(folder, tiny_model.gguf) as started:
        yield started
    database.close()


@pytest.fixture
def client(running: Engine) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{str(running.client.base_url).rstrip('/')}/v1",
        api_key=str(running.client.headers["authorization"]).removeprefix("Bearer "),
        max_retries=0,
    ) as made:
        yield made


def test_chats_whole_and_streamed(client: openai.OpenAI) -> None:
    options: Any = {"messages": HELLO, "max_tokens": 8, "temperature": 0.7, "top_p": 0.9, "seed": 3}
    whole = client.chat.completions.create(model="live", **options)
    assert whole.usage is not None
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + 8
    stream = client.chat.completions.create(
        model="live", stream=True, stream_options={"include_usage": True}, **options
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert {chunk.system_fingerprint for chunk in chunks} == {whole.system_fingerprint}


def test_stop_strings_and_both_names_of_the_limit(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="base", messages=HELLO, max_completion_tokens=12)
    text = str(whole.choices[0].message.content)
    cut = client.chat.completions.create(model="base", messages=HELLO, max_tokens=12, stop=text[4:6])
    assert cut.choices[0].finish_reason == "stop"
    assert cut.choices[0].message.content == text[: text.index(text[4:6])]


def test_log_probabilities(client: openai.OpenAI) -> None:
    chat = client.chat.completions.create(
        model="base", messages=HELLO, max_tokens=4, logprobs=True, top_logprobs=3
    )
    logprobs = chat.choices[0].logprobs
    content = (logprobs.content if logprobs else None) or []
    assert [len(token.top_logprobs) for token in content] == [3] * 4
    assert all(token.logprob == token.top_logprobs[0].logprob for token in content)
    # of a given text, as an evaluation asks: nothing is generated
    text = "The notice period is thirty days."
    given = client.completions.create(model="base", prompt=text, max_tokens=0, echo=True, logprobs=1)
    assert given.choices[0].text == text
    noted = given.choices[0].logprobs
    assert noted is not None
    assert "".join(noted.tokens or []) == text
    scores: list[float | None] = list(noted.token_logprobs or [])
    assert scores[0] is None
    assert all(score is not None and -math.inf < score < 0 for score in scores[1:])
    assert given.usage is not None
    assert given.usage.completion_tokens == 0


def test_tokens_that_are_parts_of_characters_keep_their_bytes(client: openai.OpenAI) -> None:
    text = "Das Maß: 你好 🙂 and so on"
    options: dict[str, Any] = {"model": "base", "prompt": text, "max_tokens": 2, "echo": True, "logprobs": 2}
    whole = client.completions.create(**options)
    noted = whole.choices[0].logprobs
    assert noted is not None
    names, offsets = list(noted.tokens or []), list(noted.text_offset or [])
    parts = [name for name in names if name.startswith("bytes:")]
    assert parts  # the tiny model has no token for these characters
    assert "\ufffd" not in "".join(names)
    for name, at in zip(names, offsets, strict=True):
        if not name.startswith("bytes:"):
            assert whole.choices[0].text[at : at + len(name)] == name
    assert all(len(top) == 2 for top in (noted.top_logprobs or [])[1:])
    streamed: list[int] = []
    for chunk in client.completions.create(stream=True, **options):
        if chunk.choices and chunk.choices[0].logprobs:
            streamed += chunk.choices[0].logprobs.text_offset or []
    assert streamed == offsets


def test_every_error_has_the_shape_of_openai(client: openai.OpenAI, running: Engine) -> None:
    for method, path, status in (("GET", "/v1/nothing", 404), ("GET", "/v1/chat/completions", 405)):
        reply = running.client.request(method, path)
        assert reply.status_code == status
        assert reply.json()["error"]["code"] == "unknown_url"
    with pytest.raises(openai.NotFoundError, match="not served here"):
        client.embeddings.create(model="base", input="x")


def test_adapters_are_models(client: openai.OpenAI, running: Engine, tiny_model: TinyModel) -> None:
    with ThreadPoolExecutor(3) as pool:  # side by side
        names = ("base", "tiny-adapter-1", "tiny-adapter-2")
        replies = list(
            pool.map(
                lambda name: client.chat.completions.create(model=name, messages=HELLO, max_tokens=9), names
            )
        )
    assert [r.system_fingerprint for r in replies] == [f"{tiny_model.id}@{name}" for name in names]
    assert len({reply.choices[0].message.content for reply in replies}) == 3
    assert {model.id for model in client.models.list()} >= {"live", *names}
    assert client.models.retrieve("live").id == "live"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("nobody")
    assert caught.value.code == "model_not_found"


def test_errors_are_openai_s(client: openai.OpenAI, running: Engine) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="base", messages=HELLO, temperature=3)
    assert caught.value.param == "temperature"
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="nobody", messages=HELLO)
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="base", messages=[{"role": "user", "content": "a " * 900}])
    assert caught.value.code == "context_length_exceeded"
    stranger = openai.OpenAI(base_url=str(client.base_url), api_key="wrong", max_retries=0)
    with pytest.raises(openai.AuthenticationError):
        stranger.models.list()
    stranger.close()


def test_an_earlier_turn_of_the_same_conversation_is_reused(client: openai.OpenAI) -> None:
    def asked(key: str, text: str) -> int:
        reply = client.chat.completions.create(
            model="base", messages=[{"role": "user", "content": text}], max_tokens=4, prompt_cache_key=key
        )
        assert reply.usage is not None
        assert reply.usage.prompt_tokens_details is not None
        return reply.usage.prompt_tokens_details.cached_tokens or 0

    first = "What does the handbook say about notice? " * 8
    assert asked("mine", first) == 0
    assert asked("yours", first + "And then?") == 0
    assert asked("mine", first + "And then?") >= 64


def test_adapters_are_loaded_scaled_and_unloaded(running: Engine, tiny_model: TinyModel) -> None:
    http = running.client
    listed = {a["id"]: a for a in http.post("/adapters/tiny-adapter-2", json={"scale": 0}).json()["data"]}
    assert listed["tiny-adapter-2"] == {"id": "tiny-adapter-2", "on_stage": False, "scale": 0}
    assert listed["tiny-adapter-1"]["on_stage"] is True
    assert running.text("hello", model="tiny-adapter-2") == running.text("hello", model="base")
    http.post("/adapters/tiny-adapter-2", json={"scale": 1})
    assert running.text("hello", model="tiny-adapter-2") != running.text("hello", model="base")
    for value in (-1, 3, "much", math.inf, True):
        content = json.dumps({"scale": value})
        assert http.post("/adapters/tiny-adapter-2", content=content).status_code == 400
    assert http.delete("/adapters/tiny-adapter-1").status_code == 409  # it is on stage
    assert http.delete("/adapters/tiny-adapter-2").status_code == 200
    assert [a["id"] for a in http.get("/adapters").json()["data"]] == ["tiny-adapter-1"]
    assert http.delete("/adapters/tiny-adapter-2").status_code == 404
    assert http.post("/adapters/nobody").status_code == 404
    assert http.post("/adapters/live", json={"scale": 1}).status_code == 404


def test_metrics_are_prometheus_text(running: Engine) -> None:
    running.text("hello")
    page = running.client.get("/metrics").text
    samples = [line for line in page.splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r'[a-z_]+(\{[a-z]+="[^"]+"\})? [0-9.e+]+', line) for line in samples), samples
    for name in ("time_to_first_token_seconds_count", "waiting", "kv_tokens", "requests_total"):
        assert f"understudy_engine_{name}" in page


def test_a_waiting_stream_tells_its_place(tmp_path: Path) -> None:
    slow: dict[str, Any] = {"match": "slow", "reply": "word " * 400, "delay_ms": 20}
    lines = [slow, {"match": "", "reply": "Yes."}]
    with scripted(tmp_path, lines) as busy, ThreadPoolExecutor(8) as pool:
        for _ in range(4):
            pool.submit(busy.chat, "slow", max_tokens=400)
        while busy.health()["queue"]["running"] < 4:
            time.sleep(0.02)
        body = {"messages": HELLO, "stream": True, "user": "me"}
        with busy.client.stream("POST", "/v1/chat/completions", json=body) as response:
            received = response.iter_lines()
            assert next(received) == ": waiting, place 1"
            place = busy.client.get("/queue", params={"key": "me"}).json()
        assert place == {"waiting": 1, "running": 4, "slots": 4, "position": 1}
        busy.process.kill()


def listen(doomed: Engine, arrived: queue.Queue[str]) -> None:
    body = {"messages": HELLO, "max_tokens": 400, "stream": True}
    with doomed.client.stream("POST", "/v1/chat/completions", json=body) as response:
        for line in response.iter_lines():
            arrived.put(line)


@pytest.mark.parametrize("crashes", CRASHES)
def test_a_killed_engine_leaves_the_client_alive(crashes: int, tmp_path: Path, tiny_model: TinyModel) -> None:
    """A native crash in mid-stream is an error of that stream; the next engine answers at once."""
    for _ in range(crashes):
        with engine(tmp_path, tiny_model.gguf) as doomed, ThreadPoolExecutor(2) as pool:
            arrived: queue.Queue[str] = queue.Queue()
            streams = [pool.submit(listen, doomed, arrived) for _ in range(2)]
            arrived.get(timeout=20)
            os.kill(doomed.process.pid, signal.SIGSEGV)
            errors = [stream.exception(20) for stream in streams]
            assert doomed.process.wait(10) == -signal.SIGSEGV
            assert all(isinstance(error, httpx.HTTPError) for error in errors)
            assert "data: [DONE]" not in arrived.queue
    with engine(tmp_path, tiny_model.gguf) as fresh:
        assert fresh.text("hello")
