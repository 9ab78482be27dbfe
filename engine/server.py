"""`python -m engine.server`: the engine's process, an OpenAI-compatible server on 127.0.0.1.

    POST /v1/chat/completions, /v1/completions   model: live (the adapter on stage), base, or an adapter's id
    GET  /v1/models                              live, base and this base's adapters, loaded or not
    POST /adapters/sync                          follow the registry now
    GET  /health                                 the only route without the key

It listens at once and loads the model meanwhile. Exit codes: 0 stopped, 1 the model cannot be loaded,
2 a wrong setting, 3 the port is taken.
"""

from __future__ import annotations

import argparse
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from core.errors import SettingsError, UnderstudyError
from core.settings import Settings, engine_key, load_settings, quiet_environment

if TYPE_CHECKING:
    import uvicorn

    from engine.adapters import Stage

GRACE_SECONDS = 1
# how long a failed load stays visible in /health before the process ends and may be started again
FAILED_SECONDS = 3.0


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m engine.server",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--port", type=int, help="port on 127.0.0.1 (default: the setting engine_port)")
    parser.add_argument("--scripted", type=Path, metavar="FILE", help="replies from a JSON list, no model")
    options = parser.parse_args(argv)
    # llama.cpp's threads meet some hundred times a token; waiting there by spinning made two threads on two
    # busy cores up to 40 times slower than one (88 instead of 1 to 19 tokens/s with passive waiting)
    # and a debugger that llama.cpp calls when it aborts would print what is in memory, and take seconds
    quiet_environment(OMP_WAIT_POLICY="passive", GGML_NO_BACKTRACE="1")
    # a native crash must not leave people's questions in a core file
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        settings = load_settings(engine_port=options.port)
        listener = _bind(settings.engine_port)
    except SettingsError as error:
        print(f"engine: {error}", file=sys.stderr, flush=True)
        return 2
    except OSError as error:
        print(f"engine: port {settings.engine_port} cannot be used: {error}.", file=sys.stderr, flush=True)
        return 3
    return serve(settings, listener, options.scripted)


def serve(settings: Settings, listener: socket.socket, scripted: Path | None) -> int:
    """Run the server on a bound socket until it is told to stop; returns the exit code."""
    import uvicorn

    from engine.api import Api

    try:
        stage = make_stage(settings, scripted)
    except UnderstudyError as error:
        print(f"engine: {error}", file=sys.stderr, flush=True)
        return 1
    server = uvicorn.Server(
        uvicorn.Config(
            Api(stage, engine_key(settings)).app,
            log_level="error",
            access_log=False,
            lifespan="off",
            server_header=False,
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
    )
    stage.scheduler.start()
    for work in (stage.watch, lambda: _mind(stage, server)):
        threading.Thread(target=work, daemon=True).start()
    print(f"engine: listening on 127.0.0.1:{listener.getsockname()[1]}", flush=True)
    for number in (signal.SIGTERM, signal.SIGINT):
        # uvicorn stops on these and then raises them again, which would end the process before its clean-up
        signal.signal(number, lambda _number, _frame: None)
    server.run(sockets=[listener])
    failed = stage.scheduler.state == "failed"
    stage.close()
    if not stage.scheduler.join(GRACE_SECONDS):
        # inside a native call that cannot be interrupted, such as loading a model: leave without clean-up
        os._exit(int(failed))
    return int(failed)


def make_stage(settings: Settings, scripted: Path | None = None) -> Stage:
    """The stage with its backend: the settings' model, another server, or a script (raises ModelError)."""
    from core.catalog import CATALOG, resolve
    from engine.adapters import Stage

    if scripted is not None:
        from engine.scripted import ScriptedBackend

        base = settings.model if settings.model in CATALOG else Path(settings.model).stem
        return Stage(settings, base, None, ScriptedBackend(scripted))
    if settings.endpoint:
        from core.endpoint import record
        from engine.remote import RemoteBackend

        model, file = record(settings)
        return Stage(settings, model.id, file, RemoteBackend(settings, model))
    from engine.runtime import LlamaBackend

    model, path = resolve(settings)
    return Stage(settings, model.id, path, LlamaBackend(settings, model, path))


def _mind(stage: Stage, server: uvicorn.Server) -> None:
    """Report how loading went, and on a signal stop the reply in work so that its client lets go."""
    reported = ""
    while not server.should_exit:
        scheduler = stage.scheduler
        if stage.state not in ("loading", reported):
            reported = stage.state
            print(f"engine: {reported}: {scheduler.reason or stage.base}", flush=True)
            if reported == "failed":
                time.sleep(FAILED_SECONDS)
                server.should_exit = True
        time.sleep(0.05)
    stage.close()


def _bind(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    return listener


if __name__ == "__main__":
    sys.exit(main())
