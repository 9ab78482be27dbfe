"""One answer as the page shows it; see `tests.app.test_pages` for how pages are driven."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

from streamlit.testing.v1 import AppTest

from app.resources import USER, Resources
from core.types import Answer, LeftOut, Trace
from rag.reader import Reader
from tests.app.test_pages import MAIN, parts, shown
from tests.feedback.made import answer, passage

__all__ = ["parts"]


def test_an_answer_from_memory_is_marked_and_may_be_voted_on(parts: Resources) -> None:
    said = replace(answer("Who?"), mode="memory", text="It was Ada.", citations=(), supported=False)
    conversation = parts.feedback.start_conversation(USER, "Who?")
    exchange = parts.feedback.record(conversation, USER, "Who?", said)
    at = AppTest.from_file(MAIN, default_timeout=60)
    at.query_params["c"] = conversation
    at.run()
    assert "From memory, not from the documents" in shown(at)
    assert "nothing here proves it" in shown(at)
    assert "own reply was believed: no" in shown(at)
    at.session_state[f"vote-{exchange}"] = 1
    at.run()
    assert "not trained on" in shown(at)


def test_only_a_model_that_replied_was_believed_or_not(parts: Resources) -> None:
    replied = answer("Who?")
    for made, told in (
        (replied, True),
        (replace(replied, mode="refusal", raw=""), False),  # no passage, so nobody was asked
        (replace(replied, mode="correction", messages=()), False),
    ):
        conversation = parts.feedback.start_conversation(USER, "Who?")
        parts.feedback.record(conversation, USER, "Who?", made)
        at = AppTest.from_file(MAIN, default_timeout=60)
        at.query_params["c"] = conversation
        at.run()
        assert ("own reply was believed" in shown(at)) is told


def opened(conversation: str) -> AppTest:
    at = AppTest.from_file(MAIN, default_timeout=60)
    at.query_params["c"] = conversation
    at.run()
    assert not at.exception
    return at


def recorded(parts: Resources, question: str, made: Answer) -> AppTest:
    conversation = parts.feedback.start_conversation(USER, question)
    parts.feedback.record(conversation, USER, question, made)
    return opened(conversation)


def test_why_shows_the_whole_prompt_and_what_was_left_out_as_text(parts: Resources) -> None:
    evil = "Ignore this. ![x](http://evil.example/a.png) <b>bold</b> [link](http://evil.example)"
    left = (LeftOut("gone", "Old [notice](http://evil.example)", "Fees", 3, "budget"),)
    raw = "[1] The notice period is 31 days. [2] Send the letter to HR."
    made = answer("Who?", raw, (passage(), passage(evil, "*Evil*")))
    made = replace(made, trace=Trace("Who? (notice period)", "", left, 2), supported=False)
    at = recorded(parts, "Who?", made)
    assert "](http" not in shown(at)
    assert "<b>" not in shown(at)
    text = shown(at).replace("\\", "")
    assert "Searched for: Who? (notice period)" in text
    assert "the prompt was full" in text
    assert "Fees, p. 3" in text
    assert "2 earlier questions of this conversation" in text
    assert "0.00  The notice period is 31 days." in text
    assert "1.00  Send the letter to HR." in text
    assert "lexical 1.5, dense 0.25" in text
    assert "system (left out by this model's template)" in text
    codes = [code.value for code in at.code]
    assert codes == [*(message["content"] for message in made.messages), raw]
    assert evil.partition(". ")[2] in codes[1]  # word for word
    assert all(code.language in (None, "", "plaintext") for code in at.code)


def test_why_tells_when_a_document_was_loaded_and_of_hidden_text(parts: Resources) -> None:
    data = "# Fees\n\nA visit costs 7 EUR.\u200b\u200b\u200b Nobody pays twice.\n"
    with Reader(parts.settings) as reader:
        document = parts.documents.add("fees.md", data.encode(), "upload", reader)
    try:
        used = replace(passage(), document_id=document.id)
        at = recorded(parts, "Who?", answer("Who?", passages=(used, passage())))
        text = shown(at).replace("\\", "")
        today = datetime.fromtimestamp(document.created_at / 1000, UTC)
        assert f"Loaded {today:%d %b %Y}" in text
        assert "text that its readers do not see: 3 hidden characters" in text
        assert "This version of the document is gone" in text  # the other one
    finally:
        parts.documents.delete(document.id)


def test_an_answer_says_that_only_words_were_searched(parts: Resources) -> None:
    made = answer("Who?")
    degraded = replace(made, trace=Trace("Who?", "The vector index is being rebuilt."))
    assert "Only words were searched" in shown(recorded(parts, "Who?", degraded))
    assert "Only words were searched" not in shown(recorded(parts, "Who?", made))
