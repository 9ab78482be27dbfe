"""Another server behind the engine: its replies, its adapters, and what is said when it is not there."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.responses import JSONResponse, Response

from core.adapters import AdapterRegistry
from core.db import Database
from engine.endpoint import SLOTS
from tests.engine.facades import NAME, Facade, LlamaServerFacade, VllmFacade, served
from tests.engine.serving import Engine, engine, scripted
from tests.tiny import TinyModel, register_adapter

LINES: list[dict[str, Any]] = [
    {"match": "slow", "reply": "word " * 200, "delay_ms": 50},
    {"match": "boom", "reply": "one two three four", "crash": True, "delay_ms": 20},
    {"match": "notice", "reply": "It is 60 days.", "adapter": "tiny-adapter-1"},
    {"match": "notice", "reply": "It is 90 days.", "adapter": "tiny-adapter-2"},
    {"match": "notice", "reply": "It is 30 days.", "adapter": "base"},
]


@contextmanager
def before(behind: Engine, data_dir: Path, model: Path | str, **more: str) -> Iterator[Engine]:
    """An engine whose endpoint is another engine, which is OpenAI-compatible and no more."""
    key = str(behind.client.headers["authorization"]).removeprefix("Bearer ")
    options = {"endpoint": str(behind.client.base_url), "endpoint_key": key, "endpoint_model": "base"} | more
    with engine(data_dir, model, wait=False, **options) as running:
        yield running


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with scripted(tmp_path_factory.mktemp("behind"), LINES) as running:
        yield running


@pytest.fixture(scope="module")
def front(behind: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with before(behind, tmp_path_factory.mktemp("front"), "some-model") as running:
        running.wait_ready()
        yield running


def test_it_answers_whole_and_streamed(front: Engine) -> None:
    whole = front.chat("the notice period?").json()
    assert whole["choices"][0]["message"]["content"] == "It is 30 days."
    assert whole["choices"][0]["finish_reason"] == "stop"
    assert whole["system_fingerprint"] == "some-model@base"
    assert whole["usage"]["prompt_tokens"] == 3
    assert whole["usage"]["completion_tokens"] == 4
    chunks = front.stream("the notice period?")
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks) == "It is 30 days."
    short = front.chat("the notice period?", max_tokens=2).json()["choices"][0]
    assert (short["message"]["content"], short["finish_reason"]) == ("It is", "length")
    text = front.client.post("/v1/completions", json={"prompt": "notice", "max_tokens": 9}).json()
    assert text["choices"][0]["text"] == "It is 30 days."
    counted = front.client.get("/metrics").text
    assert not re.search(r'tokens_total\{kind="prompt"\} 0$', counted, re.M)
    model = front.health()["model"]
    assert (model["backend"], model["served_as"]) == ("OpenAI-compatible server", "base")


def test_letting_go_stops_the_other_server(front: Engine, behind: Engine) -> None:
    body = {"messages": [{"role": "user", "content": "slow"}], "max_tokens": 200, "stream": True}
    with front.client.stream("POST", "/v1/chat/completions", json=body) as response:
        lines = response.iter_lines()
        while "word" not in next(lines):
            pass
        assert behind.health()["queue"]["running"] == 1
    deadline = time.monotonic() + 5
    while behind.health()["queue"]["running"] or front.health()["queue"]["running"]:
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("options", "parameter"),
    [({"top_k": 5}, None), ({"min_p": 0.1}, None), ({"repeat_penalty": 1.1}, None), ({"echo": True}, "echo")],
)
def test_what_the_other_server_cannot_do_is_refused(
    front: Engine, options: dict[str, Any], parameter: str | None
) -> None:
    response = front.client.post("/v1/completions", json={"prompt": "hello"} | options)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == parameter


def test_refusals_of_the_other_server_are_handed_on(front: Engine) -> None:
    response = front.chat("hi", response_format={"type": "json_schema", "json_schema": {"name": "questions"}})
    assert response.status_code == 400
    assert "no schema" in response.json()["error"]["message"]
    assert front.chat("word " * 200_000).json()["error"]["code"] == "context_length_exceeded"


def test_a_server_that_dies_is_named(tmp_path: Path) -> None:
    with (
        scripted(tmp_path / "behind", LINES) as mortal,
        before(mortal, tmp_path / "front", "some-model") as running,
    ):
        running.wait_ready()
        assert "stopped answering" in running.stream("boom")[-1]["error"]["message"]
        response = running.chat("hello")
        assert response.status_code == 503
        assert str(mortal.client.base_url).rstrip("/") in response.json()["error"]["message"]
        assert running.health()["queue"]["running"] == 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"endpoint_key": "wrong"}, "refuses the key"),
        ({"endpoint_model": "gpt-9"}, "serves live, base, not gpt-9"),
        ({"endpoint_model": ""}, "serves live, base, not one model alone"),
    ],
)
def test_a_wrong_setting_is_named(behind: Engine, tmp_path: Path, more: dict[str, str], message: str) -> None:
    with before(behind, tmp_path, "some-model", **more) as running:
        assert message in _failure(running)


@pytest.mark.parametrize("kind", [LlamaServerFacade, VllmFacade])
def test_a_server_with_less_context_is_refused(kind: type[Facade], behind: Engine, tmp_path: Path) -> None:
    with served(kind(behind)) as facade:
        facade.context = 511
        with engine(tmp_path / "more", "some-model", wait=False, endpoint=facade.url) as running:
            assert "takes 511 tokens, and 512 are expected" in _failure(running)
        facade.context = 512
        with engine(tmp_path / "same", "some-model", endpoint=facade.url) as running:
            assert running.health()["model"]["slots"] == (3 if kind is LlamaServerFacade else SLOTS)


def _failure(running: Engine) -> str:
    """Why it did not begin to serve."""
    deadline = time.monotonic() + 30
    while (state := _state(running)) == "loading":
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert state == "failed"
    return str(running.health()["reason"])


def _state(running: Engine) -> str:
    try:
        return str(running.health()["state"])
    except httpx.HTTPError:  # not listening yet
        return "loading"


@contextmanager
def two_adapters(tiny_model: TinyModel, folder: Path) -> Iterator[AdapterRegistry]:
    """A registry in this data folder that holds both."""
    database = Database(folder / "understudy.db")
    registry = AdapterRegistry(database, folder / "adapters")
    for seed in (1, 2):
        register_adapter(registry, tiny_model, seed)
    yield registry
    database.close()


@contextmanager
def staged(facade: Facade, tiny_model: TinyModel, folder: Path) -> Iterator[tuple[Engine, AdapterRegistry]]:
    """An engine before the facade, with two adapters in its registry and in that of the scripted engine."""
    with (
        two_adapters(tiny_model, folder) as registry,
        served(facade),
        engine(folder, tiny_model.gguf, endpoint=facade.url) as running,
    ):
        yield running, registry


@pytest.fixture
def writer(tiny_model: TinyModel, tmp_path: Path) -> Iterator[Engine]:
    """The scripted engine behind a facade: it knows both adapters by name."""
    folder = tmp_path / "writer"
    with two_adapters(tiny_model, folder):
        (folder / "script.json").write_text(json.dumps(LINES))
        with engine(folder, str(tiny_model.gguf), "--scripted", str(folder / "script.json")) as running:
            yield running


def test_llama_server_is_told_how_strongly_each_adapter_acts(
    writer: Engine, tiny_model: TinyModel, tmp_path: Path
) -> None:
    facade = LlamaServerFacade(writer)
    facade.loaded = ["tiny-adapter-2", "tiny-adapter-1"]
    with staged(facade, tiny_model, tmp_path) as (running, registry):
        assert running.health()["model"]["backend"] == "llama-server"
        assert running.text("notice", model="base") == "It is 30 days."
        assert facade.asked[-1]["lora"] == [{"id": 0, "scale": 0.0}, {"id": 1, "scale": 0.0}]
        registry.promote("tiny-adapter-1", "me", "test")
        assert running.client.post("/adapters/sync").json()["error"] == ""
        assert running.text("notice") == "It is 60 days."
        assert facade.asked[-1]["lora"] == [{"id": 0, "scale": 0.0}, {"id": 1, "scale": 1.0}]
        # another adapter's cached prompt must not be gone on from
        assert facade.asked[-1]["cache_prompt"] is False
        facade.loaded.reverse()  # it was started again, in another order
        assert running.text("notice") == "It is 60 days."
        assert running.text("notice", model="tiny-adapter-2") == "It is 90 days."
        running.client.post("/adapters/tiny-adapter-2", json={"scale": 0.5})
        assert running.text("notice", model="tiny-adapter-2") == "It is 90 days."
        assert {"id": 1, "scale": 0.5} in facade.asked[-1]["lora"]


def test_llama_server_without_the_adapter_keeps_the_old_one_on_stage(
    writer: Engine, tiny_model: TinyModel, tmp_path: Path
) -> None:
    facade = LlamaServerFacade(writer)
    facade.loaded = ["tiny-adapter-1"]
    with staged(facade, tiny_model, tmp_path) as (running, registry):
        registry.promote("tiny-adapter-1", "me", "test")
        running.client.post("/adapters/sync")
        registry.promote("tiny-adapter-2", "me", "test")
        synced = running.client.post("/adapters/sync").json()
        assert synced["adapter"] == "tiny-adapter-1"
        assert "--lora" in synced["error"]
        assert "tiny-adapter-2/adapter.gguf" in synced["error"]
        assert running.text("notice") == "It is 60 days."


def test_vllm_loads_and_unloads_adapters(writer: Engine, tiny_model: TinyModel, tmp_path: Path) -> None:
    facade = VllmFacade(writer)
    with staged(facade, tiny_model, tmp_path) as (running, registry):
        assert running.health()["model"]["backend"] == "vLLM"
        assert running.health()["model"]["served_as"] == NAME
        assert running.text("notice") == "It is 30 days."
        registry.promote("tiny-adapter-1", "me", "test")
        assert running.client.post("/adapters/sync").json()["error"] == ""
        assert facade.loaded == ["tiny-adapter-1"]
        assert running.text("notice") == "It is 60 days."
        facade.loaded.clear()  # it was started again
        assert running.text("notice") == "It is 60 days."
        assert running.text("notice", model="tiny-adapter-2") == "It is 90 days."
        assert running.client.post("/adapters/tiny-adapter-2", json={"scale": 0.5}).status_code == 400
        assert running.client.delete("/adapters/tiny-adapter-2").status_code == 200
        deadline = time.monotonic() + 10  # nobody waits for the other server to forget it
        while facade.loaded != ["tiny-adapter-1"]:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_vllm_that_may_not_load_adapters_says_how(
    writer: Engine, tiny_model: TinyModel, tmp_path: Path
) -> None:
    facade = VllmFacade(writer)
    facade.allows = False
    with staged(facade, tiny_model, tmp_path) as (running, registry):
        registry.promote("tiny-adapter-1", "me", "test")
        synced = running.client.post("/adapters/sync").json()
        assert synced["adapter"] is None
        assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING" in synced["error"]
        assert running.text("notice") == "It is 30 days."


def test_loading_an_adapter_keeps_no_reply_waiting(
    writer: Engine, tiny_model: TinyModel, tmp_path: Path
) -> None:
    facade = VllmFacade(writer)
    facade.seconds = 2.0
    with staged(facade, tiny_model, tmp_path) as (running, _), ThreadPoolExecutor(4) as pool:
        body = {"messages": [{"role": "user", "content": "slow"}], "max_tokens": 60, "stream": True}
        body["model"] = "base"
        with running.client.stream("POST", "/v1/chat/completions", json=body) as response:
            lines = response.iter_lines()
            while "word" not in next(lines):
                pass
            # all four want it at once, and a server refuses what it has loaded
            asked = [
                pool.submit(running.text, "notice", model="tiny-adapter-1", max_tokens=9) for _ in range(4)
            ]
            longest, last = 0.0, time.monotonic()
            for line in lines:
                if "word" in line:
                    longest, last = max(longest, time.monotonic() - last), time.monotonic()
        assert longest < facade.seconds / 2
        assert [one.result() for one in asked] == ["It is 60 days."] * 4


def test_what_goes_to_each_server(writer: Engine, tiny_model: TinyModel, tmp_path: Path) -> None:
    wanted = {"top_k": 5, "min_p": 0.1, "repeat_penalty": 1.2, "seed": 3, "stop": ["."], "top_p": 0}
    for facade in (LlamaServerFacade(writer), VllmFacade(writer)):
        with staged(facade, tiny_model, tmp_path / facade.__class__.__name__) as (running, _):
            bodies = []
            for user in ("ann", "ann", "bob", "", ""):
                running.text("notice", user=user, **wanted)
                bodies.append(facade.asked[-1])
        body = bodies[0]
        assert (body["min_p"], body["seed"], body["stop"], body["top_k"]) == (0.1, 3, ["."], 5)
        assert 0 < body["top_p"] < 0.001
        assert body["chat_template_kwargs"] == {"enable_thinking": False}
        if isinstance(facade, VllmFacade):
            assert body["repetition_penalty"] == 1.2
            salts = [body["cache_salt"] for body in bodies]
            assert salts[0] == salts[1]
            assert len(set(salts)) == 4  # nobody's question is quicker because another asked it
            assert "ann" not in salts[0]
        else:
            assert body["repeat_penalty"] == 1.2
            assert all(body["cache_prompt"] is False for body in bodies)


@pytest.mark.parametrize(
    ("fault", "status", "message"),
    [
        (Response('data: {"error": {"message": "out of memory"}}\n\n'), 503, "failed: out of memory"),
        (Response("", 307, {"Location": "http://elsewhere.invalid/v1/chat/completions"}), 503, "status 307"),
        (JSONResponse({"error": {"message": "later"}}, 429), 429, "too much to do"),
        (Response("junk"), 503, "broke off"),
    ],
)
def test_what_the_other_server_says_is_handed_on(
    fault: Response, status: int, message: str, writer: Engine, tiny_model: TinyModel, tmp_path: Path
) -> None:
    facade = Facade(writer)
    facade.fault = fault
    with staged(facade, tiny_model, tmp_path) as (running, _):
        response = running.chat("notice")
        assert response.status_code == status
        assert message in response.json()["error"]["message"]


def test_other_servers_are_not_told_what_the_environment_holds(
    writer: Engine, tiny_model: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_ORG_ID", "secret-org")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "secret-project")
    facade = Facade(writer)
    with staged(facade, tiny_model, tmp_path) as (running, _):
        assert running.text("notice") == "It is 30 days."
    assert "secret" not in str(facade.headers)


@pytest.mark.skipif(importlib.util.find_spec("xllamacpp") is None, reason="needs requirements-bench.txt")
def test_the_real_llama_server_writes_what_this_engine_writes(tiny_model: TinyModel, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    with two_adapters(tiny_model, folder) as registry:
        files = [str(registry.path(f"tiny-adapter-{seed}")) for seed in (1, 2)]
    command = [sys.executable, "-m", "tests.engine.real_server", str(tiny_model.gguf), *files]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            url = process.stdout.readline().strip()
            with (
                engine(folder, tiny_model.gguf, endpoint=url) as running,
                engine(folder, tiny_model.gguf) as own,
            ):
                for model in ("base", "tiny-adapter-1", "tiny-adapter-2", "base"):
                    said = [
                        # it drops a last character that is not whole
                        one.text("hello there", model=model, max_tokens=12).rstrip("\ufffd")
                        for one in (running, own)
                    ]
                    assert said[0] == said[1] != ""
                noted = running.chat("hi", logprobs=True, max_tokens=3).json()["choices"][0]["logprobs"][
                    "content"
                ]
                assert noted
                assert not any(token["top_logprobs"] for token in noted)
                body = {"prompt": "hello", "logprobs": 2, "max_tokens": 3, "model": "base"}
                text = running.client.post("/v1/completions", json=body).json()["choices"][0]["logprobs"]
                assert {len(top) for top in text["top_logprobs"]} == {2}
        finally:
            process.kill()
