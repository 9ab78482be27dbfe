"""Another server behind the engine: its replies, its adapters, and what is said when it is not there."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.responses import JSONResponse, Response

from engine.endpoint import SLOTS
from tests.engine.facades import (
    LINES,
    Facade,
    LlamaServerFacade,
    VllmFacade,
    before,
    served,
    staged,
    two_adapters,
)
from tests.engine.serving import Engine, engine, scripted
from tests.tiny import TinyModel


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
