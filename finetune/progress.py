"""What a training process tells about itself: lines of progress, a summary, its libraries and its memory."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import resource
from pathlib import Path
from typing import Any

from core.files import write_jsonl

LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "bitsandbytes", "unsloth")


def append_progress(path: Path, line: dict[str, Any]) -> None:
    """Add a line to a progress file."""
    with path.open("a", encoding="utf-8") as handle:
        handle.write(json.dumps(line) + "\n")


def read_progress(path: Path) -> list[dict[str, Any]]:
    """A progress file's lines, also while it is being written."""
    if not path.exists():
        return []
    whole = path.read_text("utf-8").rpartition("\n")[0]
    return [json.loads(line) for line in whole.splitlines() if line.endswith("}")]


def rewind_progress(path: Path, stage: str, step: int) -> None:
    """Take back a stage's lines after `step`, where a resumed run goes on."""
    if path.exists():
        write_jsonl(
            path, [line for line in read_progress(path) if line["stage"] != stage or line["step"] <= step]
        )


def summary(history: list[dict[str, Any]]) -> dict[str, float]:
    """First and last values (means over a tenth of the steps) of what a trainer logged."""
    metrics: dict[str, float] = {}
    for key in ("loss", "reward", "frac_reward_zero_std", "rewards/accuracies", "rewards/margins"):
        values = [float(entry[key]) for entry in history if key in entry]
        few = max(1, len(values) // 10)
        if values:
            name = key.replace("rewards/", "")
            metrics[f"{name}_first"] = sum(values[:few]) / few
            metrics[f"{name}_last"] = sum(values[-few:]) / few
    return metrics


def versions() -> dict[str, str]:
    """The installed versions of what training depends on."""
    found = {}
    for name in LIBRARIES:
        if importlib.util.find_spec(name):
            found[name] = importlib.metadata.version(name)
    return found


def peak_bytes() -> int:
    """The most memory this process held at once.

    From /proc where there is one: `ru_maxrss` also counts what the starting process held at the fork.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS, in bytes
