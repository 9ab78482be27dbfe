"""Keeps child processes running: starts them, restarts the dead, caps their logs, stops them together.

Every child leads a process group of its own, so stopping it also stops what it started. The kernel is asked
to send it a SIGTERM when the supervisor dies (prctl(2), PR_SET_PDEATHSIG), so none is left behind. That
signal follows the *thread* that started the child: call `start` and `tick` from one thread that lives on.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from core.children import die_with
from core.files import write_json
from core.settings import PROJECT

LOG_BYTES = 5_000_000
TAIL_LINES = 6
QUICK_DEATHS = 5  # deaths in a row before a child is given up
STEADY_S = 10.0  # a child that was ready, or lived this long, did not die quickly
STOP_S = 4.0  # between SIGTERM and SIGKILL


@dataclass(frozen=True)
class Part:
    """One process to keep running; `health` is the URL that answers {"status": "ok"} once it is ready."""

    name: str
    argv: Sequence[str]
    health: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Child:
    """The running state of a part."""

    part: Part
    log: Path
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    ready: bool = False
    deaths: int = 0
    quick_deaths: int = 0
    restart_at: float = 0.0
    gave_up: str = ""


class Supervisor:
    """Runs `parts` with one environment; `say` gets one sentence for everything worth knowing."""

    def __init__(
        self,
        parts: Sequence[Part],
        environment: Mapping[str, str],
        data_dir: Path,
        say: Callable[[str], None],
    ) -> None:
        self.environment = dict(environment)
        self.state_file = data_dir / "serve.json"
        self.say = say
        self.children = {part.name: Child(part, data_dir / "logs" / f"{part.name}.log") for part in parts}
        self._next_log_check = 0.0

    def start(self) -> None:
        """Start every part."""
        for child in self.children.values():
            self._start(child)
        self._write_state()

    def ready(self, name: str) -> bool:
        """Whether the part is running and has answered."""
        return self.children[name].ready

    def pid(self, name: str) -> int:
        """The part's process id, 0 while it is down."""
        process = self.children[name].process
        return process.pid if process else 0

    def gave_up(self, name: str) -> str:
        """Why the part is no longer restarted, or the empty string."""
        return self.children[name].gave_up

    def tick(self) -> None:
        """Look at every child once: restart what died, note what became ready, cap the logs."""
        changed = False
        for child in self.children.values():
            before = (child.process, child.ready, child.gave_up)
            self._look_after(child)
            changed = changed or before != (child.process, child.ready, child.gave_up)
        if time.monotonic() >= self._next_log_check:
            self._next_log_check = time.monotonic() + 5
            for child in self.children.values():
                cap(child.log)
        if changed:
            self._write_state()

    def stop(self) -> None:
        """Stop every child and what it started: SIGTERM, then SIGKILL after STOP_S."""
        running = [child.process for child in self.children.values() if child.process]
        for process in running:
            _signal_group(process, signal.SIGTERM)
        deadline = time.monotonic() + STOP_S
        for process in running:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                self.say(f"Process {process.pid} did not stop in time and is killed.")
            _signal_group(process, signal.SIGKILL)  # also whatever it left behind in its group
            process.wait()
        for child in self.children.values():
            child.process, child.ready = None, False
        self.state_file.unlink(missing_ok=True)

    def _start(self, child: Child) -> None:
        child.log.parent.mkdir(parents=True, exist_ok=True)
        parent = os.getpid()
        with child.log.open("ab") as log:
            child.process = subprocess.Popen(
                child.part.argv,
                cwd=PROJECT,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=lambda: die_with(parent, signal.SIGTERM),  # also if it dies just now
            )
        child.started = time.monotonic()
        child.ready = False

    def _look_after(self, child: Child) -> None:
        if child.gave_up:
            return
        if child.process is None:
            if time.monotonic() >= child.restart_at:
                self._start(child)
            return
        status = child.process.poll()
        if status is not None:
            self._died(child, status)
        elif not child.ready and self._answers(child):
            child.ready = True
            if child.deaths:
                self.say(f"The {child.part.name} is back.")

    def _died(self, child: Child, status: int) -> None:
        quick = not (child.ready and child.part.health) and time.monotonic() - child.started < STEADY_S
        child.process, child.ready, child.deaths = None, False, child.deaths + 1
        child.quick_deaths = child.quick_deaths + 1 if quick else 0
        reason = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit code {status}"
        if child.quick_deaths >= QUICK_DEATHS:
            child.gave_up = (
                f"The {child.part.name} stopped {QUICK_DEATHS} times right after starting ({reason}) and is"
                f" not restarted any more. The last lines of {child.log}:\n{tail(child.log)}"
            )
            self.say(child.gave_up)
            return
        # the first restart is immediate; a crash loop slows down to 0.5, 1, 2, 4 s
        delay = 0.25 * 2**child.quick_deaths if child.quick_deaths else 0.0
        child.restart_at = time.monotonic() + delay
        self.say(f"The {child.part.name} stopped ({reason}); restarting it.")

    def _answers(self, child: Child) -> bool:
        if not child.part.health:
            return True
        request = urllib.request.Request(child.part.health, headers=dict(child.part.headers))  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=1) as response:  # noqa: S310
                return bool(json.load(response).get("status") == "ok")
        except (OSError, ValueError):  # URLError is an OSError
            return False

    def _write_state(self) -> None:
        parts = {
            name: {
                "pid": self.pid(name),
                "ready": child.ready,
                "restarts": child.deaths,
                "gave_up": bool(child.gave_up),
            }
            for name, child in self.children.items()
        }
        write_json(self.state_file, {"pid": os.getpid(), "parts": parts})


def cap(log: Path, limit: int = LOG_BYTES) -> None:
    """Keep a log below `limit` bytes: what it holds moves to `<name>.1` and it starts afresh.

    The writer appends (O_APPEND), so it carries on at the new end.
    """
    if log.exists() and log.stat().st_size > limit:
        shutil.copyfile(log, log.with_name(f"{log.name}.1"))
        os.truncate(log, 0)


def tail(log: Path, lines: int = TAIL_LINES) -> str:
    """The last lines of a log, indented."""
    try:
        with log.open("rb") as handle:
            handle.seek(max(0, log.stat().st_size - 8192))
            text = handle.read().decode("utf-8", "replace")
    except OSError:
        return "    (no log)"
    return "\n".join(f"    {line}" for line in text.strip().splitlines()[-lines:])


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)
