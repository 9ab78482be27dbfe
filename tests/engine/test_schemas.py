"""Replies held to a JSON schema of ours, and everybody else's schemas refused (row S18)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from core.settings import PROJECT
from engine.requests import BadRequest, Request, parse
from engine.runtime import LlamaBackend
from engine.schemas import SCHEMAS, grammar, writable
from tests.engine.replies import ask, begin, drain, native, result
from tests.engine.serving import scripted

HELLO: list[Any] = [{"role": "user", "content": "hello"}]
BOMB: dict[str, Any] = {"type": "object", "properties": {}}
for _ in range(200):
    BOMB = {"anyOf": [BOMB, BOMB]}


def asked(form: Any, **options: Any) -> Request:
    return parse("chat", {"messages": HELLO, "response_format": form} | options)


def named(name: str, **more: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": name} | more}


@pytest.mark.parametrize("name", SCHEMAS)
def test_replies_have_the_schema_s_shape(backend: LlamaBackend, name: str) -> None:
    """Random weights want to write anything but this; penalties make every string end some time."""
    properties = SCHEMAS[name]["properties"]
    whole = 0
    for question in ("hello", "world", "What is the notice period?"):
        text, end = ask(backend, question, response_format=named(name), max_tokens=700, frequency_penalty=2.0)
        assert text.startswith("{")
        if end.reason == "stop":
            found = json.loads(text)
            assert list(found) == list(properties)
            whole += all(isinstance(found[key], str if key == "answer" else list) for key in found)
    assert whole >= 2


def test_every_sampled_reply_keeps_to_it(backend: LlamaBackend) -> None:
    """Greedy or not, every beginning of a reply is the beginning of an object of this shape."""
    for seed in range(12):
        text, _ = ask(
            backend, "hello", response_format=named("cited_answer"), temperature=1.5, seed=seed, max_tokens=40
        )
        assert '{"answer":"'.startswith("".join(text.split())[:11])
        assert not [char for char in text[12:] if char < " "]


def test_a_held_reply_changes_no_other(backend: LlamaBackend) -> None:
    alone = ask(backend, "hello")
    held, free = begin(backend, "hello", response_format=named("questions")), begin(backend, "hello")
    parts = drain(backend)
    assert result(parts[free]) == alone
    assert result(parts[held])[0].startswith("{")


def test_the_registered_schema_itself_may_come_along() -> None:
    form = named("cited_answer", schema=SCHEMAS["cited_answer"], strict=True, description="An answer.")
    assert asked(form).schema == "cited_answer"
    assert asked({"type": "text"}).schema == asked(None).schema == ""


@pytest.mark.parametrize(
    "form",
    [
        {"type": "json_object"},
        {"type": "json_schema"},
        {"type": "json_schema", "json_schema": "cited_answer"},
        {"type": "grammar", "grammar": 'root ::= "x"'},
        {"type": "text", "grammar": 'root ::= "x"'},
        "json",
        [named("cited_answer")],
        named("mine"),
        named("mine", schema=BOMB),
        named("cited_answer", schema=BOMB),
        named("cited_answer", schema=None),
        named("cited_answer", schema=SCHEMAS["questions"]),
        named("cited_answer", grammar='root ::= "x"'),
        named("cited_answer") | {"grammar": 'root ::= "x"'},
        {"type": "json_schema", "json_schema": {"name": ["cited_answer"]}},
    ],
    ids=range(15),
)
def test_foreign_schemas_and_grammars_are_refused(form: Any) -> None:
    with pytest.raises(BadRequest) as caught:
        asked(form)
    assert (caught.value.parameter, caught.value.status) == ("response_format", 400)


@pytest.mark.parametrize(
    "key", ["grammar", "json_schema", "guided_json", "guided_regex", "structured_outputs"]
)
def test_the_keys_of_other_servers_are_refused(key: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parse("chat", {"messages": HELLO, key: {"type": "object"}})
    assert caught.value.parameter == key


def test_plain_completions_take_none() -> None:
    with pytest.raises(BadRequest):
        parse("text", {"prompt": "x", "response_format": named("cited_answer")})


def test_a_vocabulary_without_braces_is_refused(
    backend: LlamaBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert writable(native(backend))
    monkeypatch.setattr(native(backend), "piece", lambda _: b"?")
    with pytest.raises(BadRequest, match="cannot write JSON"):
        backend.prepare(asked(named("cited_answer")))


def test_scripted_replies_refuse_it_over_http(tmp_path: Path) -> None:
    with scripted(tmp_path, [{"match": "", "reply": "Yes."}]) as running:
        for name, words in (("cited_answer", "keep to no schema"), ("mine", "must be one of cited_answer")):
            response = running.chat("hello", response_format=named(name))
            assert response.status_code == 400
            assert words in response.json()["error"]["message"]


def test_only_the_registry_hands_out_grammars() -> None:
    """Nothing else in the engine calls llama.cpp's grammar sampler or its converter."""
    for path in (PROJECT / "engine").glob("*.py"):
        source = path.read_text("utf-8")
        assert path.name == "schemas.py" or "sampler_init_grammar" not in source, path.name
        assert path.name == "schemas.py" or "to_gbnf" not in source, path.name
    with pytest.raises(KeyError):
        grammar("mine")
