"""Which questions count as the same one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.types import Message
from feedback.questions import Excluded, as_put, context_key, question_key, stands_alone


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is the notice period?", "  what IS the\nnotice   period "),
        ("What's the fee?", "What’s the fee"),
        ("Straße?", "STRASSE"),
        ("Ｗｈａｔ is １０ %?", "what is 10 %"),
    ],
)
def test_writing_variants_are_the_same_question(one: str, other: str) -> None:
    assert question_key(one) == question_key(other) != ""


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is C++?", "What is C#?"),
        ("What is C++?", "What is C?"),
        ("Is -5 degrees allowed?", "Is 5 degrees allowed?"),
        ("Does plan 1.5 count?", "Does plan 15 count?"),
        ("What is 5 %?", "What is 5?"),
    ],
)
def test_different_questions_stay_different(one: str, other: str) -> None:
    assert question_key(one) != question_key(other)


@given(st.text())
def test_a_key_is_its_own_key(text: str) -> None:
    key = question_key(text)
    assert question_key(key) == key


def test_a_question_of_punctuation_has_no_key() -> None:
    assert question_key(" ?!… ") == ""


def turns(*questions: str) -> list[Message]:
    return [{"role": "user", "content": question} for question in questions]


def test_a_follow_up_is_told_from_a_question_that_stands_alone() -> None:
    assert stands_alone("And for juniors?", turns("And for juniors?"))
    assert not stands_alone("And for juniors?", turns("What is the notice period?", "And for juniors?"))
    assert not stands_alone("How long is it?", turns("What is the notice period?", "How long is it?"))
    assert stands_alone("How much does Basic cost?", turns("Hello", "How much does Basic cost?"))


def test_the_same_words_in_another_conversation_are_another_question() -> None:
    assert context_key("And then?", turns("A", "And then?")) != context_key(
        "And then?", turns("B", "And then?")
    )
    assert context_key("And then?", turns("And then?")) == "and then"


def test_a_follow_up_that_the_prompt_made_whole_is_what_the_prompt_says() -> None:
    made_whole = turns("Question: And for juniors? (notice period)\n\nGuide\n[1] 30 days\n\nQuestion: And")
    assert as_put("And for juniors?", made_whole) == "And for juniors? (notice period)"
    assert not stands_alone("And for juniors?", made_whole)  # elsewhere these words ask for something else
    assert context_key("And for juniors?", made_whole) == "and for juniors notice period"
    plain = turns("Question: Who pays\u200b(3)?\n\nGuide")
    assert as_put("Who pa\u200bys\u200b[3]?", turns("Question: Who pays(3)?")) == "Who pa\u200bys\u200b[3]?"
    assert stands_alone("Who pays [3]?", plain)


def test_ten_planted_leaks_are_caught() -> None:
    """T04: training rows close to the evaluation's questions."""
    gold = [
        "What is the notice period of a junior gardener in the first year?",
        "Who signs the delivery note for seed potatoes?",
        "How many days of parental leave does the cooperative grant?",
    ]
    long = "Please write down in full all the steps that a member follows to return a broken tool today"
    excluded = Excluded([*gold, long])
    leaks = [
        *gold,
        gold[0].upper(),
        f"  {gold[1]}!!",
        "who signs the delivery note for the seed potatoes",
        "How many days of parental leave does this cooperative grant?",
        "What is the notice period of a junior gardener in the first year, please?",
        f"Hello. {long} and tomorrow, and tell me who is asked and who decides in the end about all of it",
    ]
    assert [leak for leak in leaks if not excluded.reason(leak, "")] == []
    assert excluded.reason("Something else entirely?", f"They said: {long.lower()}")


def test_neighbours_of_evaluation_questions_may_be_trained_on() -> None:
    excluded = Excluded(["How much does the Basic plan cost per month?", "Who is Ann?"])
    assert excluded.reason("How much does the Premium plan cost per month?", "10 EUR") == ""
    assert excluded.reason("Who is Bob?", "The cook.") == ""
    assert Excluded([]).reason("Anything?", "Yes.") == ""
