"""Many replies at once in one context: who joins, what is reused, and whose it is."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from core.catalog import CHATML, local_model
from core.errors import ModelError
from core.types import Message
from engine.backend import Begun, Finished, Part, Piece, Work
from engine.requests import parse
from engine.runtime import LlamaBackend
from engine.slots import BLOCK
from engine.template import render
from tests.engine.replies import SETTINGS, ask, begin, drain, load, native, result
from tests.engine.test_quantised import quantise
from tests.tiny import TinyModel


def test_a_reused_prefix_changes_nothing(backend: LlamaBackend) -> None:
    start = "the same long beginning of a prompt " * 20
    fresh = {end: ask(backend, start + end)[0] for end in ("first", "second")}
    for end in ("first", "second", "first"):
        text, finished = ask(backend, start + end, owner="somebody")
        assert text == fresh[end]
    assert finished.cached_tokens > 2 * BLOCK
    assert finished.cached_tokens % BLOCK == 0


@pytest.mark.parametrize("length", [257, 258, 305, 320, 321, 385])
def test_a_prompt_s_numbers_do_not_tell_what_was_evaluated_before(backend: LlamaBackend, length: int) -> None:
    _numbers_stay(backend, length)


@pytest.fixture(scope="module", params=["Q8_0", "Q4_K_M"])
def quantised(
    request: pytest.FixtureRequest, tiny_model: TinyModel, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LlamaBackend]:
    """Weights of other kernels, of AMX where there is one, and a cache with keys in 8 bits."""
    path = tmp_path_factory.mktemp("quantised") / "tiny.gguf"
    quantise(tiny_model.gguf, path, request.param)
    made = LlamaBackend(SETTINGS, local_model(path), path)
    made.load()
    assert made.limits.short_keys
    yield made
    made.close()


@pytest.mark.parametrize("length", [257, 305, 321])
def test_nor_do_those_of_quantised_weights(quantised: LlamaBackend, length: int) -> None:
    _numbers_stay(quantised, length)


def _numbers_stay(backend: LlamaBackend, length: int) -> None:
    """Equal to the bit, at one go, in pieces of every size, and after an earlier turn."""
    words = "1 2 3 4 5 6 7 8 9 " * 60
    spare = len(backend.prepare(parse("chat", {"messages": [{"role": "user", "content": ""}]})).tokens)
    ids = native(backend).tokenize(words)
    text = "".join(native(backend).piece(token).decode() for token in ids[: length - spare])

    def numbers(owner: str = "", seconds: float = 1e-6) -> list[object]:
        work = begin(backend, text, owner=owner, max_tokens=2, logprobs=True, top_logprobs=5)
        assert len(work.prompt.tokens) == length
        parts: list[Part] = []
        while backend.busy:
            backend._pace.seconds = seconds
            parts += [part for _, part in backend.step()]
        assert isinstance(parts[-1], Finished)
        reused.append(parts[-1].cached_tokens)
        return [part.logprobs for part in parts if isinstance(part, Piece)]

    reused: list[int] = []
    whole = numbers()
    for seconds in (0.02, 0.01, 0.006):  # pieces of 32, 80 and 144 tokens
        assert numbers(seconds=seconds) == whole
    ask(backend, text[: len(text) // 2], owner=f"half {length}")
    assert numbers(f"half {length}") == whole
    assert numbers(f"half {length}") == whole
    assert reused[:4] == [0] * 4
    assert 0 < reused[4] < reused[5] == (length - 2) // BLOCK * BLOCK


def test_nobody_s_prompt_is_reused_for_another(backend: LlamaBackend) -> None:
    prompt = "a secret that only one conversation knows " * 10
    ask(backend, prompt, owner="one")
    assert ask(backend, prompt, owner="two")[1].cached_tokens == 0
    assert ask(backend, prompt)[1].cached_tokens == 0
    assert ask(backend, prompt)[1].cached_tokens == 0  # without a name, not even one's own
    assert ask(backend, prompt, "a1", owner="one")[1].cached_tokens == 0
    assert ask(backend, prompt, owner="one")[1].cached_tokens > BLOCK


def test_the_system_message_is_evaluated_once_for_everybody(backend: LlamaBackend) -> None:
    rules = "Answer from the numbered lines only and cite them. " * 6

    def asked(text: str, adapter: str | None = None) -> tuple[str, Finished]:
        messages = [{"role": "system", "content": rules}, {"role": "user", "content": text}]
        return ask(backend, "", adapter, messages=messages)

    fresh, first = asked("What is the notice period?")
    again, second = asked("What is the notice period?")
    assert (first.cached_tokens, again) == (0, fresh)
    # to the token: what any two users' prompts begin with, which is the message and the template around it
    model = native(backend)
    system: Message = {"role": "system", "content": rules}
    one, other = (
        model.encode(render(CHATML, [system, {"role": "user", "content": text}])) for text in ("What", "Zero")
    )
    common = next(at for at, (left, right) in enumerate(zip(one, other, strict=False)) if left != right)
    assert len(model.tokenize(rules)) < common
    assert second.cached_tokens == common // BLOCK * BLOCK
    assert asked("Who?")[1].cached_tokens == second.cached_tokens
    assert asked("Who?", "a1")[1].cached_tokens == 0  # another adapter has its own
    assert asked("Who?", "a1")[1].cached_tokens == second.cached_tokens


def test_replies_in_one_batch_are_those_of_one_by_one(backend: LlamaBackend) -> None:
    questions = [f"question {number} " * (number + 1) for number in range(8)]
    alone = [ask(backend, question)[0] for question in questions]
    assert len(set(alone)) == len(alone)
    for _ in range(2):
        found = []
        for half in (questions[:4], questions[4:]):
            works = [begin(backend, question) for question in half]
            parts = drain(backend)
            found += [result(parts[work])[0] for work in works]
        assert found == alone


def test_replies_join_and_leave_a_running_batch(backend: LlamaBackend) -> None:
    alone = {text: ask(backend, text, max_tokens=40)[0] for text in ("first", "second", "third")}
    first = begin(backend, "first", max_tokens=40)
    parts: dict[Work, list[Part]] = {}
    works = {first: "first"}
    for number in range(200):
        if number == 5:
            works[begin(backend, "second", max_tokens=40)] = "second"
        if number == 15:
            works[begin(backend, "third", max_tokens=40)] = "third"
        for work, part in backend.step():
            parts.setdefault(work, []).append(part)
    assert {text: result(parts[work])[0] for work, text in works.items()} == alone


def test_a_long_prompt_does_not_freeze_a_running_reply(backend: LlamaBackend) -> None:
    backend._pace.seconds = 0.01  # a slow machine: 16 tokens of a prompt at a time
    short = begin(backend, "hello", max_tokens=200)
    while not any(isinstance(part, Piece) for _, part in backend.step()):
        pass
    long = begin(backend, "word " * 150)
    between = 0
    while True:
        backend._pace.seconds = 0.01
        outputs = backend.step()
        if any(work is long and isinstance(part, Piece) for work, part in outputs):
            break
        between += short in [work for work, _ in outputs]
    assert between > 10
    backend.end(short)
    backend.end(long)


def test_two_adapters_serve_side_by_side(backend: LlamaBackend) -> None:
    alone = {adapter: ask(backend, "hello", adapter) for adapter in (None, "a1", "a2")}
    works = {adapter: begin(backend, "hello", adapter) for adapter in (None, "a1", "a2")}
    ended, order = [], []
    parts: dict[Work, list[Part]] = {work: [] for work in works.values()}
    while backend._running:
        for work, part in backend.step():
            parts[work].append(part)
            order.append(work.adapter_id)
            ended += [work.adapter_id] if isinstance(part, Finished) else []
    assert {adapter: result(parts[work]) for adapter, work in works.items()} == alone
    # they take turns: nobody had half of his pieces before another had any
    assert {order.index(adapter) for adapter in works} <= set(range(6))
    assert len(ended) == 3


def test_a_freed_adapter_finishes_its_reply_first(backend: LlamaBackend, tiny_model: TinyModel) -> None:
    path = tiny_model.adapter(2) / "adapter.gguf"
    load(backend, "leaving", path)
    alone = ask(backend, "hello", "leaving")
    work = begin(backend, "hello", "leaving")
    before = [part for _, part in backend.step()]
    backend.free_adapter("leaving")
    assert result([*before, *drain(backend)[work]]) == alone
    with pytest.raises(ModelError, match="not loaded"):
        begin(backend, "hello", "leaving")


def test_a_scaled_adapter_lies_between(backend: LlamaBackend) -> None:
    base, full = ask(backend, "hello"), ask(backend, "hello", "a1")
    backend.scale_adapter("a1", 0.0)
    assert ask(backend, "hello", "a1") == base
    backend.scale_adapter("a1", 1.0)
    assert ask(backend, "hello", "a1") == full


def test_log_probabilities_of_a_given_text(backend: LlamaBackend) -> None:
    import math

    text = "What is the notice period? " * 5
    body = {"prompt": text, "max_tokens": 0, "echo": True, "logprobs": 3}
    request = parse("text", body)
    work = Work(request, backend.prepare(request), None)
    backend.begin(work)
    parts = drain(backend)[work]
    pieces = [part for part in parts if isinstance(part, Piece)]
    assert "".join(piece.text for piece in pieces) == text
    noted = [token for piece in pieces for token in piece.logprobs]
    assert len(noted) == len(work.prompt.tokens) > 32
    assert "".join(token.text for token in noted) == text
    assert noted[0].logprob is None
    assert all(token.logprob is not None and token.logprob < 0 for token in noted[1:])
    assert all(len(token.top) == 3 for token in noted[1:])
    assert parts[-1] == Finished("length", len(noted), 0)
    # a greedy reply consists of the most probable tokens
    chat = begin(backend, "hello", logprobs=True, top_logprobs=2, max_tokens=6)
    made = [t for part in drain(backend)[chat] if isinstance(part, Piece) for t in part.logprobs]
    assert len(made) == 6
    assert all(token.logprob == token.top[0].logprob for token in made if token.top)
    assert all(math.exp(token.logprob or 0) <= 1 for token in made)


def test_ending_a_reply_frees_its_slot(backend: LlamaBackend) -> None:
    works = [begin(backend, "word " * 100) for _ in range(4)]
    backend.step()
    assert {backend.end(work).reason for work in works} == {"cancelled"}
    assert not backend._running
    assert not any(slot.busy for slot in backend._slots._slots)
    assert ask(backend, "hello")[1].completion_tokens == 24


def test_an_interrupted_evaluation_returns(tiny_model: TinyModel) -> None:
    stopping = LlamaBackend(SETTINGS, local_model(tiny_model.gguf), tiny_model.gguf)
    stopping.load()
    work = begin(stopping, "word " * 100)
    stopping.interrupt()
    assert all(isinstance(part, Begun) for _, part in stopping.step())
    assert stopping.step() == []
    assert work.state.made == 0
    stopping.close()
