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
_F16 = 2  # bytes


def limits_of(settings: Settings, model: CatalogModel, info: GgufInfo | None) -> Limits:
    """The limits for a model; before its header is known (`info` None) with one slot."""
    context = settings.context or model.context
    slots = settings.slots or (1 if info is None else _slots(info, context))
    return Limits(context, settings.threads or _threads(model), settings.gpu_layers, slots)


def cache_bytes(info: GgufInfo) -> int:
    """Bytes of keys and values of one token, 16 bits each; 0 when the header does not say."""

    def number(name: str) -> int:
        value = info.metadata.get(f"{info.architecture}.{name}", 0)
        return value if isinstance(value, int) else 0

    heads, hidden = number("attention.head_count"), number("embedding_length")
    size = hidden // heads if heads else 0
    keys, values = number("attention.key_length") or size, number("attention.value_length") or size
    return number("block_count") * (number("attention.head_count_kv") or heads) * (keys + values) * _F16


def _slots(info: GgufInfo, context: int) -> int:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    each = max(1, cache_bytes(info) * context)
    return max(1, min(MOST_SLOTS, memory // CACHE_SHARE // each))


def _threads(model: CatalogModel) -> int:
    """Every core, but one for a tiny model, whose threads would wait for each other more than they work."""
    if model.parameters < TINY_BILLIONS:
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
