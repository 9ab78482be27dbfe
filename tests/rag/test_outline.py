from __future__ import annotations

import pytest

from core.errors import DocumentError
from rag.outline import MAX_TEXT, Outline, pretty_name, row_text


def test_the_first_heading_is_the_title_and_sections_know_their_path() -> None:
    outline = Outline("markdown", "x.md")
    outline.heading(1, "Guide")
    outline.paragraph("Hello there.")
    outline.heading(2, "Pay")
    outline.heading(3, "Overtime")
    outline.paragraph("Time off.")
    outline.heading(2, "Leave")
    outline.item("28 days")
    done = outline.finish()
    assert done.title == "Guide"
    assert done.text.split("\n")[0] == "Guide"
    assert [section.heading for section in done.sections] == ["", "Pay > Overtime", "Leave"]
    assert [done.text[s.start : s.end].strip() for s in done.sections] == [
        "Hello there.",
        "Time off.",
        "- 28 days",
    ]


def test_without_a_heading_the_file_name_is_the_title() -> None:
    outline = Outline("csv", "price-list_2024.csv")
    outline.table([["Plan", "Price"], ["Basic", "10 EUR"], ["", ""]])
    done = outline.finish()
    assert done.title == "Price list 2024"
    assert done.text == "Price list 2024\n\nPlan: Basic; Price: 10 EUR.\n"


def test_pages_divide_sections() -> None:
    outline = Outline("pdf", "x.pdf")
    outline.page(1)
    outline.paragraph("One.")
    outline.page(2)
    outline.paragraph("Two.")
    assert [section.page for section in outline.finish().sections] == [1, 2]


def test_an_empty_outline_is_refused() -> None:
    outline = Outline("text", "x.txt")
    outline.heading(1, " ")
    with pytest.raises(DocumentError, match="No text"):
        outline.finish()


def test_headings_without_anything_below_them_are_text() -> None:
    """Slides often have nothing but a title; it must be found all the same."""
    outline = Outline("pptx", "x.pptx")
    for number, title in enumerate(("Welcome", "Our plan", "Thanks"), 1):
        outline.page(number)
        outline.heading(1, title)
    done = outline.finish()
    assert [done.text[one.start : one.end].strip() for one in done.sections] == [
        "Welcome",
        "Our plan",
        "Thanks",
    ]
    assert [one.page for one in done.sections] == [1, 2, 3]


def test_a_heading_above_headings_is_not_repeated_as_text() -> None:
    outline = Outline("markdown", "x.md")
    outline.heading(1, "Guide")
    outline.heading(2, "Oil")
    outline.paragraph("Each month.")
    done = outline.finish()
    assert [done.text[one.start : one.end].strip() for one in done.sections] == ["Each month."]


def test_too_much_text_is_refused() -> None:
    outline = Outline("text", "x.txt")
    with pytest.raises(DocumentError, match="more than"):
        outline.paragraph("a" * (MAX_TEXT + 1))


@pytest.mark.parametrize(
    ("headers", "row", "wanted"),
    [
        (["Plan", "Price"], ["Basic", "10 EUR"], "Plan: Basic; Price: 10 EUR."),
        (["Plan", ""], ["Basic", "x"], "Plan: Basic; Column 2: x."),
        (["Plan: all", "Note"], ["A; B", ""], "Plan  all: A, B."),
        (["Q", "A"], ["Why?", "So."], "Q: Why?; A: So."),
        (["Q"], ["Why", "more"], "Q: Why; Column 2: more."),
    ],
)
def test_row_text(headers: list[str], row: list[str], wanted: str) -> None:
    assert row_text(headers, row) == wanted


@pytest.mark.parametrize("name", ["../../etc/passwd", "a\\b.txt", ".hidden", "", "\u202egnp.txt"])
def test_pretty_name_is_never_empty_or_a_path(name: str) -> None:
    title = pretty_name(name)
    assert title
    assert "/" not in title
    assert "\\" not in title
