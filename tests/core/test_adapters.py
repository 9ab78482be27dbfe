"""The registry: complete adapters only, one on stage, and a way back."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.adapters import CARD, GGUF, Adapter, AdapterRegistry
from core.db import Database, now_ms
from core.errors import ConflictError, ModelError, NotFoundError, StorageError
from core.files import sha256_of, write_json


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[AdapterRegistry]:
    database = Database(tmp_path / "d.db")
    yield AdapterRegistry(database, tmp_path / "adapters")
    database.close()


def made(registry: AdapterRegistry, name: str, verdict: str = "passed", base: str = "builtin") -> Adapter:
    """An adapter with its files, not yet registered."""
    path = registry.folder / name / GGUF
    path.parent.mkdir(parents=True)
    path.write_bytes(b"GGUF" + name.encode())
    write_json(path.parent / CARD, {"sha256": sha256_of(path)})
    return Adapter(
        name, base, "0" * 64, sha256_of(path), None, None, None, "sft", verdict, {"score": 0.5}, now_ms()
    )


def register(registry: AdapterRegistry, *names: str) -> None:
    for name in names:
        registry.register(made(registry, name))


def stage(registry: AdapterRegistry) -> str | None:
    entry = registry.on_stage("builtin")
    return entry.adapter_id if entry else None


def test_what_is_registered_comes_back(registry: AdapterRegistry) -> None:
    adapter = made(registry, "a1")
    registry.register(adapter)
    registry.register(adapter)
    assert registry.get("a1") == adapter
    assert registry.all() == registry.all("builtin") == [adapter]
    assert registry.all("other") == []
    with pytest.raises(NotFoundError):
        registry.get("a2")


def test_an_incomplete_or_changed_adapter_is_not_registered(registry: AdapterRegistry) -> None:
    """T02, R13: the card is written last, and the bytes must be the card's."""
    adapter = made(registry, "a1")
    (registry.folder / "a1" / CARD).unlink()
    with pytest.raises(ModelError, match="incomplete"):
        registry.register(adapter)
    write_json(registry.folder / "a1" / CARD, {"sha256": "0" * 64})
    with pytest.raises(ModelError, match="bytes"):
        registry.register(adapter)
    assert registry.all() == []


def test_names_cannot_leave_the_folder(registry: AdapterRegistry) -> None:
    for name in ("../d.db", "/etc", "..", ".", "a\0b"):
        with pytest.raises(StorageError):
            registry.path(name)


def test_promotions_and_rollbacks_are_a_stack(registry: AdapterRegistry) -> None:
    register(registry, "a1", "a2", "a3")
    assert registry.on_stage("builtin") is None
    seen = []
    for step in ("a1", "a2", "back", "a3", "back", "back"):
        if step == "back":
            registry.rollback("builtin", "ann", "worse")
        else:
            registry.promote(step, "ann", "better")
        seen.append(stage(registry))
    assert seen == ["a1", "a2", "a1", "a3", "a1", None]
    with pytest.raises(ConflictError, match="bare base"):
        registry.rollback("builtin", "ann", "again")
    assert len(registry.history("builtin")) == 6
    with registry.database.read() as connection:
        actions = [row["action"] for row in connection.execute("SELECT action FROM audit ORDER BY seq")]
    assert actions.count("adapter.promote") == 3
    assert actions.count("adapter.rollback") == 3


def test_bases_have_stages_of_their_own(registry: AdapterRegistry) -> None:
    registry.register(made(registry, "a1"))
    registry.register(made(registry, "b1", base="other"))
    registry.promote("a1", "ann", "better")
    assert registry.on_stage("other") is None
    registry.promote("b1", "ann", "better")
    registry.rollback("other", "ann", "worse")
    assert stage(registry) == "a1"


def test_promoting_twice_counts_once(registry: AdapterRegistry) -> None:
    register(registry, "a1", "a2")
    registry.promote("a1", "ann", "better")
    again = registry.promote("a2", "ann", "better")
    assert registry.promote("a2", "ann", "clicked again") == again
    registry.rollback("builtin", "ann", "worse")
    assert stage(registry) == "a1"


def test_a_refused_adapter_cannot_be_promoted(registry: AdapterRegistry) -> None:
    registry.register(made(registry, "a1", verdict="refused"))
    with pytest.raises(ConflictError, match="refused by the gate"):
        registry.promote("a1", "ann", "I like it")
    assert registry.on_stage("builtin") is None


def test_a_tampered_adapter_cannot_be_promoted(registry: AdapterRegistry) -> None:
    register(registry, "a1")
    registry.path("a1").write_bytes(b"GGUFevil")
    with pytest.raises(ModelError, match="bytes"):
        registry.promote("a1", "ann", "better")
    assert registry.on_stage("builtin") is None


@pytest.mark.parametrize("harm", ["changed", "gone"])
def test_a_rollback_skips_what_cannot_come_back(registry: AdapterRegistry, harm: str) -> None:
    register(registry, "a1", "a2", "a3")
    for name in ("a1", "a2", "a3"):
        registry.promote(name, "ann", "better")
    if harm == "gone":
        registry.path("a2").unlink()
    else:
        registry.path("a2").write_bytes(b"GGUFevil")
    registry.rollback("builtin", "ann", "worse")
    assert stage(registry) == "a1"
    registry.rollback("builtin", "ann", "worse")
    assert stage(registry) is None


def test_of_racing_promotions_one_wins(registry: AdapterRegistry) -> None:
    """G3: twenty runs that all compared with the same adapter on stage."""
    names = [f"a{number}" for number in range(20)]
    register(registry, *names)
    outcomes: list[str] = []
    start = threading.Barrier(20)

    def promote(name: str) -> None:
        start.wait()
        try:
            registry.promote(name, "run", "better", expected_seq=0)
            outcomes.append(name)
        except ConflictError:
            outcomes.append("conflict")

    threads = [threading.Thread(target=promote, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count("conflict") == 19
    assert len(registry.history("builtin")) == 1
    assert stage(registry) in outcomes


def test_metrics_survive_as_json(registry: AdapterRegistry) -> None:
    register(registry, "a1")
    assert json.dumps(registry.get("a1").metrics) == '{"score": 0.5}'
