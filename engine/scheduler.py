"""One owner thread, a bounded queue in front of it, and cancelling.

Everything native runs on the owner thread, one reply at a time: two threads on one llama.cpp context crash
the process (3 of 3 tries). A cancelled reply has ended before the next one starts.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

from core.errors import EngineBusy, EngineUnavailable, UnderstudyError
from engine.backend import Backend, Finished, Part, StopFlag
from engine.requests import BadRequest, Request

QUEUE_LIMIT = 32
REPLY_SECONDS = 300.0  # an 8B model on two cores needs about 150 for a long prompt


@dataclass(frozen=True)
class Started:
    """A reply left the queue; `adapter_id` None is the bare base model."""

    adapter_id: str | None


@dataclass(frozen=True)
class Failed:
    """A reply came to nothing, with the error to show."""

    error: Exception


Event = Started | Part | Failed


@dataclass
class Ticket:
    """A request in the queue or in work. `deliver` gets its events, on the owner thread."""

    request: Request
    deliver: Callable[[Event], None]
    stop: StopFlag = field(default_factory=StopFlag)


class Scheduler:
    """Runs a backend on its owner thread.

    `adapter_of` turns a request's model name into an adapter id (None is the base) when its turn comes.
    """

    def __init__(self, backend: Backend, adapter_of: Callable[[str], str | None]) -> None:
        self.state: Literal["loading", "ready", "failed"] = "loading"
        self.reason = ""
        self.served = 0
        self._backend = backend
        self._adapter_of = adapter_of
        self._waiting: deque[Ticket] = deque()
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._current: Ticket | None = None
        self._stopping = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="engine-owner", daemon=True)

    def start(self) -> None:
        """Start the owner thread, which first loads the model."""
        self._thread.start()

    @property
    def load(self) -> dict[str, int]:
        """How many requests wait and how many are in work."""
        with self._changed:
            return {"waiting": len(self._waiting), "running": int(self._current is not None)}

    def submit(self, ticket: Ticket) -> None:
        """Queue a request.

        Raises EngineBusy when the queue is full, EngineUnavailable when no model is loaded.
        """
        with self._changed:
            if self.state != "ready" or self._stopping:
                raise EngineUnavailable(
                    self.reason or "The model is still loading.", "Wait some seconds and ask again."
                )
            if len(self._waiting) >= QUEUE_LIMIT:
                raise EngineBusy(
                    f"{QUEUE_LIMIT} questions are waiting already.", "Wait some seconds and ask again."
                )
            self._waiting.append(ticket)
            self._changed.notify()

    def cancel(self, ticket: Ticket) -> None:
        """Drop a waiting request at once, or stop the one in work; harmless when it is done."""
        ticket.stop.set("cancelled")
        with self._changed, suppress(ValueError):
            self._waiting.remove(ticket)

    def call(self, work: Callable[[], Any]) -> Future[Any]:
        """Run `work` on the owner thread before the next request (adapters are loaded this way)."""
        future: Future[Any] = Future()
        with self._changed:
            if self.state != "ready" or self._stopping:
                future.set_exception(EngineUnavailable("No model is loaded.", "Wait until it is."))
                return future
            self._calls.append((work, future))
            self._changed.notify()
        return future

    def stop(self) -> None:
        """Stop what is in work, refuse what waits, and let the owner thread free the model and end."""
        with self._changed:
            self._stopping = True
            waiting, self._waiting = list(self._waiting), deque()
            if self._current is not None:
                self._current.stop.set("cancelled")
            self._changed.notify_all()
        for ticket in waiting:
            _deliver(
                ticket, Failed(EngineUnavailable("The engine is stopping.", "Ask again in some seconds."))
            )

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
            self.state = "ready"
            while (work := self._next()) is not None:
                work()
        finally:
            self._backend.close()

    def _next(self) -> Callable[[], None] | None:
        with self._changed:
            self._current = None
            while not self._stopping:
                if self._calls:
                    call, future = self._calls.popleft()
                    return lambda: _settle(call, future)
                if self._waiting:
                    ticket = self._current = self._waiting.popleft()
                    return lambda: self._serve(ticket)
                self._changed.wait()
            for _, future in self._calls:
                future.set_exception(EngineUnavailable("The engine is stopping."))
            return None

    def _serve(self, ticket: Ticket) -> None:
        self.served += 1
        timer = threading.Timer(REPLY_SECONDS, ticket.stop.set, ["timeout"])
        timer.daemon = True
        timer.start()
        try:
            adapter_id = self._adapter_of(ticket.request.model)
            _deliver(ticket, Started(adapter_id))
            for part in self._backend.generate(ticket.request, adapter_id, ticket.stop):
                if isinstance(part, Finished) and part.reason == "cancelled" and self._stopping:
                    raise EngineUnavailable("The engine is stopping.", "Ask again in some seconds.")
                _deliver(ticket, part)
        except (UnderstudyError, BadRequest) as error:
            _deliver(ticket, Failed(error))
        except Exception as error:  # one broken request must not take the owner thread with it
            _deliver(ticket, Failed(EngineUnavailable(f"The engine failed: {error!r}", "Ask again.")))
        finally:
            timer.cancel()


def _deliver(ticket: Ticket, event: Event) -> None:
    with suppress(RuntimeError):  # the client's event loop is closed: nobody listens any more
        ticket.deliver(event)


def _settle(call: Callable[[], Any], future: Future[Any]) -> None:
    try:
        future.set_result(call())
    except Exception as error:  # handed to whoever waits for the future
        future.set_exception(error)
