from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.adapters import AdapterRegistry
from core.catalog import local_model
from core.db import Database
from core.settings import Settings
from engine.adapters import Stage
from engine.runtime import LlamaBackend
from engine.server import make_stage
from tests.engine.facades import LINES, two_adapters
from tests.engine.replies import SETTINGS, load
from tests.engine.serving import Engine, engine
from tests.engine.test_scheduler import until
from tests.tiny import TinyModel


@pytest.fixture(scope="module")
def backend(tiny_model: TinyModel) -> Iterator[LlamaBackend]:
    made = LlamaBackend(SETTINGS, local_model(tiny_model.gguf), tiny_model.gguf)
    made.load()
    for seed in (1, 2):
        load(made, f"a{seed}", tiny_model.adapter(seed) / "adapter.gguf")
    yield made
    made.close()


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[AdapterRegistry]:
    database = Database(tmp_path / "understudy.db")
    yield AdapterRegistry(database, tmp_path / "adapters")
    database.close()


@pytest.fixture
def stage(request: pytest.FixtureRequest, tmp_path: Path, tiny_model: TinyModel) -> Iterator[Stage]:
    """A stage of its own over the tiny model, following the registry when told; its parameter sets more."""
    more = getattr(request, "param", {})
    made = make_stage(Settings(data_dir=tmp_path, model=str(tiny_model.gguf), threads=1, context=512, **more))
    made.scheduler.start()
    until(lambda: made.scheduler.state != "loading", 60)
    assert made.scheduler.state == "ready", made.scheduler.reason
    yield made
    made.close()
    assert made.scheduler.join(5)


@pytest.fixture
def writer(tiny_model: TinyModel, tmp_path: Path) -> Iterator[Engine]:
    """The scripted engine behind a facade: it knows both adapters by name."""
    folder = tmp_path / "writer"
    with two_adapters(tiny_model, folder):
        (folder / "script.json").write_text(json.dumps(LINES))
        with engine(folder, str(tiny_model.gguf), "--scripted", str(folder / "script.json")) as running:
            yield running
