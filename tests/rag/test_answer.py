from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core.catalog import BUILTIN
from core.errors import EngineUnavailable, QuestionError
from core.settings import Settings
from core.types import Answer
from rag import ask_command as module
from rag.answer import Assistant, Interrupted
from rag.ask_command import main, source_line
from rag.index import Index
from rag.ingest import Ingestor
from rag.model import ModelClient, PromptTooLong, ReplyStream, engine_client
from rag.prompt import REFUSAL
from rag.reader import Reader
from rag.retrieve import Retriever
from tests.rag.conftest import HANDBOOK

SCRIPT = [
    {
        "match": "How long is the notice period",
        "reply": "[1] The notice period is 30 days. [2] Send the letter to Ms. Adeyemi.",
    },
    {"match": "31 days", "reply": "[1] The notice period is 31 days."},
    {"match": "cost of parking", "reply": "[77] Parking costs 9 EUR."},
    {"match": "moon", "reply": "The moon is made of cheese, they say everywhere."},
    {"match": "nothing", "reply": REFUSAL},
    {
        "match": "crash",
        "reply": "[1] The notice period is 30 days of waiting.",
        "crash": True,
        "delay_ms": 200,
    },
    {"match": "slow", "reply": "[1] The notice period is 30 days. " * 40, "delay_ms": 50},
]


@pytest.fixture
def assistant(
    ingestor: Ingestor, reader: Reader, settings: Settings, index: Index, tmp_path: Path
) -> Iterator[Assistant]:
    ingestor.documents.add("guide.md", HANDBOOK, "upload", reader)
    ingestor.process_pending()
    script = tmp_path / "script.json"
    script.write_text(json.dumps(SCRIPT))
    retriever = Retriever(settings, ingestor.passages.database, index, ingestor.embedder)
    with engine_client(settings, scripted=script) as client:
        yield Assistant(settings, retriever, client, BUILTIN)


def run(assistant: Assistant, question: str, **options: object) -> tuple[str, Answer]:
    *pieces, answer = assistant.stream(question, **options)  # type: ignore[arg-type]
    assert isinstance(answer, Answer)
    assert all(isinstance(piece, str) for piece in pieces)
    return "".join(str(piece) for piece in pieces), answer


def test_the_engine_hears_who_asks(assistant: Assistant, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that users take turns; who is not named, as in batch work, shares no limit with anybody."""
    real, named = assistant.client.stream, []

    def stream(*messages: Any, **options: Any) -> ReplyStream:
        named.append((options["user"], options["conversation"]))
        return real(*messages, **options)

    monkeypatch.setattr(assistant.client, "stream", stream)
    run(assistant, "How long is the notice period?", viewer="ann", conversation="talk")
    run(assistant, "How long is the notice period?")
    assert named == [("ann", "talk"), ("", "")]


def test_an_answer_with_citations(assistant: Assistant) -> None:
    shown, answer = run(assistant, "How long is the notice period, please?")
    assert answer.mode == "answer"
    assert answer.supported
    assert answer.text == "The notice period is 30 days. [1] Send the letter to Ms. Adeyemi. [2]"
    assert answer.text.startswith(shown)
    assert len(shown) > 40
    first = answer.citations[0]
    text = assistant.retriever.passages.get([answer.passages[0].chunk_id])[answer.passages[0].chunk_id]
    assert text.text[first.start - text.start : first.end - text.start] == first.quote
    assert source_line(first) == "[1] Staff guide > Leaving: The notice period is 30 days."
    assert answer.messages[-1]["content"].count("How long is the notice period, please?") == 2
    assert (answer.model, answer.adapter, answer.finish_reason) == ("builtin", None, "stop")
    assert {"retrieval_ms", "ttft_ms", "total_ms", "completion_tokens"} <= set(answer.timings)
    assert answer.sampling["temperature"] == 0.0


def test_a_wrong_number_becomes_a_quote(assistant: Assistant) -> None:
    _, answer = run(assistant, "Is it 31 days when leaving gives notice?")
    assert answer.mode == "quotes"
    assert not answer.supported
    assert "30 days" in answer.text
    assert answer.raw == "[1] The notice period is 31 days."
    assert answer.citations


def test_an_invented_citation_becomes_a_quote(assistant: Assistant) -> None:
    _, answer = run(assistant, "What is the cost of parking?")
    assert answer.mode == "quotes"
    assert "3 EUR" in answer.text


def test_nothing_fits_so_it_refuses(assistant: Assistant) -> None:
    _, answer = run(assistant, "Which cheese covers the moon in Saturn's orbit?")
    assert answer.mode == "refusal"
    assert answer.text == REFUSAL
    assert answer.passages


def test_the_refusal_of_a_model_that_misses_answers_gets_a_second_look(assistant: Assistant) -> None:
    shown, answer = run(assistant, "Is there nothing about parking?")
    assert (answer.mode, answer.supported, answer.raw, shown) == ("quotes", False, REFUSAL, REFUSAL)
    assert "3 EUR" in answer.text


def test_the_models_refusal_stands(assistant: Assistant) -> None:
    trusted = replace(assistant.model, second_look=False)
    assistant.showing = replace(assistant.showing, model=trusted)
    shown, answer = run(assistant, "Is there nothing about parking?")
    assert (answer.mode, answer.text, shown) == ("refusal", REFUSAL, REFUSAL)
    assert answer.supported
    assert answer.passages


def test_small_talk_needs_no_engine(settings: Settings, assistant: Assistant) -> None:
    _, answer = run(assistant, "Hello!")
    assert answer.mode == "chat"
    assert answer.passages == ()


def test_without_documents_it_refuses(settings: Settings, ingestor: Ingestor, index: Index) -> None:
    retriever = Retriever(settings, ingestor.passages.database, index, ingestor.embedder)
    lonely = Assistant(settings, retriever, ModelClient("http://127.0.0.1:9", "k"), BUILTIN)
    assert lonely.ask("What is the notice period?").mode == "refusal"


def test_bad_questions_are_refused_before_anything_is_searched(
    assistant: Assistant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(Assistant, "retrieve")
    for question in ("", " \n ", "why " * 2000):
        with pytest.raises(QuestionError):
            assistant.ask(question)


def test_a_crash_keeps_what_had_arrived(assistant: Assistant) -> None:
    with pytest.raises(Interrupted) as lost:
        list(assistant.stream("What about a crash and parking?"))
    assert isinstance(lost.value, EngineUnavailable)
    partial = lost.value.partial
    assert partial.finish_reason == "engine_lost"
    assert partial.raw.startswith("[1] The notice")
    assert partial.text.startswith("The notice")
    assert partial.messages
    assert not partial.supported


def test_stop_gives_what_had_arrived(assistant: Assistant) -> None:
    stop = threading.Event()
    items: list[str | Answer] = []
    for item in assistant.stream("A slow answer about notice periods and parking?", stop=stop):
        items.append(item)
        if len(items) == 3:
            stop.set()
    answer = items[-1]
    assert isinstance(answer, Answer)
    assert answer.finish_reason == "stop_requested"
    assert answer.raw.startswith("[1] The notice")
    assert len(answer.raw) < 200
    assert run(assistant, "Hello")[1].mode == "chat"
    assert run(assistant, "How long is the notice period?")[1].mode == "answer"


def test_a_prompt_that_is_too_long_loses_its_last_passages(
    assistant: Assistant, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, sizes = assistant.client.stream, []

    def picky(messages: list[dict[str, str]], *rest: object, **options: object) -> ReplyStream:
        sizes.append(len(messages[-1]["content"]))
        if len(sizes) < 3:
            raise PromptTooLong("too long")
        return real(messages, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(assistant.client, "stream", picky)
    assistant.model = replace(assistant.model, units=0)  # whole passages, so that there are several to drop
    answer = assistant.ask("What is the notice period of the plan with seats for lunch?")
    assert answer.passages
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 3


def test_a_follow_up_is_searched_with_the_question_before(assistant: Assistant) -> None:
    found = assistant.retrieve(
        "And for how long?", [{"role": "user", "content": "What is the notice period?"}]
    )
    assert "30 days" in found[0].text


def test_a_model_that_reads_no_earlier_turns_is_told_what_a_follow_up_is_about(assistant: Assistant) -> None:
    earlier = [
        {"role": "user", "content": "How long is the notice period?"},
        {"role": "assistant", "content": "30 days."},
        {"role": "user", "content": "And for juniors?"},
        {"role": "assistant", "content": "Also."},
    ]
    _, answer = run(assistant, "And in writing?", history=earlier)
    whole = "And in writing? (long notice period juniors)"
    assert [message["content"].partition("\n")[0] for message in answer.messages[1:]] == [
        f"Question: {whole}"
    ]
    assert any("30 days" in passage.text for passage in answer.passages)
    reader = assistant.model
    assistant.model = replace(reader, history=2)  # only the question that leans on another one itself
    assert run(assistant, "And in writing?", history=earlier)[1].messages[1:] == answer.messages[1:]
    assistant.model = replace(reader, history=4)
    messages = run(assistant, "And in writing?", history=earlier)[1].messages
    assert list(messages[1:-1]) == earlier
    assert messages[-1]["content"].startswith("Question: And in writing?\n")
    assistant.model = reader


def test_the_command(
    assistant: Assistant,
    ingestor: Ingestor,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(module, "_ask_once", lambda _, question, model: assistant.ask(question, model=model))
    assert main(["How", "long is the notice period?"]) == 0
    out = capsys.readouterr().out.strip().split("\n\n")
    assert out[0].startswith("The notice period is 30 days. [1]")
    assert out[1].split("\n")[0] == "[1] Staff guide > Leaving: The notice period is 30 days."
    assert main(["--json", "How long is the notice period?"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert done["answer"].startswith("The notice period")
    assert done["mode"] == "answer"
    assert done["citations"][0]["quote"] == "The notice period is 30 days."
    assert done["passages"][0]["scores"]["fused"] > 0
    assert {"model", "adapter", "timings", "supported", "finish_reason"} <= set(done)
    monkeypatch.undo()
    with pytest.raises(QuestionError, match="empty"):
        main(["   "])
