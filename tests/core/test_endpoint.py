"""The model's record when another server has the model."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.catalog import CATALOG, DEFAULT_CONTEXT
from core.endpoint import record
from core.errors import ModelError
from core.settings import Settings


def test_with_an_endpoint_no_file_is_needed(tmp_path: Path) -> None:
    there = Settings(data_dir=tmp_path, endpoint="http://gpu-box:8000", model="qwen3-0.6b")
    assert record(there) == (CATALOG["qwen3-0.6b"], None)
    with pytest.raises(ModelError, match="not installed"):
        record(Settings(data_dir=tmp_path, model="qwen3-0.6b"))


def test_any_name_will_do_with_an_endpoint(tmp_path: Path) -> None:
    model, path = record(Settings(data_dir=tmp_path, endpoint="http://gpu-box:8000", model="house-model"))
    assert (model.id, model.context, path) == ("house-model", DEFAULT_CONTEXT, None)
    longer = Settings(data_dir=tmp_path, endpoint="http://gpu-box:8000", model="house-model", context=32_000)
    assert record(longer)[0].context == 32_000
    with pytest.raises(ModelError, match="No model is called"):
        record(Settings(data_dir=tmp_path, model="house-model"))


def test_the_file_that_is_here_is_used(tmp_path: Path) -> None:
    model, path = record(Settings(data_dir=tmp_path, endpoint="http://gpu-box:8000"))
    assert model == CATALOG["builtin"]
    assert path is not None
    assert path.is_file()
