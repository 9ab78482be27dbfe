"""Training rows for the tiny model: prompts in the product's format with an answer that can be learned."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from core.files import write_jsonl
from core.types import Message
from finetune.plan import TrainingPlan
from tests.tiny import TinyModel

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def prompt(days: int) -> list[Message]:
    """The messages of a question whose answer is in unit 1."""
    question = "Question: What is the notice period?"
    units = f"Handbook > Leaving\n[1] The notice period is {days} days.\n[2] Send the letter to HR."
    return [
        {"role": "system", "content": "Answer from the passages."},
        {"role": "user", "content": f"{question}\n\n{units}\n\n{question}"},
    ]


def answer(text: str) -> list[dict[str, str]]:
    """An assistant turn."""
    return [{"role": "assistant", "content": text}]


def row(method: str, days: int) -> dict[str, Any]:
    """A dataset row as `feedback.dataset` writes it."""
    good = answer(f"[1] The notice period is {days} days.")
    if method == "dpo":
        return {"prompt": prompt(days), "chosen": good, "rejected": answer("[2] Send the letter to HR.")}
    return {"messages": [*prompt(days), *good]}


def plan(model: TinyModel, method: str, folder: Path, **changes: Any) -> TrainingPlan:
    """A plan of few steps over 16 rows."""
    days = random.Random(0)
    rows = folder / f"{method}.jsonl"
    if not rows.exists():
        write_jsonl(rows, [row(method, days.randint(10, 99)) for _ in range(16)])
    values: dict[str, Any] = {
        "rank": 8, "alpha": 16, "targets": TARGETS, "batch": 4, "epochs": 10.0, "max_steps": 8,
        "save_steps": 3,
        "learning_rate": 5e-3 if method == "sft" else 1e-3, "stop": "<|im_end|>", "generations": 4,
        "answer_tokens": 12,
    }  # fmt: skip
    return TrainingPlan(method, model.id, str(model.folder), str(rows), **(values | changes))
