"""Focusing keeps the units that fit, where they stand, and numbers only them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from core.catalog import BUILTIN
from core.types import Passage, Unit
from rag.chunks import units
from rag.citations import line_of, quote
from rag.focus import focus
from rag.prompt import build

LEAVING = "The notice period is 30 days. Send the letter to the office. Coffee is free."
PRICES = "The Basic plan costs 10 EUR. The large plan costs 25 EUR a month."


def passage(text: str, heading: str, start: int = 100) -> Passage:
    return Passage(1, heading, heading, "", None, start, start + len(text), text)


PASSAGES = [passage(PRICES, "Price list"), passage(LEAVING, "Handbook")]


def test_the_best_units_come_first_and_so_does_their_passage() -> None:
    found = focus("To which office do I send the letter about the notice?", PASSAGES, 3)
    assert found[0].document == "Handbook"
    first = [unit.text for unit in found[0].units]
    assert first[:2] == ["Send the letter to the office.", "The notice period is 30 days."]
    assert sum(len(p.units) for p in found) == 3


def test_offsets_point_into_the_document() -> None:
    for found in focus("What does the Basic plan cost?", PASSAGES, 4):
        for unit in found.units:
            assert found.text[unit.start - found.start : unit.end - found.start] == unit.text


def test_similarity_decides_where_no_word_is_shared() -> None:
    def close(question: str, texts: object) -> list[float]:
        assert isinstance(texts, list)
        return [1.0 if "Coffee" in text else 0.0 for text in texts]

    (found,) = focus("Are beverages gratis?", PASSAGES, 1, close)
    assert [unit.text for unit in found.units] == ["Coffee is free."]


def test_the_prompt_numbers_only_what_was_kept() -> None:
    found = focus("What is the notice period?", PASSAGES, 2)
    prompt = build("What is the notice period?", found, BUILTIN)
    numbers = [unit.number for p in prompt.passages for unit in p.units]
    assert numbers == [1, 2]
    assert "[3]" not in prompt.messages[-1]["content"]


def test_questions_are_no_answers_and_lend_their_words_to_the_line_behind_them() -> None:
    faq = passage(
        "How do I reset my password? Use the link on the page for signing in."
        " Is the office open on Sundays? No. Everybody is free then.",
        "FAQ",
    )
    found = focus("How do I reset my password?", [faq], 4)
    texts = [unit.text for unit in found[0].units]
    assert texts[0] == "Use the link on the page for signing in."
    assert not any("?" in text for text in texts)
    whole = [Unit(n, faq.text[a:b], faq.start + a, faq.start + b) for n, (a, b) in enumerate(units(faq.text))]
    quoted = quote("How do I reset my password?", [replace(faq, units=tuple(whole))])
    assert quoted is not None
    assert quoted.units[0].text == texts[0]
    assert line_of(faq, found[0].units[0]).endswith(f"How do I reset my password? {texts[0]}")


def test_nothing_in_nothing_out() -> None:
    assert focus("Anything?", [], 6) == []


def test_the_cross_encoder_has_the_last_word_on_the_best() -> None:
    def answers(question: str, lines: Sequence[str]) -> list[float]:
        liked = "Price list: The Basic plan costs 10 EUR."
        return [0.999 if line == liked else 0.001 for line in lines]

    found = focus("What is the notice period?", PASSAGES, 2, answers=answers)
    assert [unit.text for part in found for unit in part.units] == [
        "The Basic plan costs 10 EUR.",
        "The notice period is 30 days.",  # the others stay in their order
    ]
