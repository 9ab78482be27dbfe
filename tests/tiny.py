"""A tiny random Llama: real files in every format the product reads, made in seconds without a network.

Hidden size 256 (Q4_K needs rows divisible by 256), two layers, a byte-level BPE vocabulary with ChatML
markers and Llama-3's pre-tokenizer regex. Weights are drawn wide enough that greedy text depends on the
prompt. Built once per version of this file into the system's temp folder, under a lock.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from core.adapters import CARD, GGUF, Adapter, AdapterRegistry
from core.db import now_ms
from core.files import owner_lock, sha256_of, write_json
from finetune.converter import LLAMA3_SPLIT, declare_no_bos, hf_to_gguf, lora_to_gguf, probe_strings

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
# the control tokens of all the families whose templates are pinned
OF_ALL_FAMILIES = (
    *SPECIALS, "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<s>", "</s>",
    "[INST]", "[/INST]", "<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>", "<think>", "</think>",
)  # fmt: skip
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
VOCABULARY, HIDDEN, LAYERS, HEADS, KV_HEADS, INNER, CONTEXT = 512, 256, 2, 8, 4, 768, 2048


@dataclass(frozen=True)
class TinyModel:
    """A Hugging Face folder and the F16 GGUF made from it."""

    folder: Path
    gguf: Path

    @property
    def id(self) -> str:
        """The base id the catalog derives from the file's name."""
        return self.gguf.stem

    def adapter(self, seed: int = 1) -> Path:
        """A folder with a random LoRA: PEFT files and `adapter.gguf`; the same seed is built once."""
        folder = self.folder.parent / f"{self.gguf.stem}-lora-{seed}"
        with owner_lock(self.folder.parent / "lock", "the tiny model", wait=True):
            if not (folder / GGUF).exists():
                write_adapter(folder, json.loads((self.folder / "config.json").read_text("utf-8")), seed)
                lora_to_gguf(folder, self.folder, folder / GGUF)
        return folder


def tiny_model(hidden: int = HIDDEN, specials: tuple[str, ...] = SPECIALS) -> TinyModel:
    """The tiny model with this hidden size (another size makes adapters that do not fit)."""
    root = _root()
    name = f"{hidden}" if specials == SPECIALS else f"{hidden}-{len(specials)}-specials"
    model = TinyModel(root / f"hf-{name}", root / f"tiny-{name}.gguf")
    with owner_lock(root / "lock", "the tiny model", wait=True):
        if not model.gguf.exists():
            write_model(model.folder, hidden, specials)
            hf_to_gguf(model.folder, model.gguf)
    return model


def register_adapter(
    registry: AdapterRegistry, model: TinyModel, seed: int = 1, adapter_id: str = ""
) -> Adapter:
    """Copy a random adapter's files into the registry's folder and register it as passed."""
    adapter_id = adapter_id or f"tiny-adapter-{seed}"
    target = registry.folder / adapter_id
    target.mkdir(parents=True, exist_ok=True)
    for source in model.adapter(seed).iterdir():
        (target / source.name).write_bytes(source.read_bytes())
    digest = sha256_of(target / GGUF)
    write_json(target / CARD, {"sha256": digest})
    adapter = Adapter(
        adapter_id, model.id, sha256_of(model.gguf), digest, None, None, None, "sft", "passed", {}, now_ms()
    )
    registry.register(adapter)
    return adapter


def write_model(folder: Path, hidden: int, specials: tuple[str, ...] = SPECIALS) -> None:
    """Write config, tokenizer and random weights of a Llama as transformers saves them."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": hidden // HEADS,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "torch_dtype": "float32",
    }
    write_json(folder / "config.json", config)
    _write_tokenizer(folder, specials)
    save_file(_weights(hidden), folder / "model.safetensors", metadata={"format": "pt"})


def write_adapter(folder: Path, config: dict[str, int], seed: int, rank: int = 4) -> None:
    """Write a random rank-4 LoRA on every projection as PEFT saves it."""
    from safetensors.numpy import save_file

    random, hidden = np.random.default_rng(seed), config["hidden_size"]
    tensors = {}
    for layer in range(config["num_hidden_layers"]):
        for name, (rows, columns) in _projections(hidden).items():
            prefix = f"base_model.model.model.layers.{layer}.{name}"
            tensors[f"{prefix}.lora_A.weight"] = _draw(random, rank, columns, scale=0.2)
            tensors[f"{prefix}.lora_B.weight"] = _draw(random, rows, rank, scale=0.2)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    targets = sorted({name.rsplit(".", 1)[-1] for name in _projections(hidden)})
    write_json(
        folder / "adapter_config.json",
        {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "r": rank,
            "lora_alpha": 2 * rank,
            "bias": "none",
            "lora_dropout": 0.0,
            "target_modules": targets,
            "base_model_name_or_path": "",
            "inference_mode": True,
        },
    )


def _root() -> Path:
    version = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
    root = Path(tempfile.gettempdir()) / f"understudy-tiny-{os.getuid()}-{version}"
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    return root


def _write_tokenizer(folder: Path, specials: tuple[str, ...]) -> None:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(specials),
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    words = (
        "What is the notice period? Question: Not in the documents. Employee handbook user assistant system"
    )
    tokenizer.train_from_iterator([*probe_strings(), *(words + f" [{n}]" for n in range(40))], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": SPECIALS[0],
            "eos_token": SPECIALS[2],
            "pad_token": SPECIALS[0],
            "model_max_length": CONTEXT,
            "chat_template": TEMPLATE,
        },
    )
    declare_no_bos(folder)


def _projections(hidden: int) -> dict[str, tuple[int, int]]:
    keys = hidden * KV_HEADS // HEADS
    return {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (INNER, hidden),
        "mlp.up_proj": (INNER, hidden),
        "mlp.down_proj": (hidden, INNER),
    }


def _weights(hidden: int) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    random = np.random.default_rng(0)
    tensors = {
        "model.embed_tokens.weight": _draw(random, VOCABULARY, hidden, scale=1.0),
        "lm_head.weight": _draw(random, VOCABULARY, hidden, scale=0.1),
        "model.norm.weight": np.ones(hidden, np.float32),
    }
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}.{norm}.weight"] = np.ones(hidden, np.float32)
        for name, (rows, columns) in _projections(hidden).items():
            tensors[f"{prefix}.{name}.weight"] = _draw(random, rows, columns, scale=0.08)
    return tensors


def _draw(
    random: np.random.Generator, rows: int, columns: int, *, scale: float
) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return (random.standard_normal((rows, columns)) * scale).astype(np.float32)
