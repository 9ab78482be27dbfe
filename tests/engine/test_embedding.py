"""An embedding model given as the chat model: refused by its header, and by llama.cpp's lack of a cache."""

from __future__ import annotations

import importlib
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.catalog import local_model
from core.errors import ModelError
from core.gguf import check_gguf
from core.settings import Settings
from engine.context import NativeContext
from engine.native import Limits, NativeModel
from engine.runtime import LlamaBackend
from engine.server import make_stage
from finetune.converter import converter_dir
from tests.tiny import TinyModel

HIDDEN, INNER, CONTEXT = 64, 128, 64
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"\u2581{char}" for char in "abcdefghijklmnop")]


def bert_gguf(path: Path) -> Path:
    """A complete random one-layer BERT, as sentence-embedding models are published."""
    sys.path.insert(0, str(converter_dir() / "gguf-py"))
    try:
        gguf: Any = importlib.import_module("gguf")
    finally:
        sys.path.pop(0)
    writer: Any = gguf.GGUFWriter(path, "bert", use_temp_file=False)
    writer.add_type("model")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(1)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(2)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.MEAN)
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("jina-v2-en")
    writer.add_token_list(WORDS)
    writer.add_token_type_count(2)
    writer.add_token_types([3] * 5 + [1] * (len(WORDS) - 5))
    for name, token in (("bos", 2), ("eos", 3), ("unk", 1), ("sep", 3), ("pad", 0), ("mask", 4)):
        getattr(writer, f"add_{name}_token_id")(token)
    random = np.random.default_rng(1)
    matrices = {
        "token_embd": (len(WORDS), HIDDEN), "position_embd": (CONTEXT, HIDDEN), "token_types": (2, HIDDEN),
        "blk.0.attn_q": (HIDDEN, HIDDEN), "blk.0.attn_k": (HIDDEN, HIDDEN), "blk.0.attn_v": (HIDDEN, HIDDEN),
        "blk.0.attn_output": (HIDDEN, HIDDEN), "blk.0.ffn_up": (INNER, HIDDEN),
        "blk.0.ffn_down": (HIDDEN, INNER),
    }  # fmt: skip
    for name, size in matrices.items():
        writer.add_tensor(f"{name}.weight", random.standard_normal(size).astype(np.float32))
        if name.startswith("blk"):
            writer.add_tensor(f"{name}.bias", np.zeros(size[0], np.float32))
    for name in ("token_embd_norm", "blk.0.attn_output_norm", "blk.0.layer_output_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(HIDDEN, np.float32))
        writer.add_tensor(f"{name}.bias", np.zeros(HIDDEN, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def with_keys(model: TinyModel, path: Path, *records: bytes) -> Path:
    """The tiny model with more metadata, padded by a note so that the tensors stay where they were."""
    data, added = model.gguf.read_bytes(), b"".join(records)
    room = -(len(added) + 8 + 4 + 4 + 8) % 32
    added += text(b"note") + struct.pack("<I", 8) + text(b"x" * room)
    (keys,) = struct.unpack_from("<Q", data, 16)
    path.write_bytes(data[:16] + struct.pack("<Q", keys + len(records) + 1) + added + data[24:])
    return path


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


POOLS = text(b"llama.pooling_type") + struct.pack("<II", 4, 3)
PLAIN = text(b"llama.pooling_type") + struct.pack("<II", 4, 0)
LOOKS_AHEAD = text(b"llama.attention.causal") + struct.pack("<I?", 7, False)


def refused(path: Path, model: TinyModel) -> str:
    """Why the engine does not load it; with a chat model's record, as if it had been renamed."""
    backend = LlamaBackend(Settings(threads=1, context=64, slots=2), local_model(model.gguf), path)
    try:
        with pytest.raises(ModelError) as caught:
            backend.load()
    finally:
        backend.close()
    return str(caught.value)


def test_an_embedding_model_is_refused_by_its_header(tiny_model: TinyModel, tmp_path: Path) -> None:
    bert = bert_gguf(tmp_path / "minilm.gguf")
    assert refused(bert, tiny_model) == f"{bert} embeds or ranks texts and writes none. Choose a chat model."


@pytest.mark.parametrize("record", [POOLS, LOOKS_AHEAD], ids=["pools", "looks ahead"])
def test_a_decoder_made_to_embed_is_refused(record: bytes, tiny_model: TinyModel, tmp_path: Path) -> None:
    """Such a file has a cache like any chat model, and would write nonsense."""
    path = with_keys(tiny_model, tmp_path / "qwen-embedding.gguf", record)
    assert "embeds or ranks texts" in refused(path, tiny_model)


def test_a_chat_model_that_says_it_pools_nothing_is_taken(tiny_model: TinyModel, tmp_path: Path) -> None:
    path = with_keys(tiny_model, tmp_path / "chat.gguf", PLAIN)
    assert check_gguf(path).shapes == check_gguf(tiny_model.gguf).shapes


def test_llama_cpp_itself_gives_it_no_cache(tmp_path: Path) -> None:
    """The second line, for an architecture that the header check does not know."""
    model = NativeModel(bert_gguf(tmp_path / "minilm.gguf"), 0)
    try:
        with pytest.raises(ModelError, match="embeds texts and writes none"):
            NativeContext(model, Limits(context=64, threads=1, slots=2))
    finally:
        model.close()


def test_the_engine_says_so_before_it_starts(tmp_path: Path, tiny_model: TinyModel) -> None:
    path = with_keys(tiny_model, tmp_path / "embedder.gguf", POOLS)
    with pytest.raises(ModelError, match=r"embedder\.gguf embeds or ranks texts"):
        make_stage(Settings(data_dir=tmp_path, model=str(path), threads=1, context=512))
