from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from core.adapters import AdapterRegistry
from core.db import Database
from core.files import write_json
from core.settings import PROJECT, Settings, child_environment, load_settings
from engine.admission import QUEUE_LIMIT
from engine.api import Api
from engine.requests import MAX_BODY_BYTES
from engine.scripted import SLOTS
from engine.server import make_stage
from tests.engine.serving import Engine, engine, free_port, scripted
from tests.tiny import TinyModel, register_adapter


@pytest.fixture(scope="module")
def tiny_engine(tiny_model: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with engine(tmp_path_factory.mktemp("engine"), tiny_model.gguf) as running:
        yield running


def test_a_chat_completion_has_openai_s_shape(tiny_engine: Engine, tiny_model: TinyModel) -> None:
    body = tiny_engine.chat("hello", max_tokens=5).json()
    assert body["object"] == "chat.completion"
    assert body["system_fingerprint"] == f"{tiny_model.id}@base"
    assert body["choices"][0]["message"]["role"] == "assistant"
    assert body["choices"][0]["finish_reason"] == "length"
    usage = body["usage"]
    assert usage["completion_tokens"] == 5
    assert usage["total_tokens"] == usage["prompt_tokens"] + 5


def test_a_fault_of_ours_has_openai_s_shape_and_says_nothing_of_the_inside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_json(tmp_path / "script.json", [])
    stage = make_stage(load_settings({}, data_dir=str(tmp_path)), tmp_path / "script.json")

    def broken() -> None:
        raise RuntimeError("a secret of the inside")

    monkeypatch.setattr(stage, "adapters", broken)
    client = TestClient(Api(stage, "key").app, raise_server_exceptions=False)
    reply = client.get("/adapters", headers={"Authorization": "Bearer key"})
    assert reply.status_code == 500
    assert reply.json()["error"]["code"] == "model_error"
    assert "secret" not in reply.text
    stage.scheduler.start()  # so that it can be stopped
    stage.close()


def test_a_stream_says_the_same(tiny_engine: Engine) -> None:
    whole = tiny_engine.chat("hello").json()
    chunks = tiny_engine.stream("hello", stream_options={"include_usage": True})
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert {chunk["system_fingerprint"] for chunk in chunks} == {whole["system_fingerprint"]}
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    choices = [chunk["choices"][0] for chunk in chunks if chunk["choices"]]
    assert (
        "".join(choice["delta"].get("content", "") for choice in choices)
        == (whole["choices"][0]["message"]["content"])
    )
    assert [choice["finish_reason"] for choice in choices if choice["finish_reason"]] == ["length"]
    assert chunks[-1]["usage"] == whole["usage"]
    assert "usage" not in tiny_engine.stream("hello")[-1]


def test_plain_completions(tiny_engine: Engine) -> None:
    response = tiny_engine.client.post("/v1/completions", json={"prompt": "hello", "max_tokens": 4})
    assert response.json()["object"] == "text_completion"
    assert response.json()["choices"][0]["text"]
    body = {"prompt": "hello", "max_tokens": 4, "stream": True}
    lines = tiny_engine.client.post("/v1/completions", json=body).text.strip().split("\n\n")
    assert lines[-1] == "data: [DONE]"
    text = "".join(json.loads(line[6:])["choices"][0]["text"] for line in lines[:-1])
    assert text == response.json()["choices"][0]["text"]


def test_the_client_library_agrees(tiny_engine: Engine) -> None:
    import openai

    client = openai.OpenAI(
        base_url=f"{tiny_engine.client.base_url}/v1".replace("//v1", "/v1"),
        api_key=str(tiny_engine.client.headers["authorization"]).removeprefix("Bearer "),
        max_retries=0,
    )
    messages: list[Any] = [{"role": "user", "content": "hello"}]
    reply = client.chat.completions.create(model="base", messages=messages, max_tokens=6)
    pieces = client.chat.completions.create(model="base", messages=messages, max_tokens=6, stream=True)
    text = "".join(piece.choices[0].delta.content or "" for piece in pieces)
    assert text == reply.choices[0].message.content
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="base", messages=[{"role": "user", "content": "a " * 900}])
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="nobody", messages=messages)
    assert [model.id for model in client.models.list()] == ["live", "base"]
    client.close()


def test_only_health_is_open(tiny_engine: Engine) -> None:
    for key in (b"", b"Bearer wrong", b"Bearer \xc3\xa9"):
        headers = httpx.Headers([(b"Authorization", key)])
        with httpx.Client(base_url=tiny_engine.client.base_url, headers=headers, trust_env=False) as stranger:
            assert stranger.get("/health").status_code == 200
            for method, path in (
                ("GET", "/v1/models"), ("POST", "/v1/chat/completions"), ("POST", "/adapters/sync")
            ):  # fmt: skip
                assert stranger.request(method, path, content=b"{}").status_code == 401


@pytest.mark.parametrize(
    ("content", "status", "words"),
    [
        (b"{", 400, "not JSON"),
        (b"[" * 100_000, 400, "not JSON"),
        (b'{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}', 400, "temperature"),
        (b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": -1}', 400, "max_tokens"),
        (b'{"messages": [{"role": "user", "content": "x"}], "top_k": 9223372036854775808}', 400, "top_k"),
        (b'{"messages": "' + b"x" * MAX_BODY_BYTES + b'"}', 413, "larger"),
        (
            b'{"messages": [{"role": "user", "content": "' + b"x " * 2000 + b'"}], "stream": true}',
            400,
            "holds 512",
        ),
    ],
)
def test_bad_bodies_get_an_error_object(tiny_engine: Engine, content: bytes, status: int, words: str) -> None:
    response = tiny_engine.client.post("/v1/chat/completions", content=content)
    assert response.status_code == status
    assert words in response.json()["error"]["message"]
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_health_tells_what_runs(tiny_engine: Engine, tiny_model: TinyModel) -> None:
    health = tiny_engine.health()
    assert (health["status"], health["state"], health["reason"]) == ("ok", "ready", "")
    assert health["base"] == tiny_model.id
    assert health["model"]["context"] == 512
    assert health["pid"] == tiny_engine.process.pid


def test_it_listens_on_loopback_only(tiny_engine: Engine) -> None:
    import psutil

    listening = [
        connection.laddr.ip
        for connection in psutil.Process(tiny_engine.process.pid).net_connections()
        if connection.status == psutil.CONN_LISTEN
    ]
    assert listening == ["127.0.0.1"]


def test_the_adapter_on_stage_answers_live(tiny_model: TinyModel, tmp_path: Path) -> None:
    database = Database(tmp_path / "understudy.db")
    registry = AdapterRegistry(database, tmp_path / "adapters")
    for seed in (1, 2):
        register_adapter(registry, tiny_model, seed)
    registry.promote("tiny-adapter-1", "me", "test")
    with engine(tmp_path, tiny_model.gguf) as running:
        # ready means that whoever is on stage answers
        assert running.health()["adapter"] == "tiny-adapter-1"
        live = running.chat("hello").json()
        assert live["system_fingerprint"] == f"{tiny_model.id}@tiny-adapter-1"
        assert running.text("hello", model="tiny-adapter-1") == live["choices"][0]["message"]["content"]
        assert running.text("hello", model="base") != running.text("hello")
        other = running.chat("hello", model="tiny-adapter-2").json()  # a candidate, loaded on demand
        assert other["system_fingerprint"] == f"{tiny_model.id}@tiny-adapter-2"
        promotion = registry.promote("tiny-adapter-2", "me", "test")
        synced = running.client.post("/adapters/sync").json()
        assert synced == {"adapter": "tiny-adapter-2", "seq": promotion.seq, "error": ""}
        assert running.text("hello") == other["choices"][0]["message"]["content"]
        registry.rollback(tiny_model.id, "me", "test")
        deadline = time.monotonic() + 20  # by its own polling
        while running.health()["adapter"] != "tiny-adapter-1":
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert running.text("hello") == live["choices"][0]["message"]["content"]
    database.close()


def test_sigterm_ends_it_within_two_seconds_in_mid_stream(tmp_path: Path) -> None:
    lines = [{"match": "", "reply": "word " * 1000, "delay_ms": 20}]
    with scripted(tmp_path, lines) as running:
        body = {"messages": [{"role": "user", "content": "x"}], "stream": True}
        with running.client.stream("POST", "/v1/chat/completions", json=body) as response:
            received = response.iter_lines()
            assert next(received).startswith("data:")
            running.process.send_signal(signal.SIGTERM)
            rest = "\n".join(received)
        assert running.process.wait(2) == 0
        assert "The engine is stopping" in rest
        assert "[DONE]" not in rest


def test_a_crash_in_mid_stream_ends_the_process(tmp_path: Path) -> None:
    with scripted(tmp_path, [{"match": "boom", "reply": "one two three four", "crash": True}]) as running:
        with pytest.raises(httpx.HTTPError):
            running.stream("boom")
        assert running.process.wait(10) == -signal.SIGABRT
        assert not list(PROJECT.glob("core.*"))


def test_the_script_answers_by_match_and_adapter(tmp_path: Path) -> None:
    lines = [
        {"match": "who", "reply": "The new one.", "adapter": "*"},
        {"match": "who", "reply": "The base."},
    ]
    database = Database(tmp_path / "understudy.db")
    with scripted(tmp_path, lines) as running:
        assert running.text("who are you?") == "The base."
        assert running.text("what?") == "The script holds no reply to this."
        with database.write() as connection:
            connection.execute(
                "INSERT INTO adapters VALUES"
                " ('a1', 'builtin', '', '', NULL, NULL, NULL, 'sft', 'passed', '{}', 0)"
            )
            connection.execute(
                "INSERT INTO promotions (base, adapter_id, action, actor, reason, created_at)"
                " VALUES ('builtin', 'a1', 'promote', 'me', '', 0)"
            )
        assert running.client.post("/adapters/sync").json() == {"adapter": "a1", "seq": 1, "error": ""}
        assert running.text("who are you?") == "The new one."
        assert running.chat("who?", model="live").json()["system_fingerprint"] == "builtin@a1"
        assert running.text("who?", model="base") == "The base."
    database.close()


def test_a_full_queue_is_429_with_retry_after(tmp_path: Path) -> None:
    lines = [{"match": "", "reply": "word " * 200, "delay_ms": 20}]
    with scripted(tmp_path, lines) as running, ThreadPoolExecutor(QUEUE_LIMIT + SLOTS) as pool:
        for _ in range(QUEUE_LIMIT + SLOTS):
            pool.submit(running.chat, "x", max_tokens=200)
        deadline = time.monotonic() + 20
        while running.health()["queue"]["waiting"] < QUEUE_LIMIT:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        response = running.chat("one more")
        assert response.status_code == 429
        assert response.headers["retry-after"]
        assert response.json()["error"]["code"] == "engine_busy"
        running.process.kill()


@pytest.mark.parametrize("stream", [True, False])
def test_hanging_up_frees_the_slot_within_a_second(tmp_path: Path, stream: bool) -> None:
    slow: dict[str, Any] = {"match": "slow", "reply": "word " * 1000, "delay_ms": 20}
    with scripted(tmp_path, [slow, {"match": "quick", "reply": "Yes."}]) as running:
        body = json.dumps({"messages": [{"role": "user", "content": "slow"}], "stream": stream}).encode()
        key = running.client.headers["authorization"]
        with socket.create_connection(("127.0.0.1", running.settings.engine_port)) as raw:
            raw.sendall(
                f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: {key}\r\n"
                f"Content-Length: {len(body)}\r\n\r\n".encode()
                + body
            )
            deadline = time.monotonic() + 20
            while not running.health()["queue"]["running"]:
                assert time.monotonic() < deadline
                time.sleep(0.02)
        left = time.monotonic()
        assert running.text("quick") == "Yes."
        assert time.monotonic() - left < 1


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    settings = Settings(data_dir=Path(environment.pop("data_dir", "/tmp")), engine_port=free_port())
    return subprocess.run(
        [sys.executable, "-m", "engine.server", *arguments],
        cwd=PROJECT,
        env=child_environment(settings, **environment),
        text=True,
        capture_output=True,
        timeout=60,
        check=False,
    )


def test_what_cannot_start_says_why(tmp_path: Path, tiny_model: TinyModel) -> None:
    where = {"data_dir": str(tmp_path)}
    missing = run(**where, UNDERSTUDY_MODEL=str(tmp_path / "none.gguf"))
    assert (missing.returncode, "There is no file" in missing.stderr) == (1, True)
    typo = run(**where, UNDERSTUDY_MODLE="x")
    assert (typo.returncode, "modle" in typo.stderr) == (2, True)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        busy = run("--port", str(taken.getsockname()[1]), **where, UNDERSTUDY_MODEL=str(tiny_model.gguf))
    assert (busy.returncode, "cannot be used" in busy.stderr) == (3, True)
    assert not missing.stdout.count("Traceback") + missing.stderr.count("Traceback")


def test_a_model_that_llama_cpp_refuses_shows_in_health_then_ends(
    tmp_path: Path, tiny_model: TinyModel
) -> None:
    # a well-formed header of an architecture nobody knows
    data = tiny_model.gguf.read_bytes().replace(b"llama", b"lluma")
    (tmp_path / "odd.gguf").write_bytes(data)
    with engine(tmp_path, tmp_path / "odd.gguf", wait=False) as running:
        seen: dict[str, Any] = {}
        while running.process.poll() is None and seen.get("state") != "failed":
            try:
                seen = running.health()
            except httpx.HTTPError:
                time.sleep(0.05)
        assert seen["status"] == "failed"
        assert "could not load odd.gguf" in seen["reason"]
        assert running.process.wait(20) == 1


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['x', '--help']\n"
        "try:\n import engine.server; engine.server.main()\n"
        "except SystemExit: pass\n"
        "print([x for x in ('llama_cpp', 'numpy', 'uvicorn', 'starlette', 'sqlite3') if x in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=PROJECT,
        text=True,
        capture_output=True,
        check=True,
        env=dict(os.environ),
    )
    assert done.stdout.strip().endswith("[]")


def test_its_threads_wait_passively() -> None:
    # set before libgomp is loaded; spinning threads on busy cores were measured up to 40 times slower
    code = (
        "import os, engine.server as server\n"
        "server.serve = lambda *_: print(os.environ['OMP_WAIT_POLICY']) or 0\n"
        "server.main(['--port', '0'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=PROJECT,
        text=True,
        capture_output=True,
        check=True,
        env=dict(os.environ),
    )
    assert done.stdout.strip() == "passive"
