"""Clients for measuring a server: they arrive on their own schedule and note when each piece came."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import httpx

ARRIVAL_SECONDS = 0.2  # mean time between arrivals; exponential, whatever the server does (open loop)
FILLER = (
    "the notice period is thirty days and the board may change it once a year after hearing the council; "
)


@dataclass
class Heard:
    """One reply as the client saw it: seconds on the monotonic clock."""

    asked: float
    pieces: list[float] = field(default_factory=list)
    text: str = ""
    tokens: int = 0
    fingerprint: str = ""
    error: str = ""

    @property
    def first(self) -> float:
        """Seconds to the first piece."""
        return self.pieces[0] - self.asked if self.pieces else float("inf")

    @property
    def speed(self) -> float:
        """Tokens/s after the first."""
        took = self.pieces[-1] - self.pieces[0] if len(self.pieces) > 1 else 0.0
        return (len(self.pieces) - 1) / took if took else 0.0

    @property
    def longest_gap(self) -> float:
        """The longest wait between two pieces."""
        return max((b - a for a, b in zip(self.pieces, self.pieces[1:], strict=False)), default=0.0)

    @property
    def longest_silence(self) -> float:
        """The longest wait for a piece, the first one too: a server that lets others wait has no gaps."""
        return max(self.first, self.longest_gap)


@dataclass(frozen=True)
class Workload:
    """Prompts of about `prompt` characters, of which the first `shared` are everybody's system message."""

    prompt: int
    shared: int
    answer: int

    def messages(self, seed: int) -> list[dict[str, str]]:
        """A question of its own for each seed."""
        rng = random.Random(seed)
        rules = (FILLER * (self.shared // len(FILLER) + 1))[: self.shared]
        question = f"Question: What is the notice period of contract {rng.randrange(10**6):06d}?"
        lines = [f"{question}\n\nHandbook > Notice"]
        room = self.prompt - self.shared - 2 * len(question)
        while sum(map(len, lines)) < room:
            days = rng.randrange(10, 99)
            line = f"[{len(lines)}] The notice period of contract {rng.randrange(10**6):06d} is {days} days."
            lines.append(line[: max(1, room - sum(map(len, lines)))])
        text = "\n".join(lines) + f"\n\n{question}"
        return [{"role": "system", "content": rules}, {"role": "user", "content": text}]


class Server:
    """An OpenAI-compatible server under load."""

    def __init__(self, url: str, key: str = "none") -> None:
        self.client = httpx.Client(
            base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=1800, trust_env=False,
            limits=httpx.Limits(max_connections=64),
        )  # fmt: skip

    def ask(self, messages: Sequence[dict[str, str]], tokens: int, **options: object) -> Heard:
        """Stream one chat completion."""
        body = {"model": "live", "messages": list(messages), "max_tokens": tokens, "temperature": 0}
        body |= {"stream": True, "stream_options": {"include_usage": True}, **options}
        heard = Heard(time.monotonic())
        try:
            with self.client.stream("POST", "/v1/chat/completions", json=body) as response:
                response.raise_for_status()
                for line in response.iter_lines():
                    _note(heard, line)
        except (httpx.HTTPError, ValueError) as error:
            heard.error = repr(error)
        heard.tokens = heard.tokens or len(heard.pieces)
        return heard

    def burst(self, workload: Workload, count: int, seed: int = 0) -> tuple[list[Heard], float]:
        """`count` clients arriving open-loop; what they heard, and seconds from first asked to last piece."""
        rng = random.Random(seed)
        delays, at = [], 0.0
        for _ in range(count):
            delays.append(at)
            at += rng.expovariate(1 / ARRIVAL_SECONDS)

        def client(number: int) -> Heard:
            time.sleep(delays[number])
            return self.ask(workload.messages(1000 * seed + number), workload.answer)

        began = time.monotonic()
        with ThreadPoolExecutor(count) as pool:
            heard = list(pool.map(client, range(count)))
        return heard, time.monotonic() - began

    def gap(self, workload: Workload, streams: int, long: int) -> tuple[float, float]:
        """The longest silence and gap in streams when a prompt of `long` characters arrives among them."""
        started = threading.Barrier(streams + 1)

        def client(number: int) -> Heard:
            started.wait()
            return self.ask(Workload(120, 0, 4 * workload.answer).messages(number), 4 * workload.answer)

        with ThreadPoolExecutor(streams) as pool:
            running = [pool.submit(client, number) for number in range(streams)]
            started.wait()
            time.sleep(1.0)
            self.ask(Workload(long, 0, 8).messages(99), 8)
            heard = [future.result() for future in running]
        return max(h.longest_silence for h in heard), max(h.longest_gap for h in heard)

    def close(self) -> None:
        """Close the connections."""
        self.client.close()


def _note(heard: Heard, line: str) -> None:
    if not line.startswith("data: ") or line == "data: [DONE]":
        return
    value = json.loads(line[6:])
    if "error" in value:
        raise ValueError(str(value["error"]))
    heard.fingerprint = str(value.get("system_fingerprint") or heard.fingerprint)
    heard.tokens = int((value.get("usage") or {}).get("completion_tokens") or heard.tokens)
    for choice in value.get("choices", ()):
        if text := choice["delta"].get("content"):
            heard.text += text
            heard.pieces.append(time.monotonic())
