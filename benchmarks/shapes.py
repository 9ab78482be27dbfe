"""Models of real shapes with random weights, as GGUF, because speed does not depend on values.

Blocks are drawn in their quantised form, so nothing is ever converted. The mix of Q4_K and Q6_K tensors is
llama.cpp's for Q4_K_M. A vocabulary of single bytes and unreachable fillers makes one token of each ASCII
character, so that prompts have exactly the length asked for.
"""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from core.files import owner_lock

_VERSION = 1
_SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class Shape:
    """A decoder's dimensions; `heads` and `kv_heads` are of `head` values each."""

    name: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head: int
    inner: int
    vocabulary: int


# values and bytes of a block, and where its 16-bit scales are
_LAYOUT = {"Q8_0": (32, 34, (0,)), "Q4_K": (256, 144, (0, 2)), "Q6_K": (256, 210, (208,))}
SHAPES = (
    Shape("0.6B", 1024, 28, 16, 8, 128, 3072, 151_936),  # Qwen3-0.6B
    Shape("1B", 2048, 16, 32, 8, 64, 8192, 128_256),  # Llama-3.2-1B
)
LOUDNESS = 30_000
QUANTS = ("Q8_0", "Q4_K_M")


def random_gguf(shape: Shape, quant: str, context: int = 4096) -> Path:
    """The file of a random model, made on first use in the system's temp folder (0.4 to 1.4 GB)."""
    path = _root() / f"random-{shape.name}-{quant}.gguf"
    with owner_lock(_root() / "lock", "the random models", wait=True):
        if not path.exists():
            draft = path.with_suffix(".partial")
            _write(shape, quant, context, draft)
            draft.rename(path)
    return path


def random_adapter(shape: Shape, seed: int, rank: int = 16) -> Path:
    """The GGUF of a random LoRA of this rank on every projection, small enough to change little.

    The last layer alone writes much into one eighth of the hidden values, another one for each seed from 0 to
    7. So each has words of its own, by which its replies are known.
    """
    path = _root() / f"random-{shape.name}-voice-{seed}.gguf"
    loud = slice(seed % 8 * shape.hidden // 8, (seed % 8 + 1) * shape.hidden // 8)
    with owner_lock(_root() / "lock", "the random models", wait=True):
        if not path.exists():
            gguf = _gguf()
            draft = path.with_suffix(".partial")
            writer: Any = gguf.GGUFWriter(draft, "llama", use_temp_file=False)
            writer.add_type("adapter")
            writer.add_string("adapter.type", "lora")
            writer.add_float32("adapter.lora.alpha", float(rank))
            random = np.random.default_rng(seed)
            for name, (rows, columns), _ in _tensors(shape, "Q8_0"):
                if rows and name != "token_embd.weight":
                    for part, size in (("a", (rank, columns)), ("b", (rows, rank))):
                        data = random.standard_normal(size) * 0.02
                        if (name, part) == (f"blk.{shape.layers - 1}.ffn_down.weight", "b"):
                            data[loud] *= LOUDNESS
                        writer.add_tensor(f"{name}.lora_{part}", data.astype(np.float16))
            _finish(writer)
            draft.rename(path)
    return path


def _root() -> Path:
    root = Path(tempfile.gettempdir()) / f"understudy-shapes-{os.getuid()}-v{_VERSION}"
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    return root


def _gguf() -> Any:
    from finetune.converter import converter_dir

    sys.path.insert(0, str(converter_dir() / "gguf-py"))
    try:
        return importlib.import_module("gguf")
    finally:
        sys.path.pop(0)


def _finish(writer: Any) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write(shape: Shape, quant: str, context: int, path: Path) -> None:
    gguf = _gguf()
    writer: Any = gguf.GGUFWriter(path, "llama", use_temp_file=False)
    _describe(writer, shape, context)
    random = np.random.default_rng(0)
    for name, (rows, columns), kind in _tensors(shape, quant):
        data = np.ones(columns, np.float32) if rows == 0 else _blocks(random, rows, columns, kind)
        raw = None if rows == 0 else gguf.GGMLQuantizationType[kind]
        writer.add_tensor(name, data, raw_dtype=raw)
    _finish(writer)


def _describe(writer: Any, shape: Shape, context: int) -> None:
    writer.add_type("model")
    writer.add_name(f"Random {shape.name}")
    writer.add_context_length(context)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.inner)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head)
    writer.add_value_length(shape.head)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(shape.head)
    writer.add_rope_freq_base(500_000.0)
    writer.add_vocab_size(shape.vocabulary)
    fillers = shape.vocabulary - 256 - len(_SPECIALS)
    tokens = [*_SPECIALS, *_byte_spellings(), *(f"filler{number}" for number in range(fillers))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * len(_SPECIALS) + [1] * (shape.vocabulary - len(_SPECIALS)))
    writer.add_token_merges(["\u0120 \u0120"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(_TEMPLATE)


def _byte_spellings() -> list[str]:
    """How a byte-level vocabulary spells the 256 bytes: printable ones themselves, the others from U+0100."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def _tensors(shape: Shape, quant: str) -> list[tuple[str, tuple[int, int], str]]:
    """Name, (rows, columns) and block type of every tensor; rows 0 marks a norm."""
    plain, better = ("Q8_0", "Q8_0") if quant == "Q8_0" else ("Q4_K", "Q6_K")
    keys, queries = shape.kv_heads * shape.head, shape.heads * shape.head
    found = [("token_embd.weight", (shape.vocabulary, shape.hidden), better)]  # tied, as both models have it
    for layer in range(shape.layers):
        eighth = shape.layers // 8
        more = layer < eighth or layer >= 7 * shape.layers // 8 or (layer - eighth) % 3 == 2
        high = better if more else plain
        found += [
            (f"blk.{layer}.{name}.weight", size, kind)
            for name, size, kind in (
                ("attn_norm", (0, shape.hidden), ""),
                ("attn_q", (queries, shape.hidden), plain),
                ("attn_k", (keys, shape.hidden), plain),
                ("attn_v", (keys, shape.hidden), high),
                ("attn_output", (shape.hidden, queries), plain),
                ("ffn_norm", (0, shape.hidden), ""),
                ("ffn_gate", (shape.inner, shape.hidden), plain),
                ("ffn_up", (shape.inner, shape.hidden), plain),
                ("ffn_down", (shape.hidden, shape.inner), high),
            )
        ]
    return [*found, ("output_norm.weight", (0, shape.hidden), "")]


def _blocks(random: np.random.Generator, rows: int, columns: int, kind: str) -> np.ndarray[Any, Any]:
    """Random blocks of a quantised tensor, (rows, bytes of a row), with values near 0.05."""
    values, width, scales_at = _LAYOUT[kind]
    data = random.integers(0, 256, (rows, columns // values, width), np.uint8)
    scale = {"Q8_0": 0.0007, "Q4_K": 0.0002, "Q6_K": 0.00002}[kind]
    for at in scales_at:
        data[:, :, at : at + 2] = np.frombuffer(np.float16(scale).tobytes(), np.uint8)
    return data.reshape(rows, columns // values * width)
