"""The OpenAI-compatible API: retrieval and citations included, answers recorded, votes taken.

`/v1/chat/completions` and `/v1/models` follow the OpenAI protocol (its API reference, chapter Chat), so the
`openai` client works unchanged. What is ours stands in one extra field, `understudy`.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Any, Literal

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from app.asking import Asked, Question, Turn
from app.documents_api import add_document_routes
from app.guard import BodyTooLarge
from app.resources import Resources
from core.errors import (
    ConflictError,
    EngineBusy,
    EngineUnavailable,
    NotFoundError,
    QuestionError,
    QuotaError,
    StorageError,
    UnderstudyError,
)
from core.types import Answer, Message
from rag.access import api_account
from rag.memory import MARK, marked
from rag.prompt import is_refusal
from rag.trace import search_notice

log = logging.getLogger("understudy.web")
LIVE = "understudy"
LONGEST_QUESTION = 20_000
STATUS: tuple[tuple[type[UnderstudyError], int], ...] = (
    (QuestionError, 400),
    (NotFoundError, 404),
    (ConflictError, 409),
    (QuotaError, 429),
    (EngineBusy, 429),
    (EngineUnavailable, 503),
)


class TextPart(BaseModel):
    """A piece of a message; only text is read."""

    type: str
    text: str = ""


class ChatMessage(BaseModel):
    """A message; `content` may be text or a list of parts."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None

    @property
    def text(self) -> str:
        """The message's text."""
        if isinstance(self.content, list):
            return "\n".join(part.text for part in self.content if part.type == "text")
        return self.content or ""


class ChatRequest(BaseModel):
    """What is read of a request; other OpenAI fields are accepted and ignored."""

    model_config = ConfigDict(extra="ignore")
    model: str = LIVE
    messages: list[ChatMessage] = Field(min_length=1, max_length=200)
    stream: bool = False
    user: str = Field("", max_length=100)


class FeedbackRequest(BaseModel):
    """A vote on an exchange, with an optional reason, comment and corrected answer."""

    exchange_id: str
    value: Literal[-1, 1]
    reason: str = ""
    comment: str = ""
    correction: str = ""
    user: str = Field("", max_length=100)


def create_api(resources: Resources) -> FastAPI:
    """The application that is mounted at `/v1`."""
    api = FastAPI(title="Understudy", docs_url=None, redoc_url=None, openapi_url=None)

    @api.get("/models")
    def models() -> dict[str, Any]:
        adapters = resources.registry.all(resources.model.id)
        names = [LIVE, "base", *(adapter.id for adapter in adapters if adapter.verdict != "refused")]
        rows = [{"id": name, "object": "model", "created": 0, "owned_by": "understudy"} for name in names]
        return {"object": "list", "data": rows}

    @api.post("/chat/completions", response_model=None)
    async def chat(request: ChatRequest) -> JSONResponse | StreamingResponse:
        turn = await run_in_threadpool(_start, resources, request)
        identity = {"id": f"chatcmpl-{turn.question.conversation_id}", "created": int(time.time())}
        identity["model"] = request.model
        if request.stream:
            return StreamingResponse(_stream(turn, identity), media_type="text/event-stream")
        return JSONResponse(_completion(await _finish(turn), identity))

    @api.post("/feedback")
    def feedback(request: FeedbackRequest) -> dict[str, Any]:
        user, store = api_account(request.user), resources.feedback
        store.vote(request.exchange_id, user, request.value, request.reason, request.comment)
        correction = None
        if request.correction.strip():
            correction = store.correct(request.exchange_id, user, request.correction)
        return {"exchange_id": request.exchange_id, "value": request.value, "correction_id": correction}

    add_document_routes(api, resources)
    _add_error_handlers(api)
    return api


def _start(resources: Resources, request: ChatRequest) -> Turn:
    question, history = _split(request.messages)
    user = api_account(request.user)
    conversation = resources.feedback.start_conversation(user, question)
    model = "live" if request.model in (LIVE, "live") else request.model
    if model not in ("live", "base") and resources.registry.get(model).verdict == "refused":
        raise NotFoundError(f"The adapter {model} was refused by the gate.", "See /v1/models.")
    return Turn(resources, Question(conversation, user, question, history, model))


def _split(messages: list[ChatMessage]) -> tuple[str, tuple[Message, ...]]:
    """The last user message, and the user and assistant messages before it."""
    last = max((i for i, message in enumerate(messages) if message.role == "user"), default=None)
    if last is None:
        raise QuestionError("No message has the role user.", "Put the question into a user message.")
    question = messages[last].text.strip()
    if not question:
        raise QuestionError("The question is empty.", "Put it into the last user message.")
    if len(question) > LONGEST_QUESTION:
        raise QuestionError(
            f"The question has {len(question):,} characters; at most {LONGEST_QUESTION:,} are read.",
            "Shorten it.",
        )
    history: list[Message] = []
    for message in messages[:last]:
        if message.role == "user" or message.role == "assistant":
            history.append({"role": message.role, "content": message.text})
    return question, tuple(history)


async def _finish(turn: Turn) -> Asked:
    try:
        while True:
            item = await run_in_threadpool(turn.next, 0.5)
            if isinstance(item, UnderstudyError):
                raise item
            if isinstance(item, Asked):
                return item
    finally:
        turn.stop()  # harmless when done; when the caller hung up, the rest need not be generated


async def _stream(turn: Turn, identity: dict[str, Any]) -> AsyncIterator[str]:
    """Server-sent events. What was streamed is a draft: `understudy.text` in the last chunk is the answer."""
    sent = ""
    try:
        yield _chunk(identity, {"role": "assistant", "content": ""})
        while True:
            item = await run_in_threadpool(turn.next, 0.5)
            if isinstance(item, str):
                sent += item
                yield _chunk(identity, {"content": item})
            elif isinstance(item, UnderstudyError):
                yield f"data: {json.dumps({'error': _error_body(item)})}\n\n"
                return
            elif isinstance(item, Asked):
                yield _chunk(identity, {"content": _rest(sent, _said(item.answer))})
                yield _chunk(identity, {}, "stop", _ours(item) | {"text": _said(item.answer)})
                yield "data: [DONE]\n\n"
                return
    finally:
        turn.stop()


def _said(answer: Answer) -> str:
    """The answer's text, marked where it is from memory; a sentence more where words alone were searched."""
    return "\n\n".join(filter(None, (marked(answer), search_notice(answer))))


def _rest(sent: str, text: str) -> str:
    """What a client that only joins pieces still has to read; a draft that did not hold is taken back."""
    if text.startswith(sent):
        return text[len(sent) :]
    if text.startswith(MARK):
        taken_back = "" if is_refusal(sent) else "\n\n(The documents do not support the above.)"
        return f"{taken_back}\n\n{text}"
    return f"\n\n(The documents do not support the above. What they do say:)\n\n{text}"


def _chunk(
    identity: dict[str, Any],
    delta: dict[str, str],
    finish: str | None = None,
    ours: dict[str, Any] | None = None,
) -> str:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    body: dict[str, Any] = {**identity, "object": "chat.completion.chunk", "choices": [choice]}
    if ours is not None:
        body["understudy"] = ours
    return f"data: {json.dumps(body)}\n\n"


def _completion(asked: Asked, identity: dict[str, Any]) -> dict[str, Any]:
    message = {"role": "assistant", "content": _said(asked.answer), "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    body = {**identity, "object": "chat.completion", "choices": [choice], "usage": _usage(asked)}
    return body | {"understudy": _ours(asked)}


def _usage(asked: Asked) -> dict[str, int]:
    read, written = (int(asked.answer.timings.get(f"{kind}_tokens", 0)) for kind in ("prompt", "completion"))
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def _ours(asked: Asked) -> dict[str, Any]:
    answer = asked.answer
    return {
        "exchange_id": asked.exchange_id,
        "mode": answer.mode,
        "model": answer.model,
        "adapter": answer.adapter,
        "supported": answer.supported,
        "from_memory": answer.mode == "memory",
        "words_only": bool(answer.trace.words_only),
        "searched": answer.trace.searched,
        "citations": [
            asdict(citation) | {"url": asked.addresses.get(citation.document_id, "")}
            for citation in answer.citations
        ],
        "passages": [
            {
                key: getattr(passage, key)
                for key in ("document_id", "document", "heading", "page", "text", "scores")
            }
            for passage in answer.passages
        ],
        "left_out": [asdict(passage) for passage in answer.trace.left_out],
        "timings": answer.timings,
    }


def _error_body(error: UnderstudyError) -> dict[str, Any]:
    kind = "server_error" if _status(error) >= 500 else "invalid_request_error"
    return {"message": str(error), "type": kind, "param": None, "code": type(error).__name__}


def _status(error: UnderstudyError) -> int:
    return next((status for kind, status in STATUS if isinstance(error, kind)), 400)


def _add_error_handlers(api: FastAPI) -> None:
    """Every error leaves in OpenAI's shape, without a trace of the inside."""

    def answer(message: str, status: int, code: str | None = None) -> JSONResponse:
        kind = "server_error" if status >= 500 else "invalid_request_error"
        body = {"message": message, "type": kind, "param": None, "code": code}
        return JSONResponse({"error": body}, status)

    @api.exception_handler(StorageError)
    def full(_request: Request, error: StorageError) -> JSONResponse:
        log.error("Nothing could be stored: %s", error)  # the sentence names folders
        return answer(
            "Nothing could be stored here. Ask the operator to look at the log.", 507, "StorageError"
        )

    @api.exception_handler(UnderstudyError)
    def expected(_request: Request, error: UnderstudyError) -> JSONResponse:
        return JSONResponse({"error": _error_body(error)}, _status(error))

    @api.exception_handler(RequestValidationError)
    def malformed(_request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if part != "body")
        return answer(f"{place or 'body'}: {first['msg']}.", 400)

    @api.exception_handler(HTTPException)
    def refused(_request: Request, error: HTTPException) -> JSONResponse:
        return answer(str(error.detail), error.status_code)

    @api.exception_handler(BodyTooLarge)
    def too_large(_request: Request, _error: BodyTooLarge) -> JSONResponse:
        return answer("The request is too large.", 413)

    @api.exception_handler(Exception)
    def unexpected(_request: Request, error: Exception) -> JSONResponse:
        log.error("API error", exc_info=error)
        return answer("Something went wrong; the web log says what.", 500)
