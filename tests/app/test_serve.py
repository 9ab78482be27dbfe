"""`understudy serve` as a whole: one address, one owner, crashes survived, everything stopped (row R12)."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
from pathlib import Path

import httpx
import psutil
import pytest

from app.serve import with_ports
from core.db import Database
from core.errors import ConflictError, SettingsError
from core.settings import PROJECT, Settings
from feedback.store import FeedbackStore
from tests.app.site import Site, ask, serve_command, serve_environment, site, until


def test_it_prints_one_address_that_answers(running: Site) -> None:
    printed = running.output.read_text()
    assert printed.count("http://") == 1
    assert f"Open {running.url}" in printed
    assert httpx.get(f"{running.url}/health", trust_env=False).json() == {"status": "ok"}
    page = httpx.get(running.url, trust_env=False)
    assert page.status_code == 200
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert page.headers.get("server") is None


def test_it_listens_on_loopback_only(running: Site) -> None:
    pids = {running.part(name)["pid"] for name in ("web", "engine", "worker")}
    listening = [
        c.laddr.ip
        for pid in pids
        for c in psutil.Process(pid).net_connections("inet")
        if c.status == psutil.CONN_LISTEN
    ]
    assert set(listening) == {"127.0.0.1"}
    assert len(listening) == 2  # pages and engine


def test_streamlit_runs_with_the_safe_options(running: Site) -> None:
    """The running server tells: no metrics, no agent API, no components, an XSRF cookie, no embedding."""
    for path in ("/_stcore/metrics", "/_stcore/agent/interact", "/component/x/index.html"):
        assert httpx.get(running.url + path, trust_env=False).status_code == 404
    config = httpx.get(f"{running.url}/_stcore/host-config", trust_env=False).json()
    assert config["allowedOrigins"] == []
    assert (
        "_streamlit_xsrf" in httpx.get(f"{running.url}/_stcore/health", trust_env=False).headers["set-cookie"]
    )


def test_a_second_serve_says_who_has_the_folder(running: Site) -> None:
    done = subprocess.run(
        serve_command("--scripted", str(running.data_dir / "script.json")),
        cwd=PROJECT, env=serve_environment(running.data_dir), capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 3
    assert f"in use by process {running.process.pid}" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") <= 2


def test_a_taken_port_is_a_clear_sentence(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError, match=f"Port {port} on 127.0.0.1 cannot be used"):
            with_ports(Settings(data_dir=tmp_path, port=port))
    free = with_ports(Settings(data_dir=tmp_path, port=0, engine_port=0))
    assert free.port != free.engine_port != 0


def test_a_killed_engine_comes_back_and_the_answer_is_kept_interrupted(running: Site) -> None:
    """kill -9 in mid-answer: the app lives, the engine returns, nobody can vote on the partial answer."""
    before = running.part("engine")
    seen: list[str] = []

    def read() -> None:
        body = {
            "stream": True,
            "messages": [{"role": "user", "content": "What is the notice period, slowly?"}],
        }
        url = f"{running.url}/v1/chat/completions"
        with httpx.stream("POST", url, json=body, timeout=60, trust_env=False) as response:
            seen.extend(response.iter_lines())

    reader = threading.Thread(target=read)
    reader.start()
    until(lambda: sum('"content": ' in line for line in seen) > 3, "an answer under way")
    os.kill(before["pid"], signal.SIGKILL)
    reader.join(60)
    assert any("EngineUnavailable" in line or "Interrupted" in line for line in seen)
    assert not any("[DONE]" in line for line in seen)
    assert httpx.get(f"{running.url}/health", trust_env=False).status_code == 200
    until(
        lambda: running.part("engine")["ready"] and running.part("engine")["pid"] != before["pid"], "engine"
    )
    assert ask(running, "How many days of holiday?")["understudy"]["mode"] == "answer"
    database = Database(running.settings.database)
    store = FeedbackStore(database)
    lost = next(
        exchange
        for conversation in store.conversations("api")
        for exchange in store.exchanges(conversation.id, "api")
        if "slowly" in exchange.question
    )
    assert lost.status == "interrupted"
    assert lost.answer.text
    with pytest.raises(ConflictError):
        store.vote(lost.id, "api", 1)
    database.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_everything(tmp_path: Path, number: signal.Signals) -> None:
    with site(tmp_path / "data") as own:
        pids = [own.part(name)["pid"] for name in ("web", "engine", "worker")]
        own.process.send_signal(number)
        assert own.process.wait(20) == 0
        assert not [pid for pid in pids if psutil.pid_exists(pid)]
        assert not (own.data_dir / "serve.json").exists()


@pytest.mark.slow
def test_a_broken_script_is_given_up_and_the_pages_stay(tmp_path: Path) -> None:
    """An engine that cannot start: five tries, the reason with its last log lines, pages and API alive."""
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    (data_dir / "broken.json").write_text("{}")
    output = data_dir / "serve.out"
    with output.open("wb") as stream:
        process = subprocess.Popen(
            serve_command("--scripted", str(data_dir / "broken.json"), "--no-samples"),
            cwd=PROJECT, env=serve_environment(data_dir), stdout=stream, stderr=subprocess.STDOUT,
        )  # fmt: skip
    own = Site(process, data_dir, output)
    try:
        until(lambda: own.part("engine").get("gave_up"), "giving up")
        assert own.part("web")["ready"]
        until(lambda: "not restarted any more" in output.read_text(), "the reason")
        assert "must hold a JSON list" in output.read_text()
        reply = httpx.post(
            f"{own.url}/v1/chat/completions",
            json={"messages": [{"role": "user", "content": "What is the notice period?"}]},
            timeout=60,
            trust_env=False,
        )
        assert reply.status_code in (200, 503)  # without documents nothing asks the engine
    finally:
        process.terminate()
        process.wait(30)
