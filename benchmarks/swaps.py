"""Adapters take turns on stage while four streams run: who failed, whose reply was mixed, who waited, memory.

There are more adapters than the engine keeps, so swaps load a file, try it and free another's; only one that
is still answering when its next turn comes is there already. A part of `benchmarks.engine`, here alone.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.load import Heard, Server, Workload
from benchmarks.shapes import Shape, random_adapter
from benchmarks.table import Row, main
from core.adapters import CARD, GGUF, Adapter, AdapterRegistry
from core.db import Database, now_ms
from core.files import sha256_of, write_json
from core.settings import quiet_environment
from evaluation.ranking import percentile

ADAPTERS = 5
SWAPS = 100
ASIDE = 1  # kept beside the one on stage: in a rotation of five, the next one never is there
STREAMS = 4
PROMPT, ANSWER = 120, 32  # characters and tokens of the streams' requests
EARLY = 5  # swaps after which memory should not grow any more
QUIET_SECONDS = 15.0  # of the same streams without a swap, to compare with


@dataclass
class Seen:
    """What a run showed: seconds from each promotion to service, and bytes in memory after it.

    `quiet` are the replies before the first swap and `heard` those during the swaps.
    """

    quiet: list[Heard] = field(default_factory=list)
    heard: list[Heard] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    took: list[float] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)
    loads: int = 0


def measure_swaps(
    name: str, model: Path, shape: Shape, server: Server, scratch: Path, process: int, quick: bool
) -> list[Row]:
    """Rows of swaps in an engine that runs over `scratch` with `adapters_aside` of ASIDE."""
    adapters, swaps, rest = (3, 3, QUIET_SECONDS / 5) if quick else (ADAPTERS, SWAPS, QUIET_SECONDS)
    names = [f"swap-{number}" for number in range(adapters)]
    registry = _registry(model, shape, scratch, names)
    words = _words(server, names)
    seen = Seen()

    def swap(number: int) -> None:
        registry.promote(names[number % adapters], "benchmark", "swap")
        began = time.monotonic()
        error = server.client.post("/adapters/sync").json()["error"]
        seen.took.append(time.monotonic() - began)
        seen.errors += [error] if error else []
        seen.memory.append(resident(process)[0])

    swap(0)
    seen.took, seen.memory = [], []
    before = gauge(server, "adapter_loads")
    with _streams(server, seen.quiet):
        time.sleep(rest)
    with _streams(server, seen.heard):
        for number in range(1, swaps + 1):
            swap(number)
    seen.loads = round(gauge(server, "adapter_loads") - before)
    registry.database.close()
    pause = gauge(server, "owner_pause_seconds")
    return _rows(f"{name}: {swaps} swaps under {STREAMS} streams", seen, words, pause)


def _rows(name: str, seen: Seen, words: dict[str, set[str]], pause: float) -> list[Row]:
    swaps, replies = len(seen.took), [*seen.quiet, *seen.heard]
    failed = [heard for heard in replies if heard.error or not heard.pieces]
    failures = len(failed) + len(seen.errors)
    mixed = sum(heard not in failed and is_mixed(heard, words) for heard in replies)
    known = sum(map(bool, words.values()))
    gaps, quiet = ([heard.longest_gap for heard in some] for some in (seen.heard, seen.quiet))
    at = min(EARLY, swaps - 1)
    early, last = seen.memory[at - 1] / 2**20, seen.memory[-1] / 2**20
    return [
        Row(f"{name}, files loaded", seen.loads, "files", swaps, ">= 0.9 x", seen.loads >= 0.9 * swaps),
        Row(
            f"{name}, adapters known by their words", known, "", len(words), "reference", known == len(words)
        ),
        Row(f"{name}, failed", failures, "replies, swaps", len(replies) + swaps, "0", not failures),
        Row(f"{name}, mixed", mixed, "replies", len(replies), "0", not mixed),
        Row(f"{name}, longest pause to load or free", pause * 1000, "ms", None, "<= 50", pause <= 0.05),
        Row(f"{name}, from promotion to service (median)", percentile(seen.took, 0.5) * 1000, "ms"),
        _gap(f"{name}, longest gap in the median reply, beside no swaps", gaps, quiet, 0.5),
        _gap(f"{name}, longest gap in any reply, beside no swaps", gaps, quiet, 1.0),
        Row(f"{name}, memory, beside after swap {at}", last, "MB", early, "<= 1.05 x", last <= 1.05 * early),
    ]


def _gap(measure: str, gaps: Sequence[float], quiet: Sequence[float], share: float) -> Row:
    return Row(measure, percentile(gaps, share) * 1000, "ms", percentile(quiet, share) * 1000)


def _words(server: Server, names: list[str]) -> dict[str, set[str]]:
    """The words that each adapter says and no other does, when it alone answers (see `random_adapter`)."""
    said: dict[str, set[str]] = {}
    for name in names:
        with ThreadPoolExecutor(STREAMS) as pool:
            asked = [pool.submit(_ask, server, name) for _ in range(STREAMS)]
        said[name] = set().union(*(_spoken(one.result().text) for one in asked))
    return {
        name: words - set().union(*(others for other, others in said.items() if other != name))
        for name, words in said.items()
    }


def is_mixed(heard: Heard, words: dict[str, set[str]]) -> bool:
    """Whether a reply holds a word of any adapter but the one that it names."""
    named = heard.fingerprint.partition("@")[2]
    spoken = _spoken(heard.text)
    return named not in words or any(spoken & others for name, others in words.items() if name != named)


def _spoken(text: str) -> set[str]:
    return set(re.findall(r"filler\d+|\S", text))


def _ask(server: Server, model: str = "live") -> Heard:
    """The one question of all; with log probabilities the engine guesses no tokens ahead."""
    return server.ask(Workload(PROMPT, 0, ANSWER).messages(0), ANSWER, model=model, logprobs=True)


@contextmanager
def _streams(server: Server, heard: list[Heard]) -> Iterator[None]:
    """Clients within the block, each of which asks again and again."""
    stop = threading.Event()

    def client() -> None:
        while not stop.is_set():
            heard.append(_ask(server))

    clients = [threading.Thread(target=client) for _ in range(STREAMS)]
    for thread in clients:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in clients:
            thread.join()


def _registry(model: Path, shape: Shape, scratch: Path, names: list[str]) -> AdapterRegistry:
    """The registry in an engine's data folder, with these adapters."""
    registry = AdapterRegistry(Database(scratch / "understudy.db"), scratch / "adapters")
    base = sha256_of(model)
    for number, name in enumerate(names):
        folder = registry.folder / name
        folder.mkdir(parents=True)
        (folder / GGUF).write_bytes(random_adapter(shape, number).read_bytes())
        digest = sha256_of(folder / GGUF)
        write_json(folder / CARD, {"sha256": digest})
        registry.register(
            Adapter(name, model.stem, base, digest, None, None, None, "sft", "passed", {}, now_ms())
        )
    return registry


def gauge(server: Server, name: str) -> float:
    """A figure of the engine's metrics."""
    (found,) = re.findall(rf"^understudy_engine_{name} (\S+)$", server.client.get("/metrics").text, re.M)
    return float(found)


def resident(process: int) -> tuple[int, int]:
    """Bytes in memory, and how many of them are mapped files."""
    import psutil

    info = psutil.Process(process).memory_info()
    return int(info.rss), int(info.shared)


def measure(options: argparse.Namespace) -> list[Row]:
    """The swaps alone, of every chosen model."""
    from benchmarks.engine import serving, trials  # which measures swaps, too

    quiet_environment()
    rows: list[Row] = []
    for trial in trials(options):
        if trial.shape is None:
            continue  # a model of which random adapters can be made is needed
        with (
            tempfile.TemporaryDirectory() as scratch,
            serving(trial, Path(scratch)) as (server, process),
        ):
            rows += measure_swaps(
                trial.name, trial.path, trial.shape, server, Path(scratch), process, options.quick
            )
    return rows


def _arguments(parser: argparse.ArgumentParser) -> None:
    from benchmarks.engine import arguments

    arguments(parser)


if __name__ == "__main__":
    sys.exit(main("swaps", (__doc__ or "").splitlines()[0], measure, _arguments))
