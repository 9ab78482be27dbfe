"""Training in a process of its own: `python -m finetune.train PLAN.json OUT`.

PLAN.json holds `{"stages": [plan, ...]}`; each stage trains a LoRA adapter with TRL and PEFT into
`OUT/<number>-<method>/` and goes on from the stage before it. Progress lines are appended to
`OUT/progress.jsonl`, so a page can draw the curves at any time. A stage's `card.json` is written last: no
card, not done. SIGTERM stops after the step at hand and keeps a checkpoint; SIGKILL loses the steps since the
last checkpoint. Starting the same command again goes on from there. On a GPU, Unsloth is used if installed.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import math
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

from core.errors import Cancelled, TrainingError, run_main
from core.files import owner_lock, read_json, write_json
from core.settings import quiet_environment
from finetune.checkpoints import complete, newest_complete, step_of
from finetune.export import base_layer, save_adapter
from finetune.logits import of_answers_only
from finetune.plan import TrainingPlan
from finetune.progress import append_progress, peak_bytes, rewind_progress, summary, versions
from finetune.rows import prepare_rows

CARD, PROGRESS = "card.json", "progress.jsonl"
EXIT_CANCELLED = 3


class Stop:
    """Whether somebody asked this process to stop (SIGTERM or Ctrl-C)."""

    def __init__(self) -> None:
        self.requested = False
        self.stepping = False  # inside the training loop, which stops at its next step
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask)

    def _ask(self, number: int, frame: object) -> None:
        self.requested = True
        if not self.stepping:
            raise Cancelled("Training was stopped before it began.")


def stage_name(number: int, plan: TrainingPlan) -> str:
    """The folder of the `number`-th stage (from 1)."""
    return f"{number:02d}-{plan.method}"


def train(plans: list[TrainingPlan], out: Path, stop: Stop) -> list[dict[str, Any]]:
    """Train the stages that have no card yet, each going on from the one before; returns all cards.

    Raises TrainingError when a stage cannot be trained and Cancelled when `stop` was asked for.
    """
    cards, previous = [], ""
    for number, plan in enumerate(plans, 1):
        folder = out / stage_name(number, plan)
        if not (folder / CARD).exists():
            plan = plan.on(init_adapter=previous or plan.init_adapter)
            train_stage(plan, folder, stop)
        cards.append(read_json(folder / CARD))
        previous = str(folder / "adapter")
    return cards


def train_stage(plan: TrainingPlan, folder: Path, stop: Stop) -> dict[str, Any]:
    """Train one stage into `folder`: `adapter/` and, written last, `card.json`, which is returned.

    A GPU that runs out of memory gets one more try with half the batch (and twice the accumulation).
    """
    try:
        return _train_stage(plan, folder, stop)
    except Exception as error:
        if type(error).__name__ != "OutOfMemoryError":
            raise
        if plan.batch == 1:
            raise TrainingError("The GPU ran out of memory.", "Use --four-bit or a smaller model.") from error
    import torch

    torch.cuda.empty_cache()
    return _train_stage(plan.on(batch=plan.batch // 2, accumulation=plan.accumulation * 2), folder, stop)


def _train_stage(plan: TrainingPlan, folder: Path, stop: Stop) -> dict[str, Any]:
    started = time.monotonic()
    checkpoints = folder / "checkpoints"
    if (folder / "plan.json").exists() and read_json(folder / "plan.json") != plan.to_json():
        shutil.rmtree(checkpoints, ignore_errors=True)  # made by another plan
    write_json(folder / "plan.json", plan.to_json())
    resume = newest_complete(checkpoints)
    rewind_progress(folder.parent / PROGRESS, folder.name, step_of(resume))
    unsloth = plan.device == "cuda" and importlib.util.find_spec("unsloth") is not None
    if unsloth:
        importlib.import_module("unsloth")  # before transformers and trl, as it asks
    model, tokenizer = _load(plan, unsloth)
    rows, dropped = prepare_rows(plan, tokenizer)
    trainer = _trainer(plan, model, tokenizer, rows, checkpoints)
    _watch(trainer, folder, stop)
    stop.stepping = True
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    stop.stepping = False
    if stop.requested:
        raise Cancelled(f"Training was stopped at step {trainer.state.global_step}; its checkpoint is kept.")
    files = save_adapter(model, folder)
    card = {
        "plan": plan.to_json(), "rows": len(rows), "dropped": dropped, "steps": trainer.state.global_step,
        "metrics": summary(trainer.state.log_history), "versions": versions(), "unsloth": unsloth,
        "device": str(model.device), "layers": base_layer(model),
        "seconds": round(time.monotonic() - started, 1), "peak_bytes": peak_bytes(), "sha256": files,
    }  # fmt: skip
    write_json(folder / CARD, card)
    shutil.rmtree(checkpoints, ignore_errors=True)
    return card


def _load(plan: TrainingPlan, unsloth: bool) -> tuple[Any, Any]:
    """The base model with a trainable LoRA adapter, and its tokenizer with the catalog's chat template."""
    import torch
    import transformers

    if plan.device == "cuda" and not torch.cuda.is_available():
        raise TrainingError(
            "The plan asks for a GPU, but PyTorch finds none.", "Check the driver, or plan anew."
        )
    transformers.set_seed(plan.seed)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    tokenizer = transformers.AutoTokenizer.from_pretrained(plan.base_folder, local_files_only=True)
    if plan.template:
        tokenizer.chat_template = plan.template
    if plan.stop and plan.stop in tokenizer.get_vocab():
        tokenizer.eos_token = plan.stop
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model = _unsloth_model(plan) if unsloth else _peft_model(plan)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return model, tokenizer


def _peft_model(plan: TrainingPlan) -> Any:
    import peft
    import torch
    import transformers

    dtype = torch.bfloat16 if plan.device == "cuda" else torch.float32
    options: dict[str, Any] = {"dtype": dtype, "local_files_only": True, "use_safetensors": True}
    if plan.device == "cuda":
        options["device_map"] = {"": 0}
    if plan.four_bit:
        options["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    model = transformers.AutoModelForCausalLM.from_pretrained(plan.base_folder, **options)
    if plan.four_bit:
        model = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=plan.device == "cuda")
    if plan.init_adapter:
        return peft.PeftModel.from_pretrained(model, plan.init_adapter, is_trainable=True)
    lora = peft.LoraConfig(
        r=plan.rank, lora_alpha=plan.alpha, target_modules=list(plan.targets), lora_dropout=0.0, bias="none",
        task_type="CAUSAL_LM",
    )  # fmt: skip
    return peft.get_peft_model(model, lora)


def _unsloth_model(plan: TrainingPlan) -> Any:
    fast: Any = importlib.import_module("unsloth").FastLanguageModel
    model, _ = fast.from_pretrained(
        model_name=plan.init_adapter or plan.base_folder, max_seq_length=plan.max_length,
        load_in_4bit=plan.four_bit, local_files_only=True,
    )  # fmt: skip
    if plan.init_adapter:
        return model
    return fast.get_peft_model(
        model, r=plan.rank, lora_alpha=plan.alpha, target_modules=list(plan.targets), lora_dropout=0,
        bias="none", use_gradient_checkpointing="unsloth", random_state=plan.seed,
    )  # fmt: skip


def _trainer(
    plan: TrainingPlan, model: Any, tokenizer: Any, rows: list[dict[str, str]], checkpoints: Path
) -> Any:
    import datasets
    import trl

    datasets.disable_progress_bars()
    data = datasets.Dataset.from_list(rows)
    shared, common = _arguments(plan, checkpoints), {"model": model, "processing_class": tokenizer}
    if plan.method == "sft":
        config = trl.SFTConfig(**shared, max_length=plan.max_length, completion_only_loss=True)
        return trl.SFTTrainer(args=config, train_dataset=data.remove_columns("question"), **common)
    if plan.method == "dpo":
        config = trl.DPOConfig(**shared, max_length=plan.max_length, beta=plan.beta)
        trainer = of_answers_only(trl.DPOTrainer)
        return trainer(args=config, train_dataset=data.remove_columns("question"), **common)
    from finetune.rewards import reward

    def score(completions: list[str], question: list[str], reference: list[str], **_: Any) -> list[float]:
        return [reward(*each) for each in zip(question, reference, completions, strict=True)]

    config = trl.GRPOConfig(
        **shared, num_generations=plan.generations, max_completion_length=plan.answer_tokens, temperature=1.0
    )
    return trl.GRPOTrainer(reward_funcs=[score], args=config, train_dataset=data, **common)


def _arguments(plan: TrainingPlan, checkpoints: Path) -> dict[str, Any]:
    gpu = plan.device == "cuda"
    return {
        "output_dir": str(checkpoints), "seed": plan.seed, "data_seed": plan.seed, "report_to": "none",
        "num_train_epochs": plan.epochs, "max_steps": plan.max_steps or -1,
        "per_device_train_batch_size": plan.batch, "gradient_accumulation_steps": plan.accumulation,
        # GRPO learned only late and at a constant rate (docs/log.md)
        "lr_scheduler_type": "constant" if plan.method == "grpo" else "cosine", "warmup_steps": 0.05,
        "learning_rate": plan.learning_rate, "weight_decay": 0.0,
        "optim": "paged_adamw_8bit" if gpu and plan.four_bit else "adamw_torch",
        "use_cpu": not gpu, "bf16": gpu or _fast_bf16(), "gradient_checkpointing": gpu,
        "save_strategy": "steps", "save_steps": plan.save_steps, "save_total_limit": 2,
        "dataloader_pin_memory": gpu,
        "logging_steps": 1, "logging_nan_inf_filter": False, "disable_tqdm": True,
    }  # fmt: skip


def _fast_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware (measured: 2.7 times as fast as 32-bit there)."""
    import torch

    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, probe, bool)() for probe in probes)


def _watch(trainer: Any, folder: Path, stop: Stop) -> None:
    """Progress goes into our file; checkpoints are completed; a request or a loss of NaN stops it."""
    import transformers

    began = time.monotonic()
    first: list[int] = []

    class Watch(transformers.TrainerCallback):  # type: ignore[misc]
        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
            if "loss" not in logs:
                return
            first.append(state.global_step)
            each = (time.monotonic() - began) / (state.global_step - first[0] + 1)
            line = {
                "stage": folder.name, "step": state.global_step, "steps": state.max_steps,
                "loss": logs["loss"], "learning_rate": logs.get("learning_rate"),
                "reward": logs.get("reward"), "margin": logs.get("rewards/margins"),
                "eta": round(each * (state.max_steps - state.global_step), 1),
            }  # fmt: skip
            append_progress(folder.parent / PROGRESS, line)
            if not math.isfinite(logs["loss"]):
                raise TrainingError(
                    f"The loss became {logs['loss']} at step {state.global_step}.", "Lower the learning rate."
                )

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if stop.requested:
                control.should_save = control.should_training_stop = True

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            complete(Path(args.output_dir) / f"checkpoint-{state.global_step}")

    trainer.remove_callback(transformers.PrinterCallback)
    trainer.add_callback(Watch)


def main(argv: list[str] | None = None) -> int:
    """Train the stages of a plan file; exits 0 when all are done, 3 when stopped."""
    quiet_environment(OMP_WAIT_POLICY="passive")  # spinning threads: six times as slow on a busy computer
    parser = argparse.ArgumentParser(prog="python -m finetune.train", description=__doc__)
    parser.add_argument("plan", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args(argv)
    try:
        stop = Stop()
        plans = [TrainingPlan.from_json(values) for values in read_json(arguments.plan)["stages"]]
        # an orphan of a killed run may still be at work here: wait for it, then go on from what it left
        with owner_lock(arguments.out / "train.lock", "This training run", wait=True):
            train(plans, arguments.out, stop)
    except Cancelled as error:
        print(error, file=sys.stderr)
        return EXIT_CANCELLED
    return 0


if __name__ == "__main__":
    run_main(main)
