"""Guessing copied tokens: never another text, and guesses that are made at all."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.backend import Finished
from engine.context import NativeContext
from engine.lookup import LENGTHS, NGRAM, RETRY, Guesses, Lookup
from engine.running import Running
from engine.runtime import LlamaBackend
from engine.sampler import Sampler
from tests.engine.replies import ask, begin, drain, result

QUESTIONS = ("hello", "world", "the same the same the same", "What is the notice period?")
LOOPING: dict[str, Any] = {"frequency_penalty": -0.5}  # random weights copy nothing unless they are made to


class Always(Guesses):
    """Guesses as long as it can, whatever it costs."""

    def length(self, available: int, share: float | None) -> int:
        return available


@pytest.fixture
def eager(backend: LlamaBackend) -> Iterator[Always]:
    usual, backend.guesses = backend.guesses, Always()
    yield backend.guesses
    backend.guesses = usual


def plain(backend: LlamaBackend, question: str, **options: Any) -> tuple[str, Finished]:
    chosen, backend.guesses = backend.guesses, None
    try:
        return ask(backend, question, **options)
    finally:
        backend.guesses = chosen


@pytest.mark.parametrize("question", QUESTIONS)
def test_replies_are_the_same_to_the_token(backend: LlamaBackend, eager: Always, question: str) -> None:
    for most in (1, 2, 17, 300):
        for adapter in (None, "a1"):
            for options in ({}, LOOPING):
                assert ask(backend, question, adapter, max_tokens=most, **options) == plain(
                    backend, question, adapter=adapter, max_tokens=most, **options
                )
    assert 100 < eager.right < eager.made  # both right and wrong ones, or this shows nothing


@pytest.mark.parametrize("wrong", [0.0, 0.1, 0.5])
def test_right_guesses_mixed_with_wrong_ones(
    backend: LlamaBackend, eager: Always, wrong: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reply itself as the guess, here and there with another token in it."""
    told: list[int] = []
    choose, random = Sampler.next, Random(7)

    def heard(self: Sampler, context: NativeContext, row: int) -> int:
        told.append(choose(self, context, row))
        return told[-1]

    with monkeypatch.context() as patch:
        patch.setattr(Sampler, "next", heard)
        expected = plain(backend, "hello", max_tokens=200)

    def prophesied(running: Running, most: int) -> list[int]:
        true = told[running.made : running.made + min(most, running.limit - running.made - 1)]
        return [token if random.random() >= wrong else (token + 1) % 500 for token in true]

    monkeypatch.setattr(Running, "guess", prophesied)
    assert ask(backend, "hello", max_tokens=200) == expected
    assert eager.made - eager.right > 50 or wrong == 0.0
    assert eager.right == (199 - 13 if wrong == 0.0 else eager.right) > 50


def test_guessing_replies_share_steps_with_others(backend: LlamaBackend, eager: Always) -> None:
    alone = {question: plain(backend, question, max_tokens=120, **LOOPING) for question in QUESTIONS}
    works = {question: begin(backend, question, max_tokens=120, **LOOPING) for question in QUESTIONS}
    parts = drain(backend)
    for question, work in works.items():
        (text, end), (wanted, wanted_end) = result(parts[work]), alone[question]
        assert end == wanted_end
        # a step of several replies takes other kernels than a step of one, and random weights have near ties
        assert text[:40] == wanted[:40]
    assert eager.made > 0


def test_stops_limits_and_log_probabilities_hold(backend: LlamaBackend, eager: Always) -> None:
    whole = str(plain(backend, "hello", max_tokens=200)[0])
    stop = whole[len(whole) * 2 // 3 :][:6]
    assert ask(backend, "hello", max_tokens=200, stop=[stop]) == plain(
        backend, "hello", max_tokens=200, stop=[stop]
    )
    assert ask(backend, "1 " * 480, max_tokens=10_000) == plain(backend, "1 " * 480, max_tokens=10_000)


def test_log_probabilities_are_those_of_one_token_a_call(backend: LlamaBackend, eager: Always) -> None:
    works = []
    for guesses in (eager, None):
        backend.guesses = guesses
        work = begin(backend, "hello", max_tokens=80, logprobs=True, top_logprobs=2, **LOOPING)
        works.append(drain(backend)[work])
    assert works[0] == works[1]


def test_the_cache_behind_a_wrong_guess_is_cut(backend: LlamaBackend, eager: Always) -> None:
    """A second turn finds the same prompt cached and says the same as without any guess."""
    start = "the same long beginning of a prompt " * 20
    expected = plain(backend, start + "end", max_tokens=100)[0]
    for _ in range(3):
        assert ask(backend, start + "end", owner="me", max_tokens=100)[0] == expected


def test_sampled_replies_do_not_guess(backend: LlamaBackend, eager: Always) -> None:
    ask(backend, "the same the same the same", temperature=0.8, seed=1, max_tokens=100, **LOOPING)
    assert eager.made == 0


def test_what_does_not_pay_is_given_up_and_tried_again() -> None:
    guesses = Guesses()
    guesses._seconds = {3: 4.0, 7: 5.0, 15: 7.0}
    for _ in range(30):
        guesses.learn(15, 15)
    assert guesses.length(15, 1.2) == 15
    assert guesses.length(8, 1.2) == 7
    assert guesses.length(2, 1.2) == 0
    assert guesses.length(15, None) == 0
    assert guesses.length(15, 0.3) == 0  # many at once on a wide machine: a token costs next to nothing
    for _ in range(80):
        guesses.learn(15, 0)
    tries = [guesses.length(15, 1.2) for _ in range(3 * RETRY)]
    assert 0 < sum(length > 0 for length in tries) <= 4


def test_unknown_lengths_are_tried_once() -> None:
    guesses = Guesses()
    seen = []
    for _ in LENGTHS:
        seen.append(guesses.length(15, 1.0))
        with guesses.timed(seen[-1]):
            pass
    assert sorted(seen) == sorted(LENGTHS)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, 3), max_size=60), st.integers(0, 20))
def test_a_guess_is_what_followed_last_time(tokens: list[int], most: int) -> None:
    guess = Lookup(tokens).guess(most)
    key, found = tokens[-NGRAM:], []
    for at in range(NGRAM, len(tokens)):
        if tokens[at - NGRAM : at] == key:
            found = tokens[at : at + most]
    assert guess == found


def test_the_most_probable_token_is_the_chain_s_choice(
    backend: LlamaBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [ask(backend, question, max_tokens=60) for question in QUESTIONS]
    chained = []

    def next_of_chain(self: Sampler, context: NativeContext, row: int) -> int:
        chained.append(row)
        return int(self._lib.llama_sampler_sample(self._chain, context.pointer, row))

    monkeypatch.setattr(Sampler, "next", next_of_chain)
    assert [ask(backend, question, max_tokens=60) for question in QUESTIONS] == expected
    assert chained
