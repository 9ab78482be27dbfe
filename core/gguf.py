"""Reading a GGUF header in pure Python, so that no native code ever sees a malformed file.

llama.cpp's loader had heap overflows from counts, offsets and array types it believed (CVE-2024-21802,
CVE-2024-23605, CVE-2025-53630 and others). Here every count and size is checked against the file before it is
used: header, metadata, tensor table, and that each tensor's bytes lie inside the file.
Layout: the GGUF specification of ggml (`docs/gguf.md`).
"""

from __future__ import annotations

import hashlib
import math
import mmap
import struct
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from core.errors import ModelError

MAX_KEYS = 10_000
MAX_TENSORS = 100_000
MAX_KEY_BYTES = 65_535
MAX_STRING_BYTES = 1 << 20
MAX_ARRAY = 4_000_000  # the largest vocabularies have about 300,000 tokens
MAX_DIMENSIONS = 4
UNSAFE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".npy", ".npz", ".joblib")

_SCALARS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d",
}  # fmt: skip
_STRING, _ARRAY = 8, 9
# what llama.cpp takes without looking: a wrong element type here was a type confusion
_ARRAY_TYPES = {
    "tokenizer.ggml.tokens": (_STRING,),
    "tokenizer.ggml.merges": (_STRING,),
    "tokenizer.ggml.scores": (6,),
    "tokenizer.ggml.token_type": (4, 5),
}
# what llama.cpp asserts instead of refusing, by key without the architecture: the process would abort
_MODEL_RANGES = {
    "block_count": (1, 512),
    "context_length": (1, 1 << 24),
    "embedding_length": (1, 1 << 17),
    "attention.head_count": (1, 1024),
    "attention.head_count_kv": (1, 1024),
    "attention.key_length": (1, 4096),
    "attention.value_length": (1, 4096),
    "rope.dimension_count": (2, 4096),
}
_EPSILONS = ("layer_norm_rms_epsilon", "layer_norm_epsilon", "group_norm_epsilon")
# ggml type -> (values in a block, bytes of a block)
_BLOCKS = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 9: (32, 36),
    10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292),
    16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110), 22: (256, 82),
    23: (256, 136), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8), 28: (1, 8), 29: (256, 56), 30: (1, 2),
    34: (256, 54), 35: (256, 66), 39: (32, 17), 40: (64, 36),
}  # fmt: skip


@dataclass(frozen=True)
class GgufInfo:
    """What a checked header says. `shapes` maps tensor names to dimensions, fastest varying first.

    `weight_bytes` is what all tensors take in the file.
    """

    path: Path
    metadata: dict[str, Any] = field(repr=False)
    shapes: dict[str, tuple[int, ...]] = field(repr=False)
    weight_bytes: int

    @property
    def architecture(self) -> str:
        """For example `llama` or `qwen3`."""
        return str(self.metadata.get("general.architecture", ""))

    @property
    def kind(self) -> str:
        """`model` or `adapter`."""
        return str(self.metadata.get("general.type", "model"))

    @property
    def name(self) -> str:
        """The display name, empty when it has none."""
        return str(self.metadata.get("general.name", ""))

    @property
    def context(self) -> int:
        """Tokens of context the model was trained with; 0 when unknown."""
        return int(self.metadata.get(f"{self.architecture}.context_length", 0))

    @property
    def parameters(self) -> int:
        """The number of weights."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    @property
    def quantised(self) -> bool:
        """Whether most weights take fewer than 16 bits."""
        return self.weight_bytes < 1.5 * self.parameters

    @property
    def template(self) -> str:
        """The embedded chat template: shown and compared, never executed."""
        return str(self.metadata.get("tokenizer.chat_template", ""))


def check_gguf(path: Path, kind: str = "model") -> GgufInfo:
    """Read and check a GGUF file's header.

    Raises ModelError with one sentence when the file is missing, of a pickle format, truncated, malformed,
    not of this `kind` (`model` or `adapter`), or of a model that embeds texts and writes none.
    """
    refuse_pickle(path)
    if not path.is_file():
        raise ModelError(f"There is no file {path}.", "Check the path, or run `understudy models list`.")
    with path.open("rb") as handle:
        try:
            data = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:
            raise ModelError(f"{path} is empty.", "Download or export it again.") from None
        with data:
            try:
                info = _Reader(data).read(path)
            except _Malformed as error:
                raise ModelError(
                    f"{path} is not a usable GGUF file: {error}.", "Download or export it again."
                ) from None
    if info.kind != kind:
        raise ModelError(f"{path} holds a {info.kind}, not a {kind}.", f"Give the GGUF of a {kind}.")
    if not info.architecture or not info.shapes:
        raise ModelError(f"{path} names no architecture or has no tensors.", "Download or export it again.")
    if kind == "model":
        _check_dimensions(info)
        _check_writes_text(info)
    return info


def _check_dimensions(info: GgufInfo) -> None:
    """Raise ModelError for dimensions that llama.cpp would believe, or end the process over."""
    for name, (low, high) in _MODEL_RANGES.items():
        value = info.metadata.get(f"{info.architecture}.{name}", low)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ModelError(
                f"{info.path} is not a usable GGUF file: its {name} is {value!r:.40}.",
                "Download or export it again.",
            )
    for name in _EPSILONS:
        value = info.metadata.get(f"{info.architecture}.attention.{name}", 0.0)
        if not isinstance(value, float) or not 0 <= value <= 1:  # also refuses NaN
            raise ModelError(
                f"{info.path} is not a usable GGUF file: its {name} is {value!r:.40}.",
                "Download or export it again.",
            )


def _check_writes_text(info: GgufInfo) -> None:
    """Raise ModelError for an embedding or ranking model: it pools its tokens or looks at later ones, too."""
    pools = info.metadata.get(f"{info.architecture}.pooling_type", 0) != 0
    causal = info.metadata.get(f"{info.architecture}.attention.causal", True) is True
    if pools or not causal or "bert" in info.architecture:
        raise ModelError(f"{info.path} embeds or ranks texts and writes none.", "Choose a chat model.")


def refuse_pickle(path: Path) -> None:
    """Raise ModelError for a file that can only be read by unpickling, which runs code."""
    if path.suffix.lower() in UNSAFE_SUFFIXES:
        raise ModelError(
            f"{path.name} may hold a pickle, and loading one runs code.", "Use safetensors or GGUF files."
        )


def check_adapter_fits(adapter: GgufInfo, base: GgufInfo) -> None:
    """Raise ModelError unless every LoRA pair of `adapter` fits a tensor of `base`.

    A pair is A of shape (columns, rank) and B of shape (rank, rows) for a base tensor (columns, rows).
    """
    hint = "Train it again on this base model."
    if adapter.architecture != base.architecture:
        raise ModelError(
            f"The adapter is for {adapter.architecture} and the base model is {base.architecture}.", hint
        )
    for name, shape in adapter.shapes.items():
        target, _, part = name.rpartition(".")
        if part not in ("lora_a", "lora_b") or target not in base.shapes:
            raise ModelError(f"The adapter's tensor {name[:80]!r} has no counterpart in the base.", hint)
        other = adapter.shapes.get(f"{target}.{'lora_b' if part == 'lora_a' else 'lora_a'}")
        if other is None or len(shape) != 2 or len(other) != 2:
            raise ModelError(f"The adapter's tensor {name[:80]!r} is half of a pair.", hint)
        first, second = (shape, other) if part == "lora_a" else (other, shape)
        fits = first[1] == second[0] and (first[0], second[1]) == base.shapes[target][:2]
        # llama.cpp looks up rows of an embedding's A, so that pair is stored the other way round
        turned = target == "token_embd.weight" and (second[1], first[1]) == base.shapes[target][:2]
        if not fits and not turned:
            raise ModelError(f"The adapter's tensor {name[:80]!r} has another size than the base.", hint)


def template_digest(template: str) -> str:
    """SHA-256 of a template without its white space, so that harmless reformatting compares equal."""
    return hashlib.sha256("".join(template.split()).encode("utf-8")).hexdigest()


class _Malformed(Exception):
    """Says in half a sentence what is wrong; never leaves this file."""


class _Reader:
    """A cursor over the mapped file; every step checks that the bytes exist."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.size = len(data)
        self.at = 0

    def read(self, path: Path) -> GgufInfo:
        if self.data[:4] != b"GGUF":
            raise _Malformed("it does not start with GGUF")
        self.at = 4
        version = self.scalar("<I")
        if version not in (2, 3):
            raise _Malformed(f"its version is {version}, and 2 or 3 is needed")
        tensors, keys = self.scalar("<Q"), self.scalar("<Q")
        if tensors > MAX_TENSORS or keys > MAX_KEYS:
            raise _Malformed(f"it claims {tensors} tensors and {keys} keys")
        metadata = self.metadata(keys)
        return GgufInfo(path, metadata, *self.tensors(tensors, self.alignment(metadata)))

    def metadata(self, count: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for _ in range(count):
            key = self.string(MAX_KEY_BYTES)
            if key in found:
                raise _Malformed(f"the key {key[:80]!r} occurs twice")
            found[key] = self.value(key)
        tokens = found.get("tokenizer.ggml.tokens")
        for key in ("tokenizer.ggml.scores", "tokenizer.ggml.token_type"):
            if key in found and found[key] != tokens:
                raise _Malformed(f"{key} has another length than the vocabulary")
        return found

    def value(self, key: str) -> Any:
        """A scalar or string; of an array only its length."""
        kind = self.scalar("<I")
        if key in _ARRAY_TYPES and kind != _ARRAY:
            raise _Malformed(f"{key} is not an array")
        if kind == _STRING:
            return self.string(MAX_STRING_BYTES)
        if kind == _ARRAY:
            return self.array(key)
        if kind not in _SCALARS:
            raise _Malformed(f"{key[:80]!r} has the unknown type {kind}")
        return self.scalar(_SCALARS[kind])

    def array(self, key: str) -> int:
        kind, count = self.scalar("<I"), self.scalar("<Q")
        if count > MAX_ARRAY:
            raise _Malformed(f"{key[:80]!r} claims {count} items")
        if kind not in _ARRAY_TYPES.get(key, (kind,)):
            raise _Malformed(f"{key} holds items of the wrong type {kind}")
        if kind == _STRING:
            for _ in range(count):
                self.skip(self.scalar("<Q"), MAX_STRING_BYTES)
        elif kind in _SCALARS:
            self.skip(count * struct.calcsize(_SCALARS[kind]), self.size)
        else:
            raise _Malformed(f"{key[:80]!r} is an array of the unsupported type {kind}")
        return int(count)

    def alignment(self, metadata: dict[str, Any]) -> int:
        value = metadata.get("general.alignment", 32)
        if not isinstance(value, int) or not 8 <= value <= 65_536 or value & (value - 1):
            raise _Malformed(f"its alignment is {value!r}")
        return value

    def tensors(self, count: int, alignment: int) -> tuple[dict[str, tuple[int, ...]], int]:
        """The shapes by name, and the bytes of all."""
        shapes: dict[str, tuple[int, ...]] = {}
        extents: list[tuple[int, int]] = []
        for _ in range(count):
            name = self.string(MAX_KEY_BYTES)
            if name in shapes:
                raise _Malformed(f"the tensor {name[:80]!r} occurs twice")
            dimensions = self.scalar("<I")
            if not 1 <= dimensions <= MAX_DIMENSIONS:
                raise _Malformed(f"the tensor {name[:80]!r} has {dimensions} dimensions")
            shape = tuple(self.scalar("<Q") for _ in range(dimensions))
            kind, offset = self.scalar("<I"), self.scalar("<Q")
            if offset % alignment:
                raise _Malformed(f"the tensor {name[:80]!r} is not aligned")
            shapes[name] = shape
            extents.append((offset, _bytes(name, shape, kind)))
        start = -(-self.at // alignment) * alignment
        if any(start + offset + size > self.size for offset, size in extents):
            raise _Malformed("it is truncated: a tensor lies behind its end")
        ordered = sorted(extents)
        if any(low + size > high for (low, size), (high, _) in pairwise(ordered)):
            raise _Malformed("two tensors share bytes")
        return shapes, sum(size for _, size in extents)

    def scalar(self, layout: str) -> Any:
        width = struct.calcsize(layout)
        if self.at + width > self.size:
            raise _Malformed("its header is truncated")
        (value,) = struct.unpack_from(layout, self.data, self.at)
        self.at += width
        return value

    def skip(self, length: int, limit: int) -> None:
        if length > limit:
            raise _Malformed(f"it holds an item of {length} bytes")
        if self.at + length > self.size:
            raise _Malformed("its header is truncated")
        self.at += length

    def string(self, limit: int) -> str:
        length = self.scalar("<Q")
        self.skip(length, limit)
        return self.data[self.at - length : self.at].decode("utf-8", "replace")


def _bytes(name: str, shape: tuple[int, ...], kind: int) -> int:
    if kind not in _BLOCKS:
        raise _Malformed(f"the tensor {name[:80]!r} has the unknown type {kind}")
    block, width = _BLOCKS[kind]
    values = math.prod(shape)
    if not 0 < values < 1 << 48 or shape[0] % block:
        raise _Malformed(f"the tensor {name[:80]!r} has the impossible shape {shape}")
    return values // block * width
