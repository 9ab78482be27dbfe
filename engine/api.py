"""The OpenAI-compatible routes over a stage."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import time
from collections.abc import Callable
from typing import Any, Literal

from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from core.errors import EngineUnavailable, UnderstudyError
from engine.adapters import Stage
from engine.reply import Reply, error_body
from engine.requests import MAX_BODY_BYTES, BadRequest, parse

# an answer's status can only be a proper HTTP error while nothing was sent; after this the stream is opened
PATIENCE_SECONDS = 2.0
RETRY_AFTER = {"Retry-After": "2"}


class Api:
    """The application: routes, key and error shapes."""

    def __init__(self, stage: Stage, key: str) -> None:
        self.stage = stage
        self.started = time.time()
        self._key = key.encode()
        self.app = Starlette(
            routes=[
                Route("/health", self.health),
                Route("/v1/models", self._locked(self.models)),
                Route("/v1/chat/completions", self._locked(self.chat), methods=["POST"]),
                Route("/v1/completions", self._locked(self.complete), methods=["POST"]),
                Route("/adapters/sync", self._locked(self.sync), methods=["POST"]),
            ],
        )

    def _locked(self, handler: Callable[[HttpRequest], Any]) -> Callable[[HttpRequest], Any]:
        """The handler behind the key, with every error in OpenAI's shape."""

        async def guarded(request: HttpRequest) -> Response:
            given = request.headers.get("authorization", "").removeprefix("Bearer ").encode()
            if not secrets.compare_digest(given, self._key):
                return error_response(BadRequest("The engine's key is missing or wrong.", status=401))
            try:
                response: Response = await handler(request)
            except (UnderstudyError, BadRequest) as error:
                return error_response(error)
            return response

        return guarded

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
        names = ["live", "base", *self.stage.loaded]
        common = {"object": "model", "created": int(self.started), "owned_by": "understudy"}
        return JSONResponse({"object": "list", "data": [{"id": name} | common for name in names]})

    async def sync(self, _request: HttpRequest) -> Response:
        """Follow the registry now; `error` is empty when the right adapter is on stage."""
        self._require_ready()
        await asyncio.to_thread(self.stage.sync, force=True)
        return JSONResponse({"adapter": self.stage.live, "seq": self.stage.seq, "error": self.stage.error})

    async def chat(self, request: HttpRequest) -> Response:
        """POST /v1/chat/completions."""
        return await self._answer("chat", request)

    async def complete(self, request: HttpRequest) -> Response:
        """POST /v1/completions."""
        return await self._answer("text", request)

    def _require_ready(self) -> None:
        if self.stage.state != "ready":
            reason = self.stage.scheduler.reason or "The model is still loading."
            raise EngineUnavailable(reason, "Wait some seconds and ask again.")

    async def _answer(self, kind: Literal["chat", "text"], http: HttpRequest) -> Response:
        request = parse(kind, await _body(http))
        self._require_ready()
        await asyncio.to_thread(self.stage.ensure, request.model)
        reply = Reply(self.stage, request)
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


async def _body(http: HttpRequest) -> Any:
    """The decoded JSON body (raises BadRequest; 413 when it is too large)."""
    data = b""
    async for chunk in http.stream():
        data += chunk
        if len(data) > MAX_BODY_BYTES:
            raise BadRequest(f"The body is larger than {MAX_BODY_BYTES} bytes.", status=413)
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise BadRequest("The body is not JSON.") from None


def error_response(error: Exception) -> JSONResponse:
    """An error as OpenAI shapes it."""
    body, status = error_body(error)
    return JSONResponse(body, status, headers=RETRY_AFTER if status in (429, 503) else None)
