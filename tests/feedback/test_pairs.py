"""Votes and corrections become rows whose prompt is the one that was sent."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from core.db import Database
from core.types import Answer
from feedback.pairs import REFUSAL, Cite, best, examples
from rag import prompt
from tests.feedback.made import House, answer, cite, passage, with_history

QUESTION = "What is the notice period?"
RAW = "[1] The notice period is 30 days."


def recorded(house: House, made: Answer, question: str = QUESTION, user: str = "ann") -> str:
    return house.store.record(house.store.start_conversation(user, "x"), user, question, made)


def sft_rows(database: Database, cite: Cite, *, ungrounded: bool = False) -> list[dict[str, Any]]:
    found, _ = examples(database, cite)
    return [example.sft() for example in best(found) if ungrounded or example.grounded]


def preference_rows(database: Database, cite: Cite, *, ungrounded: bool = False) -> list[dict[str, Any]]:
    found, _ = examples(database, cite)
    return [example.preference() for example in found if example.pair and (ungrounded or example.grounded)]


def completions(house: House, *, ungrounded: bool = False) -> list[str]:
    return [row["messages"][-1]["content"] for row in sft_rows(house.database, cite, ungrounded=ungrounded)]


def test_both_packages_refuse_in_the_same_words() -> None:
    assert REFUSAL == prompt.REFUSAL


def test_an_up_voted_answer_is_imitated_with_its_prompt_as_sent(house: House) -> None:
    exchange = house.ask(QUESTION)
    house.store.vote(exchange, "ann", 1)
    [row] = sft_rows(house.database, cite)
    sent = house.store.exchange(exchange).answer.messages
    assert row["messages"] == [*sent, {"role": "assistant", "content": RAW}]
    assert row["grounded"]
    assert row["provenance"]["exchanges"] == [exchange]
    assert row["provenance"]["users"] == [house.store.pseudonym("ann")]
    assert row["provenance"]["documents"] == ["doc-Employee handbook"]
    assert (row["provenance"]["model"], row["provenance"]["adapter"]) == ("builtin", None)
    assert preference_rows(house.database, cite) == []


def test_a_correction_gets_the_models_own_citations(house: House) -> None:
    correction = house.corrected(QUESTION, "The notice period is 30 days.")
    [row] = sft_rows(house.database, cite)
    assert row["messages"][-1] == {"role": "assistant", "content": RAW}
    assert row["provenance"]["corrections"] == [correction]
    [pair] = preference_rows(house.database, cite)
    assert pair["prompt"] == row["messages"][:-1]
    assert pair["chosen"] == [{"role": "assistant", "content": RAW}]
    assert pair["rejected"] == [{"role": "assistant", "content": "[2] Send the letter to HR."}]


def test_a_refusal_is_a_legal_correction(house: House) -> None:
    house.corrected("How much is the bonus?", "Not in the documents.", RAW)
    assert completions(house) == [REFUSAL]
    assert preference_rows(house.database, cite)[0]["chosen"][0]["content"] == REFUSAL


def test_unreviewed_and_rejected_text_never_trains(house: House) -> None:
    house.store.correct(house.ask(QUESTION), "ann", "The notice period is 30 days.")
    rejected = house.store.correct(house.ask("Who gets the letter?"), "ann", "Send the letter to HR.")
    house.review.reject(rejected, "rita")
    assert sft_rows(house.database, cite, ungrounded=True) == []
    assert preference_rows(house.database, cite, ungrounded=True) == []


def test_what_no_passage_holds_trains_only_on_request(house: House) -> None:
    house.corrected("Who founded it?", "It was founded by Ada Byron in 1843.")
    house.corrected(
        "How long is the notice?", "The notice period is 60 days."
    )  # near a unit, but another number
    assert completions(house) == []
    assert preference_rows(house.database, cite) == []
    rows = sft_rows(house.database, cite, ungrounded=True)
    assert [row["grounded"] for row in rows] == [False, False]


def test_a_correction_that_repeats_the_answer_makes_no_pair(house: House) -> None:
    house.corrected(QUESTION, "the notice period is 30 days", raw=RAW)
    assert len(completions(house)) == 1
    assert preference_rows(house.database, cite) == []


def test_votes_are_summed_over_users(house: House) -> None:
    exchange = house.ask(QUESTION)
    house.store.vote(exchange, "ann", 1)
    assert len(completions(house)) == 1
    with house.database.write() as connection:  # other users' votes come with shared conversations
        connection.execute("INSERT INTO votes VALUES (?, 'bob', -1, '', '', 1)", (exchange,))
    assert completions(house) == []
    with house.database.write() as connection:
        connection.execute("INSERT INTO votes VALUES (?, 'eve', 1, '', '', 1)", (exchange,))
    assert len(completions(house)) == 1


def test_equal_rows_are_merged_with_their_provenance(house: House) -> None:
    for user in ("ann", "bob"):
        house.store.vote(house.ask(QUESTION, user=user), user, 1)
    [row] = sft_rows(house.database, cite)
    assert len(row["provenance"]["exchanges"]) == 2
    assert row["provenance"]["users"] == sorted(house.store.pseudonym(user) for user in ("ann", "bob"))


def test_the_newest_approved_correction_speaks_for_its_question(house: House) -> None:
    house.store.vote(house.ask(QUESTION, raw="[2] Send the letter to HR."), "ann", 1)
    house.corrected(QUESTION, "Send the letter to HR.", raw="[1] Nonsense.")
    house.corrected(QUESTION, "The notice period is 30 days.", raw="[2] Send it.")
    assert completions(house) == [RAW]
    rejected = [row["rejected"][0]["content"] for row in preference_rows(house.database, cite)]
    assert rejected == ["[1] Nonsense.", "[2] Send it."]


def test_follow_ups_of_different_conversations_are_not_mixed(house: House) -> None:
    follow_up = "And then?"
    for earlier, text in (
        ("Leaving?", "The notice period is 30 days."),
        ("Letters?", "Send the letter to HR."),
    ):
        exchange = recorded(house, with_history(answer(follow_up, "Hm."), earlier), follow_up)
        house.review.approve(house.store.correct(exchange, "ann", text), "rita")
    assert sorted(completions(house)) == [RAW, "[2] Send the letter to HR."]


def test_only_what_the_model_wrote_from_passages_is_imitated(house: House) -> None:
    plain = answer(QUESTION)
    for made in (
        replace(plain, mode="correction", messages=(), raw=""),
        replace(plain, mode="chat"),
        replace(plain, mode="memory", citations=()),
        replace(plain, finish_reason="length"),
        replace(plain, raw="  "),
        replace(plain, mode="quotes", citations=plain.citations * 2),
    ):
        house.store.vote(recorded(house, made), "ann", 1)
    assert sft_rows(house.database, cite, ungrounded=True) == []


def test_a_corrected_answer_from_memory_trains_the_turn_that_was_refused(house: House) -> None:
    made = replace(answer(QUESTION, raw="Not in the documents."), mode="memory", text="It is 9 days.")
    correction = house.store.correct(recorded(house, made), "ann", "The notice period is 30 days.")
    house.review.approve(correction, "rita")
    assert completions(house) == [RAW]
    [pair] = preference_rows(house.database, cite)
    assert pair["rejected"][0]["content"] == "Not in the documents."


def test_a_liked_quote_is_learnt_instead_of_the_reply_it_replaced(house: House) -> None:
    made = replace(answer(QUESTION, raw="[2] The notice period is long."), mode="quotes", supported=False)
    house.store.vote(recorded(house, made), "ann", 1)
    assert completions(house) == [RAW]


def test_a_correction_of_a_corrected_answer_uses_the_earlier_prompt(house: House) -> None:
    house.corrected(QUESTION, "Send the letter to HR.", raw="[1] Nonsense.")
    instant = replace(answer(QUESTION), mode="correction", messages=(), raw="")
    exchange = recorded(house, instant)
    house.review.approve(house.store.correct(exchange, "ann", "The notice period is 30 days."), "rita")
    assert completions(house) == [RAW]


def test_a_fact_from_the_heading_counts_as_shown(house: House) -> None:
    made = answer(
        "Where is it said?", passages=[passage("See the part on leaving for 30 days.", "Handbook 2026")]
    )
    exchange = recorded(house, made, "Where is it said?")
    text = "See the part on leaving in Handbook 2026."
    house.review.approve(house.store.correct(exchange, "ann", text), "rita")
    assert completions(house) == [f"[1] {text}"]
