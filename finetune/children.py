"""Child processes that cannot outlive their parent: `python -m finetune.children PARENT MODULE ARGUMENT ...`.

An orphan would go on writing into the folders of the run that replaces it. So each child asks the kernel to
be killed when its parent dies (Linux; elsewhere locks and fencing tokens keep an orphan from doing harm), and
only then runs the module. Work that may take hours runs at nice 10, so that answering questions keeps its
turn.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path

from core.settings import PROJECT, Settings, child_environment

NICE = 10
PR_SET_PDEATHSIG = 1


def start(
    module: str, arguments: list[str], settings: Settings, log: Path, *, own_group: bool
) -> subprocess.Popen[bytes]:
    """Run `python -m module arguments` at low priority, appending its output to `log`.

    Start it from the main thread: the kernel ties the child to the thread that made it. With `own_group`,
    `stop` reaches the child's own children too.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "finetune.children", str(os.getpid()), module, *arguments]
    with log.open("ab") as output:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=PROJECT,
            env=child_environment(settings), start_new_session=own_group,
        )  # fmt: skip


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


def die_with(parent: int) -> None:
    """Ask the kernel to kill this process when `parent` dies; leave at once when it is dead already."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(1)


if __name__ == "__main__":
    die_with(int(sys.argv[1]))
    os.nice(max(0, NICE - os.nice(0)))
    sys.argv = sys.argv[2:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
