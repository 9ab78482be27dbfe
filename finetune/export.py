"""From a trained LoRA folder to an adapter the engine serves, checked first and put in place by one rename.

`data/adapters/<id>/` holds `adapter.gguf`, the PEFT files it was made from and `card.json` with the hash of
each and the lineage: run, dataset, parent, method, plan, base model and licences. Until the rename the folder
is called `<id>.partial`, so a half-made adapter can never be chosen.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from core.adapters import CARD, GGUF, Adapter
from core.errors import ModelError, StorageError, TrainingError
from core.files import fsync_dir, read_json, require_space, sha256_of, write_json
from finetune.converter import lora_to_gguf, refuse_unservable

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MAX_HEADER = 16 * 1024**2  # bytes; a 70B model's LoRA header has 0.2 MB
LARGEST = 1e3  # trained LoRA weights lie below 1; more is damage or an attack
SPARE = 64 * 1024**2  # bytes left free on the disk
_UNSAFE = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
# settings of PEFT under which the weights mean something else than `W + alpha / r * B A`
_FOREIGN = (
    "auto_mapping", "fan_in_fan_out", "layer_replication", "lora_bias", "megatron_config", "rank_pattern",
    "target_parameters", "trainable_token_indices", "use_qalora",
)  # fmt: skip


@dataclass(frozen=True)
class Lineage:
    """Where an adapter comes from. `base_sha256` is of the base GGUF, `created_at` UTC milliseconds."""

    run_id: str
    dataset_version: str
    parent_id: str | None
    base: str
    base_sha256: str
    licence: str
    plans: list[dict[str, Any]]
    created_at: int
    day: str

    @property
    def method(self) -> str:
        """The stages that made it, such as `sft+dpo`."""
        return "+".join(plan["method"] for plan in self.plans)


def export(source: Path, base_folder: Path, adapters: Path, lineage: Lineage) -> Adapter:
    """Check the PEFT folder `source`, put it and its GGUF under `adapters`; returns the (unjudged) record.

    The id follows from run and weights, so a killed export that is repeated gives the same adapter.
    Raises ModelError naming the tensor or setting that is wrong, StorageError when the disk is full; nothing
    half-made is left either way.
    """
    check_adapter(source, base_folder)
    digest = hashlib.sha256(f"{lineage.run_id} {sha256_of(source / WEIGHTS)}".encode()).hexdigest()
    adapter_id = f"{lineage.base}-{lineage.day}-{digest[:6]}"
    target = adapters / adapter_id
    if not (target / CARD).exists():
        clean(adapters)
        require_space(adapters, 4 * (source / WEIGHTS).stat().st_size + SPARE)
        _build(source, base_folder, target, lineage)
    return Adapter(
        adapter_id, lineage.base, lineage.base_sha256, sha256_of(target / GGUF), lineage.run_id,
        lineage.dataset_version, lineage.parent_id, lineage.method, "unjudged", {}, lineage.created_at,
    )  # fmt: skip


def save_adapter(model: Any, folder: Path) -> dict[str, str]:
    """Save the trained adapter as `folder/adapter` in one rename; returns the hash of each file."""
    import torch

    for name, weights in model.named_parameters():
        if weights.requires_grad and not torch.isfinite(weights).all():
            raise TrainingError(
                f"Training left values that are no numbers in {name}.", "Lower the learning rate."
            )
    partial, target = folder / "adapter.partial", folder / "adapter"
    for stale in (partial, target):
        shutil.rmtree(stale, ignore_errors=True)
    model.save_pretrained(partial, safe_serialization=True, selected_adapters=["default"])
    for path in partial.iterdir():
        if not path.name.startswith("adapter_"):
            path.unlink()  # PEFT's model card
    partial.rename(target)
    fsync_dir(folder)
    return {path.name: sha256_of(path) for path in sorted(target.iterdir())}


def base_layer(model: Any) -> str:
    """The class of the frozen layers under the LoRA layers; it shows whether the base is really 4-bit."""
    return next(
        type(module.base_layer).__name__ for module in model.modules() if hasattr(module, "base_layer")
    )


def clean(adapters: Path) -> None:
    """Remove what killed exports left."""
    for partial in adapters.glob("*.partial"):
        shutil.rmtree(partial, ignore_errors=True)


def _build(source: Path, base_folder: Path, target: Path, lineage: Lineage) -> None:
    partial = target.with_name(f"{target.name}.partial")
    try:
        partial.mkdir(parents=True)
        shutil.copyfile(source / WEIGHTS, partial / WEIGHTS)
        # the training machine's paths are nobody's business, and nothing may be loaded from where they point
        config = read_json(source / CONFIG) | {"base_model_name_or_path": lineage.base}
        write_json(partial / CONFIG, config)
        lora_to_gguf(partial, base_folder, partial / GGUF)
        hashes = {name: sha256_of(partial / name) for name in (GGUF, WEIGHTS, CONFIG)}
        write_json(
            partial / CARD,
            {"sha256": hashes[GGUF], "files": hashes, "method": lineage.method, **asdict(lineage)},
        )
        partial.rename(target)
        fsync_dir(target.parent)
    except (OSError, ModelError) as error:
        if isinstance(error, ModelError) and "space left" not in str(error):
            raise
        reason = getattr(error, "strerror", None) or "no space left on the disk"
        step = (
            "Free some space" if getattr(error, "errno", errno.ENOSPC) == errno.ENOSPC else "Check the folder"
        )
        raise StorageError(
            f"Could not write the adapter to {target}: {reason}.", f"{step}, then try again."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_adapter(folder: Path, base_folder: Path) -> None:
    """Raise ModelError when a LoRA folder is unsafe, not plain LoRA, damaged, or made for another model.

    Reads nothing but JSON and safetensors; names the file, setting or tensor at fault.
    """
    unsafe = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in _UNSAFE)
    if unsafe:
        raise ModelError(
            f"{unsafe[0]} may run code when it is loaded.", "Only safetensors adapters are accepted."
        )
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise ModelError(f"{folder} lacks {name}.", "Give a complete adapter folder.")
    config = read_json(folder / CONFIG)
    _check_config(config)
    shapes = read_shapes(folder / WEIGHTS)
    _check_shapes(shapes, base_shapes(base_folder), config)
    _check_values(folder / WEIGHTS)


def _check_config(config: dict[str, Any]) -> None:
    if config.get("peft_type") != "LORA":
        raise ModelError(f"The adapter is {config.get('peft_type')!r}, not a LoRA.", "Train it with LoRA.")
    refuse_unservable(config)
    foreign = [key for key in _FOREIGN if config.get(key)]
    if config.get("bias", "none") != "none":
        foreign.append("bias")
    if not isinstance(config.get("init_lora_weights", True), bool):
        foreign.append("init_lora_weights")  # PiSSA, OLoRA and others change the base weights too
    if foreign:
        raise ModelError(
            f"The adapter uses {foreign[0]}, which a LoRA GGUF cannot express.", "Train it without."
        )
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if (
        not isinstance(rank, int)
        or not isinstance(alpha, (int, float))
        or rank < 1
        or not math.isfinite(alpha)
    ):
        raise ModelError(f"The adapter's rank {rank!r} or lora_alpha {alpha!r} is no number.")


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Tensor names and shapes of a safetensors file, its header and sizes checked against the file.

    Raises ModelError when the file is not what it says, down to a tensor that is named twice.
    """
    size = path.stat().st_size
    with path.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        if size < 8 or not 2 <= length <= min(MAX_HEADER, size - 8):
            raise ModelError(f"{path.name} is not a safetensors file (header of {length} bytes).")
        try:
            header = json.loads(handle.read(length), object_pairs_hook=_once)
            return {
                name: _shape(name, entry, size - 8 - length)
                for name, entry in header.items()
                if name != "__metadata__"
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{path.name} has a damaged header: {error}.") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    twice = [name for name in names if names.count(name) > 1] if len(set(names)) < len(names) else []
    if twice:
        raise ValueError(f"{twice[0]} is there twice")
    return dict(pairs)


def _shape(name: str, entry: dict[str, Any], size: int) -> tuple[int, ...]:
    width = {"F32": 4, "F16": 2, "BF16": 2}.get(entry["dtype"], 0)
    shape = tuple(int(side) for side in entry["shape"])
    begin, end = entry["data_offsets"]
    if not width or not 0 <= begin <= end <= size or end - begin != math.prod(shape) * width:
        raise ModelError(
            f"Tensor {name} has type {entry['dtype']} and shape {shape}, which its bytes do not fill."
        )
    return shape


def base_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Weight shapes of a base model's folder."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        shapes |= read_shapes(path)
    return shapes


def _check_shapes(
    shapes: dict[str, tuple[int, ...]], base: dict[str, tuple[int, ...]], config: dict[str, Any]
) -> None:
    rank = config["r"]
    if not shapes:
        raise ModelError("The adapter holds no tensors.")
    for name, shape in shapes.items():
        module, _, part = name.removeprefix("base_model.model.").removesuffix(".weight").rpartition(".")
        weight = base.get(f"{module}.weight")
        if part not in ("lora_A", "lora_B") or weight is None:
            raise ModelError(
                f"Tensor {name} belongs to no layer of the base model.", "It was made for another one."
            )
        expected = (rank, weight[1]) if part == "lora_A" else (weight[0], rank)
        if shape != expected or rank > min(weight):
            raise ModelError(
                f"Tensor {name} has shape {shape}; the base model and rank {rank} need {expected}.",
                "It was made for another base model.",
            )
        if name.replace(f".{part}.", ".lora_B." if part == "lora_A" else ".lora_A.") not in shapes:
            raise ModelError(f"Tensor {name} lacks its counterpart.")


def _check_values(path: Path) -> None:
    from safetensors import safe_open

    changes = False
    with safe_open(path, framework="pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118 - not a dict
            largest = tensors.get_tensor(name).abs().max().item()
            if not largest <= LARGEST:  # also refuses NaN
                raise ModelError(
                    f"Tensor {name} holds {largest}, which is no trained weight.", "Train again."
                )
            changes = changes or (".lora_B." in name and largest > 0)
    if not changes:
        raise ModelError(
            "The adapter changes nothing: every lora_B is zero.", "Training had nothing to learn."
        )
