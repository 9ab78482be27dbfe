from __future__ import annotations

from pathlib import Path

import pytest

from core.adapters import CARD, AdapterRegistry
from core.errors import NotFoundError
from core.files import sha256_of, write_json
from core.settings import Settings
from engine.adapters import Stage
from engine.backend import Output
from engine.canary import CANARIES
from engine.runtime import LlamaBackend
from engine.trials import MAX_CRASHES, NOTE
from tests.engine.test_scheduler import Client
from tests.tiny import TinyModel, register_adapter
from tests.tiny import tiny_model as build


def say(stage: Stage) -> str:
    client = Client(stage.scheduler, "hello", 8)
    assert client.done.wait(60)
    return client.text


def test_promotions_and_rollbacks_are_followed(
    stage: Stage, registry: AdapterRegistry, tiny_model: TinyModel
) -> None:
    base = say(stage)
    said = {}
    for seed in (1, 2):
        adapter = register_adapter(registry, tiny_model, seed)
        promotion = registry.promote(adapter.id, "me", "test")
        stage.sync()
        assert (stage.live, stage.seq, stage.error) == (adapter.id, promotion.seq, "")
        said[seed] = say(stage)
    assert len({base, *said.values()}) == 3
    registry.rollback(tiny_model.id, "me", "worse")
    stage.sync()
    assert (stage.live, say(stage)) == ("tiny-adapter-1", said[1])
    registry.rollback(tiny_model.id, "me", "worse")
    stage.sync()
    assert (stage.live, say(stage)) == (None, base)
    with registry.database.read() as connection:
        rows = connection.execute("SELECT detail FROM audit WHERE action = 'adapter.live'").fetchall()
    assert len(rows) == 4


def test_an_unfit_adapter_keeps_the_old_one(
    stage: Stage, registry: AdapterRegistry, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = register_adapter(registry, tiny_model, 1)
    registry.promote(good.id, "me", "test")
    stage.sync()
    before = say(stage)
    # right card, right base hash, but weights made for a wider model
    wide = build(512)
    bad = register_adapter(registry, wide, 1, "wide")
    with registry.database.write() as connection:
        connection.execute(
            "UPDATE adapters SET base = ?, base_sha256 = ? WHERE id = ?",
            (good.base, good.base_sha256, bad.id),
        )
    registry.promote(bad.id, "me", "test")
    stage.sync()
    assert (stage.live, say(stage)) == (good.id, before)
    assert "another size" in stage.error
    # not tried again in a loop, only when asked or when the registry changes
    served = stage.scheduler.served
    loads: list[str] = []
    original = stage._backend.check_adapter

    def counted(adapter_id: str, path: Path) -> None:
        loads.append(adapter_id)
        original(adapter_id, path)

    monkeypatch.setattr(stage._backend, "check_adapter", counted)
    for _ in range(3):
        stage.sync()
    assert loads == []
    stage.sync(force=True)
    assert loads == ["wide"]
    registry.rollback(good.base, "me", "broken")
    stage.sync()
    assert (stage.live, stage.error, stage.scheduler.served) == (good.id, "", served)


def test_changed_bytes_are_noticed(stage: Stage, registry: AdapterRegistry, tiny_model: TinyModel) -> None:
    adapter = register_adapter(registry, tiny_model, 1)
    registry.promote(adapter.id, "me", "test")
    path = registry.path(adapter.id)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    stage.sync()
    assert stage.live is None
    assert "does not have the bytes" in stage.error


@pytest.mark.parametrize("when", ["check_adapter", "load_adapter"])
@pytest.mark.parametrize("how", ["renamed", "overwritten", "deleted"])
def test_the_bytes_that_were_hashed_are_the_bytes_that_are_loaded(
    stage: Stage,
    registry: AdapterRegistry,
    tiny_model: TinyModel,
    monkeypatch: pytest.MonkeyPatch,
    when: str,
    how: str,
) -> None:
    """Another adapter takes the file's place after the hash was checked, before llama.cpp opens it."""
    honest, other = (register_adapter(registry, tiny_model, seed) for seed in (1, 2))
    said = {}
    for adapter in (honest, other):
        registry.promote(adapter.id, "me", "test")
        stage.sync()
        said[adapter.id] = say(stage)
    assert said[honest.id] != said[other.id]
    stage.unload(honest.id)
    path, original = registry.path(honest.id), getattr(stage._backend, when)
    swapped = []

    def swap(adapter_id: str, given: Path) -> None:
        swapped.append(adapter_id)
        data = registry.path(other.id).read_bytes()
        if how == "renamed":
            (path.parent / "new").write_bytes(data)
            (path.parent / "new").replace(path)
        elif how == "overwritten":
            with path.open("r+b") as handle:
                handle.write(data)
        else:
            path.unlink()
        original(adapter_id, given)

    monkeypatch.setattr(stage._backend, when, swap)
    registry.promote(honest.id, "me", "test")
    stage.sync()
    assert swapped == [honest.id]
    assert (stage.live, stage.error, say(stage)) == (honest.id, "", said[honest.id])


def test_a_message_names_the_file_and_not_its_copy(
    stage: Stage, registry: AdapterRegistry, tiny_model: TinyModel
) -> None:
    adapter = register_adapter(registry, tiny_model, 1)
    path = registry.path(adapter.id)
    path.write_bytes(tiny_model.gguf.read_bytes())
    digest = sha256_of(path)
    write_json(path.parent / CARD, {"sha256": digest})
    with registry.database.write() as connection:
        connection.execute("UPDATE adapters SET sha256 = ?", (digest,))
    registry.promote(adapter.id, "me", "test")
    stage.sync()
    assert f"{path} holds a model, not a adapter" in stage.error
    assert "/proc/" not in stage.error


def test_an_adapter_of_another_file_of_the_base_is_refused(
    stage: Stage, registry: AdapterRegistry, tiny_model: TinyModel
) -> None:
    adapter = register_adapter(registry, tiny_model, 1)
    with registry.database.write() as connection:
        connection.execute("UPDATE adapters SET base_sha256 = 'other'")
    registry.promote(adapter.id, "me", "test")
    stage.sync()
    assert stage.live is None
    assert "another file" in stage.error


def test_adapters_of_other_bases_do_not_concern_us(stage: Stage, registry: AdapterRegistry) -> None:
    other = register_adapter(registry, build(512), 1)
    registry.promote(other.id, "me", "test")
    stage.sync()
    assert (stage.live, stage.error) == (None, "")
    with pytest.raises(NotFoundError, match="belongs to"):
        stage.ensure(other.id)


def test_candidates_are_loaded_by_name_and_few_are_kept(
    stage: Stage, registry: AdapterRegistry, tiny_model: TinyModel
) -> None:
    live = register_adapter(registry, tiny_model, 1, "live-one")
    registry.promote(live.id, "me", "test")
    stage.sync()
    for number in range(4):
        stage.ensure(register_adapter(registry, tiny_model, 2, f"candidate-{number}").id)
    assert stage.loaded == ["live-one", "candidate-2", "candidate-3"]
    assert len(stage.loaded) == 1 + Settings().adapters_aside
    assert stage.adapter_of("candidate-3") == "candidate-3"
    assert (stage.adapter_of("live"), stage.adapter_of("base")) == ("live-one", None)
    with pytest.raises(NotFoundError):
        stage.ensure("nobody")


def test_a_self_test_asks_one_question_at_a_time(
    stage: Stage, registry: AdapterRegistry, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = stage._backend
    assert isinstance(backend, LlamaBackend)
    original, asked = backend.step, set()

    def step() -> list[Output]:
        (running,) = backend._running
        asked.add(running.work)
        return original()

    monkeypatch.setattr(backend, "step", step)
    stage.ensure(register_adapter(registry, tiny_model, 1).id)
    assert len(asked) == len(CANARIES)


def test_an_adapter_that_crashed_the_engine_is_not_tried_for_ever(
    stage: Stage, registry: AdapterRegistry, tiny_model: TinyModel, tmp_path: Path
) -> None:
    adapter = register_adapter(registry, tiny_model, 1)
    write_json(tmp_path / NOTE, {adapter.sha256: MAX_CRASHES})
    registry.promote(adapter.id, "me", "test")
    stage.sync()
    assert stage.live is None
    assert "crashed the engine" in stage.error
    write_json(tmp_path / NOTE, {adapter.sha256: MAX_CRASHES - 1})
    stage.sync(force=True)
    assert stage.live == adapter.id


def test_thirty_swaps_follow_the_registry(
    stage: Stage, registry: AdapterRegistry, tiny_model: TinyModel
) -> None:
    said: dict[str | None, str] = {}
    for seed in (1, 2, 3):
        register_adapter(registry, tiny_model, seed)
    for number in range(30):
        wanted = f"tiny-adapter-{number % 3 + 1}"
        registry.promote(wanted, "me", "test")
        stage.sync()
        assert stage.live == wanted
        assert said.setdefault(wanted, say(stage)) == say(stage)
    assert len(set(said.values())) == 3
    assert len(stage.loaded) <= 1 + Settings().adapters_aside
