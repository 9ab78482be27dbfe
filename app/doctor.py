"""`understudy doctor`: looks at everything an installation needs and says what to mend. Changes nothing."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from app.restore import STAGE
from core.children import ends_well
from core.db import Database
from core.endpoint import address, headers, record
from core.errors import UnderstudyError
from core.files import read_json, sha256_of
from core.settings import PROJECT, Settings, is_loopback, load_settings
from rag.ocr import Ocr

Level = Literal["ok", "warn", "fail"]
# below these a published advisory applies; checked offline, whatever the pins say
FLOORS = {
    "streamlit": ("1.54", "CVE-2026-33682"),
    "jinja2": ("3.1.6", "CVE-2024-56326"),
    "starlette": ("0.49.1", "CVE-2025-62727"),
    "python-multipart": ("0.0.22", "a published advisory"),
    "tornado": ("6.5.5", "CVE-2026-31958"),
    "torch": ("2.10", "CVE-2026-24747"),
    "llama-cpp-python": ("0.3.17", "advisories of llama.cpp before build 9058"),
}
# no fixed version exists; why it cannot be reached here
ACCEPTED = {
    "diskcache": "CVE-2025-69872: unpickles its cache; no disk cache is ever set",
    "chromadb": "CVE-2026-45829, -45830, -45833: its server, which is never run",
}
SQLITE_FLOOR = "3.51.3"
NATIVE = (
    "import json, sqlite3, llama_cpp\n"
    "info = llama_cpp.llama_print_system_info().decode()\n"
    "print('FACTS' + json.dumps([llama_cpp.__version__, info, sqlite3.sqlite_version]))"
)
AMX = [sys.executable, "-m", "engine.amx_trial"]
TRIAL_SECONDS = 30.0


@dataclass(frozen=True)
class Finding:
    """One line of the report: how it stands, what was looked at, what was seen, what to do."""

    level: Level
    what: str
    seen: str
    next_step: str = ""


def main(argv: Sequence[str] | None = None) -> int:
    """Print the findings; returns 1 when something must be mended."""
    parser = argparse.ArgumentParser(prog="understudy doctor", description=__doc__)
    parser.add_argument("--json", action="store_true", help="machine-readable output")
    options = parser.parse_args(argv)
    settings = load_settings()
    findings = [finding for check in CHECKS for finding in check(settings)]
    if options.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        for finding in findings:
            print(f"{finding.level:<5} {finding.what:<12} {finding.seen}")
            if finding.next_step and finding.level != "ok":
                print(f"{'':<18} → {finding.next_step}")
    failed = sum(finding.level == "fail" for finding in findings)
    if not options.json:
        print(f"\n{failed} to mend." if failed else "\nNothing to mend.")
    return 1 if failed else 0


def python(_settings: Settings) -> Iterator[Finding]:
    """The interpreter."""
    seen = sys.version.split()[0]
    good = sys.version_info[:2] == (3, 11)
    yield Finding("ok" if good else "fail", "python", seen, "Install Python 3.11 and make .venv again.")


def packages(_settings: Settings) -> Iterator[Finding]:
    """Installed versions against the pins."""
    for name, what, level in (
        ("requirements.txt", "packages", "fail"),
        ("requirements-train.txt", "training", "warn"),
    ):
        pins = dict(re.findall(r"^([\w.-]+)(?:\[\w+\])?==(\S+)", (PROJECT / name).read_text("utf-8"), re.M))
        missing = [package for package in pins if installed(package) is None]
        other = [
            f"{package} {installed(package)} (pinned {pin})"
            for package, pin in pins.items()
            if installed(package) not in (None, pin, f"{pin}+cpu")
        ]
        step = f"Run `make run`, or `pip install -r {name} -c constraints.txt`."
        if missing:
            yield Finding("fail" if level == "fail" else "warn", what, f"missing: {', '.join(missing)}", step)
        if other:
            yield Finding("warn", what, f"not as pinned: {', '.join(other)}", step)
        if not missing and not other:
            yield Finding("ok", what, f"{len(pins)} packages as pinned in {name}")


def advisories(_settings: Settings) -> Iterator[Finding]:
    """Versions with known holes, from a list that needs no network."""
    bad = below_floor({name: installed(name) for name in FLOORS})
    for name in bad:
        floor, why = FLOORS[name]
        yield Finding(
            "fail", "advisories", f"{name} {installed(name)} is below {floor} ({why})", f"Upgrade {name}."
        )
    if not bad:
        yield Finding("ok", "advisories", f"{len(FLOORS)} packages are above the known holes")
    for name, why in ACCEPTED.items():
        if installed(name):
            yield Finding("ok", "accepted", f"{name}: {why}")


def below_floor(versions: dict[str, str | None]) -> list[str]:
    """The names whose version is below its floor."""
    return [name for name, seen in versions.items() if seen and numbers(seen) < numbers(FLOORS[name][0])]


def numbers(text: str) -> tuple[int, ...]:
    """A version's leading numbers, to compare by."""
    return tuple(int(part) for part in re.findall(r"\d+", text.split("+")[0])[:4])


def installed(package: str) -> str | None:
    """The installed version, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def native(_settings: Settings) -> Iterator[Finding]:
    """The compiled parts, loaded in a child because a wrong build dies by a signal."""
    done = subprocess.run([sys.executable, "-c", NATIVE], capture_output=True, text=True, timeout=120)
    step = "Compile it for this machine: remove .venv/llama and run `make run`."
    if done.returncode or "FACTS" not in done.stdout:
        how = f"it died by signal {-done.returncode}" if done.returncode < 0 else done.stderr.strip()[-200:]
        yield Finding("fail", "llama.cpp", f"cannot be loaded: {how}", step)
        return
    build, info, sqlite = json.loads(done.stdout.split("FACTS")[1])
    features = " ".join(re.findall(r"(\w+) = 1", info))
    yield Finding("ok", "llama.cpp", f"llama-cpp-python {build}: {features}")
    if "AMX_INT8" in features and not ends_well(AMX, TRIAL_SECONDS):
        yield Finding(
            "warn", "amx", "this build of llama.cpp breaks it, so prompts are read without it",
            "`pip cache remove llama_cpp_python`, remove .venv and run `make run`.",
        )  # fmt: skip
    if numbers(sqlite) < numbers(SQLITE_FLOOR):
        yield Finding(
            "warn", "sqlite", f"{sqlite} can lose a write when a WAL file is reset",
            f"{SQLITE_FLOOR} mends it. Until then keep to one `understudy serve` for a data folder.",
        )  # fmt: skip
    else:
        yield Finding("ok", "sqlite", sqlite)


def machine(_settings: Settings) -> Iterator[Finding]:
    """Cores, memory and CPU features."""
    cpuinfo = Path("/proc/cpuinfo")
    flags = set(re.findall(r"\b(?:avx2|avx512f|f16c|fma)\b", cpuinfo.read_text()) if cpuinfo.exists() else ())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    seen = f"{os.cpu_count()} cores, {memory:.0f} GB, {' '.join(sorted(flags)) or 'no AVX2'}"
    yield Finding("ok" if memory > 3.5 else "warn", "machine", seen, "4 GB of memory are wanted.")
    gpu = shutil.which("nvidia-smi")
    yield Finding("ok", "gpu", "NVIDIA driver found" if gpu else "none; everything runs on the CPU")


def model(settings: Settings) -> Iterator[Finding]:
    """The GGUF of the model in the settings, or the server that has it."""
    try:
        found, path = record(settings)
    except UnderstudyError as error:
        yield Finding("fail", "model", error.message, error.next_step)
        return
    if settings.endpoint:
        yield endpoint(settings, found.name)
    if path is None:
        yield Finding(
            "warn", "model file", "none here: nothing can be trained, and no adapter is tried first",
            "`understudy models pull` fetches it if the catalog knows it.",
        )  # fmt: skip
        return
    seen = f"{found.name}: {path.name}, {path.stat().st_size / 1e6:.0f} MB, sha256 {sha256_of(path)[:16]}"
    yield Finding("warn" if found.warning else "ok", "model", seen, found.warning)


def endpoint(settings: Settings, model: str) -> Finding:
    """Whether the other server answers."""
    import httpx

    where = f"{address(settings)}/v1/models"
    try:
        response = httpx.get(where, headers=headers(settings), timeout=5, trust_env=False)
    except httpx.HTTPError as error:
        reason = f"{settings.endpoint} does not answer ({type(error).__name__})"
        return Finding("fail", "endpoint", reason, "Start that server, or mend the setting endpoint.")
    if response.is_error:
        reason = f"{settings.endpoint} answers with status {response.status_code}"
        return Finding("fail", "endpoint", reason, "See the settings endpoint and endpoint_key.")
    return Finding("ok", "endpoint", f"{model} is asked for at {settings.endpoint}")


def state(settings: Settings) -> Iterator[Finding]:
    """The data folder, its database and index, and the disk under it."""
    folder = next(place for place in (settings.data_dir, *settings.data_dir.parents) if place.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        yield Finding(
            "fail", "data folder", f"{settings.data_dir} is no folder that can be written",
            "Choose another data_dir.",
        )  # fmt: skip
        return
    if (settings.data_dir / STAGE).exists():
        yield Finding(
            "warn", "restore", "one was interrupted; a whole state is in force, the old or the new one",
            "Run `understudy restore` again.",
        )  # fmt: skip
    if not settings.database.exists():
        yield Finding("ok", "database", f"none yet in {settings.data_dir}")
    else:
        try:
            database = Database(settings.database)
        except UnderstudyError as error:
            yield Finding("fail", "database", error.message, error.next_step)
            return
        yield Finding("ok", "database", f"{settings.database} is sound")
        yield from index(settings, database)
        database.close()
    free = shutil.disk_usage(folder).free
    level: Level = "ok" if free > 2e9 else "warn" if free > 2e8 else "fail"
    yield Finding(level, "disk", f"{free / 1e9:.1f} GB free under {folder}", "Free some space.")


def index(settings: Settings, database: Database) -> Iterator[Finding]:
    """The vector index, a cache of the database."""
    from rag.index import Index

    if not (settings.data_dir / "index").exists():
        yield Finding("ok", "index", "none yet; it is built with the first document")
        return
    status = Index(settings, database).status()
    seen = f"generation {status.generation}" + (f": {status.reason}" if status.reason else "")
    yield Finding("ok" if status.usable else "warn", "index", seen, "Run `understudy index rebuild`.")


def ports(settings: Settings) -> Iterator[Finding]:
    """The two ports: free, or ours."""
    file = settings.data_dir / "serve.json"
    serving = file.exists() and Path(f"/proc/{read_json(file).get('pid', 0)}").exists()
    for host, port, name in (
        (settings.host, settings.port, "UNDERSTUDY_PORT"),
        ("127.0.0.1", settings.engine_port, "UNDERSTUDY_ENGINE_PORT"),
    ):
        if not in_use(host, port):
            yield Finding("ok", "port", f"{port} on {host} is free")
        elif serving:
            yield Finding("ok", "port", f"{port} is taken while Understudy runs")
        else:
            yield Finding("fail", "port", f"{port} on {host} is taken", f"Set {name} to another one.")


def in_use(host: str, port: int) -> bool:
    """Whether something listens there."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return True
    return False


def safety(settings: Settings) -> Iterator[Finding]:
    """What Streamlit will run with, and who can reach it."""
    from streamlit import config

    from app.web import configure_streamlit, streamlit_options

    configure_streamlit(settings)
    wrong = [
        key for key, value in streamlit_options(settings).items() if not same(config.get_option(key), value)
    ]
    step = "Another version of Streamlit ignores them; install the pinned one."
    if wrong:
        yield Finding("fail", "streamlit", f"these options do not hold: {', '.join(wrong)}", step)
    else:
        yield Finding("ok", "streamlit", "no usage statistics, no error details, CORS and XSRF checks on")
    reach = (
        "this machine only" if is_loopback(settings.host) else f"every machine that reaches {settings.host}"
    )
    asked = "a password is asked for" if settings.password else "no password"
    yield Finding("ok", "access", f"{reach}; {asked}")


def same(seen: Any, wanted: Any) -> bool:
    """Equality that does not mind lists and tuples."""
    return list(seen) == list(wanted) if isinstance(wanted, list) else bool(seen == wanted)


def ocr(settings: Settings) -> Iterator[Finding]:
    """Tesseract and the languages of scanned pages."""
    found = Ocr(settings.ocr_languages)
    if not found.available:
        seen = f"{found.lack}, so scanned pages are not read"
    elif found.lacking:
        seen = f"{found.lack}; it has {', '.join(found.installed)}"
    else:
        seen = f"Tesseract reads {settings.ocr_languages}; it has {', '.join(found.installed)}"
    yield Finding("warn" if found.lacking else "ok", "ocr", seen, f"Install it {found.mend}.")


def optional(_settings: Settings) -> Iterator[Finding]:
    """What only tests or extras use."""
    for program, use in (("chromium", "browser tests"), ("c++", "compiling llama-cpp-python")):
        found = shutil.which(program)
        yield Finding("ok", "optional", f"{program}: {found or 'not installed'} ({use})")


CHECKS: tuple[Callable[[Settings], Iterator[Finding]], ...] = (
    python, packages, advisories, native, machine, model, state, ports, safety, ocr, optional,
)  # fmt: skip
