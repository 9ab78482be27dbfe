"""The trained built-in reader as a Hugging Face folder (to train on) and as a GGUF file (to serve)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from core.files import sha256_of

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
GGUF = "understudy-reader-v2.gguf"
CALIBRATION_UNITS = 10
TEMPLATE = (
    "{%- for message in messages %}{%- if message['role'] == 'user' %}"
    "{{- '<|im_start|>user\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{%- elif message['role'] == 'assistant' %}{{- '<|im_start|>assistant\\n' }}"
    "{% generation %}{{- message['content'] + '<|im_end|>' }}{% endgeneration %}{{- '\\n' }}"
    "{%- endif %}{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


def config(shape: dict[str, Any], special: dict[str, int]) -> dict[str, Any]:
    """A Hugging Face Llama configuration for the weights."""
    heads = shape["num_attention_heads"]
    rope = {"rope_type": "default", "rope_theta": shape["rope_theta"]}
    return {k: v for k, v in shape.items() if k != "rope_theta"} | {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_key_value_heads": heads,
        "hidden_act": "silu",
        "head_dim": shape["hidden_size"] // heads,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "rope_theta": shape["rope_theta"],
        "rope_parameters": rope,
        "dtype": "float16",
        "bos_token_id": special["<|im_start|>"],
        "eos_token_id": special["<|im_end|>"],
        "pad_token_id": special["<|endoftext|>"],
    }


def save_folder(out: Path, target: Path) -> float:
    """Write the trained weights of `out` as a Hugging Face folder, without the training-only scorer.

    The eagerness to refuse is set on the held-out exercises of `out`, if there are any; returns the factor.
    """
    import torch
    from safetensors.torch import save_file
    from tokenizers import Tokenizer

    from finetune.base_model import Shape
    from finetune.base_train import HELD_OUT, Encoder, calibrate, load, restore

    target.mkdir(parents=True, exist_ok=True)
    model, held_out, factor = restore(out), out / HELD_OUT, 1.0
    if held_out.exists():
        # as many units as the product shows a small model
        short = [i for i in load(held_out) if len(i.ends) <= CALIBRATION_UNITS]
        factor = calibrate(model, short, Encoder(out).encode(["Not"])[0][0])
    state = model.state_dict()
    weights = {
        f"model.{k}": v.to(torch.float16).contiguous() for k, v in state.items() if not k.startswith("scorer")
    }
    save_file(weights, str(target / "model.safetensors"), metadata={"format": "pt"})
    shutil.copyfile(out / "tokenizer.json", target / "tokenizer.json")
    tok = Tokenizer.from_file(str(target / "tokenizer.json"))
    special: dict[str, int] = {t: int(tok.token_to_id(t) or 0) for t in SPECIAL}
    shape = Shape(vocab_size=state["embed_tokens.weight"].shape[0]).as_dict()
    write(target / "config.json", config(shape, special))
    write(
        target / "generation_config.json",
        {"do_sample": False, "eos_token_id": special["<|im_end|>"], "pad_token_id": special["<|endoftext|>"]},
    )
    write(
        target / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "add_bos_token": False,
            "clean_up_tokenization_spaces": False,
            "model_max_length": 1024,
            "chat_template": TEMPLATE,
        },
    )
    return factor


def write(path: Path, value: dict[str, Any]) -> None:
    """A JSON file, indented."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of each file of a model folder, by name."""
    names = sorted(p.name for p in folder.iterdir() if p.name not in ("card.json", "README.md"))
    return {name: sha256_of(folder / name) for name in names}


def export(out: Path, target: Path) -> None:
    """Hugging Face folder, GGUF (F16), tokenizer agreement, and `card.json` with the hash of each file."""
    from finetune.converter import check_tokenizer, hf_to_gguf

    factor = save_folder(out, target)
    hf_to_gguf(target, target / GGUF, "f16")
    agreed = check_tokenizer(target, target / GGUF)
    card = json.loads((target / "card.json").read_text("utf-8")) if (target / "card.json").exists() else {}
    shape = json.loads((target / "config.json").read_text("utf-8"))
    write(
        target / "card.json",
        card
        | {
            "name": "Understudy Reader v2",
            "licence": "Apache-2.0",
            "tokenizer_agreement": agreed,
            "refusal_factor": round(factor, 3),
            "context": 1024,
            "architecture": {
                k: shape[k]
                for k in (
                    "vocab_size",
                    "hidden_size",
                    "intermediate_size",
                    "num_hidden_layers",
                    "num_attention_heads",
                    "rope_theta",
                    "tie_word_embeddings",
                )
            },
            "files": hashes(target),
        },
    )
