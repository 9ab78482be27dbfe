"""`python -m benchmarks.peers KIND MODEL`: what the engine is measured against, each in a process of its own.

    lock       llama-cpp-python's `Llama` behind a lock, as most projects serve it
    xllamacpp  llama-server's C++ core, from the wheel of that name (requirements-bench.txt)
    raw        bare llama_decode, the limit of the machine: prints tokens/s and ends

The first two print the address of an OpenAI-compatible server and run until their input is closed.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import sys
import threading
import time
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from core.gguf import check_gguf
from core.settings import quiet_environment

RAW_TOKENS = 48


def available(kind: str) -> bool:
    """Whether a peer's library is installed."""
    return kind != "xllamacpp" or importlib.util.find_spec("xllamacpp") is not None


def main(argv: Sequence[str] | None = None) -> int:
    """Serve, or measure the limit."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("kind", choices=("lock", "xllamacpp", "raw"))
    parser.add_argument("model", type=Path)
    parser.add_argument("--context", type=int, required=True, help="tokens of one conversation")
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--filled", type=int, default=1000, help="raw: tokens in the cache")
    options = parser.parse_args(argv)
    quiet_environment(OMP_WAIT_POLICY="passive")
    if options.kind == "raw":
        print(json.dumps(_raw(options)), flush=True)
        return 0
    server = (_lock if options.kind == "lock" else _xllamacpp)(options)
    sys.stdin.read()
    del server
    return 0


def _raw(options: argparse.Namespace) -> dict[str, float]:
    """Tokens/s of prefill, and of decoding one sequence and `slots` sequences that each hold `filled`."""
    from engine.context import BATCH, NativeContext
    from engine.limits import short_keys
    from engine.native import Limits, NativeModel

    info = check_gguf(options.model)
    model = NativeModel(options.model, -1, info.quantised)
    limits = Limits(options.context, options.threads, slots=options.slots, short_keys=short_keys(info))
    context = NativeContext(model, limits)
    filled = min(options.filled, options.context - RAW_TOKENS - 1)
    began = time.monotonic()
    for start in range(0, filled, BATCH):
        size = min(BATCH, filled - start)
        context.decode([(5 + at % 200, start + at, 0, False) for at in range(size)])
    prefill = filled / (time.monotonic() - began)
    data = context.save(0)
    for sequence in range(1, options.slots):
        context.restore(sequence, data)
    found = {"prefill": prefill}
    at = filled
    for name, width in (("one", 1), ("all", options.slots)):
        count = RAW_TOKENS if width == 1 else RAW_TOKENS // 4
        best = float("inf")
        for _ in range(count // 4):  # the best of many: the host is shared
            began = time.monotonic()
            for _ in range(4):
                context.decode([(300, at, sequence, True) for sequence in range(width)])
                at += 1
            best = min(best, time.monotonic() - began)
        for sequence in range(options.slots):
            context.cut(sequence, filled)
        at = filled
        found[name] = 4 * width / best
    context.close()
    model.close()
    return found


def _lock(options: argparse.Namespace) -> Any:
    from engine import amx

    library = importlib.import_module("llama_cpp")
    info = library.llama_print_system_info()
    if amx.REPORTED in info and not amx.usable(info):  # it would crash
        defaults = library.llama_cpp.llama_model_default_params

        def plain() -> Any:
            params = defaults()
            params.use_extra_bufts = False
            return params

        library.llama_cpp.llama_model_default_params = plain
    llama = library.Llama(
        str(options.model), n_ctx=options.context, n_threads=options.threads,
        n_threads_batch=options.threads, verbose=False,
    )  # fmt: skip
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            with lock:
                chunks = llama.create_chat_completion(
                    body["messages"], max_tokens=body["max_tokens"], temperature=0, stream=True
                )
                for chunk in chunks:
                    self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
            self.wfile.write(b"data: [DONE]\n\n")

        def log_message(self, *_: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"http://127.0.0.1:{server.server_address[1]}", flush=True)
    return server


def _xllamacpp(options: argparse.Namespace) -> Any:
    library = importlib.import_module("xllamacpp")
    params = library.CommonParams()
    params.model.path = str(options.model)
    params.n_ctx = options.context * options.slots
    params.n_parallel = options.slots
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = options.threads
    server = library.Server(params)
    print(server.listening_address, flush=True)
    return server


if __name__ == "__main__":
    sys.exit(main())
