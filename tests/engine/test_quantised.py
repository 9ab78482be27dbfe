"""Quantised weights take other kernels than F16, and on processors with AMX some of them crash."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from pathlib import Path

import pytest

from core.settings import Settings
from core.types import Message
from rag.model import engine_client
from tests.tiny import TinyModel

PROMPT: list[Message] = [{"role": "user", "content": "What is the notice period of the members? " * 8}]


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_K_M", "Q4_0"])
def test_a_quantised_model_answers(tiny_model: TinyModel, tmp_path: Path, kind: str) -> None:
    """In a process of its own, since a crash in native code would take this one along."""
    gguf = tmp_path / f"tiny-{kind}.gguf"
    quantise(tiny_model.gguf, gguf, kind)
    assert gguf.stat().st_size < tiny_model.gguf.stat().st_size
    settings = replace(Settings(), data_dir=tmp_path / "data", model=str(gguf), engine_port=0, context=512)
    with engine_client(settings) as client:
        reply = client.generate(PROMPT, "base", max_tokens=12, temperature=0.0)
    assert reply.completion_tokens > 0


def quantise(source: Path, target: Path, kind: str) -> None:
    """As llama.cpp's own tool does."""
    from llama_cpp import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.nthread, params.ftype = 1, getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    done = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params))
    assert done == 0
