from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest

from core.errors import ModelError
from core.gguf import UNSAFE_SUFFIXES, check_adapter_fits, check_gguf, template_digest
from tests.tiny import TinyModel
from tests.tiny import tiny_model as build


def test_a_model_and_an_adapter_are_read(tiny_model: TinyModel) -> None:
    info = check_gguf(tiny_model.gguf)
    assert (info.architecture, info.kind, info.context) == ("llama", "model", 2048)
    assert info.shapes["blk.0.attn_q.weight"] == (256, 256)
    assert "<|im_start|>" in info.template
    adapter = check_gguf(tiny_model.adapter() / "adapter.gguf", "adapter")
    check_adapter_fits(adapter, info)


def test_an_adapter_of_another_base_is_refused(tiny_model: TinyModel) -> None:
    other = build(512)
    with pytest.raises(ModelError, match="another size"):
        check_adapter_fits(
            check_gguf(other.adapter() / "adapter.gguf", "adapter"), check_gguf(tiny_model.gguf)
        )


def test_a_model_is_not_an_adapter(tiny_model: TinyModel) -> None:
    with pytest.raises(ModelError, match="holds a model"):
        check_gguf(tiny_model.gguf, "adapter")


def test_missing_empty_and_foreign_files_get_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="There is no file"):
        check_gguf(tmp_path / "none.gguf")
    for content, words in ((b"", "is empty"), (b"PK\x03\x04" * 20, "does not start with GGUF")):
        (tmp_path / "a.gguf").write_bytes(content)
        with pytest.raises(ModelError, match=words):
            check_gguf(tmp_path / "a.gguf")


@pytest.mark.parametrize("suffix", UNSAFE_SUFFIXES)
def test_pickles_are_refused_by_name(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(b"GGUF")
    with pytest.raises(ModelError, match="pickle"):
        check_gguf(path)


def test_every_truncation_is_refused(tiny_model: TinyModel, tmp_path: Path) -> None:
    data = tiny_model.gguf.read_bytes()
    cut = tmp_path / "cut.gguf"
    rng = random.Random(1)
    for length in [5, 23, 24, *(rng.randrange(25, len(data)) for _ in range(60)), len(data) - 1]:
        cut.write_bytes(data[:length])
        with pytest.raises(ModelError, match="not a usable GGUF file"):
            check_gguf(cut)


def header(tensors: int = 0, keys: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys)


def string(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def tensor(name: str, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    return string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


ARCHITECTURE = string("general.architecture") + struct.pack("<I", 8) + string("llama")
MALFORMED = {
    "its version is 1": header(version=1),
    "it claims": header(keys=2**63),
    "it claims 18446744073709551615 tensors": header(tensors=2**64 - 1),
    "has the unknown type 99": header(keys=1) + string("a") + struct.pack("<I", 99),
    "its header is truncated": header(keys=1) + struct.pack("<Q", 9) + b"abc",
    "it holds an item of": header(keys=1) + struct.pack("<Q", 2**63),
    "claims 9223372036854775808 items": header(keys=1) + string("a") + struct.pack("<IIQ", 9, 4, 2**63),
    "unsupported type 9": header(keys=1) + string("a") + struct.pack("<IIQ", 9, 9, 1),
    "wrong type 6": header(keys=1) + string("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 6, 0),
    "is not an array": header(keys=1) + string("tokenizer.ggml.scores") + struct.pack("<II", 4, 1),
    "occurs twice": header(keys=2) + ARCHITECTURE * 2,
    "has 9 dimensions": header(tensors=1) + tensor("t", (1,) * 9),
    "impossible shape": header(tensors=1) + tensor("t", (2**40, 2**40)),
    "the unknown type 77": header(tensors=1) + tensor("t", (32,), 77),
    "not aligned": header(tensors=1) + tensor("t", (32,), offset=7),
    "behind its end": header(tensors=1) + tensor("t", (32,), offset=2**62),
    "share bytes": header(tensors=2) + tensor("t", (32,)) + tensor("u", (32,)) + bytes(1000),
    "its alignment is 3": header(keys=1) + string("general.alignment") + struct.pack("<II", 4, 3),
}


@pytest.mark.parametrize("words", MALFORMED)
def test_malformed_headers_are_refused(words: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(MALFORMED[words])
    with pytest.raises(ModelError, match=words):
        check_gguf(path)


def test_random_damage_never_raises_anything_else(tiny_model: TinyModel, tmp_path: Path) -> None:
    data = bytearray(tiny_model.gguf.read_bytes()[:20_000])
    rng = random.Random(2)
    path = tmp_path / "damaged.gguf"
    for _ in range(500):
        damaged = bytearray(data)
        for _ in range(rng.randrange(1, 6)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        path.write_bytes(damaged)
        with pytest.raises(ModelError):  # the tensors are cut off, so nothing of this is usable
            check_gguf(path)


def test_template_digest_ignores_white_space() -> None:
    assert template_digest("{% a %}\n  b") == template_digest("{%a%}b")
    assert template_digest("a") != template_digest("b")
