"""The settings: some forty fields, one page, nothing hidden. The only file that reads the environment.

Later wins: defaults, then `understudy.toml` (in the working directory, or the file that UNDERSTUDY_CONFIG
names), then environment variables `UNDERSTUDY_<FIELD>`. An unknown key or a bad value refuses to start and
names the key, so a typo never silently means the default.
"""

from __future__ import annotations

import ipaddress
import os
import re
import secrets
import tempfile
import tomllib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from core.errors import SettingsError

PROJECT = Path(__file__).resolve().parent.parent
PREFIX = "UNDERSTUDY_"
CONFIG_VARIABLE = f"{PREFIX}CONFIG"
SCHEDULES = ("off", "nightly", "votes")
METHODS = ("sft", "dpo", "grpo")


@dataclass(frozen=True)
class Settings:
    """Everything an installation may choose. Each field's comment is its documentation."""

    data_dir: Path = PROJECT / "data"  # where state lives; move it and all state moves
    host: str = "127.0.0.1"  # address the pages and the API listen on
    port: int = 8400  # their port
    engine_port: int = 8401  # the engine's port, always on 127.0.0.1
    password: str = ""  # asked for by pages and API; required when host is not loopback
    model: str = "builtin"  # a catalog id, or the path of a .gguf file; with an endpoint any name
    endpoint: str = ""  # another server that writes the answers: llama-server, vLLM, or one like OpenAI
    endpoint_key: str = ""  # its API key
    endpoint_model: str = ""  # its name for the model; empty takes the only one it serves
    endpoint_adapters: str = ""  # the folder data/adapters as that server sees it; empty: as here
    context: int = 0  # tokens of context; 0 takes the catalog's
    threads: int = 0  # CPU threads of the engine; 0 takes every core
    slots: int = 0  # replies generated at once; 0 takes as many as fit in an eighth of the memory, at most 8
    adapters_aside: int = 2  # adapters kept loaded beside the one on stage; the longest unasked goes first
    gpu_layers: int = -1  # layers put on a GPU when llama.cpp was built for one; -1 is all
    passages: int = 0  # passages put into a prompt; 0 takes the catalog's
    cross_encoder: bool = True  # read the best lines once more with the question before choosing among them
    vote_priors: bool = False  # let votes move the passages that answers cited a little up or down
    vote_half_life: float = 180.0  # days after which a vote on a passage counts half
    vote_embedder: bool = True  # let votes train the search's embedder; a better one serves until rolled back
    chunk_tokens: int = 120  # tokens of a chunk (MiniLM reads 256 at most)
    answer_tokens: int = 160  # longest answer in tokens
    temperature: float = 0.0  # 0 is greedy
    support_threshold: float = 0.6  # share of a reply's words its cited units must hold
    answer_from_memory: bool = False  # show what an adapter says, marked, where no document holds the answer
    upload_mb: int = 25  # largest document
    ocr_languages: str = "eng"  # languages of scanned pages as Tesseract names them, such as "eng+deu"
    crawl: bool = False  # let `understudy crawl` and the Documents page fetch web pages
    crawl_hosts: str = ""  # intranet hosts that may be crawled, such as "wiki.local, docs.local:8080"
    waiting_files: int = 500  # files of one user that may wait to be read
    approve_documents: bool = True  # what others than the operator add for everybody waits for approval
    schedule: str = "off"  # retraining: off, nightly, or votes
    schedule_hour: int = 2  # local hour of the nightly run
    schedule_votes: int = 50  # newly approved rows that start a run when schedule is votes
    methods: str = "sft,dpo"  # training stages in order: sft, dpo, grpo
    four_bit: bool = False  # train on an NF4 base (QLoRA) instead of 16/32-bit (LoRA)
    seed: int = 7  # of splits, training and bootstrap

    @property
    def database(self) -> Path:
        """The database file."""
        return self.data_dir / "understudy.db"

    @property
    def method_list(self) -> tuple[str, ...]:
        """The training stages, in order."""
        return tuple(part.strip() for part in self.methods.split(",") if part.strip())

    @property
    def crawl_host_list(self) -> tuple[str, ...]:
        """The intranet hosts that may be crawled, each `name` or `name:port`."""
        return tuple(part.strip().lower() for part in self.crawl_hosts.split(",") if part.strip())


def load_settings(environ: Mapping[str, str] | None = None, **overrides: Any) -> Settings:
    """Read, check and freeze the settings; `overrides` (from a command line) win over everything.

    Raises SettingsError naming the key and where it was set.
    """
    environ = os.environ if environ is None else environ
    values: dict[str, Any] = {}
    for source, key, raw in _sources(environ, overrides):
        known = {field.name: field for field in fields(Settings)}
        if key not in known:
            raise SettingsError(
                f"Unknown setting {key!r} ({source}).", f"Known settings: {', '.join(known)}."
            )
        values[key] = _parse(source, key, raw, type(known[key].default))
    settings = Settings(**values)
    _check(settings)
    return settings


def _sources(environ: Mapping[str, str], overrides: Mapping[str, Any]) -> list[tuple[str, str, Any]]:
    found: list[tuple[str, str, Any]] = []
    config = Path(environ.get(CONFIG_VARIABLE) or "understudy.toml")
    if config.exists():
        try:
            table = tomllib.loads(config.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise SettingsError(f"Could not read {config}: {error}.", "Mend or remove it.") from error
        found += [(str(config), key, value) for key, value in table.items()]
    elif environ.get(CONFIG_VARIABLE):
        raise SettingsError(f"{CONFIG_VARIABLE} names {config}, which does not exist.")
    for name in sorted(environ):
        if name.startswith(PREFIX) and name != CONFIG_VARIABLE:
            found.append((f"environment variable {name}", name[len(PREFIX) :].lower(), environ[name]))
    found += [("command line", key, value) for key, value in overrides.items() if value is not None]
    return found


_TRUE = {"1", "true", "yes", "on"}
_FALSE = {"0", "false", "no", "off"}
_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def _parse(source: str, key: str, raw: Any, kind: Any) -> Any:
    text = str(raw).strip()
    try:
        if issubclass(kind, Path):
            if not text or "\n" in text:
                raise ValueError
            path = Path(text).expanduser().resolve()
            if path in (Path("/"), Path.home()):
                raise SettingsError(f"{key} must not be {path} ({source}).", "Give it a folder of its own.")
            return path
        if kind is bool:
            if text.lower() not in _TRUE | _FALSE:
                raise ValueError
            return text.lower() in _TRUE
        return kind(text)
    except (ValueError, RuntimeError):  # RuntimeError: the home of a user who does not exist
        raise SettingsError(
            f"Setting {key} ({source}) is {text[:80]!r}, which is not {_KINDS.get(kind, 'a path')}."
        ) from None


_RANGES: dict[str, tuple[float, float]] = {
    "port": (0, 65535),
    "engine_port": (0, 65535),
    "context": (0, 1_048_576),
    "threads": (0, 1024),
    "slots": (0, 64),
    "adapters_aside": (0, 64),
    "gpu_layers": (-1, 10_000),
    "passages": (0, 32),
    "vote_half_life": (1, 36_500),
    "chunk_tokens": (32, 256),
    "answer_tokens": (8, 4096),
    "temperature": (0, 2),
    "support_threshold": (0, 1),
    "upload_mb": (1, 2048),
    "waiting_files": (1, 1_000_000),
    "schedule_hour": (0, 23),
    "schedule_votes": (1, 1_000_000),
    "seed": (0, 2**31 - 1),
}


# exactly one host each: no wildcard, no network, no address with a path
_HOST = re.compile(r"(?:[a-z0-9_](?:[a-z0-9._-]*[a-z0-9_])?|\[[0-9a-f:]+\])(?::[0-9]{1,5})?")
# names of Tesseract's data: they go onto its command line
_OCR = re.compile(r"[A-Za-z]{3,12}(?:_[A-Za-z]{3,8}){0,2}")
# a scheme, a host, perhaps a port and a path below which /v1 lies
_ENDPOINT = re.compile(
    r"https?://(?:[A-Za-z0-9._-]+|\[[0-9a-fA-F:]+\])(?::[0-9]{1,5})?(?:/[A-Za-z0-9._~/-]*)?"
)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _check(settings: Settings) -> None:
    for key, (low, high) in _RANGES.items():
        value = getattr(settings, key)
        if not low <= value <= high:  # also refuses NaN
            raise SettingsError(f"Setting {key} is {value}; it must lie from {low:g} to {high:g}.")
    if settings.port and settings.port == settings.engine_port:
        raise SettingsError(f"Settings port and engine_port are both {settings.port}.", "Change one of them.")
    if settings.schedule not in SCHEDULES:
        raise SettingsError(f"Setting schedule is {settings.schedule!r}; choose {', '.join(SCHEDULES)}.")
    unknown = [method for method in settings.method_list if method not in METHODS]
    if unknown or not settings.method_list:
        raise SettingsError(f"Setting methods is {settings.methods!r}; choose from {', '.join(METHODS)}.")
    for host in settings.crawl_host_list:
        if not _HOST.fullmatch(host):
            raise SettingsError(
                f"Setting crawl_hosts names {host!r}, which is not a host.",
                "Name hosts as they stand in an address, such as wiki.local or docs.local:8080.",
            )
    if not all(_OCR.fullmatch(language) for language in settings.ocr_languages.split("+")):
        raise SettingsError(
            f"Setting ocr_languages is {settings.ocr_languages[:80]!r}, which names no languages.",
            "Give them as Tesseract names them, such as eng or eng+deu.",
        )
    if settings.endpoint and not _ENDPOINT.fullmatch(settings.endpoint):
        raise SettingsError(
            f"Setting endpoint is {settings.endpoint[:80]!r}, which is not the address of a server.",
            "Give it as http://host:port; its key goes into endpoint_key.",
        )
    if not is_loopback(settings.host) and len(settings.password) < 12:
        raise SettingsError(
            f"Listening on {settings.host} lets other machines in, so a password is required.",
            "Set UNDERSTUDY_PASSWORD to at least 12 characters, or keep host at 127.0.0.1.",
        )


def quiet_environment(**more: str) -> None:
    """Switch off every library's telemetry, hub access and progress noise; call first in each process.

    `more` are variables that only this process needs.
    """
    quiet = {
        "ANONYMIZED_TELEMETRY": "False",
        "CHROMA_TELEMETRY": "False",
        "DO_NOT_TRACK": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "STREAMLIT_BROWSER_GATHER_USAGE_STATS": "false",
        "LANGSMITH_TRACING": "false",
        "WANDB_DISABLED": "true",
        "TRL_EXPERIMENTAL_SILENCE": "1",
        "TQDM_DISABLE": "1",
    }
    os.environ.update(quiet | more)


def child_environment(settings: Settings, **extra: str) -> dict[str, str]:
    """The environment for a child process, so that it sees these settings whatever set them here."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(PREFIX)}
    for field in fields(Settings):  # defaults too: the child may find another understudy.toml
        environment[PREFIX + field.name.upper()] = str(getattr(settings, field.name))
    return environment | extra


def engine_key(settings: Settings) -> str:
    """The secret that web, worker and engine share, so that other local users cannot use the engine.

    Made on first use, readable by the owner only.
    """
    path = settings.data_dir / "engine.key"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        # linked into place when complete: processes that start together must not read an empty key
        handle, draft = tempfile.mkstemp(dir=path.parent, prefix="engine.key.", suffix=".partial")
        with os.fdopen(handle, "w") as file:
            file.write(secrets.token_urlsafe(32))
        with suppress(FileExistsError):
            os.link(draft, path)
        os.unlink(draft)
    return path.read_text("ascii").strip()
