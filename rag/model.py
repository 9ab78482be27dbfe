"""Talking to the engine, or to any other OpenAI-compatible endpoint, through LangChain's `ChatOpenAI`."""

from __future__ import annotations

import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

import httpx

from core.children import bound, last_words, stop
from core.errors import EngineBusy, EngineError, EngineUnavailable, ModelError
from core.settings import PROJECT, Settings, child_environment, engine_key
from core.types import Message

CONNECT_SECONDS = 3.0
SILENCE_SECONDS = 180.0  # longest wait for the next token; a queued request waits for its first
START_SECONDS = 120.0
PLACE_SECONDS = 1.0  # a place in the line that takes longer to tell is not worth waiting for


class PromptTooLong(EngineError):
    """The endpoint counted more tokens than its context holds; send fewer passages. Never shown to users."""


@dataclass(frozen=True)
class Reply:
    """A finished reply. `fingerprint` is "<base>@<adapter or base>"; timings are milliseconds."""

    text: str
    finish_reason: str
    fingerprint: str
    base: str
    adapter: str | None
    prompt_tokens: int
    completion_tokens: int
    timings: dict[str, float] = field(default_factory=dict)


class ReplyStream(Iterator[str]):
    """Pieces of text as they arrive; `text` so far at any time, `reply` once the iteration has ended.

    `close` ends the generation early; `reply` is then what had arrived, with finish_reason
    "stop_requested". When the endpoint fails, EngineUnavailable, EngineBusy, ModelError or EngineError is
    raised from the iteration and `text` keeps what had arrived.
    """

    def __init__(self, chunks: Iterator[Any]) -> None:
        self.text = ""
        self.reply: Reply | None = None
        self._chunks = chunks
        self._began = time.monotonic()
        self._first: float | None = None
        self._metadata: dict[str, Any] = {}
        self._usage: dict[str, int] = {}

    def __next__(self) -> str:
        while self.reply is None:
            try:
                chunk = next(self._chunks)
            except StopIteration:
                self._finish(str(self._metadata.get("finish_reason") or "stop"))
                break
            except Exception as error:
                raise _translated(error) from error
            self._metadata.update(chunk.response_metadata)
            self._usage.update(chunk.usage_metadata or {})
            if chunk.content:
                self._first = self._first or time.monotonic()
                self.text += str(chunk.content)
                return str(chunk.content)
        raise StopIteration

    def close(self) -> None:
        """Hang up; the endpoint stops generating. Harmless when the reply is complete."""
        if self.reply is None:
            close = getattr(self._chunks, "close", None)
            if close is not None:
                with suppress(httpx.HTTPError):
                    close()
            self._finish("stop_requested")

    def _finish(self, reason: str) -> None:
        fingerprint = str(self._metadata.get("system_fingerprint") or "")
        base, adapter = split_fingerprint(fingerprint)
        ended = time.monotonic()
        self.reply = Reply(
            text=self.text,
            finish_reason=reason,
            fingerprint=fingerprint,
            base=base,
            adapter=adapter,
            prompt_tokens=self._usage.get("input_tokens", 0),
            completion_tokens=self._usage.get("output_tokens", 0),
            timings={
                "ttft_ms": round(((self._first or ended) - self._began) * 1000, 1),
                "total_ms": round((ended - self._began) * 1000, 1),
            },
        )


class ModelClient:
    """One endpoint. Model names of the engine: "live" (what is on stage), "base", or an adapter id."""

    def __init__(self, url: str, key: str) -> None:
        """`url` without `/v1`, for example http://127.0.0.1:8401."""
        self.url = url.rstrip("/")
        self._key = key
        # no proxies: what goes to the engine never leaves the machine by way of one
        timeout = httpx.Timeout(SILENCE_SECONDS, connect=CONNECT_SECONDS)
        self._http = httpx.Client(trust_env=False, timeout=timeout)
        self._chat: Any = None
        self._lock = threading.Lock()

    def stream(
        self,
        messages: Sequence[Message],
        model: str = "live",
        *,
        max_tokens: int = 160,
        temperature: float = 0.0,
        seed: int | None = None,
        stop: Sequence[str] = (),
        conversation: str = "",
        user: str = "",
    ) -> ReplyStream:
        """Start generating and return the stream; errors come from its iteration. Temperature 0 is greedy.

        `conversation` is the key under which the endpoint may reuse this conversation's earlier prompts.
        `user` is who asks, so that users share the engine fairly; batch work names nobody and has no limit of
        its own.
        """
        # max_tokens by extra_body: ChatOpenAI would rename it, and older endpoints know only this name
        body: dict[str, Any] = {"max_tokens": max_tokens}
        if conversation:
            body["prompt_cache_key"] = conversation
        if user:
            body["user"] = self._pseudonym(user)
        options: dict[str, Any] = {"extra_body": body}
        if seed is not None:
            options["seed"] = seed
        if stop:
            options["stop"] = list(stop)
        return ReplyStream(
            self._model().stream(list(messages), model=model, temperature=temperature, **options)
        )

    def generate(self, messages: Sequence[Message], model: str = "live", **options: Any) -> Reply:
        """The whole reply at once; takes the options of `stream` and raises what its iteration raises."""
        stream = self.stream(messages, model, **options)
        for _ in stream:
            pass
        assert stream.reply is not None
        return stream.reply

    def health(self) -> dict[str, Any]:
        """The engine's own account of itself (raises EngineUnavailable)."""
        return self._json("GET", "/health")

    def healthy(self) -> bool:
        """Whether the engine answers and is ready."""
        try:
            return self.health().get("status") == "ok"
        except EngineError:
            return False

    def position(self, conversation: str) -> int | None:
        """The place in the engine's line of a conversation's question: 1 is next, 0 is in work.

        None when it is not there, or when the endpoint does not tell (another server has no such call).
        """
        with suppress(EngineError):
            place = self._json("GET", f"/queue?key={quote(conversation)}", PLACE_SECONDS).get("position")
            return place if isinstance(place, int) else None
        return None

    def sync_adapters(self) -> dict[str, Any]:
        """Ask the engine to bring on stage what the registry says, now; returns what is on stage."""
        return self._json("POST", "/adapters/sync")

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _pseudonym(self, user: str) -> str:
        """The same for the same user, and unreadable without the engine's key."""
        return blake2b(user.encode(), key=self._key.encode()[:64], digest_size=12).hexdigest()

    def _json(self, method: str, path: str, seconds: float = 30.0) -> dict[str, Any]:
        try:
            response = self._http.request(
                method, self.url + path, headers={"Authorization": f"Bearer {self._key}"}, timeout=seconds
            )
            response.raise_for_status()
            value = response.json()
        except (httpx.HTTPError, ValueError) as error:
            raise _unavailable(self.url) from error
        return value if isinstance(value, dict) else {}

    def _model(self) -> Any:
        with self._lock:
            if self._chat is None:
                from langchain_openai import ChatOpenAI  # 1.5 s
                from pydantic import SecretStr

                self._chat = ChatOpenAI(
                    base_url=f"{self.url}/v1",
                    api_key=SecretStr(self._key),
                    model="live",
                    max_retries=0,
                    stream_usage=True,
                    use_responses_api=False,
                    http_client=self._http,
                )
        return self._chat


def split_fingerprint(fingerprint: str) -> tuple[str, str | None]:
    """Base id and adapter id (None for the bare base) of "<base>@<adapter or base>"."""
    base, _, adapter = fingerprint.partition("@")
    return base, None if adapter in ("", "base") else adapter


def _unavailable(url: str) -> EngineUnavailable:
    return EngineUnavailable(
        f"The engine at {url} does not answer; it may be restarting.", "Wait some seconds and ask again."
    )


def _translated(error: Exception) -> Exception:
    """The house's error for what openai or httpx raised; anything else is returned unchanged."""
    import openai

    detail = code = ""
    if isinstance(error, openai.APIError):
        detail = str(error.body.get("message", "")) if isinstance(error.body, dict) else error.message
        code = str(error.code or "")
    # in a stream that is open already an error has no status
    if isinstance(error, openai.RateLimitError) or code == "engine_busy":
        return EngineBusy(detail or "The engine has too much to do. Ask again later.")
    if isinstance(error, openai.APIStatusError):
        if code == "model_error":
            return ModelError(detail)
        if error.status_code >= 500:
            return _unavailable(str(error.request.url.copy_with(path="/")))
        if "context" in code:
            return PromptTooLong(detail or "The prompt does not fit the model's context.")
        if error.status_code == 404:
            return ModelError(detail or "The engine does not know that model.")
        return EngineError(f"The engine refused the request: {detail[:300]}", "See the engine's log.")
    if isinstance(error, openai.APIConnectionError | openai.APIError | httpx.HTTPError):
        return EngineUnavailable(
            "The engine stopped answering; it may be restarting.", "Wait some seconds and ask again."
        )
    return error


def free_port() -> int:
    """A loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_engine(
    settings: Settings, port: int, *, scripted: Path | None = None, log: IO[bytes] | None = None
) -> subprocess.Popen[bytes]:
    """Start `python -m engine.server` on a loopback port; `scripted` replays a file instead of a model.

    It ends with the thread that started it, at the latest.
    """
    return subprocess.Popen(
        bound("engine.server", ["--scripted", str(scripted)] if scripted else []),
        cwd=PROJECT,
        env=child_environment(replace(settings, engine_port=port)),
        stdin=subprocess.DEVNULL,
        stdout=log or subprocess.DEVNULL,
        stderr=log or subprocess.DEVNULL,
    )


@contextmanager
def engine_client(settings: Settings, *, scripted: Path | None = None) -> Iterator[ModelClient]:
    """A client of the running engine, or of a temporary one that lives as long as the block.

    Raises EngineUnavailable when a temporary engine does not come up.
    """
    running = client_of(settings)
    if scripted is None and running.healthy():
        yield running
        running.close()
        return
    port = free_port()
    client = ModelClient(f"http://127.0.0.1:{port}", engine_key(settings))
    log_path = settings.data_dir / "engine-temporary.log"
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with log_path.open("wb") as log:
        process = start_engine(settings, port, scripted=scripted, log=log)
    try:
        _await_engine(process, client, log_path)
        yield client
    finally:
        client.close()
        stop(process)


def client_of(settings: Settings) -> ModelClient:
    """A client of the engine that `understudy serve` runs."""
    return ModelClient(f"http://127.0.0.1:{settings.engine_port}", engine_key(settings))


def _await_engine(process: subprocess.Popen[bytes], client: ModelClient, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not client.healthy():
        if process.poll() is not None or time.monotonic() > deadline:
            last = last_words(log) or "it left no message"
            if (process.returncode or 0) < 0:
                last = f"it died by signal {-process.returncode}, so this model does not run here"
            raise EngineUnavailable(f"The engine did not start: {last}", f"See {log}.")
        time.sleep(0.1)
