"""Prompt lookup beside plain decoding: the golden questions' frozen prompts, greedy, in one process.

Both sides answer every prompt in turn, so that the machine's moods fall on both; each side's time is the
least of its rounds. Seconds are the process's CPU seconds from when every prompt was read to the last token,
and the tokens those made in them. So with several at once, where guessing ends some replies before the last
prompt is read, its side counts fewer tokens; one at once is the plain comparison.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.reader import golden_cases
from benchmarks.table import Row, main
from core.catalog import resolve
from core.settings import load_settings, quiet_environment
from core.types import Message
from engine.backend import Failed, Piece, Work
from engine.lookup import Guesses
from engine.requests import parse
from engine.runtime import LlamaBackend

QUICK_CASES, ANSWER, ROUNDS = 16, 160, 3
TOGETHER = (1, 4, 8)


@dataclass
class Side:
    """One way to decode: what it wrote, and CPU seconds of decoding."""

    guesses: Guesses | None
    texts: dict[int, str]
    seconds: float = 0.0
    tokens: int = 0


def measure(options: argparse.Namespace) -> list[Row]:
    """Each number of answers at once, with and without."""
    quiet_environment()
    with tempfile.TemporaryDirectory() as scratch:
        settings = replace(load_settings(model=options.model, threads=1), data_dir=Path(scratch), slots=8)
        model, path = resolve(settings)
        cases = golden_cases(settings, model, QUICK_CASES if options.quick else None)
        backend = LlamaBackend(settings, model, path)
        backend.load()
        try:
            prompts = [case.messages for case in cases]
            return [row for users in TOGETHER for row in _beside(backend, prompts, users)]
        finally:
            backend.close()


def _beside(backend: LlamaBackend, prompts: Sequence[Sequence[Message]], users: int) -> list[Row]:
    with_, without = Side(Guesses(), {}), Side(None, {})
    for start in range(0, len(prompts), users):
        group = range(start, min(start + users, len(prompts)))
        for side in (with_, without):
            best = float("inf")
            for _ in range(ROUNDS):
                backend.guesses = side.guesses
                tokens, seconds = _answer(backend, prompts, group, side)
                best = min(best, seconds)
            side.seconds += best
            side.tokens += tokens
    name = f"{users} at once"
    rates = [side.tokens / side.seconds for side in (with_, without)]
    equal = sum(with_.texts[at] == text for at, text in without.texts.items())
    assert with_.guesses is not None
    return [
        Row(f"{name}: decode", rates[0], "tokens/s of CPU", rates[1], "> reference", rates[0] > rates[1]),
        Row(f"{name}: equal replies", equal, "replies", len(prompts)),
        Row(f"{name}: guessed tokens that were right", with_.guesses.right, "tokens", with_.guesses.made),
        Row(f"{name}: tokens of all replies", with_.tokens, "tokens", without.tokens),
    ]


def _answer(
    backend: LlamaBackend, prompts: Sequence[Sequence[Message]], group: range, side: Side
) -> tuple[int, float]:
    """Tokens made, and seconds from when every prompt of the group was read."""
    works: dict[Work, int] = {}
    for at in group:
        request = parse("chat", {"messages": list(prompts[at]), "max_tokens": ANSWER})
        work = Work(request, backend.prepare(request), None)
        backend.begin(work)
        works[work] = at
    texts, made, began = dict.fromkeys(group, ""), 0, 0.0
    while backend.busy:
        if not began and all(work.state.prefilled for work in works):
            began, made = time.process_time(), -sum(work.state.made for work in works)
        for work, part in backend.step():
            if isinstance(part, Failed):
                raise part.error
            texts[works[work]] += part.text if isinstance(part, Piece) else ""
    seconds = time.process_time() - began
    side.texts |= texts
    return made + sum(work.state.made for work in works), seconds


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="builtin", help="a catalog id or the path of a .gguf file")


if __name__ == "__main__":
    sys.exit(main("lookup", (__doc__ or "").splitlines()[0], measure, _arguments))
