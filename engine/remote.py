"""Another server as a backend: llama-server, vLLM or any OpenAI-compatible one writes the replies.

Everything else stays as it is: the line and its fairness, adapters that follow the registry after a
self-test, the fingerprint of each reply. One thread runs an event loop with a task for every reply in work,
so letting one go hangs up at once and the server stops generating.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import openai

from core.catalog import CatalogModel
from core.endpoint import address
from core.errors import EngineBusy, EngineUnavailable, ModelError, UnderstudyError
from core.gguf import check_gguf
from core.settings import Settings
from engine.backend import (
    Begun,
    Failed,
    Finished,
    FinishReason,
    Output,
    Part,
    Piece,
    Prompt,
    TokenLogprob,
    Work,
)
from engine.endpoint import SLOTS, Endpoint, find
from engine.prompts import require_plausible
from engine.requests import BadRequest, Request
from engine.schemas import SCHEMAS

SILENCE_SECONDS = 180.0
CONNECT_SECONDS = 5.0
LEAST_TOP_P = 1e-6  # vLLM takes no 0, which is the same
_NAP_SECONDS = 0.02
T = TypeVar("T")


@dataclass
class _Counts:
    """What is known of one reply; the server says its numbers of tokens at the end."""

    prompt: int = 0
    made: int = 0
    cached: int = 0
    begun: bool = False
    ended: bool = False

    def note(self, usage: Any) -> None:
        """Take the server's numbers, when it says them."""
        if usage is not None:
            self.prompt, self.made = usage.prompt_tokens, usage.completion_tokens
            details = usage.prompt_tokens_details
            self.cached = (details.cached_tokens if details else None) or 0

    def finished(self, reason: FinishReason) -> Finished:
        return Finished(reason, self.prompt, self.made, self.cached)


class RemoteBackend:
    """Asks the endpoint of the settings. Adapters are switched there, by its own calls."""

    def __init__(self, settings: Settings, model: CatalogModel) -> None:
        self._settings = settings
        self._model = model
        self._endpoint: Endpoint | None = None
        self._client: Any = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="engine-remote", daemon=True)
        self._works: dict[Work, asyncio.Task[None]] = {}
        self._scales: dict[str, float] = {}
        self._outputs: queue.SimpleQueue[Output] = queue.SimpleQueue()

    @property
    def slots(self) -> int:
        """How many replies are asked for at once."""
        return self._settings.slots or (self._endpoint.slots if self._endpoint else SLOTS)

    def load(self) -> None:
        """Find the server (raises EngineUnavailable or ModelError)."""
        self._thread.start()
        self._endpoint = self._awaited(find(self._settings, self._model.context))
        no_header: Any = openai.Omit()
        self._client = openai.AsyncOpenAI(
            base_url=f"{address(self._settings)}/v1",
            api_key=self._settings.endpoint_key or "none",
            # the library would take these from the environment
            default_headers={"OpenAI-Organization": no_header, "OpenAI-Project": no_header},
            max_retries=0,
            timeout=openai.Timeout(SILENCE_SECONDS, connect=CONNECT_SECONDS),
            # what goes to the model goes there alone
            http_client=openai.DefaultAsyncHttpxClient(trust_env=False, follow_redirects=False),
        )

    # adapters

    def check_adapter(self, adapter_id: str, path: Path) -> None:
        """Check its header and have the server load it from the registry's folder (raises ModelError).

        Here and not in `load_adapter`, because nobody's reply may wait for it.
        """
        if path.is_file():
            check_gguf(path, "adapter")
        self._awaited(self._found().load(adapter_id))

    def load_adapter(self, adapter_id: str, path: Path) -> None:
        """Nothing more to do."""

    def scale_adapter(self, adapter_id: str, scale: float) -> None:
        """How strongly it acts on replies begun from now on (raises BadRequest when that cannot be set)."""
        if scale != 1 and not self._found().scales:
            raise BadRequest(f"{self._found().kind} cannot scale an adapter.", "scale")
        self._scales[adapter_id] = scale

    def free_adapter(self, adapter_id: str) -> None:
        """Have the server forget it."""
        self._scales.pop(adapter_id, None)
        asyncio.run_coroutine_threadsafe(self._found().unload(adapter_id), self._loop)

    # replies

    def prepare(self, request: Request) -> Prompt:
        """Checked as far as it can be here: the server counts the tokens (raises BadRequest)."""
        endpoint = self._found()
        endpoint.options(request.sampling, "")
        if request.echo and not endpoint.scores:
            raise BadRequest(f"{endpoint.kind} does not give a prompt's own text back.", "echo")
        require_plausible(request, self._model.context)
        return Prompt(())

    def begin(self, work: Work) -> None:
        """Ask."""
        work.state = _Counts()

        def start() -> None:
            self._works[work] = self._loop.create_task(self._ask(work))

        self._loop.call_soon_threadsafe(start)

    def step(self) -> list[Output]:
        """What came since; a short nap when there is nothing."""
        outputs: list[Output] = []
        with suppress(queue.Empty):
            outputs.append(self._outputs.get(timeout=_NAP_SECONDS))
            while True:
                outputs.append(self._outputs.get_nowait())
        return [(work, part) for work, part in outputs if not work.state.ended]

    def end(self, work: Work) -> Finished:
        """Hang up."""
        counts: _Counts = work.state
        counts.ended = True

        def cancel() -> None:
            if task := self._works.pop(work, None):
                task.cancel()

        self._loop.call_soon_threadsafe(cancel)
        return counts.finished("cancelled")

    async def _ask(self, work: Work) -> None:
        """Hand on what the server says of one reply, to its end."""
        counts: _Counts = work.state
        try:
            async for part in self._parts(work):
                self._outputs.put((work, part))
        except (UnderstudyError, BadRequest) as error:
            self._outputs.put((work, Failed(error)))
        except Exception as error:  # whatever it is, a reply must end
            self._outputs.put((work, Failed(self._translated(error, begun=counts.begun))))
        finally:
            self._works.pop(work, None)

    async def _parts(self, work: Work) -> AsyncIterator[Part]:
        counts: _Counts = work.state
        reason = ""
        async with await self._create(work) as stream:
            async for chunk in stream:
                if not counts.begun:
                    counts.begun = True
                    yield Begun(0)
                counts.note(chunk.usage)
                for choice in chunk.choices:
                    text, logprobs = _said(choice, work.request.logprobs)
                    if text or logprobs:
                        counts.made += 1
                        yield Piece(text, logprobs)
                    reason = choice.finish_reason or reason
        if reason not in ("stop", "length"):
            how = f" ({reason})" if reason else ""
            raise EngineUnavailable(f"The server broke off in the middle of the reply{how}.", "Ask again.")
        yield counts.finished("length" if reason == "length" else "stop")

    async def _create(self, work: Work) -> Any:
        request, sampling = work.request, work.request.sampling
        endpoint = self._found()
        model, chosen = await endpoint.target(work.adapter_id, self._scales.get(work.adapter_id or "", 1.0))
        options: dict[str, Any] = {
            "model": model,
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": max(sampling.top_p, LEAST_TOP_P),
            "frequency_penalty": sampling.frequency_penalty,
            "presence_penalty": sampling.presence_penalty,
            "seed": sampling.seed,
            "stream": True,
            "stream_options": {"include_usage": True},
            "extra_body": endpoint.options(sampling, work.owner) | chosen,
        }
        if sampling.stop:
            options["stop"] = list(sampling.stop)
        # llama-server takes 0 for none at all
        noted = None if request.logprobs is None else max(1, request.logprobs)
        if request.kind == "text":
            if noted is not None:
                options["logprobs"] = noted
            if request.echo:
                options["echo"] = True
            options["extra_body"].pop("chat_template_kwargs", None)
            return await self._client.completions.create(prompt=request.prompt, **options)
        if noted is not None:
            options |= {"logprobs": True, "top_logprobs": noted}
        if request.schema:
            named = {"name": request.schema, "schema": SCHEMAS[request.schema], "strict": True}
            options["response_format"] = {"type": "json_schema", "json_schema": named}
        return await self._client.chat.completions.create(messages=list(request.messages), **options)

    def _translated(self, error: Exception, *, begun: bool) -> Exception:
        """The house's error for what the server or the connection said."""
        where = address(self._settings)
        said = ""
        if isinstance(error, openai.APIError) and isinstance(error.body, dict):
            said = str(error.body.get("message") or "")[:300]
        status = error.status_code if isinstance(error, openai.APIStatusError) else 0
        if status == 429:
            return EngineBusy(f"The server at {where} has too much to do.", "Ask again later.")
        if status in (400, 413, 422):
            code = "context_length_exceeded" if "context" in said.lower() else "bad_request"
            return BadRequest(said or f"The server at {where} refused the request.", code=code)
        if status in (401, 403):
            return ModelError(f"The server at {where} refuses the key.", "Set endpoint_key.")
        if status or said:
            return EngineUnavailable(
                f"The server at {where} failed: {said or f'status {status}'}", "Ask again."
            )
        if isinstance(error, openai.APITimeoutError) and not begun:
            return EngineBusy(f"The server at {where} did not begin in time.", "Ask again later.")
        verb = "stopped answering" if begun else "does not answer"
        return EngineUnavailable(f"The server at {where} {verb}.", "Ask again when it runs.")

    def _found(self) -> Endpoint:
        if self._endpoint is None:
            raise EngineUnavailable("The server was not found yet.", "Ask again in some seconds.")
        return self._endpoint

    def _awaited(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of what runs on the loop; never called there."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def interrupt(self) -> None:
        """Nothing to do: every step is short."""

    def facts(self) -> dict[str, Any]:
        """What /health reports."""
        endpoint = self._endpoint
        return {
            "name": self._model.name,
            "file": "",
            "context": self._model.context,
            "slots": self.slots,
            "backend": endpoint.kind if endpoint else "another server",
            "endpoint": address(self._settings),
            "served_as": endpoint.model if endpoint else "",
        }

    def close(self) -> None:
        """Hang up on all and end the loop's thread."""
        if self._thread.is_alive():
            with suppress(TimeoutError):
                asyncio.run_coroutine_threadsafe(self._leave(), self._loop).result(CONNECT_SECONDS)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
        self._loop.close()

    async def _leave(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._client is not None:
            await self._client.close()
        if self._endpoint is not None:
            await self._endpoint.close()


def _said(choice: Any, wanted: int | None) -> tuple[str, tuple[TokenLogprob, ...]]:
    """The text of a chunk's choice and, when they were asked for, its log probabilities."""
    text = (choice.delta.content if hasattr(choice, "delta") else choice.text) or ""
    noted = choice.logprobs.model_dump() if choice.logprobs is not None and wanted is not None else {}
    if noted.get("content"):  # of chats, and of llama-server's plain completions
        return text, tuple(_token(one, one["top_logprobs"][:wanted]) for one in noted["content"])
    names = noted.get("tokens") or []
    tops = noted.get("top_logprobs") or [None] * len(names)
    tokens = []
    for name, logprob, top in zip(names, noted.get("token_logprobs") or [], tops, strict=True):
        best = [{"token": other, "logprob": value} for other, value in (top or {}).items()]
        tokens.append(_token({"token": name, "logprob": logprob}, best[:wanted]))
    return text, tuple(tokens)


def _token(said: dict[str, Any], top: Sequence[dict[str, Any]] = ()) -> TokenLogprob:
    name, data = said["token"], said.get("bytes")
    data = name.encode() if data is None else bytes(data)
    return TokenLogprob(name, said["logprob"], tuple(_token(one) for one in top), data)
