"""A question to an answer: retrieve, prompt, generate, and decide what is shown (`rag.shown`)."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from core.adapters import AdapterRegistry
from core.catalog import CatalogModel
from core.errors import EngineError, EngineUnavailable, QuestionError
from core.settings import Settings
from core.types import Answer, AnswerMode, Message, Passage
from rag.access import NOBODY
from rag.citations import Resolved, resolve, so_far
from rag.followup import FollowUp, in_context
from rag.memory import remembered
from rag.model import ModelClient, PromptTooLong, Reply, ReplyStream
from rag.prompt import PROMPT_VERSION, REFUSAL, Prompt, build, question_line
from rag.retrieve import Retriever
from rag.shown import Showing
from rag.smalltalk import small_talk
from rag.taught import Taught
from rag.trace import Found, traced

POLL_SECONDS = 0.05


class Interrupted(EngineUnavailable):
    """The engine stopped in the middle of an answer; `partial` is what had arrived."""

    def __init__(self, cause: EngineUnavailable, partial: Answer) -> None:
        super().__init__(cause.message, cause.next_step)
        self.partial = partial


@dataclass(frozen=True)
class _Run:
    """How a question is to be answered: by which model, in which conversation, for whom, until which event.

    `question` is what was asked, and as it was searched for; `turns` counts the questions before it.
    """

    question: FollowUp
    turns: int
    found: Found
    model: str
    conversation: str
    viewer: str
    stop: threading.Event
    timings: dict[str, float]


@dataclass
class _Turn:
    """One question under way."""

    prompt: Prompt
    sampling: dict[str, Any]
    run: _Run
    raw: str = ""
    reply: Reply | None = None


class Assistant:
    """Answers questions from the documents; safe in threads."""

    def __init__(
        self, settings: Settings, retriever: Retriever, client: ModelClient, model: CatalogModel
    ) -> None:
        self.settings = settings
        self.retriever = retriever
        self.client = client
        most = settings.passages or model.passages
        self.model = replace(model, passages=most, context=settings.context or model.context)
        adapters = settings.data_dir / "adapters"
        self.registry = AdapterRegistry(retriever.passages.database, adapters)
        self.taught = Taught(adapters, retriever.embedder)
        self.showing = Showing(self.model, settings.support_threshold, retriever, self.taught)

    @property
    def sampling(self) -> dict[str, Any]:
        """The options of every generation."""
        return {
            "max_tokens": self.settings.answer_tokens,
            "temperature": self.settings.temperature,
            "seed": self.settings.seed,
            "stop": list(self.model.stop),
        }

    def warm(self) -> None:
        """Load what searching needs, so that the first question is quick."""
        self.retriever.warm()

    def ask(
        self, question: str, history: Sequence[Message] = (), model: str = "live", viewer: str = NOBODY
    ) -> Answer:
        """The answer at once (raises as `stream` does)."""
        *_, answer = self.stream(question, history, model, viewer=viewer)
        assert isinstance(answer, Answer)
        return answer

    def stream(
        self,
        question: str,
        history: Sequence[Message] = (),
        model: str = "live",
        stop: threading.Event | None = None,
        conversation: str = "",
        viewer: str = NOBODY,
    ) -> Iterator[str | Answer]:
        """Pieces of text to show, then exactly one Answer, whose text wins over the pieces.

        `viewer` is the account that asks; only what it may find is read. Turns of one `conversation` may
        reuse each other's evaluated prompt. `stop` ends it early with
        finish_reason "stop_requested" and what had arrived. Raises QuestionError, EngineBusy, ModelError, and
        Interrupted (an EngineUnavailable) when the engine goes away.
        """
        asked = question_line(question)
        remark = small_talk(asked, self.model.name)
        if remark is not None:
            yield remark
            yield self._fixed(asked, remark, "chat")
            return
        put = _in_context(asked, history)
        self._prompt(put, ())  # a question that is too long is refused before seconds go into searching
        began = time.monotonic()
        found = self.retriever.read(put.text, self.model, viewer)
        timings = {"retrieval_ms": round((time.monotonic() - began) * 1000, 1)}
        turns = sum(message["role"] == "user" for message in history)
        run = _Run(put, turns, found, model, conversation, viewer, stop or threading.Event(), timings)
        if not found.passages:
            yield REFUSAL
            trace = traced(put, found, turns)
            refused = replace(self._fixed(asked, REFUSAL, "refusal"), timings=timings, trace=trace)
            yield self._or_remembered(refused, run)
            return
        yield from self._generate(history, run)

    def retrieve(self, question: str, history: Sequence[Message] = (), viewer: str = NOBODY) -> list[Passage]:
        """The passages for a question; a follow-up is searched with the topic of the questions before it."""
        return self.retriever.read_for(_in_context(question, history).text, self.model, viewer)

    def _prompt(self, put: FollowUp, passages: Sequence[Passage], history: Sequence[Message] = ()) -> Prompt:
        """The prompt; a follow-up to questions that do not stand in it says itself what it is about."""
        room = self.model.context - self.settings.answer_tokens
        prompt = build(put.asked, passages, self.model, history, room=room)
        earlier = sum(message["role"] == "user" for message in prompt.messages) - 1
        if earlier >= put.reach:
            return prompt
        try:
            return build(put.text, passages, self.model, room=room)
        except QuestionError:  # it just fitted as it was asked
            return prompt

    def _generate(self, history: Sequence[Message], run: _Run) -> Iterator[str | Answer]:
        passages = run.found.passages
        while True:
            prompt = self._prompt(run.question, passages, history)
            turn = _Turn(prompt, self.sampling, run)
            try:
                stream = self.client.stream(
                    prompt.messages,
                    run.model,
                    conversation=run.conversation,
                    user=run.viewer,
                    **turn.sampling,
                )
                yield from self._show(turn, stream, run.stop)
                break
            except PromptTooLong:
                if not prompt.passages:
                    raise
                passages = list(prompt.passages[:-1])  # the estimate was too low: drop the last one whole
            except EngineUnavailable as error:
                raise Interrupted(error, self._partial(turn, "engine_lost")) from error
        if turn.reply is None:
            yield self._partial(turn, "stop_requested")
        else:
            yield self._or_remembered(self._finished(turn), run)

    def _or_remembered(self, answer: Answer, run: _Run) -> Answer:
        """The answer; where it is a refusal and the setting allows it, what the adapter remembers."""
        if answer.mode != "refusal" or not self.settings.answer_from_memory or self._bare(run.model):
            return answer

        def ask(messages: tuple[Message, ...]) -> Reply | None:
            try:
                stream = self.client.stream(messages, run.model, user=run.viewer, **self.sampling)
                pieces = _listen(stream, run.stop)
                return next((piece for piece in pieces if isinstance(piece, Reply)), None)
            except EngineError:  # the refusal stands
                return None

        whole = run.question.text  # no earlier turns are sent
        said = remembered(answer, whole, ask, lambda adapter: self.taught(adapter, whole))
        return replace(said, sampling=self.sampling) if said.mode == "memory" else answer

    def _bare(self, model: str) -> bool:
        """Whether a base model without an adapter would be asked, which was taught nothing."""
        if model != "live":
            return model == "base"
        stage = self.registry.on_stage(self.model.id)
        return stage is None or stage.adapter_id is None

    def _show(self, turn: _Turn, stream: ReplyStream, stop: threading.Event) -> Iterator[str]:
        """Display text as it grows."""
        shown = ""
        for piece in _listen(stream, stop):
            if isinstance(piece, Reply):
                turn.reply = piece
                break
            turn.raw += piece
            text = so_far(turn.raw, turn.prompt.passages)
            if text.startswith(shown) and len(text) > len(shown):
                yield text[len(shown) :]
                shown = text

    def _finished(self, turn: _Turn) -> Answer:
        """What is shown of the whole reply."""
        assert turn.reply is not None
        shown = self.showing.show(turn.run.question.text, turn.raw, turn.prompt.passages, turn.reply.adapter)
        return self._answer(turn, shown.resolved, shown.mode, shown.supported)

    def _partial(self, turn: _Turn, reason: str) -> Answer:
        resolved = resolve(turn.raw, turn.prompt.passages)
        answer = self._answer(turn, resolved, "refusal" if resolved.refused else "answer", False)
        return replace(answer, finish_reason=reason)

    def _answer(self, turn: _Turn, resolved: Resolved, mode: AnswerMode, supported: bool) -> Answer:
        reply = turn.reply
        return Answer(
            text=resolved.text,
            raw=turn.raw,
            mode=mode,
            citations=resolved.citations,
            passages=turn.prompt.passages,
            messages=turn.prompt.messages,
            model=(reply.base if reply else "") or self.model.id,
            adapter=reply.adapter if reply else None,
            prompt_version=turn.prompt.version,
            supported=supported,
            finish_reason=reply.finish_reason if reply else "",
            sampling=turn.sampling,
            timings=turn.run.timings | _timings(reply),
            trace=traced(turn.run.question, turn.run.found, turn.run.turns, turn.prompt),
        )

    def _fixed(self, asked: str, text: str, mode: AnswerMode) -> Answer:
        """An answer that needed no model."""
        return Answer(
            text=text,
            raw="",
            mode=mode,
            citations=(),
            passages=(),
            messages=({"role": "user", "content": asked},),
            model=self.model.id,
            adapter=None,
            prompt_version=PROMPT_VERSION,
            supported=True,
            finish_reason="stop",
            sampling={},
            timings={},
        )


def _in_context(question: str, history: Sequence[Message]) -> FollowUp:
    return in_context(question, [message["content"] for message in history if message["role"] == "user"])


def _timings(reply: Reply | None) -> dict[str, float]:
    if reply is None:
        return {}
    counts = {"prompt_tokens": reply.prompt_tokens, "completion_tokens": reply.completion_tokens}
    return reply.timings | {name: float(count) for name, count in counts.items()}


def _listen(stream: ReplyStream, stop: threading.Event) -> Iterator[str | Reply]:
    """The pieces of a stream and then its reply, unless `stop` ends it; raises what the stream raises.

    A thread reads the stream, so that a stop need not wait for a token.
    """
    arrived: queue.Queue[str | Exception | None] = queue.Queue()
    done = threading.Event()
    threading.Thread(target=_read, args=(stream, arrived, done), daemon=True).start()
    try:
        while not stop.is_set():
            try:
                piece = arrived.get(timeout=POLL_SECONDS)
            except queue.Empty:
                continue
            if isinstance(piece, Exception):
                raise piece
            if piece is None:
                assert stream.reply is not None
                yield stream.reply
                return
            yield piece
    finally:
        done.set()


def _read(stream: ReplyStream, arrived: queue.Queue[str | Exception | None], done: threading.Event) -> None:
    try:
        for piece in stream:
            if done.is_set():
                break
            arrived.put(piece)
        if done.is_set():
            stream.close()  # nobody listens any more: the engine stops generating
        arrived.put(None)
    except Exception as error:  # handed to the thread that asked
        arrived.put(error)
