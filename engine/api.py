"""The OpenAI-compatible routes over a stage."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Literal

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from core.errors import EngineBusy, EngineUnavailable, ModelError, NotFoundError, UnderstudyError
from engine.adapters import Stage
from engine.admission import QUEUE_LIMIT
from engine.reply import Reply, error_body
from engine.requests import MAX_BODY_BYTES, BadRequest, parse

# an answer's status can only be a proper HTTP error while nothing was sent; after this the stream is opened,
# so that whoever waits in the line sees his place within half a second
PATIENCE_SECONDS = 0.3


class Api:
    """The application: routes, key and error shapes."""

    def __init__(self, stage: Stage, key: str) -> None:
        self.stage = stage
        self.started = time.time()
        self._key = key.encode()
        # who waits for an adapter must not take the threads that other requests need
        self._changes = ThreadPoolExecutor(1, "engine-adapters")
        self._awaiting = 0  # requests whose adapter is being loaded, or next to be
        self.app = Starlette(
            routes=[
                Route("/health", self.health),
                Route("/v1/models", self._locked(self.models)),
                Route("/v1/models/{id}", self._locked(self.model)),
                Route("/v1/chat/completions", self._locked(self.chat), methods=["POST"]),
                Route("/v1/completions", self._locked(self.complete), methods=["POST"]),
                Route("/queue", self._locked(self.queue)),
                Route("/metrics", self._locked(self.metrics)),
                Route("/adapters", self._locked(self.adapters)),
                Route("/adapters/sync", self._locked(self.sync), methods=["POST"]),
                Route("/adapters/{id}", self._locked(self.load), methods=["POST"]),
                Route("/adapters/{id}", self._locked(self.unload), methods=["DELETE"]),
            ],
            exception_handlers={HTTPException: self._no_route, Exception: self._broke},
        )

    def _locked(self, handler: Callable[[HttpRequest], Any]) -> Callable[[HttpRequest], Any]:
        """The handler behind the key, with every error in OpenAI's shape."""

        async def guarded(request: HttpRequest) -> Response:
            given = request.headers.get("authorization", "").removeprefix("Bearer ").encode()
            if not secrets.compare_digest(given, self._key):
                return self._error(BadRequest("The engine's key is missing or wrong.", status=401))
            try:
                response: Response = await handler(request)
            except (UnderstudyError, BadRequest) as error:
                return self._error(error)
            return response

        return guarded

    async def _no_route(self, http: HttpRequest, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message = f"{http.method} {http.url.path} is not served here: {error.detail}."
        refusal = BadRequest(message, status=error.status_code, code="unknown_url")
        body, status = error_body(refusal)
        return JSONResponse(body, status, headers=error.headers)

    async def _broke(self, _http: HttpRequest, _error: Exception) -> Response:
        """A fault of ours: the server logs it, and the client learns no more of it than that."""
        return self._error(ModelError("The engine failed at this request.", "Ask again; its log says why."))

    async def health(self, _request: HttpRequest) -> Response:
        """State, model, adapter on stage and queue. Always 200: `status` is ok, loading or failed."""
        stage, scheduler = self.stage, self.stage.scheduler
        return JSONResponse(
            {
                "status": "ok" if stage.state == "ready" else stage.state,
                "state": stage.state,
                "reason": scheduler.reason,
                "base": stage.base,
                "adapter": stage.live,
                "seq": stage.seq,
                "adapters": stage.loaded,
                "adapter_error": stage.error,
                "model": stage.facts(),
                "queue": scheduler.load,
                "served": scheduler.served,
                "uptime_s": round(time.time() - self.started, 1),
                "pid": os.getpid(),
            }
        )

    async def models(self, _request: HttpRequest) -> Response:
        """What `model` may name."""
        return JSONResponse({"object": "list", "data": await self._models()})

    async def model(self, request: HttpRequest) -> Response:
        """One of them."""
        name = request.path_params["id"]
        for model in await self._models():
            if model["id"] == name:
                return JSONResponse(model)
        raise NotFoundError(f"No model is called {name}.", "See GET /v1/models.")

    async def _models(self) -> list[dict[str, Any]]:
        """`live`, `base` and every adapter that fits, loaded or not: it is loaded when a request names it."""
        adapters = await asyncio.to_thread(self.stage.candidates)
        loaded = {"live", "base", *self.stage.loaded}
        created = {"live": int(self.started), "base": int(self.started)}
        created |= {adapter.id: adapter.created_at // 1000 for adapter in adapters}
        return [
            {"id": name, "object": "model", "created": at, "owned_by": "understudy", "loaded": name in loaded}
            for name, at in created.items()
        ]

    async def queue(self, request: HttpRequest) -> Response:
        """The load, and with `?key=` the place of that user's or conversation's request (0: in work)."""
        scheduler = self.stage.scheduler
        key = request.query_params.get("key", "")
        return JSONResponse({**scheduler.load, "position": scheduler.position(key) if key else None})

    async def metrics(self, _request: HttpRequest) -> Response:
        """Everything counted, as Prometheus reads it."""
        scheduler, facts = self.stage.scheduler, self.stage.facts()
        load = scheduler.load
        gauges = {
            "waiting": (load["waiting"], "Requests in the waiting line."),
            "running": (load["running"], "Requests in work."),
            "slots": (load["slots"], "Requests that can be in work at once."),
            "kv_tokens": (facts.get("cached_tokens", 0), "Prompt tokens in the key-value cache."),
            "kv_tokens_limit": (facts.get("cache_tokens", 0), "Tokens the key-value cache can hold."),
            "adapters": (len(self.stage.loaded), "Adapters in memory."),
            "owner_pause_seconds": (
                scheduler.longest_pause,
                "Longest pause for loading or freeing an adapter.",
            ),
            "adapter_loads": (self.stage.loads, "Adapters loaded since the start."),
            "adapter_swaps": (self.stage.swaps, "Changes of the adapter on stage since the start."),
        }
        return PlainTextResponse(scheduler.metrics.render(gauges), media_type="text/plain; version=0.0.4")

    async def adapters(self, _request: HttpRequest) -> Response:
        """The loaded adapters and their scales."""
        return JSONResponse({"data": self.stage.adapters(), "base": self.stage.base, "live": self.stage.live})

    async def load(self, request: HttpRequest) -> Response:
        """Load an adapter of the registry, and set its scale when the body names one."""
        self._require_ready()
        name, body = request.path_params["id"], await _body(request, empty={})
        scale = body.get("scale") if isinstance(body, dict) else None
        if scale is not None and (isinstance(scale, bool) or not isinstance(scale, int | float)):
            raise BadRequest("scale must be a number.", "scale")
        if scale is None:
            await self._ensure(name)
        else:
            await self._change(self.stage.scale, name, float(scale))
        return await self.adapters(request)

    async def unload(self, request: HttpRequest) -> Response:
        """Free an adapter that is not on stage."""
        self._require_ready()
        await self._change(self.stage.unload, request.path_params["id"])
        return await self.adapters(request)

    async def sync(self, _request: HttpRequest) -> Response:
        """Follow the registry now; `error` is empty when the right adapter is on stage."""
        self._require_ready()
        await self._change(partial(self.stage.sync, force=True))
        return JSONResponse({"adapter": self.stage.live, "seq": self.stage.seq, "error": self.stage.error})

    async def chat(self, request: HttpRequest) -> Response:
        """POST /v1/chat/completions."""
        return await self._answer("chat", request)

    async def complete(self, request: HttpRequest) -> Response:
        """POST /v1/completions."""
        return await self._answer("text", request)

    async def _ensure(self, name: str) -> None:
        """Have an adapter loaded; neither one that is there nor an unknown one waits for another's load.

        Raises EngineBusy when as many wait for loads as may wait in the line.
        """
        if self.stage.answers_to(name):
            return
        await asyncio.to_thread(self.stage.find, name)
        if self._awaiting >= QUEUE_LIMIT:
            raise EngineBusy(
                f"{QUEUE_LIMIT} questions wait for adapters already.", "Wait some seconds and ask again."
            )
        self._awaiting += 1
        try:
            await self._change(self.stage.ensure, name)
        finally:
            self._awaiting -= 1

    async def _change(self, work: Callable[..., None], *arguments: Any) -> None:
        """Run what loads or frees adapters, in its turn, on the thread for it."""
        await asyncio.get_running_loop().run_in_executor(self._changes, work, *arguments)

    def _require_ready(self) -> None:
        if self.stage.state != "ready":
            reason = self.stage.scheduler.reason or "The model is still loading."
            raise EngineUnavailable(reason, "Wait some seconds and ask again.")

    async def _answer(self, kind: Literal["chat", "text"], http: HttpRequest) -> Response:
        request = parse(kind, await _body(http))
        self._require_ready()
        with self.stage.keep(request.model):
            await self._ensure(request.model)
            prompt = await asyncio.to_thread(self.stage.prepare, request)
            reply = Reply(self.stage, request, prompt)
        try:
            if request.stream:
                first = await reply.first(PATIENCE_SECONDS, http)
                return StreamingResponse(
                    reply.stream(first), media_type="text/event-stream", headers={"Cache-Control": "no-store"}
                )
            return JSONResponse(await reply.whole(http))
        except BaseException:
            reply.cancel()
            raise

    def _error(self, error: Exception) -> JSONResponse:
        """An error as OpenAI shapes it, and how soon to come back when that may help."""
        body, status = error_body(error)
        again = {"Retry-After": str(self.stage.scheduler.retry_after)}
        return JSONResponse(body, status, headers=again if status in (429, 503) else None)


async def _body(http: HttpRequest, empty: Any = None) -> Any:
    """The decoded JSON body, or `empty` (raises BadRequest; 413 when it is too large)."""
    data = b""
    async for chunk in http.stream():
        data += chunk
        if len(data) > MAX_BODY_BYTES:
            raise BadRequest(f"The body is larger than {MAX_BODY_BYTES} bytes.", status=413)
    if not data and empty is not None:
        return empty
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise BadRequest("The body is not JSON.") from None
