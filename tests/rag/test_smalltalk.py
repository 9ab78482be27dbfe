from __future__ import annotations

import pytest

from rag.smalltalk import small_talk


@pytest.mark.parametrize(
    "text",
    [
        "hello",
        "Hi!",
        "Good morning",
        "thanks",
        "Thank you very much!",
        "who are you?",
        "What can you do?",
        "bye",
    ],
)
def test_small_talk_is_answered(text: str) -> None:
    assert small_talk(text, "Reader")


@pytest.mark.parametrize(
    "text",
    [
        "hello, what is the notice period?",
        "Who is the chair?",
        "What are the fees?",
        "thanks for nothing in article 3",
        "",
    ],
)
def test_questions_are_not(text: str) -> None:
    assert small_talk(text, "Reader") is None


def test_it_says_which_model_it_is() -> None:
    assert "Tiny Reader" in str(small_talk("who are you", "Tiny Reader"))
