"""What a client may ask for: every field checked and bounded before anything native sees it.

Unknown keys are never passed on. A negative count reached native code in another server and corrupted its
memory (CVE-2026-21869), so each parameter has a type and a range here, and NaN and infinities are refused.
"""

from __future__ import annotations

import math
import secrets
from dataclasses import dataclass
from typing import Any, Literal

from core.types import Message
from engine.schemas import SCHEMAS

MAX_BODY_BYTES = 4 << 20
MAX_MESSAGES = 512
MAX_STOPS = 8
MAX_STOP_CHARACTERS = 200
MAX_NAME_CHARACTERS = 200
MAX_LOGPROBS = 20
DEFAULT_TOKENS = 512
ROLES: dict[str, Literal["system", "user", "assistant"]] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
}
_RANGES: dict[str, tuple[float, float, float]] = {  # default, lowest, highest
    "temperature": (0.0, 0.0, 2.0),
    "top_p": (1.0, 0.0, 1.0),
    "min_p": (0.0, 0.0, 1.0),
    "frequency_penalty": (0.0, -2.0, 2.0),
    "presence_penalty": (0.0, -2.0, 2.0),
    "repeat_penalty": (1.0, 0.5, 2.0),
}
_ALIASES = {"repetition_penalty": "repeat_penalty"}  # vLLM's name for it
# asking for these and getting plain text would be a silent lie
_UNSUPPORTED = (
    "tools", "functions", "logit_bias", "audio", "suffix",
    # a grammar or schema of the client's own, as llama-server and vLLM call it (reliability row S18)
    "grammar", "json_schema", "guided_json", "guided_regex", "guided_choice", "guided_grammar",
    "structured_outputs",
)  # fmt: skip
_ALONE = {  # what may be said of tools and modalities where there is nothing but text
    "tool_choice": ("none", "auto"), "function_call": ("none", "auto"), "modalities": (["text"],),
}  # fmt: skip


class BadRequest(Exception):
    """A request the engine refuses; becomes an OpenAI-shaped error (400 unless said otherwise)."""

    def __init__(
        self, message: str, parameter: str | None = None, *, status: int = 400, code: str = "bad_request"
    ) -> None:
        super().__init__(message)
        self.message = message
        self.parameter = parameter
        self.status = status
        self.code = code


@dataclass(frozen=True)
class Sampling:
    """How to choose tokens. `temperature` 0 is greedy; `top_k` 0 considers every token."""

    max_tokens: int = DEFAULT_TOKENS
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repeat_penalty: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Request:
    """A checked request. `messages` of a chat, or `prompt` of a plain completion, never both.

    `logprobs` is how many of the most probable tokens to tell beside each one (None: nothing at all). With
    `echo` the prompt's text comes first. `user` is who shares the engine fairly; `key` is whose earlier
    prompts may be reused, a conversation's or a user's. Both are empty when the client names nobody.
    `schema` names the schema of ours that a chat's reply must keep to, empty for plain text.
    """

    kind: Literal["chat", "text"]
    model: str
    messages: tuple[Message, ...]
    prompt: str
    sampling: Sampling
    stream: bool
    usage_in_stream: bool
    logprobs: int | None = None
    echo: bool = False
    user: str = ""
    key: str = ""
    schema: str = ""


def parse(kind: Literal["chat", "text"], body: Any) -> Request:
    """Check a decoded JSON body (raises BadRequest naming the parameter)."""
    if not isinstance(body, dict):
        raise BadRequest("The body must be a JSON object.")
    for key in _UNSUPPORTED:
        if body.get(key):
            raise BadRequest(f"{key} is not supported.", key)
    for key, allowed in _ALONE.items():
        if body.get(key) is not None and body[key] not in allowed:
            raise BadRequest(f"{key} can only be {' or '.join(map(str, allowed))}.", key)
    body = body | {ours: body[theirs] for theirs, ours in _ALIASES.items() if theirs in body}
    for key in ("n", "best_of"):
        if _integer(body, key, 1, 1, 1 << 62) != 1:
            raise BadRequest(f"{key} must be 1.", key)
    options = body.get("stream_options")
    user = _name(body, "user") or _name(body, "safety_identifier")
    echo = kind == "text" and _flag(body, "echo")
    return Request(
        kind=kind,
        model=_model(body),
        messages=_messages(body) if kind == "chat" else (),
        prompt=_prompt(body) if kind == "text" else "",
        sampling=_sampling(body, fewest=0 if echo else 1),
        stream=_flag(body, "stream"),
        usage_in_stream=isinstance(options, dict) and _flag(options, "include_usage"),
        logprobs=_logprobs(kind, body),
        echo=echo,
        user=user,
        key=_name(body, "prompt_cache_key") or user,
        schema=_schema(kind, body.get("response_format")),
    )


def _schema(kind: Literal["chat", "text"], form: Any) -> str:
    """The name of a registered schema, or nothing for plain text; never what a client wrote itself."""
    where = "response_format"
    if form is None or form == {"type": "text"}:
        return ""
    if kind != "chat" or not isinstance(form, dict) or form.get("type") != "json_schema":
        raise BadRequest("response_format must be text, or in chats the json_schema of a known name.", where)
    named = form.get("json_schema")
    name = named.get("name") if isinstance(named, dict) else None
    if not isinstance(named, dict) or not isinstance(name, str) or name not in SCHEMAS:
        raise BadRequest(f"json_schema.name must be one of {', '.join(SCHEMAS)}.", where)
    # client libraries send the schema along; only the very one that is registered under the name may come
    if set(form) > {"type", "json_schema"} or named.get("schema", SCHEMAS[name]) != SCHEMAS[name]:
        raise BadRequest(f"Send the name {name} alone: schemas of your own are not taken.", where)
    if unknown := set(named) - {"name", "schema", "strict", "description"}:
        raise BadRequest(f"json_schema.{min(unknown)[:40]} is not supported.", where)
    return name


def _name(body: dict[str, Any], key: str) -> str:
    value = body.get(key)
    if value is not None and not (isinstance(value, str) and _short(value)):
        raise BadRequest(f"{key} must be printable, of at most {MAX_NAME_CHARACTERS} characters.", key)
    return value or ""


def _short(name: str) -> bool:
    """Whether a name is not too long, and neither breaks lines nor holds a lone surrogate."""
    return len(name) <= MAX_NAME_CHARACTERS and name.isprintable()


def _logprobs(kind: Literal["chat", "text"], body: dict[str, Any]) -> int | None:
    """A number in plain completions; in chats a flag beside the number `top_logprobs`."""
    if kind == "text":
        count = _integer(body, "logprobs", -1, 0, MAX_LOGPROBS)
        return None if count < 0 else count
    wanted = _flag(body, "logprobs")
    count = _integer(body, "top_logprobs", 0, 0, MAX_LOGPROBS)
    if count and not wanted:
        raise BadRequest("top_logprobs needs logprobs to be true.", "top_logprobs")
    return count if wanted else None


def _model(body: dict[str, Any]) -> str:
    model = body.get("model", "live")
    if not isinstance(model, str) or not model or not _short(model):
        raise BadRequest("model must be a short string: live, base or an adapter's id.", "model")
    return model


def _messages(body: dict[str, Any]) -> tuple[Message, ...]:
    raw = body.get("messages")
    if not isinstance(raw, list) or not 0 < len(raw) <= MAX_MESSAGES:
        raise BadRequest(f"messages must be a list of 1 to {MAX_MESSAGES} messages.", "messages")
    found: list[Message] = []
    for number, entry in enumerate(raw):
        where = f"messages[{number}]"
        role = entry.get("role") if isinstance(entry, dict) else None
        if not isinstance(role, str) or role not in ROLES:
            raise BadRequest(f"{where}.role must be one of {', '.join(ROLES)}.", where)
        found.append({"role": ROLES[role], "content": _content(entry.get("content"), where)})
    return tuple(found)


def _content(content: Any, where: str) -> str:
    """A string, or OpenAI's list of text parts joined."""
    if isinstance(content, list):
        if not all(isinstance(part, dict) and part.get("type") == "text" for part in content):
            raise BadRequest(f"{where}.content may hold text parts only.", where)
        content = "".join(str(part.get("text", "")) for part in content)
    return _text(content, f"{where}.content")


def _prompt(body: dict[str, Any]) -> str:
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:  # OpenAI's list of prompts, of which one is taken
        (prompt,) = prompt
    return _text(prompt, "prompt")


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise BadRequest(f"{where} must be a string.", where)
    if "\x00" in value:
        raise BadRequest(f"{where} must not contain NUL.", where)
    # JSON can spell lone surrogates, which are not text and cannot be encoded
    return value.encode("utf-8", "replace").decode("utf-8")


def _sampling(body: dict[str, Any], fewest: int) -> Sampling:
    numbers = {key: _number(body, key, *bounds) for key, bounds in _RANGES.items()}
    key = "max_completion_tokens" if body.get("max_completion_tokens") is not None else "max_tokens"
    seed = _integer(body, "seed", -1, -(1 << 63), (1 << 64) - 1)
    return Sampling(
        # more than any context holds is clamped to what is left there
        max_tokens=min(_integer(body, key, DEFAULT_TOKENS, fewest, 1 << 62), 1 << 20),
        top_k=min(_integer(body, "top_k", 0, 0, 1 << 31), 1 << 20),
        seed=secrets.randbits(32) if seed == -1 else seed % (1 << 32),
        stop=_stops(body.get("stop")),
        **numbers,
    )


def _stops(raw: Any) -> tuple[str, ...]:
    stops = [] if raw is None else [raw] if isinstance(raw, str) else raw
    if not isinstance(stops, list) or len(stops) > MAX_STOPS:
        raise BadRequest(f"stop must be a string or a list of at most {MAX_STOPS} strings.", "stop")
    for stop in stops:
        if not isinstance(stop, str) or not 0 < len(stop) <= MAX_STOP_CHARACTERS:
            raise BadRequest(f"Each stop must have 1 to {MAX_STOP_CHARACTERS} characters.", "stop")
    return tuple(stops)


def _number(body: dict[str, Any], key: str, default: float, low: float, high: float) -> float:
    value = body.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadRequest(f"{key} must be a number.", key)
    # an integer too large for a float is out of range, too
    if not low <= value <= high or not math.isfinite(value):
        raise BadRequest(f"{key} must lie from {low:g} to {high:g}.", key)
    return float(value)


def _integer(body: dict[str, Any], key: str, default: int, low: int, high: int) -> int:
    value = body.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise BadRequest(f"{key} must be a whole number from {low} to {high}.", key)
    return value


def _flag(body: dict[str, Any], key: str) -> bool:
    value = body.get(key)
    if value is not None and not isinstance(value, bool):
        raise BadRequest(f"{key} must be true or false.", key)
    return bool(value)
