"""`understudy serve`: starts web, engine and worker, keeps them running and prints one address."""

from __future__ import annotations

import argparse
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType

from app.supervisor import Part, Supervisor
from core.db import Database
from core.errors import SettingsError, UnderstudyError
from core.files import make_folder, owner_lock
from core.jobs import Jobs
from core.settings import Settings, child_environment, engine_key, load_settings, quiet_environment


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until SIGINT or SIGTERM. Raises ConflictError when the data folder is served already."""
    parser = argparse.ArgumentParser(prog="understudy serve", description=__doc__)
    parser.add_argument("--host", help="address to listen on (default 127.0.0.1)")
    parser.add_argument("--port", type=int, help="port of pages and API (default 8400; 0 takes a free one)")
    parser.add_argument("--model", help="catalog id or path of a .gguf file")
    parser.add_argument("--data-dir", help="where state lives")
    parser.add_argument(
        "--no-samples", action="store_true", help="do not add the sample documents at first start"
    )
    parser.add_argument(
        "--scripted", type=Path, metavar="FILE", help="answer from a JSON list instead of a model (for tests)"
    )
    options = parser.parse_args(argv)
    settings = load_settings(
        host=options.host, port=options.port, model=options.model, data_dir=options.data_dir
    )
    quiet_environment()
    make_folder(settings.data_dir)
    with owner_lock(settings.data_dir / "serve.lock", f"The data folder {settings.data_dir}"):
        settings = with_ports(settings)
        if options.scripted is None:
            settings = with_model(settings)
        return supervise(settings, options.scripted, samples=not options.no_samples)


def parts(settings: Settings, scripted: Path | None = None) -> list[Part]:
    """The three processes of an installation."""
    engine = [sys.executable, "-m", "engine.server"]
    if scripted is not None:
        engine += ["--scripted", str(scripted.resolve())]
    return [
        Part(
            "engine",
            engine,
            f"http://127.0.0.1:{settings.engine_port}/health",
            {"Authorization": f"Bearer {engine_key(settings)}"},
        ),
        Part("worker", [sys.executable, "-m", "finetune.worker"]),
        Part("web", [sys.executable, "-m", "app.web"], f"http://{_reachable(settings)}/health"),
    ]


def environment(settings: Settings) -> dict[str, str]:
    """The environment of the processes: these settings, whatever set them here."""
    return child_environment(settings, PYTHONUNBUFFERED="1")


def supervise(settings: Settings, scripted: Path | None = None, *, samples: bool = True) -> int:
    """Run until a signal asks to stop; returns 1 when the web process could not be kept running."""
    stopping = threading.Event()

    def ask_to_stop(_signal: int, _frame: FrameType | None) -> None:
        stopping.set()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, ask_to_stop)
    where = f" at {settings.endpoint}" if settings.endpoint else ""
    say(f"Starting the pages, the engine ({settings.model}{where}) and the worker.")
    say(f"Logs are in {settings.data_dir / 'logs'}.")
    supervisor = Supervisor(parts(settings, scripted), environment(settings), settings.data_dir, say)
    supervisor.start()
    if samples:
        threading.Thread(target=add_samples, args=(settings,), name="samples", daemon=True).start()
    try:
        watch(supervisor, stopping, f"http://{_reachable(settings)}")
    finally:
        say("Stopping.")
        supervisor.stop()
    return 1 if supervisor.gave_up("web") else 0


def watch(supervisor: Supervisor, stopping: threading.Event, url: str) -> None:
    """Tick until asked to stop, saying once when the address and the engine answer."""
    started = time.monotonic()
    announced = engine_said = False
    patience = 30.0
    while not stopping.wait(0.2):
        supervisor.tick()
        if supervisor.gave_up("web"):
            return
        if not announced and supervisor.ready("web"):
            announced = True
            say(f"Understudy is running. Open {url} (Ctrl-C stops it)")
        if not engine_said and supervisor.ready("engine"):
            engine_said = True
            say(f"The engine is ready after {time.monotonic() - started:.0f} s.")
        if not engine_said and not supervisor.gave_up("engine") and time.monotonic() - started > patience:
            patience *= 2
            say("The engine is still loading the model.")


def add_samples(settings: Settings) -> None:
    """At the first start of a data folder, read the sample documents and queue the rest of the work."""
    from rag.documents import DocumentStore
    from rag.ingest import SAMPLES
    from rag.passages import PassageStore
    from rag.reader import Reader

    database = Database(settings.database)
    try:
        passages = PassageStore(database)
        if passages.note("samples") == "added" or not SAMPLES.is_dir():
            return
        documents = DocumentStore(database, settings)
        files = sorted(path for path in SAMPLES.glob("*") if path.is_file())
        with Reader(settings) as reader:
            for path in files:
                documents.add_file(path, "sample", reader)
        passages.put_note(samples="added")
        Jobs(database).submit("ingest", once=True)
        say(f"First start: {len(files)} sample documents are being prepared; the pages say how far it is.")
    except UnderstudyError as error:
        say(f"The sample documents could not be added: {error}")
    finally:
        database.close()


def with_ports(settings: Settings) -> Settings:
    """The settings with port 0 replaced by free ports.

    Raises SettingsError when a chosen port is taken.
    """
    port = _claim(settings.host, settings.port, "UNDERSTUDY_PORT")
    engine_port = _claim("127.0.0.1", settings.engine_port, "UNDERSTUDY_ENGINE_PORT")
    if port == engine_port:
        raise SettingsError("port and engine_port are the same.", "Give one of them another number.")
    return replace(settings, port=port, engine_port=engine_port)


def _claim(host: str, port: int, variable: str) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise SettingsError(
                f"Port {port} on {host} cannot be used: {error.strerror}.",
                f"Stop the program that has it, or choose another with {variable}.",
            ) from error
        return int(probe.getsockname()[1])


def with_model(settings: Settings) -> Settings:
    """The settings with a model path made absolute.

    Raises ModelError now, with a clear sentence, rather than in the engine's log.
    """
    from core.endpoint import record

    model, path = record(settings)
    if path is None or model.id == settings.model:
        return settings
    return replace(settings, model=str(path.resolve()))


def _reachable(settings: Settings) -> str:
    """Host and port to open from this machine."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)  # noqa: S104
    return f"[{host}]:{settings.port}" if ":" in host else f"{host}:{settings.port}"


def say(text: str) -> None:
    """One line for the person at the terminal."""
    print(text, flush=True)
