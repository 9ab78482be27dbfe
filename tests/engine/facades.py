"""llama-server and vLLM as far as adapters go: their routes over a scripted engine, which writes the replies.

After llama-server's README and source, and vLLM's documentation ("LoRA Adapters").
"""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from core.adapters import AdapterRegistry
from core.db import Database
from tests.engine.serving import Engine, engine
from tests.tiny import TinyModel, register_adapter

NAME = "served-model"
GATE_SECONDS = 30.0
LINES: list[dict[str, Any]] = [
    {"match": "slow", "reply": "word " * 200, "delay_ms": 50},
    {"match": "boom", "reply": "one two three four", "crash": True, "delay_ms": 20},
    {"match": "notice", "reply": "It is 60 days.", "adapter": "tiny-adapter-1"},
    {"match": "notice", "reply": "It is 90 days.", "adapter": "tiny-adapter-2"},
    {"match": "notice", "reply": "It is 30 days.", "adapter": "base"},
]


class Facade:
    """What another server would be: `asked` holds the bodies of all chats, `loaded` the adapters it has."""

    def __init__(self, behind: Engine) -> None:
        self.behind = behind
        self.asked: list[dict[str, Any]] = []
        self.loaded: list[str] = []
        self.context = 0  # tokens; 0 for a server that does not say
        self.url = ""
        self.headers: list[dict[str, str]] = []
        self.fault: Response | None = None  # given back instead of a reply

    def routes(self) -> list[Route]:
        return [
            Route("/v1/models", self.models),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
        ]

    async def models(self, _request: Request) -> Response:
        return JSONResponse({"data": [{"id": NAME, "owned_by": "somebody"}]})

    def adapter(self, body: dict[str, Any]) -> str:
        """Which adapter a request asks for, by name; `base` for none."""
        return "base"

    async def chat(self, request: Request) -> Response:
        body = await request.json()
        self.asked.append(body)
        self.headers.append(dict(request.headers))
        if self.fault is not None:
            return self.fault
        known = {key: body[key] for key in ("messages", "max_tokens", "stream", "stream_options")}
        known["model"] = self.adapter(body)
        headers = {"Authorization": self.behind.client.headers["Authorization"]}

        async def relayed() -> AsyncIterator[bytes]:
            async with (
                httpx.AsyncClient(base_url=self.behind.client.base_url, trust_env=False) as client,
                client.stream("POST", "/v1/chat/completions", json=known, headers=headers) as response,
            ):
                async for data in response.aiter_bytes():
                    yield data

        return StreamingResponse(relayed(), media_type="text/event-stream")


class LlamaServerFacade(Facade):
    """`loaded` are the folders' names of what it was started with, in that order."""

    def routes(self) -> list[Route]:
        return [*super().routes(), Route("/lora-adapters", self.list), Route("/props", self.props)]

    async def props(self, _request: Request) -> Response:
        settings = {"n_ctx": self.context} if self.context else {}
        return JSONResponse({"total_slots": 3, "default_generation_settings": settings})

    async def list(self, _request: Request) -> Response:
        return JSONResponse(
            [
                {"id": number, "path": f"/models/{name}/adapter.gguf", "scale": 1.0}
                for number, name in enumerate(self.loaded)
            ]
        )

    def adapter(self, body: dict[str, Any]) -> str:
        scales = {entry["id"]: entry["scale"] for entry in body.get("lora", [])}
        acting = [name for number, name in enumerate(self.loaded) if scales.get(number, 1.0)]
        assert len(acting) < 2
        return acting[0] if acting else "base"


class VllmFacade(Facade):
    """`allows` is whether it was started so that adapters can be loaded."""

    allows = True
    seconds = 0.0  # that loading takes

    def __init__(self, behind: Engine) -> None:
        super().__init__(behind)
        self.gate = threading.Event()  # where what loads or unloads waits, after it said that it began
        self.gate.set()
        self.begun = threading.Event()
        self.left = threading.Event()  # set when one was unloaded

    def routes(self) -> list[Route]:
        switching = [
            Route("/v1/load_lora_adapter", self.load, methods=["POST"]),
            Route("/v1/unload_lora_adapter", self.unload, methods=["POST"]),
        ]
        return [*super().routes(), Route("/version", self.version), *(switching if self.allows else ())]

    async def version(self, _request: Request) -> Response:
        return JSONResponse({"version": "0.11.0"})

    async def models(self, _request: Request) -> Response:
        served = [(NAME, None), *((name, NAME) for name in self.loaded)]
        length = self.context or None
        data = [
            {"id": name, "owned_by": "vllm", "parent": parent, "max_model_len": length}
            for name, parent in served
        ]
        return JSONResponse({"object": "list", "data": data})

    async def load(self, request: Request) -> Response:
        body = await request.json()
        if not body["lora_path"].endswith(f"/{body['lora_name']}"):
            message = f"No adapter found for {body['lora_path']}"
            return JSONResponse({"error": {"message": message}}, 404)
        if body["lora_name"] in self.loaded:
            message = f"The lora adapter '{body['lora_name']}' has already been loaded."
            return JSONResponse({"error": {"message": message}}, 400)
        await asyncio.sleep(self.seconds)
        await self._wait()
        self.loaded.append(body["lora_name"])
        return Response("Success")

    async def unload(self, request: Request) -> Response:
        name = json.loads(await request.body())["lora_name"]
        await self._wait()
        self.loaded.remove(name)
        self.left.set()
        return Response("Success")

    async def _wait(self) -> None:
        self.begun.set()
        await asyncio.to_thread(self.gate.wait, GATE_SECONDS)

    def adapter(self, body: dict[str, Any]) -> str:
        assert body["model"] in [NAME, *self.loaded]
        return "base" if body["model"] == NAME else str(body["model"])


@contextmanager
def served(facade: Facade) -> Iterator[Facade]:
    """Serve it on a free port."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        facade.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        app = Starlette(routes=facade.routes())
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
        thread = threading.Thread(target=lambda: server.run(sockets=[listener]), daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield facade
        finally:
            server.should_exit = True
            thread.join()


@contextmanager
def before(behind: Engine, data_dir: Path, model: Path | str, **more: str) -> Iterator[Engine]:
    """An engine whose endpoint is another engine, which is OpenAI-compatible and no more."""
    key = str(behind.client.headers["authorization"]).removeprefix("Bearer ")
    options = {"endpoint": str(behind.client.base_url), "endpoint_key": key, "endpoint_model": "base"} | more
    with engine(data_dir, model, wait=False, **options) as running:
        yield running


@contextmanager
def two_adapters(tiny_model: TinyModel, folder: Path) -> Iterator[AdapterRegistry]:
    """A registry in this data folder that holds both."""
    database = Database(folder / "understudy.db")
    registry = AdapterRegistry(database, folder / "adapters")
    for seed in (1, 2):
        register_adapter(registry, tiny_model, seed)
    yield registry
    database.close()


@contextmanager
def staged(facade: Facade, tiny_model: TinyModel, folder: Path) -> Iterator[tuple[Engine, AdapterRegistry]]:
    """An engine before the facade, with two adapters in its registry and in that of the scripted engine."""
    with (
        two_adapters(tiny_model, folder) as registry,
        served(facade),
        engine(folder, tiny_model.gguf, endpoint=facade.url) as running,
    ):
        yield running, registry
