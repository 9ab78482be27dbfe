"""Trainable weights out of a GGUF file, for a base model whose Hugging Face folder cannot be had.

A LoRA is trained on frozen weights, so the weights may as well be the served ones, dequantised: what the
adapter learns then fits exactly what it will be applied to. Transformers reads the file (see
https://huggingface.co/docs/transformers/gguf); the tokenizer's splitting rule, which that leaves out, is set
from the family that the file names, and the two tokenizers must agree on 200 strings before it is used.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from core.catalog import CatalogModel, model_folder
from core.errors import ModelError, first_line
from core.files import fsync_dir, read_json, require_space, sha256_of, write_json
from core.gguf import check_gguf
from core.settings import Settings
from finetune.converter import LLAMA3_SPLIT, check_tokenizer
from finetune.plan import DEQUANTISED, memory_free, trainable_folder

QWEN2 = LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")
ARCHITECTURES = ("llama", "qwen2", "qwen3", "mistral")
SOURCE = "source.json"
STALE = ("backend", "model_type", "is_local", "legacy", "local_files_only", "bos_token_id", "eos_token_id",
         "pad_token_id", "unk_token_id")  # fmt: skip


def prepare(settings: Settings, model: CatalogModel, gguf: Path, tell: Callable[[str], None]) -> Path:
    """The folder of trainable weights of `model`, made from its GGUF file when there is no other.

    Raises as `trainable_from_gguf`.
    """
    made = model_folder(settings, model) / DEQUANTISED
    source = made / SOURCE
    if source.exists() and read_json(source)["sha256"] != sha256_of(gguf):
        shutil.rmtree(made)  # another file of the same name
    try:
        return trainable_folder(settings, model)
    except ModelError:
        tell("Reading the base model's weights from its GGUF file, once")
        return trainable_from_gguf(gguf, made)


def trainable_from_gguf(gguf: Path, target: Path) -> Path:
    """Write the weights (F16), config and tokenizer of `gguf` as the folder `target`; returns it.

    Raises ModelError for architectures and tokenizers that are not known to survive the way, and for models
    too large for the memory; StorageError when the disk is too small. A half-written folder is removed.
    """
    info = check_gguf(gguf)
    family = str(info.metadata.get("tokenizer.ggml.pre", ""))
    if info.architecture not in ARCHITECTURES or info.metadata.get("tokenizer.ggml.model") != "gpt2":
        raise ModelError(
            f"The weights of {gguf.name} cannot be trained: its architecture ({info.architecture}) or kind of"
            " tokenizer is not supported.",
            f"Put the model's Hugging Face folder into {target}.",
        )
    splitting(family)
    needed, free = info.parameters * 5, memory_free("cpu")  # bytes: one tensor at a time in 32 bits
    if free is not None and free < needed:
        raise ModelError(
            f"Reading the weights of {gguf.name} takes {needed / 1e9:.1f} GB of RAM; {free / 1e9:.1f} GB are"
            " free.",
            f"Stop what else uses the memory, or put the model's Hugging Face folder into {target}.",
        )
    require_space(target.parent, info.parameters * 2 + (1 << 28))
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        _write(gguf, partial, info.metadata.get("tokenizer.ggml.eos_token_id"))
        _mend_tokenizer(partial, family)
        check_tokenizer(partial, gguf)
        write_json(partial / SOURCE, {"gguf": gguf.name, "sha256": sha256_of(gguf)})
        partial.rename(target)
        fsync_dir(target.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def splitting(family: str) -> dict[str, Any]:
    """How text is cut before BPE, by llama.cpp's name of the family (raises ModelError for others)."""
    byte_level: dict[str, Any] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    whole = byte_level | {"use_regex": True}
    if family in ("gpt-2", "default"):
        return whole
    if family == "smollm":
        return _sequence({"type": "Digits", "individual_digits": True}, whole)
    patterns = {"llama-bpe": LLAMA3_SPLIT, "llama3": LLAMA3_SPLIT, "qwen2": QWEN2}
    if family not in patterns:
        raise ModelError(
            f"How the tokenizer family {family!r} splits text is not known here.",
            "Train with the model's Hugging Face folder.",
        )
    split = {
        "type": "Split", "pattern": {"Regex": patterns[family]}, "behavior": "Isolated", "invert": False,
    }  # fmt: skip
    return _sequence(split, byte_level | {"use_regex": False})


def _sequence(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(parts)}


def _write(gguf: Path, folder: Path, end: int | None) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        model: Any = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float16
        )
    except (ValueError, KeyError, NotImplementedError, ImportError) as error:
        raise ModelError(
            f"The weights of {gguf.name} could not be read for training: {first_line(error)}."
        ) from error
    # these are plain tensors now; the mark of their origin would forbid to save them
    model.hf_quantizer = model.quantization_method = None
    del model.config.quantization_config
    if end is not None:
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _mend_tokenizer(folder: Path, family: str) -> None:
    path = folder / "tokenizer.json"
    tokenizer = read_json(path)
    tokenizer["pre_tokenizer"] = splitting(family)
    tokenizer["decoder"] = {
        "type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True,
    }  # fmt: skip
    tokenizer["post_processor"] = None
    tokenizer["model"]["byte_fallback"] = False
    write_json(path, tokenizer)
    path = folder / "tokenizer_config.json"
    config = {name: value for name, value in read_json(path).items() if name not in STALE}
    write_json(path, config | {"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": False})
