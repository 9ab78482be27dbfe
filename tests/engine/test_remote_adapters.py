"""Adapters that another server holds: loaded, chosen, scaled and unloaded there by its own calls."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.engine.facades import NAME, LlamaServerFacade, VllmFacade, staged
from tests.engine.serving import Engine
from tests.tiny import TinyModel


def test_llama_server_is_told_how_strongly_each_adapter_acts(
    writer: Engine, tiny_model: TinyModel, tmp_path: Path
) -> None:
    facade = LlamaServerFacade(writer)
    facade.loaded = ["tiny-adapter-2", "tiny-adapter-1"]
    with staged(facade, tiny_model, tmp_path) as (running, registry):
        assert running.health()["model"]["backend"] == "llama-server"
        assert running.text("notice", model="base") == "It is 30 days."
        assert facade.asked[-1]["lora"] == [{"id": 0, "scale": 0.0}, {"id": 1, "scale": 0.0}]
        registry.promote("tiny-adapter-1", "me", "test")
        assert running.client.post("/adapters/sync").json()["error"] == ""
        assert running.text("notice") == "It is 60 days."
        assert facade.asked[-1]["lora"] == [{"id": 0, "scale": 0.0}, {"id": 1, "scale": 1.0}]
        # another adapter's cached prompt must not be gone on from
        assert facade.asked[-1]["cache_prompt"] is False
        facade.loaded.reverse()  # it was started again, in another order
        assert running.text("notice") == "It is 60 days."
        assert running.text("notice", model="tiny-adapter-2") == "It is 90 days."
        running.client.post("/adapters/tiny-adapter-2", json={"scale": 0.5})
        assert running.text("notice", model="tiny-adapter-2") == "It is 90 days."
        assert {"id": 1, "scale": 0.5} in facade.asked[-1]["lora"]


def test_llama_server_without_the_adapter_keeps_the_old_one_on_stage(
    writer: Engine, tiny_model: TinyModel, tmp_path: Path
) -> None:
    facade = LlamaServerFacade(writer)
    facade.loaded = ["tiny-adapter-1"]
    with staged(facade, tiny_model, tmp_path) as (running, registry):
        registry.promote("tiny-adapter-1", "me", "test")
        running.client.post("/adapters/sync")
        registry.promote("tiny-adapter-2", "me", "test")
        synced = running.client.post("/adapters/sync").json()
        assert synced["adapter"] == "tiny-adapter-1"
        assert "--lora" in synced["error"]
        assert "tiny-adapter-2/adapter.gguf" in synced["error"]
        assert running.text("notice") == "It is 60 days."


def test_vllm_loads_and_unloads_adapters(writer: Engine, tiny_model: TinyModel, tmp_path: Path) -> None:
    facade = VllmFacade(writer)
    with staged(facade, tiny_model, tmp_path) as (running, registry):
        assert running.health()["model"]["backend"] == "vLLM"
        assert running.health()["model"]["served_as"] == NAME
        assert running.text("notice") == "It is 30 days."
        registry.promote("tiny-adapter-1", "me", "test")
        assert running.client.post("/adapters/sync").json()["error"] == ""
        assert facade.loaded == ["tiny-adapter-1"]
        assert running.text("notice") == "It is 60 days."
        facade.loaded.clear()  # it was started again
        assert running.text("notice") == "It is 60 days."
        assert running.text("notice", model="tiny-adapter-2") == "It is 90 days."
        assert running.client.post("/adapters/tiny-adapter-2", json={"scale": 0.5}).status_code == 400
        assert running.client.delete("/adapters/tiny-adapter-2").status_code == 200
        deadline = time.monotonic() + 10  # nobody waits for the other server to forget it
        while facade.loaded != ["tiny-adapter-1"]:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_vllm_that_may_not_load_adapters_says_how(
    writer: Engine, tiny_model: TinyModel, tmp_path: Path
) -> None:
    facade = VllmFacade(writer)
    facade.allows = False
    with staged(facade, tiny_model, tmp_path) as (running, registry):
        registry.promote("tiny-adapter-1", "me", "test")
        synced = running.client.post("/adapters/sync").json()
        assert synced["adapter"] is None
        assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING" in synced["error"]
        assert running.text("notice") == "It is 30 days."


def test_an_adapter_that_vllm_is_still_forgetting_is_loaded_again(
    writer: Engine, tiny_model: TinyModel, tmp_path: Path
) -> None:
    facade = VllmFacade(writer)
    with staged(facade, tiny_model, tmp_path) as (running, _), ThreadPoolExecutor(1) as pool:
        assert running.text("notice", model="tiny-adapter-2") == "It is 90 days."
        facade.gate.clear()
        facade.begun.clear()
        assert running.client.delete("/adapters/tiny-adapter-2").status_code == 200
        assert facade.begun.wait(10)
        asked = pool.submit(running.text, "notice", model="tiny-adapter-2")
        time.sleep(0.3)  # in which it would find the adapter still there
        facade.gate.set()
        assert asked.result() == "It is 90 days."
        assert facade.left.wait(10)
        assert facade.loaded == ["tiny-adapter-2"]


def test_a_reply_under_one_adapter_does_not_wait_while_vllm_loads_another(
    writer: Engine, tiny_model: TinyModel, tmp_path: Path
) -> None:
    facade = VllmFacade(writer)
    with staged(facade, tiny_model, tmp_path) as (running, _), ThreadPoolExecutor(2) as pool:
        assert running.text("notice", model="tiny-adapter-1") == "It is 60 days."
        facade.gate.clear()
        facade.begun.clear()
        loading = pool.submit(running.text, "notice", model="tiny-adapter-2")
        assert facade.begun.wait(10)
        try:
            asked = pool.submit(running.text, "notice", model="tiny-adapter-1")
            assert asked.result(10) == "It is 60 days."
            assert not loading.done()
        finally:
            facade.gate.set()
        assert loading.result() == "It is 90 days."


def test_loading_an_adapter_keeps_no_reply_waiting(
    writer: Engine, tiny_model: TinyModel, tmp_path: Path
) -> None:
    facade = VllmFacade(writer)
    facade.seconds = 2.0
    with staged(facade, tiny_model, tmp_path) as (running, _), ThreadPoolExecutor(4) as pool:
        body = {"messages": [{"role": "user", "content": "slow"}], "max_tokens": 60, "stream": True}
        body["model"] = "base"
        with running.client.stream("POST", "/v1/chat/completions", json=body) as response:
            lines = response.iter_lines()
            while "word" not in next(lines):
                pass
            # all four want it at once, and a server refuses what it has loaded
            asked = [
                pool.submit(running.text, "notice", model="tiny-adapter-1", max_tokens=9) for _ in range(4)
            ]
            longest, last = 0.0, time.monotonic()
            for line in lines:
                if "word" in line:
                    longest, last = max(longest, time.monotonic() - last), time.monotonic()
        assert longest < facade.seconds / 2
        assert [one.result() for one in asked] == ["It is 60 days."] * 4
