from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from core.errors import EngineBusy, EngineError, EngineUnavailable, ModelError
from core.settings import PROJECT, Settings
from core.types import Message
from engine.scripted import SLOTS
from rag.model import ModelClient, PromptTooLong, client_of, engine_client, free_port, split_fingerprint

ASK: list[Message] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is the notice period?"},
]
SCRIPT = [
    {"match": "notice period", "reply": "[1] The notice period is 30 days.", "delay_ms": 5},
    {"match": "crash", "reply": "one two three four five six seven eight", "delay_ms": 200, "crash": True},
    {"match": "slow", "reply": "word " * 200, "delay_ms": 50},
]


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "script.json"
    path.write_text(json.dumps(SCRIPT))
    return path


@pytest.fixture
def client(settings: Settings, script: Path) -> Iterator[ModelClient]:
    with engine_client(settings, scripted=script) as client:
        yield client


def test_streaming_and_its_reply(client: ModelClient) -> None:
    stream = client.stream(ASK)
    pieces = list(stream)
    assert len(pieces) > 3
    assert "".join(pieces) == "[1] The notice period is 30 days." == stream.text
    reply = stream.reply
    assert reply is not None
    assert (reply.text, reply.finish_reason, reply.base, reply.adapter) == (
        stream.text,
        "stop",
        "builtin",
        None,
    )
    assert reply.prompt_tokens > 0
    assert reply.completion_tokens == 7
    assert 0 < reply.timings["ttft_ms"] <= reply.timings["total_ms"]


def test_generate_and_its_limits(client: ModelClient) -> None:
    reply = client.generate(ASK, max_tokens=3, seed=7, stop=["<|im_end|>"], conversation="talk")
    assert reply.text == "[1] The notice"
    assert reply.finish_reason == "length"


def test_an_unknown_adapter_is_a_model_error(client: ModelClient) -> None:
    with pytest.raises(ModelError):
        client.generate(ASK, "no-such-adapter")


def test_a_crash_in_the_middle_keeps_what_arrived(client: ModelClient) -> None:
    stream = client.stream([{"role": "user", "content": "crash"}])
    with pytest.raises(EngineUnavailable):
        list(stream)
    assert stream.text.startswith("one two")


def test_closing_ends_the_generation(client: ModelClient) -> None:
    stream = client.stream([{"role": "user", "content": "slow"}])
    next(stream)
    stream.close()
    assert stream.reply is not None
    assert stream.reply.finish_reason == "stop_requested"
    assert list(stream) == []
    assert client.generate(ASK).finish_reason == "stop"


def test_health_and_sync(client: ModelClient) -> None:
    assert client.healthy()
    assert client.health()["base"] == "builtin"
    assert client.sync_adapters()["adapter"] is None


def test_a_conversation_knows_its_place(client: ModelClient) -> None:
    slow: list[Message] = [{"role": "user", "content": "slow"}]
    running = [client.stream(slow, conversation=f"running {number}") for number in range(SLOTS)]
    for stream in running:
        next(stream)
    waiting = client.stream(slow, conversation="waiting & co")
    first = threading.Thread(target=next, args=(waiting,), daemon=True)
    first.start()
    deadline = time.monotonic() + 20
    while client.position("waiting & co") != 1:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert client.position("running 0") == 0
    assert client.position("nobody") is None
    for stream in running:
        stream.close()
    first.join(20)
    assert not first.is_alive()
    waiting.close()


def test_another_server_tells_no_place() -> None:
    with endpoint(404, "application/json", json.dumps({"detail": "Not Found"})) as (url, _):
        assert ModelClient(url, "key").position("talk") is None
    with endpoint(200, "text/html", "<p>Hello</p>") as (url, _):
        assert ModelClient(url, "key").position("talk") is None


def test_nobody_answers(settings: Settings) -> None:
    client = ModelClient(f"http://127.0.0.1:{free_port()}", "key")
    assert not client.healthy()
    with pytest.raises(EngineUnavailable):
        client.generate(ASK)
    with pytest.raises(EngineUnavailable):
        client.sync_adapters()
    assert client.position("talk") is None


def test_a_wrong_key_is_an_engine_error(client: ModelClient) -> None:
    with pytest.raises(EngineError):
        ModelClient(client.url, "wrong").generate(ASK)


def test_a_running_engine_is_used(settings: Settings, script: Path) -> None:
    from dataclasses import replace

    with engine_client(settings, scripted=script) as running:
        shared = replace(settings, engine_port=int(running.url.rsplit(":", 1)[1]))
        with engine_client(shared) as found:
            assert found.url == running.url == client_of(shared).url
        assert running.healthy()


def test_an_engine_that_cannot_start_says_why(settings: Settings, tmp_path: Path) -> None:
    broken = tmp_path / "broken.json"
    broken.write_text("not json")
    with pytest.raises(EngineUnavailable, match="did not start"), engine_client(settings, scripted=broken):
        pass


def test_proxies_of_the_environment_are_ignored(
    settings: Settings, script: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with engine_client(settings, scripted=script) as client:
        assert client.generate(ASK).text


@pytest.mark.parametrize(
    ("status", "code", "wanted"),
    [
        (429, "engine_busy", EngineBusy),
        (503, "engine_unavailable", EngineUnavailable),
        (500, "model_error", ModelError),
        (404, "model_not_found", ModelError),
        (400, "context_length_exceeded", PromptTooLong),
        (400, "bad", EngineError),
    ],
)
def test_errors_of_any_endpoint_are_translated(status: int, code: str, wanted: type[Exception]) -> None:
    with endpoint(status, "application/json", json.dumps(refusal(code))) as (url, _), pytest.raises(wanted):
        ModelClient(url, "key").generate(ASK)


@pytest.mark.parametrize("opened", [False, True])
def test_a_busy_engine_is_quoted(opened: bool) -> None:
    """Also in a stream that was opened already, as for those who wait in the line."""
    body = json.dumps(refusal("engine_busy"))
    answer = (200, "text/event-stream", f"data: {body}\n\n") if opened else (429, "application/json", body)
    with endpoint(*answer) as (url, _), pytest.raises(EngineBusy) as caught:
        ModelClient(url, "key").generate(ASK)
    assert str(caught.value) == "No. Wait."


def test_users_have_the_same_unreadable_name_each_time() -> None:
    with endpoint(429, "application/json", json.dumps(refusal("engine_busy"))) as (url, bodies):
        for key, user in (("key", "ann"), ("key", "ann"), ("key", "bob"), ("other", "ann"), ("key", "")):
            with pytest.raises(EngineBusy):
                ModelClient(url, key).generate(ASK, conversation="talk", user=user)
    first, again, bob, elsewhere = (body["user"] for body in bodies[:4])
    assert first == again
    assert len({first, bob, elsewhere}) == 3
    assert "ann" not in first
    assert "user" not in bodies[4]
    assert {body["prompt_cache_key"] for body in bodies} == {"talk"}


def refusal(code: str) -> dict[str, Any]:
    return {"error": {"message": "No. Wait.", "type": "x", "param": None, "code": code}}


@contextmanager
def endpoint(status: int, kind: str, text: str) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The address of a server that answers every request with the same, and the bodies that it was sent."""
    bodies: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.do_GET()

        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", bodies
        server.shutdown()


def test_fingerprints() -> None:
    assert split_fingerprint("builtin@a1") == ("builtin", "a1")
    assert split_fingerprint("builtin@base") == ("builtin", None)
    assert split_fingerprint("") == ("", None)


def test_a_killed_user_leaves_no_engine_behind(tmp_path: Path) -> None:
    (tmp_path / "script.json").write_text("[]")
    code = (
        "import sys, time; from pathlib import Path; from core.settings import load_settings\n"
        "from rag.model import engine_client\n"
        "folder = Path(sys.argv[1])\n"
        "with engine_client(load_settings(data_dir=folder), scripted=folder / 'script.json'):\n"
        "    print('up', flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], cwd=PROJECT, text=True, stdout=subprocess.PIPE
    ) as user:
        assert user.stdout is not None
        assert user.stdout.readline() == "up\n"
        [engine] = psutil.Process(user.pid).children()
        user.kill()
        engine.wait(10)  # raises when it lives on
