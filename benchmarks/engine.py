"""The engine under load beside its peers: speed for one and for many, waiting, swapping, memory.

Peers, in the same run and through the same client: llama-cpp-python's `Llama` behind a lock (a) and
llama-server's core by the xllamacpp wheel (b); bare llama_decode is the machine's limit (c). Models of real
shapes have random weights, because speed does not depend on values.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.load import FILLER, Heard, Server, Workload
from benchmarks.peers import available
from benchmarks.shapes import QUANTS, SHAPES, Shape, random_gguf
from benchmarks.swaps import ASIDE, measure_swaps, resident
from benchmarks.table import Row, main
from core.catalog import BUILTIN
from core.gguf import check_gguf
from core.settings import PROJECT, Settings, child_environment, engine_key, quiet_environment
from evaluation.ranking import percentile

SLOTS = 8
SPARE_MB = 300


@dataclass(frozen=True)
class Trial:
    """One model with the load put on it."""

    name: str
    path: Path
    shape: Shape | None
    load: Workload
    context: int
    users: tuple[int, ...]
    threads: int


def measure(options: argparse.Namespace) -> list[Row]:
    """Every chosen model against every peer."""
    quiet_environment()
    rows: list[Row] = []
    for trial in trials(options):
        print(f"benchmarks.engine: {trial.name}", file=sys.stderr, flush=True)
        rows += _model(trial, options.quick)
    return rows


def trials(options: argparse.Namespace) -> Iterator[Trial]:
    """The chosen models, with the work that each is given."""
    threads = options.threads or len(os.sched_getaffinity(0))
    wanted = options.models.split(",")
    users = (1, 4) if options.quick else (1, 2, 4, 8)
    load = Workload(256, 128, 16) if options.quick else Workload(1000, 300, 64)
    for shape in SHAPES:
        for quant in QUANTS:
            name = f"{shape.name}-{quant}"
            if name in wanted or ("all" in wanted and not options.quick):
                yield Trial(name, random_gguf(shape, quant), shape, load, 2048, users, threads)
    if "builtin" in wanted or "all" in wanted:
        path = PROJECT / "data" / "models" / "builtin" / BUILTIN.gguf_file
        # its vocabulary has about four characters a token, and its template leaves the system message out
        yield Trial("builtin", path, None, Workload(2800, 0, load.answer), 1024, users, threads)


def _model(trial: Trial, quick: bool) -> list[Row]:
    limit = _limit(trial)
    with tempfile.TemporaryDirectory() as scratch, serving(trial, Path(scratch)) as (server, process):
        ours = _measured(server, trial)
        rows = _alone(trial, ours, limit)
        rows += _second_turn(trial, server)
        gap = server.gap(trial.load, 4, _long(trial))
        rows += _memory(trial, process)
        if trial.shape is not None:
            rows += measure_swaps(trial.name, trial.path, trial.shape, server, Path(scratch), process, quick)
    peers: dict[str, dict[int, tuple[list[Heard], float]]] = {}
    gaps: dict[str, tuple[float, float]] = {}
    for kind in ("lock", "xllamacpp"):
        if not available(kind):
            rows.append(Row(f"{trial.name}: {kind} is not installed (requirements-bench.txt)", 0))
            continue
        with _peer(kind, trial) as peer:
            peers[kind] = _measured(peer, trial)
            gaps[kind] = peer.gap(trial.load, 4, _long(trial))
    rows += _together(trial, ours, peers)
    name = f"{trial.name}: long prompt among 4 streams, longest"
    if "lock" in gaps:
        rows.append(_at_most(f"{name} silence, beside (a)", gap[0], "s", gaps["lock"][0], 0.25))
    if "xllamacpp" in gaps:
        rows.append(Row(f"{name} gap between pieces, beside (b)", gap[1], "s", gaps["xllamacpp"][1]))
    return rows


def _long(trial: Trial) -> int:
    return 2 * trial.load.prompt if trial.shape else trial.load.prompt


def _measured(server: Server, trial: Trial) -> dict[int, tuple[list[Heard], float]]:
    server.ask(trial.load.messages(10**6), 4)  # warm: files mapped, connections made
    return {users: server.burst(trial.load, users, seed=users) for users in trial.users}


def _at_most(measure: str, value: float, unit: str, reference: float, share: float) -> Row:
    met = value <= share * reference
    return Row(measure, value, unit, reference, f"<= {share:g} x reference", met)


def _alone(trial: Trial, ours: dict[int, tuple[list[Heard], float]], limit: dict[str, float]) -> list[Row]:
    (heard,), _ = ours[1]
    row = Row(
        f"{trial.name}: one stream, decode", heard.speed, "tokens/s", limit["one"], ">= 0.97 x reference (c)",
        heard.speed >= 0.97 * limit["one"],
    )  # fmt: skip
    return [
        row,
        Row(f"{trial.name}: (c) prefill", limit["prefill"], "tokens/s"),
        Row(f"{trial.name}: (c) {SLOTS} sequences, decode", limit["all"], "tokens/s", limit["one"]),
    ]


def _together(
    trial: Trial,
    ours: dict[int, tuple[list[Heard], float]],
    peers: dict[str, dict[int, tuple[list[Heard], float]]],
) -> list[Row]:
    """Total tokens/s and time to first token for each number of users, beside the better peer."""
    rows = []
    for users, (heard, seconds) in ours.items():
        best = max((_rate(*peer[users]) for peer in peers.values()), default=None)
        name = f"{trial.name}: {users} at once"
        most = users == max(trial.users)
        rate = _rate(heard, seconds)
        met = rate >= 1.5 * best if most and best else None
        rows.append(Row(f"{name}, total", rate, "tokens/s", best, ">= 1.5 x reference" if most else "", met))
        rows += [
            Row(f"{name}, total of {kind}", _rate(*peer[users]), "tokens/s") for kind, peer in peers.items()
        ]
        for share in (0.5, 0.95):
            first = percentile([h.first for h in heard], share)
            better = min(
                (percentile([h.first for h in p[users][0]], share) for p in peers.values()), default=0
            )
            label = f"{name}, time to first token p{share * 100:.0f}"
            wanted = most and share == 0.95 and better
            rows.append(
                _at_most(label, first, "s", better, 0.5) if wanted else Row(label, first, "s", better)
            )
        speed = percentile([h.speed for h in heard], 0.5)
        rows.append(Row(f"{name}, each stream", speed, "tokens/s"))
        rows += [Row(f"{name}, errors", sum(bool(h.error) for h in heard), "replies")] if most else []
    return rows


def _rate(heard: Sequence[Heard], seconds: float) -> float:
    return sum(h.tokens for h in heard) / seconds


def _second_turn(trial: Trial, server: Server) -> list[Row]:
    load = trial.load
    messages = Workload(load.prompt, 0, load.answer).messages(77)
    cold = server.ask(messages, load.answer, prompt_cache_key="turns")
    # not the reply itself: the random models' spellings are not what their tokenizer would make of them
    answer = FILLER * (load.answer // len(FILLER) + 1)
    more = [*messages, {"role": "assistant", "content": answer[: load.answer]}]
    more.append({"role": "user", "content": "And then?"})
    warm = server.ask(more, 8, prompt_cache_key="turns")
    if warm.error:  # the built-in model holds one turn only
        return []
    return [_at_most(f"{trial.name}: second turn, time to first token", warm.first, "s", cold.first, 0.3)]


def _memory(trial: Trial, process: int) -> list[Row]:
    from engine.limits import cache_bytes

    cache = cache_bytes(check_gguf(trial.path)) * trial.context * SLOTS
    allowed = trial.path.stat().st_size + cache + (SPARE_MB << 20)
    used, mapped = resident(process)
    goal = f"<= file + cache + {SPARE_MB} MB"
    return [
        Row(f"{trial.name}: memory", used / 2**20, "MB", allowed / 2**20, goal, used <= allowed),
        Row(f"{trial.name}: memory, of it mapped files (the system may take it back)", mapped / 2**20, "MB"),
    ]


def _limit(trial: Trial) -> dict[str, float]:
    done = subprocess.run(_command("raw", trial), cwd=PROJECT, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


def _command(kind: str, trial: Trial) -> list[str]:
    filled = trial.load.prompt if trial.shape else 700
    return [
        sys.executable, "-m", "benchmarks.peers", kind, str(trial.path), "--context", str(trial.context),
        "--threads", str(trial.threads), "--slots", str(SLOTS), "--filled", str(filled),
    ]  # fmt: skip


@contextmanager
def _peer(kind: str, trial: Trial) -> Iterator[Server]:
    with subprocess.Popen(
        _command(kind, trial), cwd=PROJECT, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        address = ""
        while not address.startswith("http"):
            address = process.stdout.readline().strip() if process.poll() is None else "http://gone"
        server = Server(address)
        try:
            yield server
        finally:
            server.close()
            process.kill()


@contextmanager
def serving(trial: Trial, scratch: Path) -> Iterator[tuple[Server, int]]:
    """The engine over a data folder, and its process; gone after the block."""
    from rag.model import free_port

    model = "builtin" if trial.shape is None else str(trial.path)
    settings = Settings(
        data_dir=scratch, model=model, context=trial.context, threads=trial.threads, slots=SLOTS,
        adapters_aside=ASIDE, engine_port=free_port(),
    )  # fmt: skip
    with subprocess.Popen(
        [sys.executable, "-m", "engine.server"],
        cwd=PROJECT,
        env=child_environment(settings),
        stdout=sys.stderr,  # the rows are all that goes to the other
    ) as process:
        server = Server(f"http://127.0.0.1:{settings.engine_port}", engine_key(settings))
        try:
            _await(server)
            yield server, process.pid
        finally:
            server.close()
            process.kill()


def _await(server: Server) -> None:
    import httpx

    until = time.monotonic() + 300
    while time.monotonic() < until:
        try:
            if server.client.get("/health").json()["status"] == "ok":
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.1)
    raise TimeoutError("The engine did not become ready.")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Which models, and on how many threads."""
    names = [f"{shape.name}-{quant}" for shape in SHAPES for quant in QUANTS]
    parser.add_argument(
        "--models", default="0.6B-Q4_K_M,all", help=f"comma-separated: all, builtin, {', '.join(names)}"
    )
    parser.add_argument("--threads", type=int, default=0, help="threads of every side (default: every core)")


if __name__ == "__main__":
    sys.exit(main("engine", (__doc__ or "").splitlines()[0], measure, arguments))
