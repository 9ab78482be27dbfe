"""What a training stage will do, decided and checked before anything heavy starts.

A plan is a small frozen record that travels as JSON to the training process and stays in the stage's card, so
a run can be read, repeated and compared. Memory is estimated first: a run that cannot fit is refused in a
sentence instead of dying an hour later.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import math
import shutil
import subprocess
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from core.catalog import BUILTIN, CatalogModel, model_folder
from core.errors import ModelError, TrainingError
from core.files import read_json
from core.settings import METHODS, PROJECT, Settings

GIB = 1024**3

# peak GPU memory in GB by billions of parameters: QLoRA on an NF4 base, LoRA on a 16-bit base
GPU_MEMORY: tuple[tuple[float, float, float], ...] = (
    (0.0, 1.2, 1.4), (3, 3.5, 8), (7, 5, 19), (8, 6, 22), (9, 6.5, 24), (11, 7.5, 29), (14, 8.5, 33),
    (27, 22, 64), (32, 26, 76), (40, 30, 96), (70, 41, 164), (81, 48, 192), (90, 53, 212), (405, 237, 950),
)  # fmt: skip

# floating point operations a second that LoRA training reaches: one CPU process, one data-centre GPU
CPU_FLOPS, GPU_FLOPS = 4e10, 1e14
DEQUANTISED = "hf-from-gguf"  # folder of trainable weights made from the GGUF file
START_SECONDS = 25  # importing torch and TRL, loading the model


@dataclass(frozen=True)
class TrainingPlan:
    """One training stage. Paths are absolute; lengths are in tokens; `max_steps` 0 means all epochs.

    `template` is the catalog's chat template and `stop` the token that ends an answer (empty: the
    tokenizer's). `init_adapter` is the folder of a PEFT adapter to go on from, empty for a fresh one. `beta`
    is DPO's pull towards the reference model, `generations` how many answers GRPO compares a question.
    """

    method: str
    base: str
    base_folder: str
    rows: str
    init_adapter: str = ""
    template: str = ""
    stop: str = ""
    rank: int = 16
    alpha: int = 32
    targets: tuple[str, ...] = ()
    learning_rate: float = 2e-4
    epochs: float = 2.0
    batch: int = 4
    accumulation: int = 1
    max_length: int = 1024
    max_steps: int = 0
    save_steps: int = 20
    beta: float = 0.1
    generations: int = 8
    answer_tokens: int = 160
    four_bit: bool = False
    device: str = "cpu"
    seed: int = 7

    def __post_init__(self) -> None:
        """Refuse what no trainer could run (raises TrainingError naming the field)."""
        if self.method not in METHODS:
            raise TrainingError(f"Method {self.method!r} is unknown.", f"Choose from {', '.join(METHODS)}.")
        for name in (
            "rank",
            "alpha",
            "learning_rate",
            "epochs",
            "batch",
            "accumulation",
            "max_length",
            "save_steps",
        ):
            if not getattr(self, name) > 0:  # also refuses NaN
                raise TrainingError(f"The plan's {name} is {getattr(self, name)}; it must be above 0.")
        if self.method == "grpo" and self.generations < 2:
            raise TrainingError("GRPO compares answers, so generations must be at least 2.")

    def to_json(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> TrainingPlan:
        """The plan a JSON object describes (raises TrainingError for missing or unknown fields)."""
        unknown = set(values) - {field.name for field in fields(cls)}
        if unknown:
            raise TrainingError(f"The plan has unknown fields: {', '.join(sorted(unknown))}.")
        try:
            return cls(**(values | {"targets": tuple(values.get("targets", ()))}))
        except TypeError as error:
            raise TrainingError(f"The plan is not complete: {error}.") from error

    def steps(self, rows: int) -> int:
        """Optimizer steps for this many rows. GRPO sees each question `generations` times."""
        seen = rows * (self.generations if self.method == "grpo" else 1)
        steps = math.ceil(math.ceil(seen / (self.batch * self.accumulation)) * self.epochs)
        return min(steps, self.max_steps) if self.max_steps else steps

    def on(self, **changes: Any) -> TrainingPlan:
        """A copy with other values."""
        return replace(self, **changes)


def trainable_folder(settings: Settings, model: CatalogModel) -> Path:
    """The folder with the model's trainable weights (safetensors, config, tokenizer).

    Downloaded ones come before those that `finetune.from_gguf` made. Raises ModelError when there are none.
    """
    own = model_folder(settings, model) / "hf"
    made = model_folder(settings, model) / DEQUANTISED
    for folder in (own, made, PROJECT / "data" / "models" / model.id):  # the last holds the built-in model
        if (folder / "config.json").exists() and any(folder.glob("*.safetensors")):
            return folder
    if model.hf_repo:
        step = f"Download the trainable weights: understudy models pull {model.id} --trainable"
    else:
        step = f"Choose a model from `understudy models list`, or put its Hugging Face weights into {own}."
    raise ModelError(f"{own} holds no trainable weights.", step)


def choose_plan(settings: Settings, model: CatalogModel, method: str, rows: Path, count: int) -> TrainingPlan:
    """The defaults for a stage by model, method and number of rows.

    Rates for large models follow common LoRA practice; those of the built-in model were measured
    (docs/log.md).
    """
    builtin, device = model.id == BUILTIN.id, training_device()
    rate = (
        {"sft": 2e-4, "dpo": 1e-5, "grpo": 1e-5} if not builtin else {"sft": 1e-3, "dpo": 5e-5, "grpo": 5e-4}
    )
    epochs = {"sft": 4.0 if count <= 200 else 2.0 if count <= 2000 else 1.0}.get(method, 1.0)
    batch = 4 if builtin or device == "cuda" else 1
    return TrainingPlan(
        method=method,
        base=model.id,
        base_folder=str(trainable_folder(settings, model)),
        rows=str(rows),
        template=model.template,
        stop=model.stop[0] if model.stop else "",
        targets=model.lora_targets,
        learning_rate=rate[method],
        epochs=epochs,
        batch=8 if method == "grpo" else batch,
        accumulation=1 if builtin else 2 if device == "cuda" else 4,
        max_length=min(model.context, 2048),
        max_steps=60 if method == "grpo" and device == "cpu" else 0,
        answer_tokens=min(settings.answer_tokens, 96 if method == "grpo" else settings.answer_tokens),
        four_bit=settings.four_bit,
        device=device,
        seed=settings.seed,
    )


def training_device() -> str:
    """`cuda` when an NVIDIA driver and a PyTorch built for it are installed, else `cpu`; imports no torch."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None or not shutil.which("nvidia-smi"):
        return "cpu"
    return "cuda" if list((Path(spec.origin).parent / "lib").glob("*torch_cuda*")) else "cpu"


def parameters(folder: Path) -> int:
    """How many weights a model folder holds, read from its safetensors headers."""
    total = 0
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as handle:
            header = json.loads(handle.read(int.from_bytes(handle.read(8), "little")))
        total += sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
    return total


def memory_needed(plan: TrainingPlan) -> int:
    """Estimated peak memory of a stage in bytes, of the GPU or of this computer's RAM."""
    count = parameters(Path(plan.base_folder))
    if plan.device == "cuda":
        return int(_interpolate(count / 1e9, plan.four_bit) * 1e9)
    return _cpu_memory(plan, count)


def _interpolate(billions: float, four_bit: bool) -> float:
    column = 1 if four_bit else 2
    for low, high in itertools.pairwise(GPU_MEMORY):
        if billions <= high[0]:
            return low[column] + (high[column] - low[column]) * (billions - low[0]) / (high[0] - low[0])
    return GPU_MEMORY[-1][column] * billions / GPU_MEMORY[-1][0]


def _cpu_memory(plan: TrainingPlan, count: int) -> int:
    """Libraries, 32-bit weights and activations; a test holds it against a measured peak.

    NF4 does not lower the peak on a CPU: loading reads the full checkpoint first.
    """
    config = read_json(Path(plan.base_folder) / "config.json")
    text = config.get("text_config", config)
    sequences = plan.batch * (2 if plan.method == "dpo" else 1)
    logits = text["vocab_size"] * 4 * (4 if plan.method == "dpo" else 3)  # few are computed, some are stored
    layers = text["num_hidden_layers"] * (14 * text["hidden_size"] + 6 * text["intermediate_size"]) * 4
    return int(0.6 * GIB + count * 4 * 1.1 + sequences * plan.max_length * (logits + layers))


def memory_free(device: str) -> int | None:
    """Free bytes of the GPU or available bytes of RAM; None when the system does not say."""
    if device == "cuda":
        query = ["nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
        done = subprocess.run(query, capture_output=True, text=True, check=False)
        sizes = [int(line) for line in done.stdout.split() if line.isdigit()]
        return sizes[0] * 1024**2 if sizes else None
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return None
    lines = dict(line.split(":", 1) for line in meminfo.read_text("ascii").splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024


def check_memory(plan: TrainingPlan) -> int:
    """The estimated peak in bytes.

    Raises TrainingError before anything starts when less than that is free. On a GPU a fifth more is asked
    for, since the engine may serve from the same one.
    """
    needed, free = memory_needed(plan), memory_free(plan.device)
    if plan.device == "cuda":
        needed = int(needed * 1.2)
    if free is not None and free < needed:
        where = "GPU memory" if plan.device == "cuda" else "RAM"
        four_bit = "train with --four-bit, " if plan.device == "cuda" and not plan.four_bit else ""
        raise TrainingError(
            f"Training {plan.base} needs {needed / 1e9:.1f} GB of {where}, and {free / 1e9:.1f} GB are free.",
            f"Stop what else uses the memory, {four_bit}or choose a smaller model.",
        )
    return needed


def seconds_needed(plan: TrainingPlan, rows: int, tokens: int = 500) -> float:
    """A rough duration of a stage in seconds, for rows of about `tokens` tokens.

    LoRA takes 4 operations a weight and token; DPO reads two answers with two models; GRPO also writes.
    """
    per_token = {"sft": 4, "dpo": 12, "grpo": 10}[plan.method] * parameters(Path(plan.base_folder))
    seen = plan.steps(rows) * plan.batch * plan.accumulation * min(tokens, plan.max_length)
    return START_SECONDS + per_token * seen / (GPU_FLOPS if plan.device == "cuda" else CPU_FLOPS)


def describe(plan: TrainingPlan, rows: int) -> str:
    """A plan in one line, with its memory and time."""
    base = (
        f"{plan.device}, {'NF4' if plan.four_bit else '16-bit' if plan.device == 'cuda' else '32-bit'} base"
    )
    return (
        f"{plan.method}: {plan.steps(rows)} steps of {plan.batch * plan.accumulation} rows, rank {plan.rank},"
        f" learning rate {plan.learning_rate:g}, {base};"
        f" about {memory_needed(plan) / 1e9:.1f} GB and {seconds_needed(plan, rows):.0f} s"
    )
