"""One answer as the page shows it; see `tests.app.test_pages` for how pages are driven."""

from __future__ import annotations

from dataclasses import replace

from streamlit.testing.v1 import AppTest

from app.resources import USER, Resources
from tests.app.test_pages import MAIN, parts, shown
from tests.feedback.made import answer

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
