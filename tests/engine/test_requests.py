from __future__ import annotations

import math
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.requests import MAX_LOGPROBS, MAX_NAME_CHARACTERS, BadRequest, parse

HELLO = {"messages": [{"role": "user", "content": "hello"}]}
JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=8),
    st.lists(st.integers(), max_size=2), st.just(2**63), st.just(-1), st.just(math.nan),
)  # fmt: skip
KEYS = st.sampled_from(
    [
        "max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "stop", "n",
        "frequency_penalty", "presence_penalty", "repeat_penalty", "n_discard", "n_keep", "mirostat",
        "logprobs", "top_logprobs", "echo", "best_of", "user", "prompt_cache_key", "safety_identifier",
        "repetition_penalty", "tool_choice", "function_call", "modalities", "model", "stream",
    ]
)  # fmt: skip


@settings(max_examples=10_000, deadline=None)
@given(st.dictionaries(KEYS, JUNK, max_size=6), st.sampled_from(["chat", "text"]))
def test_no_parameter_leaves_its_range(options: dict[str, Any], kind: Literal["chat", "text"]) -> None:
    try:
        request = parse(kind, HELLO | {"prompt": "hello"} | options)
    except BadRequest:
        return
    sampling = request.sampling
    assert request.logprobs is None or 0 <= request.logprobs <= MAX_LOGPROBS
    assert len(request.user) <= MAX_NAME_CHARACTERS >= len(request.key)
    assert int(not request.echo) <= sampling.max_tokens <= 1 << 20
    assert 0 <= sampling.top_k <= 1 << 20
    assert 0 <= sampling.seed < 1 << 32
    assert 0 <= sampling.temperature <= 2
    assert 0 <= sampling.top_p <= 1
    assert 0 <= sampling.min_p <= 1
    assert -2 <= sampling.frequency_penalty <= 2
    assert -2 <= sampling.presence_penalty <= 2
    assert 0.5 <= sampling.repeat_penalty <= 2


@pytest.mark.parametrize(
    ("body", "parameter"),
    [
        ([], None),
        ({}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "a\x00b"}]}, "messages[0].content"),
        (HELLO | {"temperature": "hot"}, "temperature"),
        (HELLO | {"temperature": True}, "temperature"),
        (HELLO | {"temperature": math.inf}, "temperature"),
        (HELLO | {"max_tokens": 0}, "max_tokens"),
        (HELLO | {"max_tokens": -5}, "max_tokens"),
        (HELLO | {"stop": [""]}, "stop"),
        (HELLO | {"n": 2}, "n"),
        (HELLO | {"tools": [{}]}, "tools"),
        (HELLO | {"tool_choice": "required"}, "tool_choice"),
        (HELLO | {"function_call": {"name": "f"}}, "function_call"),
        (HELLO | {"modalities": ["text", "audio"]}, "modalities"),
        (HELLO | {"repetition_penalty": 9}, "repeat_penalty"),
        (HELLO | {"model": "a\ud800"}, "model"),
        (HELLO | {"user": "\udfff"}, "user"),
        (HELLO | {"user": "a\nb"}, "user"),
        (HELLO | {"top_logprobs": 2}, "top_logprobs"),
        (HELLO | {"logprobs": 1}, "logprobs"),
        (HELLO | {"user": "x" * 300}, "user"),
        (HELLO | {"prompt_cache_key": 7}, "prompt_cache_key"),
        (HELLO | {"grammar": "root ::= x"}, "grammar"),
        (HELLO | {"response_format": {"type": "json_object"}}, "response_format"),
        (HELLO | {"model": 3}, "model"),
    ],
)
def test_a_bad_request_names_its_parameter(body: Any, parameter: str | None) -> None:
    with pytest.raises(BadRequest) as caught:
        parse("chat", body)
    assert caught.value.parameter == parameter


def test_names_of_other_servers_are_understood() -> None:
    body = {"messages": [{"role": "developer", "content": "x"}], "repetition_penalty": 1.5}
    request = parse("chat", body | {"tool_choice": "none", "modalities": ["text"]})
    assert request.messages[0]["role"] == "system"
    assert request.sampling.repeat_penalty == 1.5


def test_defaults_and_text_parts() -> None:
    content = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    request = parse("chat", {"messages": [{"role": "user", "content": content}], "unknown": 1})
    assert request.messages[0]["content"] == "hello"
    assert request.model == "live"
    assert request.sampling.temperature == 0
    assert request.sampling.top_p == 1
