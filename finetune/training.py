"""Running `finetune.train` as a child process: its progress in a sentence, its end in an error or none."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from core.children import last_words, start, stop
from core.errors import Cancelled, TrainingError
from core.files import read_json
from core.settings import Settings
from finetune.progress import read_progress
from finetune.train import EXIT_CANCELLED, PROGRESS


def run_training(
    plan: Path,
    folder: Path,
    settings: Settings,
    tell: Callable[[float, str], None],
    module: str = "finetune.train",
) -> None:
    """Train the stages of `plan` into `folder` in a process that takes its memory and crashes with it.

    `tell` hears the share that is done and a sentence; what it raises stops the training, whose checkpoint is
    kept. Raises Cancelled when the process was asked to stop, TrainingError with its last words when it
    failed.
    """
    log = folder / "train.log"
    stages = len(read_json(plan)["stages"])
    process = start(module, [str(plan), str(folder)], settings, log, own_group=False)
    try:
        while process.poll() is None:
            tell(*how_far(folder / PROGRESS, stages))
            time.sleep(0.5)
    finally:
        stop(process)
    if process.returncode == EXIT_CANCELLED:
        raise Cancelled("Training was stopped. Its checkpoint is kept.")
    if process.returncode < 0:
        raise TrainingError(
            f"The training process was killed (signal {-process.returncode}), most often for lack of memory.",
            "Free memory or choose a smaller model, then start a run again.",
        )
    if process.returncode:
        raise TrainingError(last_words(log) or "Training failed without a word.", f"See {log}.")


def how_far(progress: Path, stages: int) -> tuple[float, str]:
    """The share of the training that is done, and what it is doing."""
    lines = read_progress(progress)
    if not lines:
        return 0.0, "Training, loading the model"
    last = lines[-1]
    done = int(last["stage"].split("-")[0]) - 1 + last["step"] / last["steps"]
    sentence = (
        f"Training {last['stage']}, step {last['step']} of {last['steps']}, loss {last['loss']:.3f},"
        f" about {last['eta']:.0f} s left in this stage"
    )
    return done / stages, sentence
