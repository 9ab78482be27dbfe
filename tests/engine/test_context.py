"""The keys of the cache in 8 bits."""

from __future__ import annotations

from engine.context import NativeContext
from engine.native import Limits, NativeModel
from tests.tiny import TinyModel

WORDS = range(20, 84)


def saved(made: TinyModel, *, short_keys: bool) -> int:
    """Bytes of a sequence of 64 tokens."""
    model = NativeModel(made.gguf, 0)
    context = NativeContext(model, Limits(context=256, threads=1, short_keys=short_keys))
    assert context.decode([(token, at, 0, False) for at, token in enumerate(WORDS)])
    size = len(context.save(0))
    context.close()
    model.close()
    return size


def test_short_keys_take_about_half(tiny_model: TinyModel) -> None:
    long, short = (saved(tiny_model, short_keys=keys) for keys in (False, True))
    halves = 2 * 4 * 32 * 2 * len(WORDS)  # layers, heads, their size, bytes: of the keys, and of the values
    assert long - short == halves - halves * 17 // 32
