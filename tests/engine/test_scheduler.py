from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from core.errors import EngineBusy, EngineUnavailable
from core.files import write_json
from engine.admission import QUEUE_LIMIT, USER_LIMIT
from engine.backend import Backend, Failed, Finished, Piece, Work
from engine.requests import parse
from engine.scheduler import Event, Queued, Scheduler, Started, Ticket
from engine.scripted import ScriptedBackend

LINES = [
    {"match": "slow", "reply": "word " * 100, "delay_ms": 20},
    {"match": "quick", "reply": "A quick reply."},
]


class Client:
    """Collects a ticket's events."""

    def __init__(
        self, scheduler: Scheduler, text: str, tokens: int = 200, trial: str = "", **options: Any
    ) -> None:
        self.events: list[Event] = []
        self.done = threading.Event()
        body = {"messages": [{"role": "user", "content": text}], "max_tokens": tokens} | options
        request = parse("chat", body)
        backend: Backend = scheduler._backend
        self.ticket = Ticket(request, backend.prepare(request), self.take, trial)
        scheduler.submit(self.ticket)

    def take(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, Finished | Failed):
            self.done.set()

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.events if isinstance(event, Piece))


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture
def scheduler(tmp_path: Path) -> Iterator[Scheduler]:
    write_json(tmp_path / "script.json", LINES)
    made = Scheduler(ScriptedBackend(tmp_path / "script.json", slots=1), lambda _: None)
    made.start()
    until(lambda: made.state == "ready")
    yield made
    made.stop()
    assert made.join(5)


def test_replies_come_in_the_order_asked(scheduler: Scheduler) -> None:
    clients = [Client(scheduler, "quick") for _ in range(10)]
    for client in clients:
        assert client.done.wait(20)
        assert isinstance(next(event for event in client.events if not isinstance(event, Queued)), Started)
        assert client.text == "A quick reply."
    assert scheduler.served == 10


def test_a_full_queue_says_so(scheduler: Scheduler) -> None:
    first = Client(scheduler, "slow")
    until(lambda: scheduler.load["running"] == 1)
    waiting = [Client(scheduler, "quick") for _ in range(QUEUE_LIMIT)]
    with pytest.raises(EngineBusy, match="waiting already"):
        Client(scheduler, "quick")
    for client in (first, *waiting):
        scheduler.cancel(client.ticket)
    assert first.done.wait(5)
    assert Client(scheduler, "quick").done.wait(20)


def test_waiting_requests_know_their_place(scheduler: Scheduler) -> None:
    first = Client(scheduler, "slow")
    until(lambda: scheduler.load["running"] == 1)
    waiting = [Client(scheduler, "quick", prompt_cache_key=f"talk-{number}") for number in range(3)]
    until(lambda: all(client.events for client in waiting))
    assert [client.events[0] for client in waiting] == [Queued(1), Queued(2), Queued(3)]
    assert [scheduler.position(f"talk-{number}") for number in range(4)] == [1, 2, 3, None]
    scheduler.cancel(waiting[0].ticket)
    until(lambda: Queued(1) in waiting[1].events)
    scheduler.cancel(first.ticket)
    for client in waiting[1:]:
        assert client.done.wait(20)


def test_users_take_turns_and_have_a_limit(scheduler: Scheduler) -> None:
    first = Client(scheduler, "slow")
    until(lambda: scheduler.load["running"] == 1)
    greedy = [Client(scheduler, "quick", user="greedy") for _ in range(USER_LIMIT)]
    with pytest.raises(EngineBusy, match="this user"):
        Client(scheduler, "quick", user="greedy")
    modest = Client(scheduler, "quick", user="modest")
    nameless = Client(scheduler, "quick")
    until(lambda: bool(nameless.events))
    assert scheduler.position("modest") == 2  # behind the first of the greedy one's, before his second
    scheduler.cancel(first.ticket)
    for client in (*greedy, modest, nameless):
        assert client.done.wait(20)
    assert Client(scheduler, "quick", user="greedy").done.wait(20)


def test_a_fault_on_the_owner_thread_is_told_to_everybody(tmp_path: Path) -> None:
    class Broken(ScriptedBackend):
        def end(self, work: Work) -> Finished:
            raise RuntimeError("a fault of ours")

    write_json(tmp_path / "script.json", LINES)
    scheduler = Scheduler(Broken(tmp_path / "script.json", slots=1), lambda _: None)
    scheduler.start()
    until(lambda: scheduler.state == "ready")
    working = Client(scheduler, "slow")
    until(lambda: bool(working.text))
    waiting = Client(scheduler, "quick")
    scheduler.cancel(working.ticket)
    for client in (working, waiting):
        assert client.done.wait(20)
        assert isinstance(client.events[-1], Failed)
    assert scheduler.join(5)
    assert scheduler.state == "failed"
    assert "a fault of ours" in scheduler.reason
    with pytest.raises(EngineUnavailable):
        Client(scheduler, "quick")
    with pytest.raises(EngineUnavailable):
        scheduler.call(lambda: 1).result(1)


def test_self_tests_are_not_counted_as_requests(scheduler: Scheduler) -> None:
    trial = Client(scheduler, "quick", trial="adapter")
    assert trial.done.wait(20)
    assert scheduler.served == 0
    assert Client(scheduler, "quick").done.wait(20)
    until(lambda: scheduler.served == 1)


@pytest.mark.parametrize("slots", [1, 4])
def test_one_who_asks_a_lot_keeps_nobody_waiting(tmp_path: Path, slots: int) -> None:
    """Of 20 requests those beyond the limit are refused; whoever comes later is served next."""
    write_json(tmp_path / "script.json", LINES)
    scheduler = Scheduler(ScriptedBackend(tmp_path / "script.json", slots=slots), lambda _: None)
    scheduler.start()
    until(lambda: scheduler.state == "ready")
    greedy = [Client(scheduler, "slow", user="greedy") for _ in range(slots)]
    until(lambda: scheduler.load["running"] == slots)
    for _ in range(20 - slots):
        with suppress(EngineBusy):
            greedy.append(Client(scheduler, "slow", user="greedy"))
    assert scheduler.load["waiting"] == min(20 - slots, USER_LIMIT)
    modest = [Client(scheduler, "slow", user="modest") for _ in range(2)]
    scheduler.cancel(greedy[0].ticket)
    until(lambda: bool(modest[0].text))
    if slots > 1:
        scheduler.cancel(greedy[1].ticket)
        until(lambda: bool(modest[1].text))
    assert not any(client.text for client in greedy[slots:])
    scheduler.stop()
    assert scheduler.join(5)


def test_fifty_at_once_are_answered_or_refused(scheduler: Scheduler) -> None:
    """Row L4: those for whom there is no place hear it while the first is still being answered."""
    first = Client(scheduler, "slow")
    until(lambda: scheduler.load["running"] == 1)

    def submit(number: int) -> Client | None:
        try:
            return Client(scheduler, "quick", user=f"user {number % 10}")
        except EngineBusy:
            return None

    with ThreadPoolExecutor(50) as pool:
        clients = [client for client in pool.map(submit, range(50)) if client]
    assert len(clients) == QUEUE_LIMIT
    assert not first.done.is_set()
    scheduler.cancel(first.ticket)
    for client in clients:
        assert client.done.wait(20)
        assert client.text == "A quick reply."


def test_several_replies_are_in_work_at_once(tmp_path: Path) -> None:
    write_json(tmp_path / "script.json", LINES)
    scheduler = Scheduler(ScriptedBackend(tmp_path / "script.json", slots=3), lambda _: None)
    scheduler.start()
    until(lambda: scheduler.state == "ready")
    slow = [Client(scheduler, "slow") for _ in range(2)]
    assert Client(scheduler, "quick").done.wait(20)
    until(lambda: all(client.text for client in slow))
    assert not any(client.done.is_set() for client in slow)
    assert scheduler.load == {"waiting": 0, "running": 2, "slots": 3}
    scheduler.stop()
    assert scheduler.join(5)


def test_a_wait_and_a_reply_have_a_deadline(scheduler: Scheduler) -> None:
    first = Client(scheduler, "slow")
    until(lambda: bool(first.text))
    second = Client(scheduler, "slow")
    second.ticket.asked -= 1000
    assert second.done.wait(20)
    assert isinstance(second.events[-1], Failed)
    assert isinstance(second.events[-1].error, EngineBusy)
    first.ticket.started -= 1000
    assert first.done.wait(20)
    assert isinstance(first.events[-1], Finished)
    assert first.events[-1].reason == "length"


def test_counts_end_up_in_the_metrics(scheduler: Scheduler) -> None:
    assert Client(scheduler, "quick").done.wait(20)
    until(lambda: scheduler.load["running"] == 0)
    page = scheduler.metrics.render({"slots": (1, "Places.")})
    assert 'understudy_engine_requests_total{end="stop"} 1' in page
    assert 'understudy_engine_tokens_total{kind="completion"} 3' in page
    assert 'understudy_engine_time_to_first_token_seconds_bucket{le="+Inf"} 1' in page
    assert "understudy_engine_slots 1" in page


def test_cancelling_frees_the_slot_before_the_next_starts(scheduler: Scheduler) -> None:
    first, second = Client(scheduler, "slow"), Client(scheduler, "quick")
    until(lambda: bool(first.text))
    scheduler.cancel(first.ticket)
    assert second.done.wait(1)
    assert first.done.is_set()
    assert isinstance(first.events[-1], Finished)
    assert first.events[-1].reason == "cancelled"
    assert second.text == "A quick reply."


def test_a_cancelled_request_in_the_queue_never_starts(scheduler: Scheduler) -> None:
    first, second = Client(scheduler, "slow"), Client(scheduler, "slow")
    scheduler.cancel(second.ticket)
    scheduler.cancel(first.ticket)
    assert Client(scheduler, "quick").done.wait(20)
    assert all(isinstance(event, Queued) for event in second.events)


def test_stopping_tells_everybody(scheduler: Scheduler) -> None:
    first, second = Client(scheduler, "slow"), Client(scheduler, "quick")
    until(lambda: bool(first.text))
    scheduler.stop()
    assert scheduler.join(2)
    for client in (first, second):
        last = client.events[-1]
        assert isinstance(last, Failed)
        assert isinstance(last.error, EngineUnavailable)
    with pytest.raises(EngineUnavailable):
        Client(scheduler, "quick")


def test_a_broken_client_harms_nobody(scheduler: Scheduler) -> None:
    def broken(_event: Event) -> None:
        raise RuntimeError("Event loop is closed")

    request = parse("chat", {"messages": [{"role": "user", "content": "quick"}]})
    scheduler.submit(Ticket(request, scheduler._backend.prepare(request), broken))
    assert Client(scheduler, "quick").done.wait(20)


def test_calls_run_on_the_owner_thread(scheduler: Scheduler) -> None:
    assert scheduler.call(threading.current_thread).result(5).name == "engine-owner"
    with pytest.raises(ZeroDivisionError):
        scheduler.call(lambda: 1 / 0).result(5)


def test_a_model_that_does_not_load_is_reported(tmp_path: Path) -> None:
    scheduler = Scheduler(ScriptedBackend(tmp_path / "none.json"), lambda _: None)
    scheduler.start()
    until(lambda: scheduler.state == "failed")
    assert "Could not read" in scheduler.reason
    with pytest.raises(EngineUnavailable, match="Could not read"):
        Client(scheduler, "quick")
    assert scheduler.join(5)
