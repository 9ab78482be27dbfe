"""Children that cannot outlive their parent: `python -m core.children PARENT NICE MODULE ARGUMENT ...`.

An orphan would keep its memory, or go on writing into the folders of the run that replaces it. So each child
asks the kernel to be killed when its parent dies (Linux; elsewhere locks and fencing tokens keep an orphan
from doing harm), and only then runs the module. Work that may take hours runs at nice 10, so that answering
questions keeps its turn.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from core.settings import PROJECT, Settings, child_environment

NICE = 10
PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def bound(module: str, arguments: Sequence[str], *, nice: int = 0) -> list[str]:
    """The command that runs `python -m module arguments` for as long as this process lives, at most.

    Start it from a thread that lasts: the kernel ties the child to the thread that made it.
    """
    return [sys.executable, "-m", "core.children", str(os.getpid()), str(nice), module, *arguments]


def start(
    module: str, arguments: list[str], settings: Settings, log: Path, *, own_group: bool
) -> subprocess.Popen[bytes]:
    """Run `python -m module arguments` at low priority (see `bound`), appending its output to `log`.

    With `own_group`, `stop` reaches the child's own children too.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        return subprocess.Popen(
            bound(module, arguments, nice=NICE), stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            cwd=PROJECT, env=child_environment(settings), start_new_session=own_group,
        )  # fmt: skip


def ends_well(command: Sequence[str], seconds: float, folder: Path = PROJECT) -> bool:
    """Whether a trial in a process of its own ends well; one that hangs does not."""
    try:
        done = subprocess.run(
            command, cwd=folder, timeout=seconds,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def stop(process: subprocess.Popen[bytes], grace: float = 10) -> None:
    """Ask a child and its group to end, and kill them after `grace` seconds."""
    signal_group(process, signal.SIGTERM)
    try:
        process.wait(grace)
    except subprocess.TimeoutExpired:
        signal_group(process, signal.SIGKILL)
        process.wait()


def signal_group(process: subprocess.Popen[bytes], number: int) -> None:
    """Send a signal to a child's group when it leads one, else to the child alone."""
    if process.poll() is not None:
        return
    if os.getpgid(process.pid) == process.pid:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)


def last_words(log: Path) -> str:
    """The last line of a log that says something, at most 300 characters; it names the error of a child."""
    if not log.exists():
        return ""
    lines = [line.strip() for line in log.read_text("utf-8", "replace").splitlines()[-50:] if line.strip()]
    return lines[-1][:300] if lines else ""


def die_with(parent: int, number: int = signal.SIGKILL) -> None:
    """Ask the kernel for this signal when `parent` dies; leave at once when it is dead already."""
    if _libc is not None:
        _libc.prctl(PR_SET_PDEATHSIG, number, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


if __name__ == "__main__":
    die_with(int(sys.argv[1]))
    os.nice(max(0, int(sys.argv[2]) - os.nice(0)))
    sys.argv = sys.argv[3:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
