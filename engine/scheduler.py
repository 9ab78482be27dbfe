"""The owner thread: admits requests from the waiting line, steps the backend, and hands out what it makes.

Everything native runs on this one thread: two threads on one llama.cpp context crash the process (3 of 3
tries). Requests join between two steps and leave between two steps, so a cancelled reply is gone within one.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from core.errors import EngineBusy, EngineUnavailable, UnderstudyError
from engine.admission import WaitingLine
from engine.backend import Backend, Begun, Failed, Part, Piece, Prompt, Work
from engine.metrics import Metrics
from engine.requests import BadRequest, Request

log = logging.getLogger("understudy.engine")

REPLY_SECONDS = 300.0  # an 8B model on two cores needs about 150 for a long prompt
WAIT_SECONDS = 170.0  # in the line; clients give up after 180 of silence


@dataclass(frozen=True)
class Queued:
    """The request's place in the line; 1 is next."""

    position: int


@dataclass(frozen=True)
class Started:
    """A reply left the line; `adapter_id` None is the bare base model."""

    adapter_id: str | None


Event = Queued | Started | Part


@dataclass(eq=False)
class Ticket:
    """A request in the line or in work. `deliver` gets its events, on the owner thread.

    `trial` names an adapter under self-test, whose requests go before all others.
    """

    request: Request
    prompt: Prompt
    deliver: Callable[[Event], None]
    trial: str = ""
    asked: float = field(default_factory=time.monotonic)
    started: float = 0.0
    first: float = 0.0
    position: int = 0
    cancelled: bool = False
    work: Work | None = None


class Scheduler:
    """Runs a backend on its owner thread.

    `adapter_of` turns a request's model name into an adapter id (None is the base) when its turn comes.
    """

    def __init__(self, backend: Backend, adapter_of: Callable[[str], str | None]) -> None:
        self.state: Literal["loading", "ready", "failed"] = "loading"
        self.reason = ""
        self.metrics = Metrics()
        self._backend = backend
        self._adapter_of = adapter_of
        self._line: WaitingLine[Ticket] = WaitingLine()
        self._working: dict[Work, Ticket] = {}
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self.longest_pause = 0.0  # seconds that adapter work kept the owner thread from stepping
        self._reply_seconds = 1.0  # of the last replies, on average
        self._stopping = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="engine-owner", daemon=True)

    def start(self) -> None:
        """Start the owner thread, which first loads the model."""
        self._thread.start()

    @property
    def load(self) -> dict[str, int]:
        """How many requests wait, how many are in work, and how many can be."""
        with self._changed:
            return {
                "waiting": len(self._line),
                "running": len(self._working),
                "slots": self._backend.slots,
            }

    @property
    def served(self) -> int:
        """Requests that came to an end."""
        return self.metrics.served

    @property
    def retry_after(self) -> int:
        """Seconds after which the line should be shorter by one, from 1 to 60."""
        with self._changed:
            ahead = (len(self._line) + 1) / max(1, self._backend.slots)
        return max(1, min(60, math.ceil(ahead * self._reply_seconds)))

    def position(self, key: str) -> int | None:
        """The best place in the line of a user's or conversation's requests: 0 in work, None not here."""
        with self._changed:
            if any(key in (t.request.key, t.request.user) for t in self._working.values()):
                return 0
            places = enumerate(self._line, 1)
            return next((at for at, t in places if key in (t.request.key, t.request.user)), None)

    def models_in_use(self) -> set[str]:
        """Model names and adapter ids of all requests in the line and in work."""
        with self._changed:
            names = {ticket.request.model for ticket in self._line}
            return names | {str(work.adapter_id) for work in self._working}

    def submit(self, ticket: Ticket) -> None:
        """Queue a request.

        Raises EngineBusy when the line is full, EngineUnavailable when no model is loaded.
        """
        with self._changed:
            if self.state != "ready" or self._stopping:
                raise EngineUnavailable(
                    self.reason or "The model is still loading.", "Wait some seconds and ask again."
                )
            try:
                self._line.join(ticket, ticket.request.user, first=bool(ticket.trial))
            except EngineBusy:
                self.metrics.ended("busy")
                raise
            self._changed.notify()

    def cancel(self, ticket: Ticket) -> None:
        """Drop a waiting request at once, or let go the one in work; harmless when it is done."""
        with self._changed:
            ticket.cancelled = True
            if self._line.remove(ticket):
                self._left(ticket, "cancelled")
            self._changed.notify()

    def call(self, work: Callable[[], Any]) -> Future[Any]:
        """Run `work` on the owner thread between two steps (adapters are loaded this way)."""
        future: Future[Any] = Future()
        with self._changed:
            if self.state != "ready" or self._stopping:
                future.set_exception(EngineUnavailable("No model is loaded.", "Wait until it is."))
                return future
            self._calls.append((work, future))
            self._changed.notify()
        return future

    def stop(self) -> None:
        """Refuse what waits, let go what is in work, and let the owner thread free the model and end."""
        with self._changed:
            self._stopping = True
            waiting = self._line.clear()
            self._changed.notify_all()
        self._backend.interrupt()
        for ticket in waiting:
            _deliver(ticket, Failed(_stopping()))

    def join(self, seconds: float) -> bool:
        """Wait for the owner thread; whether it ended."""
        if self._thread.ident is not None:
            self._thread.join(seconds)
        return not self._thread.is_alive()

    # on the owner thread

    def _run(self) -> None:
        try:
            self._backend.load()
        except Exception as error:  # a model that cannot be loaded must be reported, whatever went wrong
            self.reason = str(error)
            self.state = "failed"
        else:
            self._line.slots = self._backend.slots
            self.state = "ready"
            try:
                while self._wait():
                    self._turn()
                self._refuse(_stopping())
            except Exception as error:  # a fault of ours, of which whoever waits and /health must hear
                log.exception("the owner thread failed")
                self.reason = f"The engine failed: {error!r}"
                self.state = "failed"
                self._refuse(EngineUnavailable(self.reason, "Ask again in some seconds."))
        finally:
            self._backend.close()

    def _wait(self) -> bool:
        """Sleep until there is work; False when the engine stops."""
        with self._changed:
            while not (self._stopping or self._calls or self._working or len(self._line)):
                self._changed.wait()
            return not self._stopping

    def _turn(self) -> None:
        with self._changed:
            calls = list(self._calls)
            self._calls.clear()
        for work, future in calls:
            began = time.monotonic()
            _settle(work, future)
            self.longest_pause = max(self.longest_pause, time.monotonic() - began)
        self._sweep()
        self._admit()
        self._tell_positions()
        if self._working:
            self._advance()

    def _sweep(self) -> None:
        """Let go what was cancelled and what took too long."""
        now = time.monotonic()
        for work, ticket in list(self._working.items()):
            late = now - ticket.started > REPLY_SECONDS
            if ticket.cancelled or late:
                end = self._backend.end(work)
                self._take(work, end if ticket.cancelled else replace(end, reason="length"))
        with self._changed:
            late_ones = [ticket for ticket in self._line if now - ticket.asked > WAIT_SECONDS]
            for ticket in late_ones:
                self._line.remove(ticket)
                self._left(ticket, "late")
        for ticket in late_ones:
            error = EngineBusy("The engine did not come to this question in time.", "Ask again later.")
            _deliver(ticket, Failed(error))

    def _admit(self) -> None:
        while len(self._working) < self._backend.slots:
            with self._changed:
                ticket = self._line.next()
            if ticket is None:
                return
            ticket.started = time.monotonic()
            self.metrics.waited(ticket.started - ticket.asked)
            try:
                adapter_id = ticket.trial or self._adapter_of(ticket.request.model)
                ticket.work = Work(ticket.request, ticket.prompt, adapter_id, _owner(ticket.request))
                self._backend.begin(ticket.work)
            except Exception as error:  # one broken request must not take the owner thread with it
                self._left(ticket, "failed")
                _deliver(ticket, Failed(_shown(error)))
                continue
            with self._changed:
                self._working[ticket.work] = ticket
            _deliver(ticket, Started(adapter_id))

    def _tell_positions(self) -> None:
        with self._changed:
            moved = [(at, t) for at, t in enumerate(self._line, 1) if t.position != at]
        for at, ticket in moved:
            ticket.position = at
            _deliver(ticket, Queued(at))

    def _advance(self) -> None:
        try:
            outputs = self._backend.step()
        except Exception as error:  # as above; nothing is known about any of them
            outputs = [(work, Failed(error)) for work in self._working]
            for work in list(self._working):
                with suppress(Exception):
                    self._backend.end(work)
        for work, part in outputs:
            self._take(work, part)

    def _take(self, work: Work, part: Part) -> None:
        """Count what a reply made and hand it out."""
        ticket = self._working[work]
        if isinstance(part, Begun):
            if not ticket.trial:
                self.metrics.began(part.prompt_tokens, part.cached_tokens)
        elif isinstance(part, Piece):
            if not ticket.first:
                ticket.first = time.monotonic()
                if not ticket.trial:
                    self.metrics.first_piece(ticket.first - ticket.asked)
        else:
            with self._changed:
                del self._working[work]
            now = time.monotonic()
            self._reply_seconds += 0.2 * (now - ticket.started - self._reply_seconds)
            if isinstance(part, Failed):
                part = Failed(_shown(part.error))
                self._left(ticket, "failed")
            else:
                if not work.prompt.tokens:  # another server counted them, and says so at the end
                    self.metrics.began(part.prompt_tokens, part.cached_tokens)
                spent = now - ticket.first if ticket.first else 0.0
                self._left(ticket, part.reason, part.completion_tokens, spent)
        _deliver(ticket, part)

    def _left(self, ticket: Ticket, end: str, tokens: int = 0, seconds: float = 0.0) -> None:
        if ticket.trial:
            return
        self.metrics.ended(end, tokens, seconds)
        if ticket.started:
            with self._changed:
                self._line.leave(ticket.request.user)

    def _refuse(self, error: EngineUnavailable) -> None:
        """Tell everybody who is left that nothing more comes."""
        with self._changed:
            tickets = [*self._working.values(), *self._line.clear()]
            self._working.clear()
            calls = list(self._calls)
            self._calls.clear()
        for ticket in tickets:
            _deliver(ticket, Failed(error))
        for _, future in calls:
            future.set_exception(error)


def _owner(request: Request) -> str:
    """Whose earlier prompts may be reused: a user's key is that user's alone."""
    return f"{request.user}\n{request.key}" if request.key else ""


def _deliver(ticket: Ticket, event: Event) -> None:
    with suppress(RuntimeError):  # the client's event loop is closed: nobody listens any more
        ticket.deliver(event)


def _settle(work: Callable[[], Any], future: Future[Any]) -> None:
    try:
        future.set_result(work())
    except Exception as error:  # handed to whoever waits for the future
        future.set_exception(error)


def _shown(error: Exception) -> Exception:
    if isinstance(error, UnderstudyError | BadRequest):
        return error
    return EngineUnavailable(f"The engine failed: {error!r}", "Ask again.")


def _stopping() -> EngineUnavailable:
    return EngineUnavailable("The engine is stopping.", "Ask again in some seconds.")
