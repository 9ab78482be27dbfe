"""Training the embedder on triples: `python -m finetune.embedder_train PLAN FOLDER`, a process of its own.

Multiple negatives ranking: a question's right passage is to be nearer than its hard negative and than the
right passages of the other questions in the batch (Henderson et al., "Efficient Natural Language Response
Suggestion for Smart Reply", 2017), with the sentence-transformers trainer. A plan's stages train an embedder
each, into folders below FOLDER; `card.json` is written last.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core.db import now_ms
from core.errors import TrainingError, run_main
from core.files import read_json, sha256_of, write_json
from core.settings import quiet_environment
from finetune.progress import append_progress, versions

CARD, PROGRESS, WEIGHTS = "card.json", "progress.jsonl", "model.safetensors"
BATCH, RATE, EPOCHS, TOKENS = 16, 2e-5, 3, 160  # a passage has some 120 tokens and its heading


def train(plan: dict[str, Any], folder: Path, progress: Path) -> None:
    """Train MiniLM from `plan["base"]` on `plan["triples"]` (question, right, wrong) into `folder`."""
    import datasets
    import sentence_transformers as library
    import transformers
    from sentence_transformers.sentence_transformer import losses

    transformers.set_seed(plan["seed"])
    model = library.SentenceTransformer(plan["base"], device="cpu", local_files_only=True)
    reads, model.max_seq_length = model.max_seq_length, TOKENS
    rows = plan["triples"]
    data = datasets.Dataset.from_dict(
        {name: [row[at] for row in rows] for at, name in enumerate(("anchor", "positive", "negative"))}
    )
    arguments = library.SentenceTransformerTrainingArguments(
        output_dir=str(folder / "work"), seed=plan["seed"], num_train_epochs=plan.get("epochs", EPOCHS),
        max_steps=plan.get("steps") or -1, per_device_train_batch_size=BATCH, learning_rate=RATE,
        bf16=plan["half"],  # three quarters of the time, the same order of passages
        warmup_steps=0.1, lr_scheduler_type="cosine", use_cpu=True, save_strategy="no", report_to="none",
        logging_steps=1, disable_tqdm=True,
        # a question's other right passage, or the same one of another question, is no negative
        batch_sampler="no_duplicates",
    )  # fmt: skip
    loss = losses.MultipleNegativesRankingLoss(model)
    trainer = library.SentenceTransformerTrainer(model=model, args=arguments, train_dataset=data, loss=loss)
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.add_callback(_watch(progress, plan["stage"]))
    trainer.train()
    model.max_seq_length = reads
    model.save(str(folder), create_model_card=False)
    write_json(
        folder / CARD,
        {
            "id": folder.name, "sha256": sha256_of(folder / WEIGHTS), "dimensions": plan["dimensions"],
            "base": plan["base_sha256"], "triples": len(rows), "questions": len({row[0] for row in rows}),
            "learnt": plan["learnt"], "versions": versions(), "created_at": now_ms(),
        },
    )  # fmt: skip


def _watch(progress: Path, stage: str) -> Any:
    """Progress goes into our file, in the lines that the pages read."""
    import math

    import transformers

    began = time.monotonic()

    class Watch(transformers.TrainerCallback):  # type: ignore[misc]
        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
            if "loss" not in logs:
                return
            each = (time.monotonic() - began) / max(1, state.global_step)
            line = {
                "stage": stage, "step": state.global_step, "steps": state.max_steps,
                "loss": float(logs["loss"]), "eta": round(each * (state.max_steps - state.global_step), 1),
            }  # fmt: skip
            append_progress(progress, line)
            if not math.isfinite(line["loss"]):
                raise TrainingError("The embedder's loss is no number.", "Report this with the run's log.")

    return Watch()


def main(argv: Sequence[str] | None = None) -> int:
    """Train what a plan file says."""
    quiet_environment(OMP_WAIT_POLICY="passive")
    parser = argparse.ArgumentParser(prog="python -m finetune.embedder_train", description=__doc__)
    parser.add_argument("plan", type=Path)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args(argv)
    for stage in read_json(arguments.plan)["stages"]:
        folder = arguments.folder / stage["into"]
        folder.mkdir(parents=True, exist_ok=True)
        train(stage, folder, arguments.folder / PROGRESS)
    return 0


if __name__ == "__main__":
    run_main(main)
