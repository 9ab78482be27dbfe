"""The rewards pay for right, cited, short answers; each known trick earns less than half of an honest one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import rag.prompt
from finetune import rewards
from finetune.rewards import citation_score, cited_sentences, exact_match, fact_score, reward, units_of

UNITS = {
    1: "The notice period is 30 days.",
    2: "Send the letter to HR.",
    3: "Holiday is 25 days a year.",
    4: "Plan: Basic; Price per month: 1,200 EUR; Seats: 5.",
}
PROMPT = "Question: What is the notice period?\n\nHandbook > Leaving\n" + "\n".join(
    f"[{number}] {text}" for number, text in UNITS.items()
)
GOOD = "[1] The notice period is 30 days."


def test_the_refusal_is_the_products() -> None:
    assert rewards.REFUSAL == rag.prompt.REFUSAL


def test_honest_answers_earn_all() -> None:
    assert reward(PROMPT, GOOD, GOOD) == 1.0
    assert reward(PROMPT, GOOD, "The notice period is 30 days. [1]") == 1.0
    assert reward(PROMPT, "[4] The price is 1,200 EUR.", "[4] Price 1200 EUR.") > 0.7
    assert reward(PROMPT, rewards.REFUSAL, " not in the documents") == 1.0


def test_a_wrong_citation_costs_its_share() -> None:
    wrong = reward(PROMPT, GOOD, "[2] The notice period is 30 days.")
    assert 0.5 <= wrong < 0.7 < reward(PROMPT, GOOD, GOOD)
    assert citation_score(UNITS, "[9] The notice period is 30 days.") == 0
    assert citation_score(UNITS, "The notice period is 30 days.") == 0


TRICKS = {
    "empty": "",
    "labels only": "[1] [2] [3] [4]",
    "every label": "[1][2][3][4] The notice period is 30 days or 25 days.",
    "the question again": "What is the notice period?",
    "all passages": "\n".join(f"[{number}] {text}" for number, text in UNITS.items()),
    "very long": GOOD + " The notice period is 30 days." * 20,
    "refusing": rewards.REFUSAL,
    "refusing and answering": f"{rewards.REFUSAL} [1] Perhaps soon.",
    "another number": "[1] The notice period is 31 days.",
    "many numbers": "[1] The notice period is 10 20 30 40 days.",
    "no number": "[1] The notice period is days.",
    "the fact alone, forever": "30 " * 100,
}


@pytest.mark.parametrize("trick", TRICKS.values(), ids=TRICKS.keys())
def test_tricks_do_not_pay(trick: str) -> None:
    assert reward(PROMPT, GOOD, trick) < 0.5


@pytest.mark.parametrize("trick", [GOOD, "", "[1]", TRICKS["all passages"], TRICKS["refusing and answering"]])
def test_answering_does_not_pay_where_nothing_is_known(trick: str) -> None:
    assert reward(PROMPT, rewards.REFUSAL, trick) == 0


@given(st.text(max_size=400), st.text(max_size=100), st.text(max_size=400))
def test_bounded_for_any_text(question: str, reference: str, reply: str) -> None:
    for value in (
        reward(question, reference, reply),
        reward(PROMPT, GOOD, reply),
        exact_match(reference, reply),
    ):
        assert 0 <= value <= 1


def test_numbers_words_and_labels() -> None:
    assert fact_score("It costs 1,200 EUR", "It costs 1200 EUR [4]") == 1
    assert fact_score("It costs 1.2 EUR", "It costs 12 EUR") == 0
    assert exact_match("[1] Send the letter.", "send letter!") == 1
    assert exact_match("", "") == 0
    assert units_of(PROMPT) == UNITS
    assert cited_sentences("[1][2] One. [3] Two.") == [(" One. ", [1, 2]), (" Two.", [3])]
    assert cited_sentences("One [1]. Two [2][3]") == [("One ", [1]), (". Two ", [2, 3])]
