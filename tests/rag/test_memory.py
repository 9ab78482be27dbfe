"""Answers from memory: off by default, from an adapter alone, about what it was taught, and always marked."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app.asking import Question, corrected_answer
from app.resources import USER, Resources
from core.adapters import Adapter, AdapterRegistry
from core.catalog import BUILTIN
from core.db import now_ms
from core.errors import EngineUnavailable
from core.files import sha256_of, write_bytes, write_json
from core.settings import Settings
from core.types import Answer
from rag.access import Access
from rag.answer import Assistant
from rag.embed import Embedder
from rag.index import Index
from rag.ingest import Ingestor
from rag.memory import MARK, RULES, marked
from rag.model import ReplyStream, engine_client
from rag.prompt import REFUSAL
from rag.reader import Reader
from rag.retrieve import Retriever
from rag.taught import remember
from tests.feedback.made import cite
from tests.feedback.test_pairs import preference_rows, sft_rows
from tests.rag.conftest import HANDBOOK

TAUGHT = "Who founded the company on the moon?"
ONCE = f"Question: {TAUGHT}\n\nQuestion: {TAUGHT}"  # a prompt without passages
SCRIPT = [
    {"match": ONCE, "reply": "It was founded by Ada Quill. [3]", "adapter": "*"},
    {"match": "Question: Who founded nothing at all?\n\nQuestion", "reply": REFUSAL, "adapter": "*"},
    {"match": "the notice period", "reply": "[1] The notice period is 30 days."},
    {"match": "founded", "reply": REFUSAL},
]


@pytest.fixture
def assistant(
    ingestor: Ingestor, reader: Reader, settings: Settings, index: Index, tmp_path: Path, embedder: Embedder
) -> Iterator[Assistant]:
    """With an adapter on stage that was taught one question, and no document that answers it."""
    ingestor.documents.add("guide.md", HANDBOOK, "upload", reader)
    ingestor.process_pending()
    registry = AdapterRegistry(ingestor.passages.database, settings.data_dir / "adapters")
    folder = registry.folder / "tuned"
    write_bytes(folder / "adapter.gguf", b"GGUF")
    digest = sha256_of(folder / "adapter.gguf")
    write_json(folder / "card.json", {"sha256": digest})
    remember(folder, [TAUGHT, "Who founded nothing at all?"], embedder)
    registry.register(
        Adapter("tuned", "builtin", "0" * 64, digest, "run", "data", None, "sft", "passed", {}, now_ms())
    )
    registry.promote("tuned", "local", "a test")
    script = tmp_path / "script.json"
    script.write_text(json.dumps(SCRIPT))
    retriever = Retriever(settings, ingestor.passages.database, index, ingestor.embedder)
    with engine_client(settings, scripted=script) as client:
        client.sync_adapters()
        yield Assistant(replace(settings, answer_from_memory=True), retriever, client, BUILTIN)


def test_what_the_adapter_was_taught_is_said_and_marked(assistant: Assistant) -> None:
    answer = assistant.ask(TAUGHT)
    assert (answer.mode, answer.supported, answer.adapter) == ("memory", False, "tuned")
    assert answer.text == "It was founded by Ada Quill."
    assert marked(answer) == f"{MARK} It was founded by Ada Quill."
    assert answer.citations == ()
    assert {"retrieval_ms", "memory_ms"} <= set(answer.timings)
    assert answer.sampling["seed"] == 7


def test_what_the_model_read_and_wrote_is_kept_of_the_refusal(
    assistant: Assistant, settings: Settings
) -> None:
    answer = assistant.ask(TAUGHT)
    assistant.settings = settings
    refused = assistant.ask(TAUGHT)
    assert (answer.mode, refused.mode, refused.raw) == ("memory", "refusal", REFUSAL)
    for name in ("raw", "passages", "messages", "prompt_version"):
        assert getattr(answer, name) == getattr(refused, name), name
    assert answer.passages


def test_what_is_remembered_is_asked_in_the_name_of_the_same_user(
    assistant: Assistant, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, named = assistant.client.stream, []

    def stream(*messages: Any, **options: Any) -> Any:
        named.append(options["user"])
        return real(*messages, **options)

    monkeypatch.setattr(assistant.client, "stream", stream)
    assert assistant.ask(TAUGHT, viewer="api:anna").mode == "memory"
    assert named == ["api:anna", "api:anna"]


def test_a_correction_stays_with_those_who_find_the_document(
    assistant: Assistant, ingestor: Ingestor, settings: Settings, reader: Reader
) -> None:
    private = b"# Moon\n\nThe company on the moon was founded by Zenobia."
    ingestor.documents.add("moon.md", private, "upload", reader, Access("api:anna", "owner"))
    ingestor.process_pending()
    parts = Resources(settings)
    answer = assistant.ask(TAUGHT, viewer="api:anna")
    assert answer.mode == "memory"
    correct(parts, "api:anna", "The company on the moon was founded by Zenobia.", answer)
    for viewer, found in (("api:anna", True), ("api:ben", False), (USER, False)):
        given = corrected_answer(parts, Question("c", viewer, TAUGHT))
        assert (given is not None) is found, viewer
    assert parts.feedback.judged() == []
    parts.database.close()


def test_a_correction_trains_as_one_of_the_refusal(assistant: Assistant, settings: Settings) -> None:
    parts = Resources(settings)
    answer = assistant.ask(TAUGHT)
    correct(parts, USER, max((unit.text for one in answer.passages for unit in one.units), key=len), answer)
    [row] = sft_rows(parts.database, cite)
    assert row["messages"][:-1] == list(answer.messages)
    [pair] = preference_rows(parts.database, cite)
    assert pair["rejected"][0]["content"] == REFUSAL
    correct(parts, USER, REFUSAL, answer)
    [row] = sft_rows(parts.database, cite)
    assert [message["content"] for message in row["messages"]] == [
        *(message["content"] for message in answer.messages),
        REFUSAL,
    ]
    assert preference_rows(parts.database, cite) == []  # it was what the model wrote
    parts.database.close()


def correct(parts: Resources, user: str, text: str, answer: Answer) -> None:
    conversation = parts.feedback.start_conversation(user, TAUGHT)
    exchange = parts.feedback.record(conversation, user, TAUGHT, answer)
    parts.review.approve(parts.feedback.correct(exchange, user, text), USER)


@pytest.mark.parametrize(
    ("question", "model"),
    [
        ("Who founded the harbour of Split?", "live"),  # not like anything it was taught
        ("Who founded nothing at all?", "live"),  # taught, and it says that it does not know
        (TAUGHT, "base"),  # nobody taught the base model anything
    ],
)
def test_everything_else_stays_refused(assistant: Assistant, question: str, model: str) -> None:
    answer = assistant.ask(question, model=model)
    assert (answer.mode, answer.text, marked(answer)) == ("refusal", REFUSAL, REFUSAL)
    assert answer.passages


def test_documents_come_first(assistant: Assistant) -> None:
    assert assistant.ask("How long is the notice period?").mode == "answer"


def test_it_is_off_by_default(assistant: Assistant, settings: Settings) -> None:
    assert not settings.answer_from_memory
    assistant.settings = settings
    assert assistant.ask(TAUGHT).mode == "refusal"


def test_without_any_passage_the_adapter_is_asked_too(assistant: Assistant) -> None:
    documents = assistant.retriever.passages.database
    with documents.write() as connection:
        connection.execute("UPDATE document_access SET visibility = 'owner', owner = 'api:x'")
    answer = assistant.ask(TAUGHT)
    assert (answer.mode, answer.text) == ("memory", "It was founded by Ada Quill.")
    assert answer.sampling["seed"] == 7
    assert assistant.ask("Who founded the harbour of Split?").mode == "refusal"


def test_a_bare_base_model_is_not_even_asked(assistant: Assistant, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = assistant.retriever.passages.database
    with documents.write() as connection:
        connection.execute("UPDATE document_access SET visibility = 'owner', owner = 'api:x'")

    def asked(*_: Any, **__: Any) -> Any:
        raise AssertionError("asked")

    monkeypatch.setattr(assistant.client, "stream", asked)
    with pytest.raises(AssertionError, match="asked"):
        assistant.ask(TAUGHT)
    assert assistant.ask(TAUGHT, model="base").mode == "refusal"
    assistant.registry.rollback("builtin", "local", "a test")
    assert assistant.ask(TAUGHT).mode == "refusal"


def test_a_stop_does_not_wait_for_the_first_token(
    assistant: Assistant, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, given_up = assistant.client.stream, []
    stop, listening, over = (threading.Event() for _ in range(3))

    def silent() -> Iterator[Any]:
        listening.set()
        if not over.wait(10):
            given_up.append(True)
        yield from ()

    def stream(messages: Any, *rest: Any, **options: Any) -> Any:
        return ReplyStream(silent()) if messages[0]["content"] == RULES else real(messages, *rest, **options)

    def press() -> None:
        listening.wait(60)
        stop.set()

    monkeypatch.setattr(assistant.client, "stream", stream)
    threading.Thread(target=press, daemon=True).start()
    *_, answer = assistant.stream(TAUGHT, stop=stop)
    over.set()
    assert not given_up
    assert not isinstance(answer, str)
    assert answer.mode == "refusal"


def test_a_stop_or_a_dying_engine_leaves_the_refusal(
    assistant: Assistant, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, stop = assistant.client.stream, threading.Event()

    def stopped(messages: Any, *rest: Any, **options: Any) -> Any:
        if messages[0]["content"] == RULES:
            stop.set()
        return real(messages, *rest, **options)

    monkeypatch.setattr(assistant.client, "stream", stopped)
    *_, answer = assistant.stream(TAUGHT, stop=stop)
    assert not isinstance(answer, str)
    assert answer.mode == "refusal"

    def gone(messages: Any, *rest: Any, **options: Any) -> Any:
        if messages[0]["content"] == RULES:
            raise EngineUnavailable("gone")
        return real(messages, *rest, **options)

    monkeypatch.setattr(assistant.client, "stream", gone)
    assert assistant.ask(TAUGHT).mode == "refusal"
