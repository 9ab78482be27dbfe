"""Fixtures every package's tests share."""

from __future__ import annotations

import pytest

from core.settings import quiet_environment
from tests.tiny import TinyModel
from tests.tiny import tiny_model as build

quiet_environment()


@pytest.fixture(scope="session")
def tiny_model() -> TinyModel:
    """A random two-layer Llama as Hugging Face folder and GGUF (see tests/tiny.py)."""
    return build()
