"""The API: the OpenAI client unchanged, citations, recorded exchanges, votes, errors in OpenAI's shape."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from typing import Any

import httpx
import openai
import pytest

from core.db import Database
from feedback.store import FeedbackStore
from rag.memory import MARK
from rag.passages import PassageStore
from tests.app.site import Site, ask, until
from tests.feedback.made import answer

PASSWORD = "a long test password"


@pytest.fixture(scope="module")
def client(running: Site) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{running.url}/v1", api_key="any", max_retries=0)


def user(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def test_the_openai_client_gets_an_answer_with_citations(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(model="understudy", messages=user("What is the notice period?"))
    assert reply.choices[0].message.content == "The notice period is 30 days. [1]"
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage is not None
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens > 0
    assert reply.model_extra is not None
    ours = reply.model_extra["understudy"]
    assert ours["mode"] == "answer"
    assert ours["model"] == "builtin"
    assert ours["adapter"] is None
    assert ours["citations"][0]["quote"] == "The notice period is 30 days."
    assert ours["passages"][0]["heading"] == "Leaving"
    assert ours["passages"][0]["scores"]["fused"] > 0


def test_an_answer_says_that_only_words_were_searched(client: openai.OpenAI, running: Site) -> None:
    database = Database(running.settings.database)
    passages = PassageStore(database)
    before = passages.note("index_state")
    passages.put_note(index_state="rebuilding")
    try:
        question = user("What is the notice period?")
        reply = client.chat.completions.create(model="understudy", messages=question)
        stream = list(client.chat.completions.create(model="understudy", messages=question, stream=True))
    finally:
        passages.put_note(index_state=before)
        database.close()
    said = "Only words were searched (The vector index is being rebuilt), so passages that say it in other"
    text = reply.choices[0].message.content or ""
    assert text.startswith("The notice period is 30 days. [1]\n\n" + said)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == text
    assert reply.model_extra is not None
    assert reply.model_extra["understudy"]["words_only"] is True
    again = client.chat.completions.create(model="understudy", messages=question)
    assert again.choices[0].message.content == "The notice period is 30 days. [1]"
    assert again.model_extra is not None
    assert again.model_extra["understudy"]["words_only"] is False
    assert again.model_extra["understudy"]["searched"] == "What is the notice period?"


def test_the_openai_client_streams(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="understudy", messages=user("What is the notice period?"), stream=True
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    last = chunks[-1].model_extra
    assert last is not None
    assert len(chunks) > 3
    assert text == last["understudy"]["text"] == "The notice period is 30 days. [1]"
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert last["understudy"]["citations"]


def test_a_draft_that_is_not_supported_is_taken_back() -> None:
    from app.api import _rest

    assert _rest("It is 5", "It is 5. [1]") == ". [1]"
    assert _rest("", "Not in the documents.") == "Not in the documents."
    assert _rest("It is 5", "“It is 6.” [1]").endswith("do say:)\n\n“It is 6.” [1]")
    assert _rest("Not in the documents.", f"{MARK} It is 7.") == f"\n\n{MARK} It is 7."
    assert _rest("", f"{MARK} It is 7.") == f"{MARK} It is 7."
    taken_back = "\n\n(The documents do not support the above.)\n\n"
    assert _rest("It is 5.", f"{MARK} It is 7.") == f"{taken_back}{MARK} It is 7."


def test_an_answer_from_memory_is_marked_for_every_client() -> None:
    from app.api import _completion
    from app.asking import Asked

    said = replace(
        answer("Who?", "Not in the documents."), mode="memory", text="Ada.", supported=False, citations=()
    )
    body = _completion(Asked("x", said, "complete"), {})
    assert body["choices"][0]["message"]["content"] == f"{MARK} Ada."
    assert body["understudy"]["from_memory"]
    assert body["understudy"]["citations"] == []
    assert not _completion(Asked("x", answer("Who?"), "complete"), {})["understudy"]["from_memory"]


def test_a_refusal(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(model="understudy", messages=user("Is there life on the moon?"))
    assert reply.choices[0].message.content == "Not in the documents."
    assert reply.model_extra is not None
    assert reply.model_extra["understudy"]["mode"] == "refusal"


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()][:2] == ["understudy", "base"]


def test_content_parts_and_history_are_read(running: Site) -> None:
    messages = [
        {"role": "system", "content": "Ignored."},
        {"role": "user", "content": "What does the basic plan cost?"},
        {"role": "assistant", "content": "10 EUR a month."},
        {"role": "user", "content": [{"type": "text", "text": "What is the notice period?"}]},
    ]
    response = httpx.post(f"{running.url}/v1/chat/completions", json={"messages": messages}, timeout=60)
    assert response.json()["choices"][0]["message"]["content"].count("The notice period is 30 days") == 1


def test_exchanges_are_recorded_and_take_votes(running: Site) -> None:
    exchange = ask(running, "How many days of holiday do I have?", user="ada")["understudy"]["exchange_id"]
    vote = {
        "exchange_id": exchange,
        "value": -1,
        "reason": "incomplete",
        "correction": "28 days a year.",
        "user": "ada",
    }
    response = httpx.post(f"{running.url}/v1/feedback", json=vote)
    assert response.status_code == 200, response.text
    database = Database(running.settings.database)
    store = FeedbackStore(database)
    recorded = store.exchange(exchange, "api:ada")
    assert recorded.answer.messages[-1]["role"] == "user"
    assert recorded.answer.passages
    kept = store.vote_of(exchange, "api:ada")
    assert kept is not None
    assert (kept.value, kept.reason) == (-1, "incomplete")
    corrected = ask(running, "How many days of holiday do I have", user="ada")
    assert corrected["understudy"]["mode"] == "correction"
    assert corrected["choices"][0]["message"]["content"].startswith("28 days a year.")
    assert ask(running, "How many days of holiday do I have", user="bob")["understudy"]["mode"] == "answer"
    database.close()


def test_another_user_cannot_vote(running: Site) -> None:
    exchange = ask(running, "What is the notice period?", user="ada")["understudy"]["exchange_id"]
    response = httpx.post(
        f"{running.url}/v1/feedback", json={"exchange_id": exchange, "value": 1, "user": "bob"}
    )
    assert response.status_code == 404


BAD: list[tuple[str, dict[str, Any], int]] = [
    ("chat/completions", {}, 400),
    ("chat/completions", {"messages": []}, 400),
    ("chat/completions", {"messages": "hello"}, 400),
    ("chat/completions", {"messages": [{"role": "user", "content": ""}]}, 400),
    ("chat/completions", {"messages": [{"role": "user", "content": "   \n "}]}, 400),
    ("chat/completions", {"messages": [{"role": "user", "content": "\u200b\u202e"}]}, 400),
    ("chat/completions", {"messages": [{"role": "assistant", "content": "hi"}]}, 400),
    ("chat/completions", {"messages": [{"role": "king", "content": "hi"}]}, 400),
    ("chat/completions", {"messages": [{"role": "user", "content": "x" * 30_000}]}, 400),
    ("chat/completions", {"messages": user("why") * 201}, 400),
    ("chat/completions", {"messages": user("why"), "model": "gpt-4"}, 404),
    ("chat/completions", {"messages": user("why"), "model": "../../etc/passwd"}, 404),
    ("chat/completions", {"messages": user("why"), "model": "'; DROP TABLE votes; --"}, 404),
    ("feedback", {}, 400),
    ("feedback", {"exchange_id": "none", "value": 1}, 404),
    ("feedback", {"exchange_id": "none", "value": 7}, 400),
    ("feedback", {"exchange_id": "' OR 1=1 --", "value": 1}, 404),
    ("feedback", {"exchange_id": "none", "value": 1, "reason": "because"}, 400),
    ("completions", {}, 404),
    ("../_stcore/x", {}, 404),
]


@pytest.mark.parametrize("number", range(len(BAD)))
def test_errors_have_the_openai_shape_and_tell_nothing(running: Site, number: int) -> None:
    """Row W07: no path, no SQL, no traceback in what a caller sees."""
    path, body, status = BAD[number]
    response = httpx.post(f"{running.url}/v1/{path}", json=body, timeout=60)
    if path.startswith(".."):
        assert response.status_code in (404, 405)
        return
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error["message"]
    assert error["type"] == "invalid_request_error"
    for inside in (
        "Traceback",
        "/work",
        "/tmp",
        ".py",
        "SELECT",
        "INSERT",
        "sqlite",
        "site-packages",
        "UNDERSTUDY_",
    ):
        assert inside not in response.text


def test_malformed_json_and_wrong_methods(running: Site) -> None:
    url = f"{running.url}/v1/chat/completions"
    broken = httpx.post(url, content=b'{"messages": [', headers={"content-type": "application/json"})
    assert broken.status_code == 400
    assert "error" in broken.json()
    assert "error" in httpx.get(url).json()


def test_a_caller_that_hangs_up_ends_the_answer(running: Site) -> None:
    body = {"stream": True, "user": "hasty", "messages": user("What is the notice period, slowly?")}
    with httpx.stream("POST", f"{running.url}/v1/chat/completions", json=body, timeout=60) as response:
        for line in response.iter_lines():
            if '"content": "The' in line:
                break
    database = Database(running.settings.database)
    store = FeedbackStore(database)

    def recorded() -> bool:
        exchanges = [e for c in store.conversations("api:hasty") for e in store.exchanges(c.id, "api:hasty")]
        return bool(exchanges) and exchanges[0].status == "interrupted"

    until(recorded, "the record")
    database.close()


def test_many_at_once_are_all_answered(running: Site) -> None:
    answers: list[str] = []

    def one(number: int) -> None:
        question = "What is the notice period?" if number % 2 else "What does the basic plan cost?"
        answers.append(json.dumps(ask(running, question, user=f"u{number}")["choices"]))

    threads = [threading.Thread(target=one, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert sum("30 days" in answer for answer in answers) == 4
    assert sum("10 EUR" in answer for answer in answers) == 4
