"""The supervisor: restarts the dead, gives up with a reason, stops everything, leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from app.supervisor import QUICK_DEATHS, Part, Supervisor, cap, tail
from core.settings import PROJECT

SLEEPER = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"]
PARENT = [
    sys.executable,
    "-c",
    "import subprocess, sys, time; sleep = 'import time; time.sleep(600)'\n"
    "subprocess.Popen([sys.executable, '-c', sleep]); time.sleep(600)",
]


def until(condition: Callable[[], object], supervisor: Supervisor | None = None, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        if supervisor is not None:
            supervisor.tick()
        time.sleep(0.02)


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def start(tmp_path: Path, said: list[str]) -> Iterator[Callable[..., Supervisor]]:
    made: list[Supervisor] = []

    def make(*parts: Part) -> Supervisor:
        supervisor = Supervisor(parts, os.environ, tmp_path, said.append)
        made.append(supervisor)
        supervisor.start()
        return supervisor

    yield make
    for supervisor in made:
        supervisor.stop()


def test_a_killed_child_comes_back_and_others_stay(start: Callable[..., Supervisor], said: list[str]) -> None:
    supervisor = start(Part("engine", SLEEPER), Part("worker", SLEEPER))
    until(lambda: supervisor.ready("engine") and supervisor.ready("worker"), supervisor)
    killed, other = supervisor.pid("engine"), supervisor.pid("worker")
    os.kill(killed, signal.SIGKILL)
    until(lambda: supervisor.ready("engine") and supervisor.pid("engine") not in (0, killed), supervisor)
    assert supervisor.pid("worker") == other
    assert any("engine stopped (signal SIGKILL)" in line for line in said)
    assert "The engine is back." in said


def test_state_file_names_the_processes(start: Callable[..., Supervisor], tmp_path: Path) -> None:
    supervisor = start(Part("engine", SLEEPER))
    until(lambda: supervisor.ready("engine"), supervisor)
    state = json.loads((tmp_path / "serve.json").read_text())
    assert state["pid"] == os.getpid()
    assert state["parts"]["engine"] == {
        "pid": supervisor.pid("engine"), "ready": True, "restarts": 0, "gave_up": False,
    }  # fmt: skip
    supervisor.stop()
    assert not (tmp_path / "serve.json").exists()


def test_a_crash_loop_is_given_up_with_the_reason(
    start: Callable[..., Supervisor], said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    crash = [sys.executable, "-S", "-c", "print('the model file is broken'); raise SystemExit(7)"]
    supervisor = start(Part("engine", crash, health="http://127.0.0.1:9/health"), Part("web", SLEEPER))
    until(lambda: supervisor.gave_up("engine"), supervisor)
    assert f"stopped {QUICK_DEATHS} times" in supervisor.gave_up("engine")
    assert "exit code 7" in supervisor.gave_up("engine")
    assert "the model file is broken" in supervisor.gave_up("engine")
    assert supervisor.gave_up("engine") in said
    assert supervisor.ready("web")


def test_stop_takes_grandchildren_along(start: Callable[..., Supervisor]) -> None:
    supervisor = start(Part("worker", PARENT))
    process = psutil.Process(supervisor.pid("worker"))
    until(process.children)
    grandchild = process.children()[0]
    supervisor.stop()
    until(lambda: not process.is_running())
    until(lambda: not grandchild.is_running() or grandchild.status() == psutil.STATUS_ZOMBIE)


def test_stop_kills_what_ignores_sigterm(start: Callable[..., Supervisor], said: list[str]) -> None:
    deaf = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print('deaf', flush=True); time.sleep(600)"
    )
    supervisor = start(Part("engine", [sys.executable, "-c", deaf]))
    until(lambda: "deaf" in tail(supervisor.children["engine"].log), supervisor)
    process = psutil.Process(supervisor.pid("engine"))
    supervisor.stop()
    assert not process.is_running()
    assert any("is killed" in line for line in said)


def test_children_die_with_a_killed_supervisor(tmp_path: Path) -> None:
    code = (
        "import os, sys, time; from pathlib import Path; from app.supervisor import Part, Supervisor\n"
        f"s = Supervisor([Part('engine', {SLEEPER!r})], os.environ, Path(sys.argv[1]), print); s.start()\n"
        "print(s.pid('engine'), flush=True); time.sleep(600)"
    )
    supervisor = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], cwd=PROJECT, stdout=subprocess.PIPE, text=True
    )
    assert supervisor.stdout is not None
    child = psutil.Process(int(supervisor.stdout.readline()))
    supervisor.kill()
    supervisor.wait()
    supervisor.stdout.close()
    until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


def test_logs_are_capped_while_written(tmp_path: Path) -> None:
    log = tmp_path / "web.log"
    with log.open("ab") as writer:
        writer.write(b"old\n" * 1000)
        writer.flush()
        cap(log, limit=1000)
        writer.write(b"new\n")
        writer.flush()
    assert log.read_bytes() == b"new\n"
    assert (tmp_path / "web.log.1").stat().st_size == 4000
    assert tail(log) == "    new"
    assert tail(tmp_path / "none.log") == "    (no log)"
