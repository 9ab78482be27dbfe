"""The review queue decides once, remembers who, and can be undone."""

from __future__ import annotations

import pytest

from core.errors import ConflictError, NotFoundError
from tests.feedback.made import House

QUESTION = "What is the notice period?"


def audit_log(house: House) -> list[tuple[str, str]]:
    with house.database.read() as connection:
        rows = connection.execute("SELECT actor, action FROM audit ORDER BY seq").fetchall()
    return [(row["actor"], row["action"]) for row in rows]


def test_the_queue_shows_what_a_reviewer_needs(house: House) -> None:
    first = house.store.correct(house.ask(QUESTION), "ann", "It is 30 days.")
    house.store.correct(house.ask("Who gets the letter?", user="bob"), "bob", "HR.")
    pending = house.review.pending()
    assert pending[0].correction.id == first
    assert [item.exchange.question for item in pending] == [QUESTION, "Who gets the letter?"]
    assert pending[0].exchange.answer.text == "The notice period is 30 days. [1]"
    assert pending[0].exchange.answer.passages[0].units[0].text == "The notice period is 30 days."


def test_decisions_keep_reviewer_and_time_and_are_audited(house: House) -> None:
    correction = house.store.correct(house.ask(QUESTION), "ann", "It is 30 days.")
    house.review.approve(correction, "rita")
    decided = house.review.get(correction)
    assert (decided.status, decided.reviewer) == ("approved", "rita")
    assert decided.reviewed_at
    assert decided.reviewed_at >= decided.created_at
    house.review.undo(correction, "rolf")
    house.review.undo(correction, "rolf")
    assert house.review.get(correction).reviewer is None
    house.review.reject(correction, "rita")
    assert house.review.pending() == []
    assert audit_log(house) == [
        ("ann", "correction.write"),
        ("rita", "correction.approved"),
        ("rolf", "correction.undo"),
        ("rita", "correction.rejected"),
    ]


def test_two_reviewers_cannot_overrule_each_other_unseen(house: House) -> None:
    correction = house.store.correct(house.ask(QUESTION), "ann", "It is 30 days.")
    house.review.approve(correction, "rita")
    house.review.approve(correction, "rita")
    with pytest.raises(ConflictError, match="already approved by rita"):
        house.review.reject(correction, "rolf")
    assert house.review.get(correction).status == "approved"


def test_a_text_that_changed_while_it_was_read_is_not_approved(house: House) -> None:
    exchange = house.ask(QUESTION)
    correction = house.store.correct(exchange, "ann", "It is 30 days.")
    house.store.correct(exchange, "ann", "It is 3 days.")
    with pytest.raises(ConflictError, match="changed"):
        house.review.approve(correction, "rita", text="It is 30 days.")
    assert house.review.get(correction).status == "pending"
    house.review.approve(correction, "rita", text="It is 3 days.")


def test_approve_all_counts_only_what_waited(house: House) -> None:
    for number in range(3):
        house.store.correct(house.ask(f"Question {number}?"), "ann", "It is 30 days.")
    house.review.reject(house.review.pending()[0].correction.id, "rita")
    assert house.review.approve_all("rita") == 2
    assert house.review.approve_all("rita") == 0
    assert house.store.counts()["approved"] == 2


def test_unknown_corrections_are_named(house: House) -> None:
    for act in (house.review.get, lambda name: house.review.approve(name, "rita"), house.review.undo):
        with pytest.raises(NotFoundError, match="nothing-here"):
            act("nothing-here")
