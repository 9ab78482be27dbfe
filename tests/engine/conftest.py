from __future__ import annotations

from collections.abc import Iterator

import pytest

from core.catalog import local_model
from engine.runtime import LlamaBackend
from tests.engine.replies import SETTINGS, load
from tests.tiny import TinyModel


@pytest.fixture(scope="module")
def backend(tiny_model: TinyModel) -> Iterator[LlamaBackend]:
    made = LlamaBackend(SETTINGS, local_model(tiny_model.gguf), tiny_model.gguf)
    made.load()
    for seed in (1, 2):
        load(made, f"a{seed}", tiny_model.adapter(seed) / "adapter.gguf")
    yield made
    made.close()
