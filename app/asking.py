"""One question on its way to a recorded exchange: used by the Chat page and by the API.

A turn runs in a thread of its own, so that a closed browser, a stop or a dying engine always ends in a
record: `complete` when the answer was finished, `interrupted` with what had arrived when it was not.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from app.resources import Resources
from core.errors import EngineUnavailable, UnderstudyError
from core.types import Answer, Message
from feedback.questions import stands_alone
from feedback.records import Correction, Status
from rag.answer import Interrupted
from rag.citations import resolve
from rag.prompt import cite
from rag.sources import web_addresses

log = logging.getLogger("understudy.web")
RETURN_S = 15.0  # a restarted engine is back within ten seconds (unless its model is large)


@dataclass(frozen=True)
class Question:
    """What is asked, by whom, and where it is recorded. `model` is "live", "base" or an adapter id."""

    conversation_id: str
    user: str
    text: str
    history: tuple[Message, ...] = ()
    model: str = "live"


@dataclass(frozen=True)
class Asked:
    """The recorded outcome."""

    exchange_id: str
    answer: Answer
    status: Status
    addresses: dict[str, str] = field(default_factory=dict)  # of cited documents that came from the web


class Turn:
    """Answers one question in the background. Read it with `next` until it gives an Asked or an error."""

    def __init__(self, resources: Resources, question: Question) -> None:
        self.resources = resources
        self.question = question
        self._items: queue.Queue[str | Asked | UnderstudyError] = queue.Queue()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="turn", daemon=True)
        self._thread.start()

    def next(self, timeout: float) -> str | Asked | UnderstudyError | None:
        """The next piece of text, at the end the outcome or what went wrong; None when nothing came yet."""
        try:
            return self._items.get(timeout=timeout)
        except queue.Empty:
            return None

    def place(self) -> int | None:
        """Its place in the engine's line, 1 being next; 0 or None when it does not wait there."""
        return self.resources.client.position(self.question.conversation_id)

    def stop(self, wait: float = 0.0) -> None:
        """Ask it to stop; what has arrived is recorded as interrupted. Waits at most `wait` s."""
        self._stop.set()
        self._thread.join(wait)

    def _work(self) -> None:
        try:
            self._answer()
        except UnderstudyError as error:
            self._items.put(error)
        except Exception as error:  # the person who asked must hear of it, and the log hold it
            log.exception("Answering failed")
            self._items.put(
                UnderstudyError(f"Answering failed ({type(error).__name__}).", "See the web log.")
            )

    def _answer(self) -> None:
        question = self.question
        corrected = corrected_answer(self.resources, question)
        if corrected is not None:
            self._record(corrected, "complete")
            return
        try:
            self._generate()
        except EngineUnavailable as error:
            if self._keep_partial(error) or not self._engine_returns():
                raise
            self._generate()

    def _generate(self) -> None:
        question = self.question
        stream = self.resources.assistant.stream(
            question.text,
            question.history,
            model=question.model,
            stop=self._stop,
            conversation=question.conversation_id,
            viewer=question.user,
        )
        for item in stream:
            if isinstance(item, Answer):
                stopped = item.finish_reason == "stop_requested"
                self._record(item, "interrupted" if stopped else "complete")
            else:
                self._items.put(item)

    def _keep_partial(self, error: EngineUnavailable) -> bool:
        """Record what a dying engine had said, if anything; nobody may vote on it, nothing trains on it."""
        if not isinstance(error, Interrupted) or not error.partial.text:
            return False
        self._record(error.partial, "interrupted", tell=False)
        return True

    def _engine_returns(self) -> bool:
        """Wait for an engine that is starting (again), as long as somebody waits and it may come."""
        until = time.monotonic() + RETURN_S
        while time.monotonic() < until and not self._stop.is_set() and not self.resources.engine_given_up():
            if self.resources.client.healthy():
                return True
            self._stop.wait(0.2)
        return False

    def _record(self, answer: Answer, status: Status, *, tell: bool = True) -> None:
        question = self.question
        exchange = self.resources.feedback.record(
            question.conversation_id, question.user, question.text, answer, status
        )
        if tell:
            cited = {citation.document_id for citation in answer.citations}
            self._items.put(Asked(exchange, answer, status, web_addresses(self.resources.database, cited)))


def corrected_answer(resources: Resources, question: Question) -> Answer | None:
    """The answer that a reader's correction gives to this very question, or None when there is none."""
    asked: Message = {"role": "user", "content": question.text}
    if question.model != "live" or not stands_alone(question.text, [*question.history, asked]):
        return None
    correction = resources.feedback.find_correction(question.text, question.user)
    return None if correction is None else _as_answer(resources, correction, question.user)


def _as_answer(resources: Resources, correction: Correction, viewer: str) -> Answer | None:
    """The correction as an answer: cited by the passages of the exchange that it corrects.

    None when the viewer may not find one of their documents.
    """
    original = resources.feedback.exchange(correction.exchange_id)
    if resources.documents.hidden({passage.document_id for passage in original.answer.passages}, viewer):
        return None
    raw = cite(correction.text, original.units, resources.model)
    resolved = resolve(raw, original.answer.passages)
    return Answer(
        text=resolved.text,
        raw=raw,
        mode="correction",
        citations=resolved.citations,
        passages=original.answer.passages,
        messages=(),
        model=resources.model.id,
        adapter=None,
        prompt_version=original.answer.prompt_version,
        supported=True,
        finish_reason="stop",
        sampling={"correction": correction.id},
        timings={},
    )


def history_of(exchanges: Sequence[tuple[str, str]]) -> tuple[Message, ...]:
    """(question, answer) pairs as chat messages."""
    messages: list[Message] = []
    for asked, answered in exchanges:
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    return tuple(messages)
