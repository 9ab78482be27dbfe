"""Only plain, undamaged LoRA for the right base is exported, and never by half (row S07)."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import finetune.export
from core.adapters import CARD, GGUF, AdapterRegistry
from core.db import Database
from core.errors import ModelError, StorageError
from core.files import read_json, sha256_of, write_json
from finetune.export import CONFIG, WEIGHTS, Lineage, base_shapes, check_adapter, export, read_shapes
from tests.tiny import TinyModel
from tests.tiny import tiny_model as build

Arrays = dict[str, np.ndarray[Any, Any]]
FIRST = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.fixture
def trained(tiny_model: TinyModel, tmp_path: Path) -> Path:
    """A PEFT folder as training leaves it."""
    folder = tmp_path / "trained"
    folder.mkdir()
    for name in (CONFIG, WEIGHTS):
        shutil.copyfile(tiny_model.adapter() / name, folder / name)
    return folder


def lineage(base: str = "tiny-256") -> Lineage:
    return Lineage(
        "run1", "v1", None, base, "0" * 64, "MIT", [{"method": "sft"}, {"method": "dpo"}], 1, "20260102"
    )


def test_export_makes_a_complete_adapter(tiny_model: TinyModel, trained: Path, tmp_path: Path) -> None:
    adapters = tmp_path / "adapters"
    (adapters / "dead.partial").mkdir(parents=True)
    elsewhere = {"base_model_name_or_path": "http://example.invalid/model"}
    write_json(trained / CONFIG, read_json(trained / CONFIG) | elsewhere)
    made = export(trained, tiny_model.folder, adapters, lineage())
    folder = adapters / made.id
    assert made.id.startswith("tiny-256-20260102-")
    assert (made.method, made.verdict, made.dataset_version) == ("sft+dpo", "unjudged", "v1")
    card = read_json(folder / CARD)
    assert card["sha256"] == made.sha256 == sha256_of(folder / GGUF)
    assert card["files"] == {name: sha256_of(folder / name) for name in (GGUF, WEIGHTS, CONFIG)}
    assert card["licence"] == "MIT"
    assert read_json(folder / CONFIG)["base_model_name_or_path"] == "tiny-256"
    assert [path.name for path in adapters.iterdir()] == [made.id]
    AdapterRegistry(Database(tmp_path / "db"), adapters).register(made)
    # again, as after a kill before the run wrote its card: the same adapter, not built anew
    before = (folder / GGUF).stat().st_mtime_ns
    assert export(trained, tiny_model.folder, adapters, lineage()) == made
    assert (folder / GGUF).stat().st_mtime_ns == before


def test_a_full_disk_leaves_nothing(
    tiny_model: TinyModel, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapters = tmp_path / "adapters"

    def full(*_: object) -> None:
        raise ModelError("finetune.converter failed: OSError: [Errno 28] No space left on device")

    monkeypatch.setattr(finetune.export, "lora_to_gguf", full)
    with pytest.raises(StorageError, match=r"Could not write the adapter to .*Free some space"):
        export(trained, tiny_model.folder, adapters, lineage())
    assert list(adapters.iterdir()) == []


def test_too_little_space_is_noticed_before(
    tiny_model: TinyModel, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finetune.export, "SPARE", 10**18)
    with pytest.raises(StorageError, match="Not enough disk space"):
        export(trained, tiny_model.folder, tmp_path / "adapters", lineage())
    assert not (tmp_path / "adapters").exists() or list((tmp_path / "adapters").iterdir()) == []


SETTINGS = {
    "use_rslora": True, "alpha_pattern": {"q_proj": 4}, "use_dora": True, "modules_to_save": ["lm_head"],
    "auto_mapping": {"x": "y"}, "bias": "all", "init_lora_weights": "pissa", "layer_replication": [[0, 1]],
    "peft_type": "IA3", "lora_bias": True, "rank_pattern": {"q_proj": 2}, "r": "8",
    "lora_alpha": float("nan"),
}  # fmt: skip


@pytest.mark.parametrize("key", SETTINGS)
def test_what_a_lora_gguf_cannot_express_is_refused(tiny_model: TinyModel, trained: Path, key: str) -> None:
    write_json(trained / CONFIG, read_json(trained / CONFIG) | {key: SETTINGS[key]})
    with pytest.raises(ModelError, match=key if key not in ("peft_type", "r") else "LoRA|rank"):
        check_adapter(trained, tiny_model.folder)


def _changed(change: Callable[[Arrays], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        from safetensors.numpy import load_file, save_file

        tensors = load_file(folder / WEIGHTS)
        change(tensors)
        save_file(tensors, folder / WEIGHTS)

    return apply


def _header(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        data = (folder / WEIGHTS).read_bytes()
        length = struct.unpack("<Q", data[:8])[0]
        header = json.loads(data[8 : 8 + length])
        change(header)
        text = json.dumps(header).encode()
        (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])

    return apply


def _twice(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = data[8 : 8 + length].decode().rstrip()
    entry = json.dumps({FIRST: json.loads(header)[FIRST]})[1:-1]
    text = (header[:-1] + "," + entry + "}").encode()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def _write(name: str, data: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(data)


def _zero(tensors: Arrays) -> None:
    for name in tensors:
        if "lora_B" in name:
            tensors[name].fill(0)


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "NaN": (_changed(lambda t: t[FIRST].__setitem__((0, 0), np.nan)), f"{FIRST} holds nan"),
    "infinite": (_changed(lambda t: t[FIRST].__setitem__((0, 0), np.inf)), f"{FIRST} holds inf"),
    "huge": (_changed(lambda t: t[FIRST].__setitem__((0, 0), 1e9)), f"{FIRST} holds"),
    "zero": (_changed(_zero), "changes nothing"),
    "wrong rank": (_changed(lambda t: t.update({FIRST: t[FIRST][:2].copy()})), f"{FIRST} has shape"),
    "half a pair": (_changed(lambda t: t.pop(FIRST)), "lacks its counterpart"),
    "foreign layer": (
        _changed(lambda t: t.update({"model.x.lora_A.weight": t[FIRST]})),
        "belongs to no layer",
    ),
    "no tensors": (_changed(lambda t: t.clear()), "no tensors"),
    "past the end": (_header(lambda h: h[FIRST].update(data_offsets=[0, 10**9])), f"{FIRST} has type"),
    "lying shape": (_header(lambda h: h[FIRST].update(shape=[4, 9999])), f"{FIRST} has type"),
    "unknown type": (_header(lambda h: h[FIRST].update(dtype="I64")), f"{FIRST} has type I64"),
    "twice": (_twice, f"{FIRST} is there twice"),
    "header of 2^63": (_write(WEIGHTS, struct.pack("<Q", 2**63) + b"{}"), "not a safetensors file"),
    "a zip": (_write(WEIGHTS, b"PK\x03\x04" + bytes(100)), "not a safetensors file"),
    "empty": (_write(WEIGHTS, b""), "not a safetensors file"),
    "pickle": (_write("adapter_model.bin", b"\x80\x04."), "adapter_model.bin may run code"),
    "no config": (lambda folder: (folder / CONFIG).unlink(), CONFIG),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_adapters_are_refused_by_name(
    tiny_model: TinyModel, trained: Path, tmp_path: Path, name: str
) -> None:
    spoil, named = BAD[name]
    spoil(trained)
    with pytest.raises(ModelError, match=named.replace(".", r"\.")):
        export(trained, tiny_model.folder, tmp_path / "adapters", lineage())
    assert not (tmp_path / "adapters").exists()


def test_an_adapter_of_another_base_is_refused(trained: Path) -> None:
    other = build(hidden=128)
    with pytest.raises(ModelError, match="made for another base model"):
        check_adapter(trained, other.folder)


def test_base_shapes_are_the_models(tiny_model: TinyModel) -> None:
    shapes = base_shapes(tiny_model.folder)
    assert shapes["model.layers.0.self_attn.k_proj.weight"] == (128, 256)
    assert read_shapes(tiny_model.adapter() / WEIGHTS)[FIRST] == (4, 256)
