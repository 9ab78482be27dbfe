"""Requests that name adapters while others load, free and evict them: nobody's goes away under him."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from core.adapters import AdapterRegistry
from core.errors import ConflictError, NotFoundError
from engine.adapters import Stage
from engine.api import Api
from engine.backend import Prompt
from engine.requests import Request
from tests.engine.test_scheduler import Client, until
from tests.tiny import TinyModel, register_adapter
from tests.tiny import tiny_model as build

WAIT = 30.0  # seconds after which a test that hangs fails
BRIEF = 0.2  # seconds in which a fault has time to show; without the fault nothing depends on it


@pytest.fixture
def names(registry: AdapterRegistry, tiny_model: TinyModel) -> list[str]:
    """Five adapters of the registry, each of its own weights."""
    return [register_adapter(registry, tiny_model, seed).id for seed in range(1, 6)]


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as made:
        yield made


@pytest.fixture
def client(stage: Stage) -> Iterator[TestClient]:
    stage._settled.set()  # as `watch` does once it looked at the registry
    with TestClient(Api(stage, "key").app, headers={"Authorization": "Bearer key"}) as made:
        yield made


def ask(client: TestClient, model: str) -> Any:
    body = {"model": model, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
    return client.post("/v1/chat/completions", json=body)


def counted(stage: Stage, monkeypatch: pytest.MonkeyPatch, first: Callable[[str], None]) -> list[str]:
    """The adapters that are loaded from now on; `first` is called before each."""
    loads: list[str] = []
    original = stage._backend.check_adapter

    def check(adapter_id: str, path: Path) -> None:
        loads.append(adapter_id)
        first(adapter_id)
        original(adapter_id, path)

    monkeypatch.setattr(stage._backend, "check_adapter", check)
    return loads


def test_two_requests_for_an_adapter_load_it_once(
    stage: Stage, names: list[str], pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    others: list[Future[None]] = []

    def meet(_name: str) -> None:
        if not others:
            others.append(pool.submit(stage.ensure, names[0]))
            time.sleep(BRIEF)

    loads = counted(stage, monkeypatch, meet)
    stage.ensure(names[0])
    others[0].result(WAIT)
    assert loads == [names[0]]
    assert stage.loaded == [names[0]]


def held(gate: threading.Event, begun: threading.Event) -> Callable[[str], None]:
    """To be called before a load, which then waits at the gate."""

    def wait(_name: str) -> None:
        begun.set()
        assert gate.wait(WAIT)

    return wait


def test_an_unknown_name_is_refused_while_another_adapter_loads(
    stage: Stage, names: list[str], pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, begun = threading.Event(), threading.Event()
    counted(stage, monkeypatch, held(gate, begun))
    loading = pool.submit(stage.ensure, names[0])
    try:
        assert begun.wait(WAIT)
        assert isinstance(pool.submit(stage.ensure, "nobody").exception(WAIT), NotFoundError)
    finally:
        gate.set()
    loading.result(WAIT)


def test_whoever_waits_for_a_load_keeps_nobody_else_waiting(
    stage: Stage,
    client: TestClient,
    names: list[str],
    pool: ThreadPoolExecutor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The server has a single thread for its requests; two of them wait for an adapter that loads slowly."""
    assert client.portal is not None
    client.portal.call(lambda: asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1)))
    stage.ensure(names[0])
    gate, begun = threading.Event(), threading.Event()
    counted(stage, monkeypatch, held(gate, begun))
    waiting = [pool.submit(ask, client, names[1]) for _ in range(2)]
    try:
        assert begun.wait(WAIT)
        others = {name: pool.submit(ask, client, name) for name in (names[0], "nobody")}
        assert {name: other.result(WAIT).status_code for name, other in others.items()} == {
            names[0]: 200, "nobody": 404,
        }  # fmt: skip
        assert not any(one.done() for one in waiting)
    finally:
        gate.set()
    assert [one.result(WAIT).status_code for one in waiting] == [200, 200]


def test_only_so_many_wait_for_adapters(
    stage: Stage,
    client: TestClient,
    names: list[str],
    pool: ThreadPoolExecutor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("engine.api.QUEUE_LIMIT", 1)
    gate, begun = threading.Event(), threading.Event()
    counted(stage, monkeypatch, held(gate, begun))
    waiting = pool.submit(ask, client, names[0])
    try:
        assert begun.wait(WAIT)
        refused = pool.submit(ask, client, names[1]).result(WAIT)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "engine_busy")
        assert "Retry-After" in refused.headers
        assert pool.submit(ask, client, "base").result(WAIT).status_code == 200
    finally:
        gate.set()
    assert waiting.result(WAIT).status_code == 200
    assert ask(client, names[1]).status_code == 200


def test_a_request_whose_adapter_is_there_keeps_it_until_it_is_answered(
    stage: Stage, client: TestClient, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While its prompt is being prepared, others' adapters take all the room and somebody unloads it."""
    original = stage.prepare
    refused: list[str] = []

    def crowded(request: Request) -> Prompt:
        for name in names[1:]:
            stage.ensure(name)
        with pytest.raises(ConflictError, match="in use"):
            stage.unload(request.model)
        refused.append(request.model)
        return original(request)

    monkeypatch.setattr(stage, "prepare", crowded)
    reply = ask(client, names[0])
    assert (reply.status_code, refused) == (200, [names[0]]), reply.text
    assert reply.json()["system_fingerprint"] == f"{stage.base}@{names[0]}"
    stage.unload(names[0])
    assert names[0] not in stage.loaded


def test_a_request_that_leaves_the_line_keeps_its_adapter(
    stage: Stage, names: list[str], pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is unloaded at the very moment in which the request is neither in the line nor in work."""
    stage.ensure(names[0])
    original = stage.adapter_of
    unloads: list[Future[None]] = []

    def between(name: str) -> str | None:
        unloads.append(pool.submit(stage.unload, name))
        time.sleep(BRIEF)
        return original(name)

    monkeypatch.setattr(stage.scheduler, "_adapter_of", between)
    asked = Client(stage.scheduler, "hello", 8, model=names[0])
    assert asked.done.wait(WAIT)
    assert asked.text
    with pytest.raises(ConflictError, match="in use"):
        unloads[0].result(WAIT)
    until(lambda: not stage.scheduler.models_in_use())
    stage.unload(names[0])
    assert stage.loaded == []


def test_a_request_that_failed_holds_on_to_nothing(
    stage: Stage, client: TestClient, names: list[str]
) -> None:
    assert ask(client, "nobody").status_code == 404
    stage.ensure(names[0])
    body = {"model": names[0], "messages": [{"role": "user", "content": "hello " * 2000}]}
    assert client.post("/v1/chat/completions", json=body).status_code == 400
    stage.unload(names[0])
    assert stage.loaded == []


def test_the_adapter_that_was_not_named_for_longest_goes_first(
    stage: Stage, client: TestClient, names: list[str]
) -> None:
    for name in (names[0], names[1], names[0], names[2]):
        assert ask(client, name).status_code == 200
    assert stage.loaded == [names[0], names[2]]
    for _ in range(2):
        stage.ensure(names[0])
    stage.ensure(names[3])
    assert stage.loaded == [names[0], names[3]]


@pytest.mark.parametrize("stage", [{"adapters_aside": 4}], indirect=True)
def test_the_setting_says_how_many_are_kept(
    stage: Stage, registry: AdapterRegistry, names: list[str]
) -> None:
    registry.promote(names[0], "me", "test")
    stage.sync()
    for name in names:
        stage.ensure(name)
    assert stage.loaded == names


@pytest.mark.parametrize("stage", [{"adapters_aside": 0}], indirect=True)
def test_what_finds_no_room_goes_once_no_request_names_it(stage: Stage, names: list[str]) -> None:
    with stage.keep(names[0]), stage.keep(names[1]):
        for name in names[:2]:
            stage.ensure(name)
        stage.sync()
        assert stage.loaded == names[:2]
    stage.sync()
    assert stage.loaded == []


def test_a_scale_lasts_no_longer_than_its_adapter_is_loaded(
    stage: Stage, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody unloads the adapter between its load and the moment in which its scale is set."""
    original = stage.ensure

    def unloaded(name: str) -> None:
        original(name)
        with pytest.raises(ConflictError, match="in use"):
            stage.unload(name)

    monkeypatch.setattr(stage, "ensure", unloaded)
    stage.scale(names[0], 0.5)
    assert stage.adapters() == [{"id": names[0], "on_stage": False, "scale": 0.5}]
    stage.unload(names[0])
    original(names[0])
    assert stage.adapters() == [{"id": names[0], "on_stage": False, "scale": 1.0}]


def test_what_is_loaded_is_told_as_of_one_moment(
    stage: Stage, registry: AdapterRegistry, names: list[str], pool: ThreadPoolExecutor
) -> None:
    """While two adapters take turns on stage, a reader always sees both, one of them there."""
    for name in names[:2]:
        registry.promote(name, "me", "test")
        stage.sync()
    done = threading.Event()

    def read() -> list[list[dict[str, Any]]]:
        seen = []
        while not done.is_set():
            found = stage.adapters()
            if sorted(one["id"] for one in found) != names[:2] or sum(one["on_stage"] for one in found) != 1:
                seen.append(found)
        return seen

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # threads take turns as often as they can
    try:
        reader = pool.submit(read)
        for number in range(60):
            registry.promote(names[number % 2], "me", "test")
            stage.sync()
        done.set()
        assert reader.result(WAIT) == []
    finally:
        sys.setswitchinterval(interval)
        done.set()


def test_every_adapter_of_the_base_is_a_model_and_the_loaded_ones_are_marked(
    stage: Stage,
    client: TestClient,
    names: list[str],
    registry: AdapterRegistry,
    pool: ThreadPoolExecutor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stage.ensure(names[0])
    other = register_adapter(registry, build(512), 1, "of-another-base")
    foreign = register_adapter(registry, build(), 1, "of-another-file")
    with registry.database.write() as connection:
        connection.execute("UPDATE adapters SET base_sha256 = 'other' WHERE id = ?", (foreign.id,))

    def models() -> dict[str, bool]:
        return {model["id"]: model["loaded"] for model in client.get("/v1/models").json()["data"]}

    gate, begun = threading.Event(), threading.Event()
    counted(stage, monkeypatch, held(gate, begun))
    loading = pool.submit(stage.ensure, names[1])
    try:
        assert begun.wait(WAIT)
        expected = {"live": True, "base": True} | {name: name == names[0] for name in names}
        assert pool.submit(models).result(WAIT) == expected  # also while another one loads
    finally:
        gate.set()
    loading.result(WAIT)
    assert models() == expected | {names[1]: True}
    assert client.get(f"/v1/models/{names[4]}").json()["id"] == names[4]
    assert client.get(f"/v1/models/{other.id}").status_code == 404
