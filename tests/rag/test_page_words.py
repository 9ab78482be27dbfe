"""Cited words are found on a page however its characters differ from the stored text."""

from __future__ import annotations

import pytest

from rag.page_words import find, joined, letters


def found(page: str, wanted: str, before: str = "", after: str = "") -> list[str]:
    return [page[start:end] for start, end in find(letters(page), wanted, before, after)]


@pytest.mark.parametrize(
    ("page", "wanted", "shown"),
    [
        (
            "The notice\r\nperiod is 30 days.",
            "The notice period is 30 days.",
            "The notice\r\nperiod is 30 days",
        ),
        ("an e\ufb03cient o\ufb03ce", "an efficient office", "an e\ufb03cient o\ufb03ce"),
        ("a main-\r\ntenance plan", "a maintenance plan", "a main-\r\ntenance plan"),
        ("Cafe\u0301 Mu\u0308ller opens", "Café Müller opens", "Cafe\u0301 Mu\u0308ller opens"),
        ("• Lunch  is free", "Lunch is free", "Lunch  is free"),
        ("Basic 10 EUR 5\r\nLarge 25 EUR 20", "Plan: Large; Price: 25 EUR; Seats: 20.", "Large 25 EUR 20"),
    ],
)
def test_the_text_is_found_whole(page: str, wanted: str, shown: str) -> None:
    assert found(page, wanted) == [shown]


def test_of_equal_places_the_one_in_its_context_is_taken() -> None:
    page = "Fee: see the list. Rent: see the list. Deposit: see the list."
    spans = find(letters(page), "see the list.", "Rent:", "Deposit: see")
    assert [page[start - 6 : start] for start, _ in spans] == ["Rent: "]


def test_cells_that_lie_apart_are_found_around_the_longest() -> None:
    page = "Basic\r\nLarge\r\nten seats in all\r\ntwenty seats in all\r\n10\r\n25"
    assert found(page, "Plan: Large; Seats: twenty seats in all; Price: 25.") == [
        "Large",
        "twenty seats in all",
        "25",
    ]


def test_a_text_that_the_page_interrupts_is_found_in_parts() -> None:
    page = "The deposit is returned within PAGE HEADER 4 thirty days after the bike came back."
    parts = found(page, "The deposit is returned within thirty days after the bike came back.")
    assert "".join(parts) == "The deposit is returned withinthirty days after the bike came back"


def test_each_line_is_looked_for() -> None:
    assert found("One here.\nTwo there.", "One here.\nGone away now.\nTwo there.") == [
        "One here",
        "Two there",
    ]


@pytest.mark.parametrize(
    "wanted", ["", "...", "nothing of the kind stands on it", "Plan: Gold; Price: 99 EUR."]
)
def test_what_is_not_there_is_not_found(wanted: str) -> None:
    assert found("The notice period is 30 days.", wanted) == []


def test_spans_that_touch_are_joined() -> None:
    assert joined([(5, 8), (0, 2), (2, 4), (6, 9)]) == [(0, 4), (5, 9)]
