"""What other servers call things: finding out which one it is, and switching adapters by its own calls.

llama-server (its README) is started with its adapters (`--lora FILE`), lists them at `/lora-adapters`, and
each request says how strongly each of them acts (`lora`). vLLM (its documentation, "LoRA Adapters") loads and
unloads them by `/v1/load_lora_adapter` and `/v1/unload_lora_adapter`, and a request names one as its model.
Any other OpenAI-compatible server serves its model alone. Everything here runs on one event loop.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from collections import defaultdict
from contextlib import suppress
from pathlib import PurePath
from typing import Any

import httpx

from core.endpoint import address, headers
from core.errors import EngineUnavailable, ModelError
from core.settings import Settings
from engine.requests import BadRequest, Sampling

START_SECONDS = 60.0  # how long a server may take to load its model
# llama-server answers even small questions only between the batches of a long prompt
CALL_SECONDS = 120.0
SLOTS = 16  # replies that such a server works on at once, unless it says; more wait in our line
_POLL_SECONDS = 0.5


class Endpoint:
    """A server that is OpenAI-compatible and no more."""

    kind = "OpenAI-compatible server"
    scales = False  # whether it can let an adapter act more or less strongly
    scores = False  # whether it tells the log probabilities of a given text

    def __init__(self, settings: Settings, http: httpx.AsyncClient, model: str) -> None:
        self.model = model
        self.slots = SLOTS
        self.context = 0  # tokens that a prompt and its reply may have; 0 when the server does not say
        self._http = http
        self._folder = settings.endpoint_adapters or str((settings.data_dir / "adapters").resolve())

    async def learn(self) -> None:
        """Ask the server what else is of use."""

    async def load(self, adapter_id: str) -> None:
        """Make an adapter ready (raises ModelError)."""
        raise ModelError(
            f"The server at {self._http.base_url} cannot switch to adapter {adapter_id}: it is neither "
            "llama-server nor vLLM.",
            "Serve the model with one of them, or leave the setting endpoint empty.",
        )

    async def unload(self, adapter_id: str) -> None:
        """Free it; what is not loaded is ignored."""

    async def target(self, adapter_id: str | None, scale: float) -> tuple[str, dict[str, Any]]:
        """The model's name in a request, and the fields that choose the adapter (raises ModelError)."""
        if adapter_id is not None:
            await self.load(adapter_id)
        return self.model, {}

    def options(self, sampling: Sampling, owner: str) -> dict[str, Any]:
        """Fields that OpenAI's protocol has not (raises BadRequest when the server has none either).

        `owner` is whose earlier prompts may make this one quicker, empty for nobody's.
        """
        if sampling.top_k or sampling.min_p or sampling.repeat_penalty != 1:
            raise BadRequest("The server behind this engine knows no top_k, min_p and repeat_penalty.")
        return {}

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()


class LlamaServer(Endpoint):
    """llama-server. Its adapters are told apart by their folder's name, the adapter's id."""

    kind = "llama-server"
    scales = True

    async def learn(self) -> None:
        """How many replies it works on at once, and how long each may be."""
        props = await _asked(self._http, "/props")
        if isinstance(props, dict):
            slots = int(props.get("total_slots") or 0)
            self.slots = slots if slots > 0 else self.slots
            self.context = int((props.get("default_generation_settings") or {}).get("n_ctx") or 0)

    async def load(self, adapter_id: str) -> None:
        """See that the server was started with it."""
        await self._numbers(adapter_id)

    async def target(self, adapter_id: str | None, scale: float) -> tuple[str, dict[str, Any]]:
        """How strongly each of its adapters acts; one that is not named does so as the server was started."""
        wanted, others = await self._numbers(adapter_id)
        scales = [{"id": number, "scale": 0.0} for number in others]
        scales += [{"id": number, "scale": scale} for number in wanted]
        return self.model, {"lora": scales} if scales else {}

    async def _numbers(self, adapter_id: str | None) -> tuple[list[int], list[int]]:
        """The server's number of an adapter, and all others; asked anew, as it may have restarted."""
        listed = await _answered(self._http, "/lora-adapters")
        names = {int(entry["id"]): _adapter_name(str(entry["path"])) for entry in listed}
        wanted = [number for number, name in names.items() if name == adapter_id]
        if adapter_id is not None and len(wanted) != 1:
            file = f"{self._folder}/{adapter_id}/adapter.gguf"
            raise ModelError(
                f"llama-server was started without adapter {adapter_id}.",
                f"Start it again with --lora {file} --lora-init-without-apply.",
            )
        return wanted, [number for number in names if number not in wanted]

    def options(self, sampling: Sampling, owner: str) -> dict[str, Any]:
        """Its own names, and no cache.

        It goes on from anybody's prompt that begins alike, even under another adapter, which gave another
        reply (llama.cpp issue 26207).
        """
        return {
            "top_k": sampling.top_k,
            "min_p": sampling.min_p,
            "repeat_penalty": sampling.repeat_penalty,
            "cache_prompt": False,
            "chat_template_kwargs": {"enable_thinking": False},
        }


class Vllm(Endpoint):
    """vLLM, started with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True."""

    kind = "vLLM"
    scores = True

    def __init__(self, settings: Settings, http: httpx.AsyncClient, model: str) -> None:
        super().__init__(settings, http, model)
        # by adapter; the server refuses what another call has just loaded
        self._changing: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def learn(self) -> None:
        """How long a prompt and its reply may be."""
        listed = (await _answered(self._http, "/v1/models"))["data"]
        self.context = next(int(e.get("max_model_len") or 0) for e in listed if e["id"] == self.model)

    async def load(self, adapter_id: str) -> None:
        """Load the PEFT files of its folder, unless they are there."""
        async with self._changing[adapter_id]:
            if adapter_id not in await _served(self._http, adapters=True):
                await self._load(adapter_id)

    async def _load(self, adapter_id: str) -> None:
        path = f"{self._folder}/{adapter_id}"
        named = {"lora_name": adapter_id, "lora_path": path}
        try:
            response = await self._http.post("/v1/load_lora_adapter", json=named)
        except httpx.HTTPError as error:
            raise _silent(self._http) from error
        if (
            response.status_code == 404 and path not in response.text
        ):  # no such route, rather than no such file
            raise ModelError(
                "vLLM does not load adapters at run time as it was started.",
                "Start it with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True.",
            )
        if response.is_error:
            raise ModelError(
                f"vLLM refused adapter {adapter_id}: {response.text[:200]}",
                "See that it reaches this folder (endpoint_adapters), and its --max-lora-rank.",
            )

    async def unload(self, adapter_id: str) -> None:
        """Free it there; a load that is asked for meanwhile waits, as it would find it still there."""
        async with self._changing[adapter_id]:
            # a server that is gone holds nothing
            with suppress(httpx.HTTPError):
                await self._http.post("/v1/unload_lora_adapter", json={"lora_name": adapter_id})

    async def target(self, adapter_id: str | None, scale: float) -> tuple[str, dict[str, Any]]:
        """The adapter is the model; it acts as trained."""
        if adapter_id is None:
            return self.model, {}
        await self.load(adapter_id)
        return adapter_id, {}

    def options(self, sampling: Sampling, owner: str) -> dict[str, Any]:
        """Its own names, and a cache that nobody shares."""
        return {
            "top_k": sampling.top_k or -1,
            "min_p": sampling.min_p,
            "repetition_penalty": sampling.repeat_penalty,
            "cache_salt": hashlib.sha256(owner.encode()).hexdigest() if owner else secrets.token_hex(16),
            "chat_template_kwargs": {"enable_thinking": False},
        }


async def find(settings: Settings, context: int) -> Endpoint:
    """The server of the settings, once it has loaded its model; prompts and replies have `context` tokens.

    Raises EngineUnavailable when it does not answer, ModelError when it does not serve the model or takes
    fewer tokens.
    """
    http = httpx.AsyncClient(
        # no proxies: what goes to the model goes there alone
        base_url=address(settings), headers=headers(settings), timeout=CALL_SECONDS, trust_env=False,
    )  # fmt: skip
    try:
        served = await _await(http)
        model = settings.endpoint_model or (served[0] if len(served) == 1 else "")
        if model not in served:
            raise ModelError(
                f"The server at {http.base_url} serves {', '.join(served)[:200] or 'nothing'}, "
                f"not {model or 'one model alone'}.",
                "Set endpoint_model to one of them.",
            )
        found = (await _kind(http))(settings, http, model)
        await found.learn()
        if 0 < found.context < context:
            raise ModelError(
                f"The server at {http.base_url} takes {found.context} tokens, and {context} are expected.",
                f"Set context to {found.context} at most, or start that server with more.",
            )
    except BaseException:
        await http.aclose()
        raise
    return found


async def _kind(http: httpx.AsyncClient) -> type[Endpoint]:
    if isinstance(await _asked(http, "/lora-adapters"), list):
        return LlamaServer
    models = await _answered(http, "/v1/models")
    owners = {entry.get("owned_by") for entry in models["data"]}
    return Vllm if "vllm" in owners and await _asked(http, "/version") else Endpoint


async def _await(http: httpx.AsyncClient) -> list[str]:
    """The names of its models, once it says them."""
    until = time.monotonic() + START_SECONDS
    while True:
        try:
            return await _served(http)
        except EngineUnavailable:
            if time.monotonic() > until:
                raise
        await asyncio.sleep(_POLL_SECONDS)


async def _served(http: httpx.AsyncClient, *, adapters: bool = False) -> list[str]:
    """The names of its models; those of vLLM's loaded adapters have a parent."""
    listed = (await _answered(http, "/v1/models"))["data"]
    return [str(entry["id"]) for entry in listed if bool(entry.get("parent")) == adapters]


async def _answered(http: httpx.AsyncClient, path: str) -> Any:
    """A decoded answer (raises EngineUnavailable when there is none, ModelError when it is a refusal)."""
    try:
        response = await http.get(path)
    except httpx.HTTPError as error:
        raise _silent(http) from error
    if response.status_code in (401, 403):
        raise ModelError(f"The server at {http.base_url} refuses the key.", "Set endpoint_key.")
    try:
        response.raise_for_status()
        return response.json()
    except (httpx.HTTPError, ValueError) as error:
        message = f"The server at {http.base_url} answers {path} with status {response.status_code}"
        raise EngineUnavailable(
            f"{message} and no list.", "See that the setting endpoint is right."
        ) from error


async def _asked(http: httpx.AsyncClient, path: str) -> Any:
    """A decoded answer, None when there is no such route (raises EngineUnavailable when it is silent)."""
    try:
        response = await http.get(path)
        return response.json() if response.is_success else None
    except httpx.HTTPError as error:
        raise _silent(http) from error
    except ValueError:
        return None


def _silent(http: httpx.AsyncClient) -> EngineUnavailable:
    return EngineUnavailable(
        f"The server at {http.base_url} does not answer.", "See that it runs and can be reached from here."
    )


def _adapter_name(path: str) -> str:
    """`adapters/<id>/adapter.gguf` or `<id>.gguf`."""
    file = PurePath(path)
    return file.parent.name if file.name == "adapter.gguf" else file.stem
