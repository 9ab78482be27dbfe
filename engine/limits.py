"""How many replies at once, how much context and how many threads: from the settings, or from the machine."""

from __future__ import annotations

import os

from core.catalog import CatalogModel
from core.gguf import GgufInfo
from core.settings import Settings
from engine.native import Limits

TINY_BILLIONS = 0.05
MOST_SLOTS = 8
CACHE_SHARE = 8  # the cache of all slots takes at most one part in eight of the memory, unless slots is set
_F16, _Q8_0 = 2, 34 / 32  # bytes of a value; Q8_0 has a scale of 16 bits for 32 values


def limits_of(settings: Settings, model: CatalogModel, info: GgufInfo | None) -> Limits:
    """The limits for a model; before its header is known (`info` None) with one slot."""
    context = settings.context or model.context
    slots = settings.slots or (1 if info is None else _slots(info, context))
    threads = settings.threads or _threads(model)
    return Limits(context, threads, settings.gpu_layers, slots, info is not None and short_keys(info))


def short_keys(info: GgufInfo) -> bool:
    """Whether a CPU keeps the cache's keys in 8 bits (Q8_0): where the weights are no finer.

    Eight replies of 1,000 tokens each are decoded 1.2 times as fast, since keys and values are read anew for
    each token. It changes a model's numbers no more than other kernels for the same weights do: SmolLM2-135M
    (Q4_1) by 0.0044 and 0.0039 nats a token, see docs/log.md. Heads must fill whole blocks, which llama.cpp
    does not check.
    """
    keys, _ = _head_sizes(info)
    return info.quantised and keys > 0 and keys % 32 == 0


def cache_bytes(info: GgufInfo) -> int:
    """Bytes of keys and values of one token on a CPU; 0 when the header does not say."""
    keys, values = _head_sizes(info)
    heads = _number(info, "attention.head_count_kv") or _number(info, "attention.head_count")
    each = keys * (_Q8_0 if short_keys(info) else _F16) + values * _F16
    return int(_number(info, "block_count") * heads * each)


def _head_sizes(info: GgufInfo) -> tuple[int, int]:
    """How many numbers a head's key and value have."""
    heads, hidden = _number(info, "attention.head_count"), _number(info, "embedding_length")
    size = hidden // heads if heads else 0
    return _number(info, "attention.key_length") or size, _number(info, "attention.value_length") or size


def _number(info: GgufInfo, name: str) -> int:
    value = info.metadata.get(f"{info.architecture}.{name}", 0)
    return value if isinstance(value, int) else 0


def _slots(info: GgufInfo, context: int) -> int:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    each = max(1, cache_bytes(info) * context)
    return max(1, min(MOST_SLOTS, memory // CACHE_SHARE // each))


def _threads(model: CatalogModel) -> int:
    """Every core, but one for a tiny model, whose threads would wait for each other more than they work."""
    if model.parameters < TINY_BILLIONS:
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
