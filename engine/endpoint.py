"""What other servers call things: finding out which one it is, and switching adapters by its own calls.

llama-server (its README) is started with its adapters (`--lora FILE`), lists them at `/lora-adapters`, and
each request says how strongly each of them acts (`lora`). vLLM (its documentation, "LoRA Adapters") loads and
unloads them by `/v1/load_lora_adapter` and `/v1/unload_lora_adapter`, and a request names one as its model.
Any other OpenAI-compatible server serves its model alone.
"""

from __future__ import annotations

import time
from pathlib import PurePath
from typing import Any

import httpx

from core.errors import EngineUnavailable, ModelError
from core.settings import Settings
from engine.requests import BadRequest, Sampling

START_SECONDS = 60.0  # how long a server may take to load its model
CALL_SECONDS = 60.0  # for loading an adapter
_POLL_SECONDS = 0.5


class Endpoint:
    """A server that is OpenAI-compatible and no more."""

    kind = "OpenAI-compatible server"
    scores = False  # whether it tells the log probabilities of a given text

    def __init__(self, settings: Settings, http: httpx.Client, model: str) -> None:
        self.model = model
        self._http = http
        self._folder = settings.endpoint_adapters or str((settings.data_dir / "adapters").resolve())

    def load(self, adapter_id: str) -> None:
        """Make an adapter ready (raises ModelError)."""
        raise ModelError(
            f"The server at {self._http.base_url} cannot switch to adapter {adapter_id}: it is neither "
            "llama-server nor vLLM.",
            "Serve the model with one of them, or leave the setting endpoint empty.",
        )

    def unload(self, adapter_id: str) -> None:
        """Free it; what is not loaded is ignored."""

    def target(self, adapter_id: str | None, scale: float) -> tuple[str, dict[str, Any]]:
        """The model's name in a request, and the fields that choose the adapter (raises ModelError)."""
        if adapter_id is not None:
            self.load(adapter_id)
        return self.model, {}

    def sampling(self, sampling: Sampling) -> dict[str, Any]:
        """What OpenAI's protocol has no field for (raises BadRequest when the server has none either)."""
        if sampling.top_k or sampling.min_p or sampling.repeat_penalty != 1:
            raise BadRequest("The server behind this engine knows no top_k, min_p and repeat_penalty.")
        return {}

    def close(self) -> None:
        """Close the connections."""
        self._http.close()


class LlamaServer(Endpoint):
    """llama-server. Its adapters are told apart by their folder's name, the adapter's id."""

    kind = "llama-server"

    def load(self, adapter_id: str) -> None:
        """See that the server was started with it."""
        self._numbers(adapter_id)

    def target(self, adapter_id: str | None, scale: float) -> tuple[str, dict[str, Any]]:
        """How strongly each of its adapters acts.

        Prompts are then evaluated anew each time: it was seen to go on from a prompt of the bare base under
        an adapter, which gave another reply.
        """
        wanted, others = self._numbers(adapter_id)
        if not wanted and not others:
            return self.model, {"cache_prompt": True}
        scales = [{"id": number, "scale": 0.0} for number in others]
        scales += [{"id": number, "scale": scale} for number in wanted]
        return self.model, {"lora": scales, "cache_prompt": False}

    def _numbers(self, adapter_id: str | None) -> tuple[list[int], list[int]]:
        """The server's number of an adapter, and all others; asked anew, as it may have restarted."""
        listed = answered(self._http, "GET", "/lora-adapters")
        names = {int(entry["id"]): _adapter_name(str(entry["path"])) for entry in listed}
        wanted = [number for number, name in names.items() if name == adapter_id]
        if adapter_id is not None and len(wanted) != 1:
            file = f"{self._folder}/{adapter_id}/adapter.gguf"
            raise ModelError(
                f"llama-server was started without adapter {adapter_id}.",
                f"Start it again with --lora {file} --lora-init-without-apply.",
            )
        return wanted, [number for number in names if number not in wanted]

    def sampling(self, sampling: Sampling) -> dict[str, Any]:
        """Its own names."""
        return {
            "top_k": sampling.top_k,
            "min_p": sampling.min_p,
            "repeat_penalty": sampling.repeat_penalty,
        }


class Vllm(Endpoint):
    """vLLM, started with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True."""

    kind = "vLLM"
    scores = True

    def load(self, adapter_id: str) -> None:
        """Load the PEFT files of its folder, unless they are there."""
        if adapter_id in _served(self._http, adapters=True):
            return
        path = f"{self._folder}/{adapter_id}"
        try:
            response = self._http.post(
                "/v1/load_lora_adapter",
                json={"lora_name": adapter_id, "lora_path": path},
                timeout=CALL_SECONDS,
            )
        except httpx.HTTPError as error:
            raise silent(self._http) from error
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

    def unload(self, adapter_id: str) -> None:
        """Free it there."""
        try:
            self._http.post("/v1/unload_lora_adapter", json={"lora_name": adapter_id})
        except httpx.HTTPError:
            return  # a server that is gone holds nothing

    def target(self, adapter_id: str | None, scale: float) -> tuple[str, dict[str, Any]]:
        """The adapter is the model; it acts as trained."""
        if adapter_id is None:
            return self.model, {}
        if scale != 1:
            raise BadRequest("vLLM cannot scale an adapter.", "scale")
        self.load(adapter_id)
        return adapter_id, {}

    def sampling(self, sampling: Sampling) -> dict[str, Any]:
        """Its own names."""
        return {
            "top_k": sampling.top_k,
            "min_p": sampling.min_p,
            "repetition_penalty": sampling.repeat_penalty,
        }


def find(settings: Settings) -> Endpoint:
    """The server of the settings, once it has loaded its model.

    Raises EngineUnavailable when it does not answer, ModelError when it does not serve the model.
    """
    headers = {"Authorization": f"Bearer {settings.endpoint_key}"} if settings.endpoint_key else {}
    # no proxies: what goes to the model goes there alone
    http = httpx.Client(base_url=base_url(settings), headers=headers, timeout=10.0, trust_env=False)
    try:
        served = _await(http)
        model = settings.endpoint_model or (served[0] if len(served) == 1 else "")
        if model not in served:
            raise ModelError(
                f"The server at {http.base_url} serves {', '.join(served)[:200] or 'nothing'}, "
                f"not {model or 'one model alone'}.",
                "Set endpoint_model to one of them.",
            )
        return _kind(http)(settings, http, model)
    except BaseException:
        http.close()
        raise


def base_url(settings: Settings) -> str:
    """The server's address without `/v1`."""
    return settings.endpoint.rstrip("/").removesuffix("/v1")


def _kind(http: httpx.Client) -> type[Endpoint]:
    if isinstance(_asked(http, "/lora-adapters"), list):
        return LlamaServer
    version, models = _asked(http, "/version"), _asked(http, "/v1/models")
    owners = {entry.get("owned_by") for entry in models["data"]} if isinstance(models, dict) else set()
    return Vllm if isinstance(version, dict) and "vllm" in owners else Endpoint


def _await(http: httpx.Client) -> list[str]:
    """The names of its models, once it says them."""
    until = time.monotonic() + START_SECONDS
    while True:
        try:
            return _served(http)
        except EngineUnavailable:
            if time.monotonic() > until:
                raise
        time.sleep(_POLL_SECONDS)


def _served(http: httpx.Client, *, adapters: bool = False) -> list[str]:
    """The names of its models; those of vLLM's loaded adapters have a parent."""
    listed = answered(http, "GET", "/v1/models")["data"]
    return [str(entry["id"]) for entry in listed if bool(entry.get("parent")) == adapters]


def answered(http: httpx.Client, method: str, path: str) -> Any:
    """A decoded answer (raises EngineUnavailable when there is none, ModelError when it is a refusal)."""
    try:
        response = http.request(method, path)
        if response.status_code in (401, 403):
            raise ModelError(f"The server at {http.base_url} refuses the key.", "Set endpoint_key.")
        response.raise_for_status()
        return response.json()
    except (httpx.HTTPError, ValueError) as error:
        raise silent(http) from error


def _asked(http: httpx.Client, path: str) -> Any:
    """A decoded answer, None when the server has no such route."""
    try:
        response = http.get(path)
        return response.json() if response.is_success else None
    except (httpx.HTTPError, ValueError):
        return None


def silent(http: httpx.Client) -> EngineUnavailable:
    """What is said of a server that does not answer."""
    return EngineUnavailable(
        f"The server at {http.base_url} does not answer.",
        "See that it runs and that this machine reaches it.",
    )


def _adapter_name(path: str) -> str:
    """`adapters/<id>/adapter.gguf` or `<id>.gguf`."""
    file = PurePath(path)
    return file.parent.name if file.name == "adapter.gguf" else file.stem
