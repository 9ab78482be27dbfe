"""Exchanges come back as they were; votes and corrections obey their owner."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from core.db import Database
from core.errors import ConflictError, NotFoundError, UnderstudyError
from core.schema import MIGRATIONS
from core.types import LeftOut, Trace
from feedback.store import LONGEST, REASONS, FeedbackStore
from tests.feedback.made import House, answer, with_history

QUESTION = "What is the notice period?"


def test_an_exchange_comes_back_exactly(house: House) -> None:
    made = replace(answer(QUESTION), adapter="a1", supported=False, finish_reason="length")
    awkward = 'Tab\t, quote ", newline\n, snow ☃, separator \u2028, half a pair \ud83d'
    made = replace(made, messages=(*made.messages[:1], {"role": "user", "content": awkward}))
    conversation = house.store.start_conversation("ann", "Leaving")
    identity = house.store.record(conversation, "ann", QUESTION, made)
    [exchange] = house.store.exchanges(conversation, "ann")
    assert exchange.answer == made
    assert exchange == house.store.exchange(identity) == house.store.exchange(identity, "ann")
    assert (exchange.question, exchange.status, exchange.user_id) == (QUESTION, "complete", "ann")
    assert [unit.number for unit in exchange.units] == [1, 2]


def test_text_that_no_database_can_hold_is_mended_not_lost(house: House) -> None:
    conversation = house.store.start_conversation("ann", "half a pair \ud83d")
    house.store.record(conversation, "ann", "nul \0 and half \ud83d", answer(QUESTION))
    assert house.store.exchanges(conversation, "ann")[0].question == "nul  and half ?"


def test_conversations_are_newest_first_and_exchanges_in_order(house: House) -> None:
    first, second = (house.store.start_conversation("ann", title) for title in ("one", "two"))
    assert [c.id for c in house.store.conversations("ann")] == [second, first]
    ids = [house.store.record(first, "ann", f"Question {n}?", answer(QUESTION)) for n in range(5)]
    assert [e.id for e in house.store.exchanges(first, "ann")] == ids


def test_nobody_reaches_another_users_rows(house: House) -> None:
    """W02: the query carries the user, so a known id is worth nothing."""
    mine = house.ask(QUESTION, user="ann")
    conversation = house.store.exchange(mine).conversation_id
    assert house.store.conversations("bob") == []
    assert house.store.exchanges(conversation, "bob") == []
    for attempt in (
        lambda: house.store.exchange(mine, "bob"),
        lambda: house.store.vote(mine, "bob", 1),
        lambda: house.store.correct(mine, "bob", "Mine now."),
        lambda: house.store.record(conversation, "bob", QUESTION, answer(QUESTION)),
        lambda: house.store.vote("no-such-id", "ann", 1),
    ):
        with pytest.raises(NotFoundError):
            attempt()
    house.store.unvote(mine, "bob")
    assert house.store.counts() == {
        "exchanges": 1, "up": 0, "down": 0, "pending": 0, "approved": 0, "rejected": 0
    }  # fmt: skip


def test_the_last_vote_wins(house: House) -> None:
    exchange = house.ask(QUESTION)
    house.store.vote(exchange, "ann", 1)
    house.store.vote(exchange, "ann", -1, REASONS[0], " the number is old ")
    vote = house.store.vote_of(exchange, "ann")
    assert vote is not None
    assert (vote.value, vote.reason, vote.comment) == (-1, REASONS[0], "the number is old")
    house.store.unvote(exchange, "ann")
    house.store.unvote(exchange, "ann")
    assert house.store.vote_of(exchange, "ann") is None


def test_many_threads_leave_one_vote(house: House) -> None:
    """P1: one vote per user and exchange, however often the button is pressed."""
    exchange = house.ask(QUESTION)

    def press(number: int) -> None:
        for turn in range(10):
            house.store.vote(exchange, "ann", 1 if (number + turn) % 2 else -1)

    threads = [threading.Thread(target=press, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    counts = house.store.counts()
    assert counts["up"] + counts["down"] == 1


@pytest.mark.parametrize("status", ["interrupted", "failed"])
def test_an_unfinished_answer_cannot_be_judged(house: House, status: str) -> None:
    conversation = house.store.start_conversation("ann", "x")
    exchange = house.store.record(conversation, "ann", QUESTION, answer(QUESTION), status)  # type: ignore[arg-type]
    with pytest.raises(ConflictError, match="not finished"):
        house.store.vote(exchange, "ann", 1)
    with pytest.raises(ConflictError, match="not finished"):
        house.store.correct(exchange, "ann", "Thirty days.")


@pytest.mark.parametrize(
    ("value", "reason", "comment"),
    [(0, "", ""), (2, "", ""), (1, "because", ""), (1, "", "x" * (LONGEST + 1))],
)
def test_a_vote_that_makes_no_sense_is_refused(house: House, value: int, reason: str, comment: str) -> None:
    exchange = house.ask(QUESTION)
    with pytest.raises(UnderstudyError):
        house.store.vote(exchange, "ann", value, reason, comment)
    assert house.store.vote_of(exchange, "ann") is None


def test_a_correction_implies_a_down_vote_but_keeps_a_given_one(house: House) -> None:
    silent, voted = house.ask(QUESTION), house.ask(QUESTION)
    house.store.vote(voted, "ann", 1)
    for exchange in (silent, voted):
        house.store.correct(exchange, "ann", "It is 30 days.")
    votes = [house.store.vote_of(exchange, "ann") for exchange in (silent, voted)]
    assert [vote.value for vote in votes if vote] == [-1, 1]


def test_how_an_answer_came_about_is_kept_with_it(house: House) -> None:
    left = LeftOut("doc", "Guide", "Fees", 3, "budget")
    made = replace(answer(QUESTION), trace=Trace("notice", "The index is being rebuilt.", (left,), 2))
    conversation = house.store.start_conversation("ann", QUESTION)
    exchange = house.store.record(conversation, "ann", QUESTION, made)
    assert house.store.exchange(exchange, "ann").answer == made


def test_editing_a_correction_sends_it_back_to_review(house: House) -> None:
    exchange = house.ask(QUESTION)
    first = house.store.correct(exchange, "ann", "It is 31 days.")
    house.review.approve(first, "rita")
    assert house.store.correct(exchange, "ann", " It is 31 days. ") == first
    again = house.store.correction_of(exchange, "ann")
    assert again is not None
    assert (again.status, again.reviewer) == ("approved", "rita")
    assert house.store.correct(exchange, "ann", "It is 30 days.") == first
    edited = house.store.correction_of(exchange, "ann")
    assert edited is not None
    assert (edited.status, edited.reviewer, edited.reviewed_at) == ("pending", None, None)


@pytest.mark.parametrize(
    ("text", "says"), [("", "empty"), (" \n\t", "empty"), ("x" * (LONGEST + 1), "4,001")]
)
def test_empty_and_endless_corrections_are_refused(house: House, text: str, says: str) -> None:
    exchange = house.ask(QUESTION)
    with pytest.raises(UnderstudyError, match=says):
        house.store.correct(exchange, "ann", text)
    assert house.store.vote_of(exchange, "ann") is None
    house.store.correct(exchange, "ann", "x" * LONGEST)


def test_a_correction_answers_its_author_at_once_and_others_after_review(house: House) -> None:
    correction = house.store.correct(house.ask(QUESTION), "ann", "It is 30 days.")
    mine = house.store.find_correction("WHAT is the notice period", "ann")
    assert mine is not None
    assert mine.text == "It is 30 days."
    assert house.store.find_correction(QUESTION, "bob") is None
    house.review.approve(correction, "rita")
    assert house.store.find_correction(QUESTION, "bob") is not None
    house.review.undo(correction, "rita")
    house.review.reject(correction, "rita")
    assert house.store.find_correction(QUESTION, "ann") is None
    assert house.store.find_correction("??", "ann") is None


def test_approved_wins_over_pending_and_newer_over_older(house: House) -> None:
    old = house.store.correct(house.ask(QUESTION), "ann", "Old.")
    new = house.store.correct(house.ask(QUESTION), "ann", "New.")
    house.store.correct(house.ask(QUESTION), "ann", "Newest, not reviewed.")
    house.review.approve(old, "rita")
    house.review.approve(new, "rita")
    found = house.store.find_correction(QUESTION, "ann")
    assert found is not None
    assert found.text == "New."


def test_a_follow_ups_correction_is_not_given_to_other_conversations(house: House) -> None:
    follow_up = "And for juniors?"
    conversation = house.store.start_conversation("ann", "x")
    made = with_history(answer(follow_up), "What is the notice period?")
    exchange = house.store.record(conversation, "ann", follow_up, made)
    house.review.approve(house.store.correct(exchange, "ann", "14 days."), "rita")
    assert house.store.find_correction(follow_up, "ann") is None


def test_citations_of_older_exchanges_are_counted_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import core.db

    with monkeypatch.context() as patch:
        before = next(n for n, text in enumerate(MIGRATIONS) if "CREATE TABLE citations" in text)
        patch.setattr(core.db, "MIGRATIONS", MIGRATIONS[:before])
        old = Database(tmp_path / "old.db")
        with old.write() as connection:
            connection.execute("INSERT INTO conversations VALUES ('c', 'ann', 'x', 1)")
            connection.execute(
                "INSERT INTO exchanges (id, conversation_id, user_id, question, answer, raw, mode, status,"
                " messages, passages, citations, model, prompt_version, supported, finish_reason, sampling,"
                " timings, created_at) VALUES ('e', 'c', 'ann', 'q', 'a', 'a', 'answer', 'complete', '[]',"
                " '[]', ?, 'm', '2', 1, 'stop', '{}', '{}', 1)",
                (
                    json.dumps(
                        [
                            {"document_id": "d", "start": 3, "end": 9},
                            {"document_id": "o", "start": 0, "end": 1},
                        ]
                    ),
                ),
            )
        old.close()
    store = FeedbackStore(Database(tmp_path / "old.db"))
    assert store.cited_spans("d") == [(3, 9)]
    conversation = store.start_conversation("ann", "x")
    store.record(conversation, "ann", QUESTION, answer(QUESTION))
    assert store.cited_spans("doc-Employee handbook") == [(0, 29)]
    assert store.cited_spans("nothing") == []


def test_a_pseudonym_is_stable_and_not_the_name(house: House) -> None:
    name = house.store.pseudonym("ann")
    assert name == house.store.pseudonym("ann") != house.store.pseudonym("bob")
    assert "ann" not in name
