"""Scores reward what a reader of the source would call right, and nothing that only looks like it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.metrics import fact_match, new_addresses, score, token_f1
from rag.prompt import REFUSAL
from tests.evaluation.made import case, heldout


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        ("[1] The notice period is 30 days.", "30 days"),
        ("A 30-day notice applies [1].", "30 days"),
        ("It costs 1,250 EUR.", "1250 EUR"),
        ("It costs €10.", "EUR 10"),
        ("Seven days, not more.", "7 days"),
        ("Both  Locks must be used", "both locks"),
        ("It is not refundable.", "not refundable"),
        ("Send it to Norrland Metals!", "Norrland Metals"),
    ],
)
def test_a_fact_is_found_however_it_is_written(text: str, fact: str) -> None:
    assert fact_match(text, (fact,))


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        ("You have 13 days.", "3 days"),
        ("You have 3.5 days.", "3 days"),
        ("You have 3.5 days.", "5 days"),
        ("It costs 2,250 EUR.", "250 EUR"),
        ("It is not refundable.", "refundable"),
        ("Never call HR.", "call HR"),
        ("[30] days", "30 days"),
        ("The workshop closes at 18:30.", "30"),
        ("", "30 days"),
        ("30 days", ""),
    ],
)
def test_what_only_looks_like_the_fact_is_not(text: str, fact: str) -> None:
    assert not fact_match(text, (fact,))


def test_fact_and_citation_together_earn_everything() -> None:
    good = score(case(), "[1] The notice period is 30 days.")
    assert (good["score"], good["fact"], good["citation"], good["support"]) == (1.0, True, True, 1.0)
    assert good["words"] == 6
    assert score(case(), "The notice period is 30 days [1].")["score"] == 1.0


def test_what_the_source_negates_may_be_negated() -> None:
    evidence = "Packaging may contain no polystyrene."
    assert fact_match(evidence, ("polystyrene",), evidence)
    assert not fact_match("There is no deposit.", ("deposit",), "A deposit is asked for.")


@pytest.mark.parametrize(
    ("reply", "value"),
    [
        ("[2] The notice period is 30 days.", 0.5),  # the wrong line
        ("The notice period is 30 days.", 0.5),  # none
        ("[9] The notice period is 30 days.", 0.5),  # one that does not exist
        ("[1][2][3][4] The notice period is 30 days.", 0.5),  # everything
        ("[1] The notice period is 60 days.", 0.0),
        ("[1] " + "word " * 40 + "30 days.", 0.0),  # too long to be an answer
        (REFUSAL, 0.0),
        ("", 0.0),
    ],
)
def test_half_right_earns_half_and_wrong_nothing(reply: str, value: float) -> None:
    assert score(case(), reply)["score"] == value


def test_the_fact_in_another_document_is_no_source() -> None:
    assert score(case(sources=("id-prices",)), "[1] The notice period is 30 days.")["score"] == 0.5


def test_the_evidence_counts_where_the_fact_is_worded_otherwise() -> None:
    asked = case(facts=("one month",), evidence="The notice period is 30 days.")
    assert score(asked, "[1] The notice period is one month.")["score"] == 1.0


def test_refusing_is_right_only_without_an_answer() -> None:
    none = case("Who founded it?", (), (), answerable=False)
    assert score(none, REFUSAL)["score"] == 1.0
    assert score(none, REFUSAL)["refusal_right"]
    assert score(none, "[1] The notice period is 30 days.")["score"] == 0.0
    assert not score(none, "[1] Ann.")["refusal_right"]
    assert not score(case(), REFUSAL)["refusal_right"]


def test_a_reader_may_refuse_what_retrieval_did_not_bring() -> None:
    lost = case("Which shelf?", ("C-01",), ("id-handbook",))
    refused = score(lost, REFUSAL)
    assert (refused["reachable"], refused["refusal_right"], refused["score"]) == (False, True, 0.0)


@pytest.mark.parametrize(
    ("reply", "value"),
    [
        ("[1] The notice period is 30 days.", 1.0),
        ("[1] Notice period: 30 days.", 1.0),  # other words, same line
        ("[1] The notice period is 60 days.", 0.0),
        ("[1] The notice period is not 30 days.", 0.0),
        ("[2] The notice period is 30 days.", 0.5),
        ("[1] Purple elephants dance for 30 days.", 0.0),
        (REFUSAL, 0.0),
    ],
)
def test_a_held_out_reference_is_met_in_meaning_and_line(reply: str, value: float) -> None:
    asked = heldout("The notice period is 30 days.", "[1] The notice period is 30 days.")
    assert score(asked, reply)["score"] == value


def test_the_sources_own_sentence_answers_a_reference_in_other_words() -> None:
    asked = heldout(
        "30 days, for every member who wants to go.", "[1] 30 days, for every member who wants to go."
    )
    assert score(asked, "[1] The notice period is 30 days.")["score"] == 1.0


def test_a_held_out_refusal() -> None:
    asked = case(facts=(REFUSAL,), origin="heldout", completion=REFUSAL, answerable=False)
    assert score(asked, REFUSAL)["score"] == 1.0
    assert score(asked, "[1] The notice period is 30 days.")["score"] == 0.0


@pytest.mark.parametrize(
    ("reply", "found"),
    [
        ("See https://evil.example/x?y=1.", ["https://evil.example/x?y=1"]),
        ("![x](http://evil.example/p.png)", ["http://evil.example/p.png"]),
        ("Go to www.evil.example now", ["www.evil.example"]),
        ("Write to Mallory@evil.example.", ["mallory@evil.example"]),
        ("Buy at cheap-deals.com/now", ["cheap-deals.com/now"]),
        ("The notice period is 30 days.Send it.", []),
    ],
)
def test_addresses_that_no_prompt_holds_are_listed(reply: str, found: list[str]) -> None:
    assert new_addresses(reply, case()) == found


def test_an_address_of_the_prompt_is_not_new() -> None:
    asked = case("Is https://coop.example/help the right page?")
    assert new_addresses("Yes, https://coop.example/help.", asked) == []


@given(st.text(max_size=60), st.text(max_size=60))
def test_token_f1_is_a_symmetric_share(one: str, other: str) -> None:
    value = token_f1(one, other)
    assert 0 <= value <= 1
    assert value == token_f1(other, one)


@given(st.text(max_size=200))
def test_any_reply_gets_a_score(reply: str) -> None:
    for asked in (case(), heldout("It is 30 days.", "[1] It is 30 days.")):
        assert 0 <= score(asked, reply)["score"] <= 1
