"""One request on its way through the scheduler, as OpenAI objects and server-sent events."""

from __future__ import annotations

import asyncio
import codecs
import json
import secrets
import time
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

from starlette.requests import Request as HttpRequest

from core.errors import ConflictError, EngineBusy, ModelError, NotFoundError, UnderstudyError
from engine.adapters import Stage
from engine.backend import Begun, Failed, Finished, Piece, Prompt, TokenLogprob
from engine.requests import BadRequest, Request
from engine.scheduler import Event, Queued, Started, Ticket

KEEP_ALIVE_SECONDS = 10.0
T = TypeVar("T")


@dataclass
class Reply:
    """One request on its way through the scheduler, seen from the event loop."""

    stage: Stage
    request: Request
    prompt: Prompt
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))
    fingerprint: str = ""

    def __post_init__(self) -> None:
        """Queue it (raises EngineBusy or EngineUnavailable)."""
        loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event] = asyncio.Queue()

        def deliver(event: Event) -> None:
            loop.call_soon_threadsafe(self._events.put_nowait, event)

        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._offset = 0  # characters of the reply that had log probabilities so far
        self._ticket = Ticket(self.request, self.prompt, deliver)
        self.stage.scheduler.submit(self._ticket)

    def cancel(self) -> None:
        """Free the place in the queue or stop the generation; harmless at the end."""
        self.stage.scheduler.cancel(self._ticket)

    async def _next(self, seconds: float | None = None) -> Event | None:
        """The next event, None after `seconds`; raises what a Failed carries."""
        try:
            async with asyncio.timeout(seconds):  # wait_for would make a task for every piece
                event = await self._events.get()
        except TimeoutError:
            return None
        if isinstance(event, Started):
            self.fingerprint = self.stage.fingerprint(event.adapter_id)
        if isinstance(event, Failed):
            raise event.error
        return event

    async def first(self, seconds: float, http: HttpRequest) -> Event | None:
        """Wait until the prompt has its turn, or `seconds`: errors until then get their HTTP status."""

        async def accepted() -> Event | None:
            until = time.monotonic() + seconds
            event = None
            while not isinstance(event, Begun | Piece | Finished) and (left := until - time.monotonic()) > 0:
                event = await self._next(left) or event
            return event

        return await _unless_gone(accepted(), http)

    async def whole(self, http: HttpRequest) -> dict[str, Any]:
        """The complete response object."""

        async def gather() -> dict[str, Any]:
            pieces: list[Piece] = []
            while True:
                event = await self._next()
                if isinstance(event, Piece):
                    pieces.append(event)
                elif isinstance(event, Finished):
                    return self._object(pieces, event)

        return await _unless_gone(gather(), http)

    async def stream(self, first: Event | None) -> AsyncIterator[str]:
        """Server-sent events; comments keep a waiting connection alive, an error ends the stream."""
        try:
            opened = False
            event = first
            while True:
                if event is None or isinstance(event, Queued):
                    yield f": waiting, place {self._ticket.position}\n\n" if event else ": waiting\n\n"
                elif isinstance(event, Begun | Piece | Finished):
                    if not opened and self.request.kind == "chat":
                        yield self._chunk({"role": "assistant", "content": ""})
                    opened = True
                    for chunk in self._chunks(event):
                        yield chunk
                    if isinstance(event, Finished):
                        yield "data: [DONE]\n\n"
                        return
                event = await self._next(KEEP_ALIVE_SECONDS)
        except (UnderstudyError, BadRequest) as error:
            yield f"data: {json.dumps(error_body(error)[0])}\n\n"
        finally:
            self.cancel()

    def _chunks(self, event: Begun | Piece | Finished) -> list[str]:
        if isinstance(event, Begun):
            return []
        if isinstance(event, Piece):
            return [self._chunk({"content": event.text}, logprobs=event.logprobs)]
        chunks = [self._chunk({}, event.reason if event.reason != "cancelled" else "stop")]
        if self.request.usage_in_stream:
            chunks.append(_data(self._head(".chunk") | {"choices": [], "usage": _usage(event)}))
        return chunks

    def _chunk(
        self, delta: dict[str, str], reason: str | None = None, logprobs: tuple[TokenLogprob, ...] = ()
    ) -> str:
        choice: dict[str, Any] = {"index": 0, "finish_reason": reason}
        choice["logprobs"] = self._logprobs(logprobs) if logprobs else None
        if self.request.kind == "chat":
            choice["delta"] = delta
        else:
            choice["text"] = delta.get("content", "")
        return _data(self._head(".chunk") | {"choices": [choice]})

    def _object(self, pieces: list[Piece], end: Finished) -> dict[str, Any]:
        text = "".join(piece.text for piece in pieces)
        noted = tuple(token for piece in pieces for token in piece.logprobs)
        choice: dict[str, Any] = {"index": 0, "finish_reason": end.reason}
        choice["logprobs"] = self._logprobs(noted) if self.request.logprobs is not None else None
        if self.request.kind == "chat":
            choice["message"] = {"role": "assistant", "content": text, "refusal": None}
        else:
            choice["text"] = text
        return self._head() | {"choices": [choice], "usage": _usage(end)}

    def _logprobs(self, tokens: tuple[TokenLogprob, ...]) -> dict[str, Any]:
        return _chat_logprobs(tokens) if self.request.kind == "chat" else self._text_logprobs(tokens)

    def _text_logprobs(self, tokens: tuple[TokenLogprob, ...]) -> dict[str, Any]:
        offsets = []
        for token in tokens:
            offsets.append(self._offset)
            self._offset += len(self._decoder.decode(token.data))
        return {
            "tokens": [token.text for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [
                None if token.logprob is None else {one.text: one.logprob for one in token.top}
                for token in tokens
            ],
            "text_offset": offsets,
        }

    def _head(self, suffix: str = "") -> dict[str, Any]:
        chat = self.request.kind == "chat"
        return {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{self.id}",
            "object": f"chat.completion{suffix}" if chat else "text_completion",
            "created": self.created,
            "model": self.request.model,
            "system_fingerprint": self.fingerprint,
        }


class _Gone(BadRequest):
    """The client hung up; nobody will read the response."""


async def _unless_gone(work: Coroutine[Any, Any, T], http: HttpRequest) -> T:
    """Await `work`, or give up when the client disconnects first."""
    task = asyncio.create_task(work)
    watch = asyncio.create_task(_disconnected(http))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise _Gone("The client hung up.", status=499)
        return task.result()
    finally:
        task.cancel()
        watch.cancel()
        # an error that came too late has nobody to go to
        await asyncio.gather(task, watch, return_exceptions=True)


async def _disconnected(http: HttpRequest) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass


def error_body(error: Exception) -> tuple[dict[str, Any], int]:
    """OpenAI's error object and the HTTP status."""
    kind, code, status, parameter = "server_error", "engine_unavailable", 503, None
    if isinstance(error, BadRequest):
        kind, code, status, parameter = "invalid_request_error", error.code, error.status, error.parameter
    elif isinstance(error, EngineBusy):
        kind, code, status = "rate_limit_error", "engine_busy", 429
    elif isinstance(error, ConflictError):
        kind, code, status = "invalid_request_error", "conflict", 409
    elif isinstance(error, NotFoundError):
        kind, code, status = "invalid_request_error", "model_not_found", 404
    elif isinstance(error, ModelError):
        kind, code, status = "server_error", "model_error", 500
    return {"error": {"message": str(error), "type": kind, "param": parameter, "code": code}}, status


def _chat_logprobs(tokens: tuple[TokenLogprob, ...]) -> dict[str, Any]:
    def entry(token: TokenLogprob) -> dict[str, Any]:
        return {"token": token.text, "logprob": token.logprob, "bytes": list(token.data)}

    return {
        "content": [entry(token) | {"top_logprobs": [entry(one) for one in token.top]} for token in tokens],
        "refusal": None,
    }


def _usage(end: Finished) -> dict[str, Any]:
    return {
        "prompt_tokens": end.prompt_tokens,
        "completion_tokens": end.completion_tokens,
        "total_tokens": end.prompt_tokens + end.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": end.cached_tokens},
    }


def _data(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"
