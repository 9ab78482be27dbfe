"""Counters of the engine in Prometheus' text format."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter

FIRST_TOKEN_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
WAIT_SECONDS = FIRST_TOKEN_SECONDS
TOKENS_PER_SECOND = (1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0)


class Histogram:
    """Counts of values up to each bound, and their sum."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, value: float) -> None:
        """Count a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def lines(self, name: str) -> list[str]:
        """The samples: cumulative buckets, sum and count."""
        found, total = [], 0
        for bound, count in zip((*self._bounds, float("inf")), self._counts, strict=True):
            total += count
            label = "+Inf" if bound == float("inf") else f"{bound:g}"
            found.append(f'{name}_bucket{{le="{label}"}} {total}')
        return [*found, f"{name}_sum {self._sum:.6f}", f"{name}_count {total}"]


class Metrics:
    """What happened since the engine started; safe in threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ends: Counter[str] = Counter()
        self._tokens: Counter[str] = Counter()
        self._histograms = {
            "understudy_engine_time_to_first_token_seconds": (
                Histogram(FIRST_TOKEN_SECONDS), "From asking to the first piece of text, waiting included."
            ),
            "understudy_engine_queue_seconds": (Histogram(WAIT_SECONDS), "Time in the waiting line."),
            "understudy_engine_stream_tokens_per_second": (
                Histogram(TOKENS_PER_SECOND), "Speed of one reply after its first token."
            ),
        }  # fmt: skip

    def waited(self, seconds: float) -> None:
        """A request left the line."""
        with self._lock:
            self._histograms["understudy_engine_queue_seconds"][0].add(seconds)

    def began(self, prompt_tokens: int, cached_tokens: int) -> None:
        """A prompt is being evaluated."""
        with self._lock:
            self._tokens["prompt"] += prompt_tokens
            self._tokens["cached"] += cached_tokens

    def first_piece(self, seconds: float) -> None:
        """A reply's first text came."""
        with self._lock:
            self._histograms["understudy_engine_time_to_first_token_seconds"][0].add(seconds)

    def ended(self, reason: str, tokens: int = 0, seconds: float = 0.0) -> None:
        """A request ended with so many tokens made in `seconds` after the first."""
        with self._lock:
            self._ends[reason] += 1
            self._tokens["completion"] += tokens
            if tokens > 1 and seconds > 0:
                histogram, _ = self._histograms["understudy_engine_stream_tokens_per_second"]
                histogram.add((tokens - 1) / seconds)

    @property
    def served(self) -> int:
        """Requests that came to an end, good or bad."""
        return sum(self._ends.values())

    def render(self, gauges: dict[str, tuple[float, str]]) -> str:
        """The page; `gauges` are the present values with their help, by name without prefix."""
        lines: list[str] = []

        def family(name: str, kind: str, text: str, samples: list[str]) -> None:
            lines.extend([f"# HELP {name} {text}", f"# TYPE {name} {kind}", *samples])

        with self._lock:
            name = "understudy_engine_requests_total"
            samples = [f'{name}{{end="{end}"}} {count}' for end, count in sorted(self._ends.items())]
            family(name, "counter", "Requests by how they ended.", samples)
            name = "understudy_engine_tokens_total"
            samples = [f'{name}{{kind="{kind}"}} {count}' for kind, count in sorted(self._tokens.items())]
            family(name, "counter", "Tokens of prompts, those of them reused, and of replies.", samples)
            for name, (histogram, text) in self._histograms.items():
                family(name, "histogram", text, histogram.lines(name))
        for short, (value, text) in gauges.items():
            name = f"understudy_engine_{short}"
            family(name, "gauge", text, [f"{name} {value:g}"])
        return "\n".join(lines) + "\n"
