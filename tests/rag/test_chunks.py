from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag.chunks import ESTIMATE, UNIT_CHARS, chunk, units
from rag.loaders import extract
from rag.outline import Extracted, Section
from rag.words import token_estimate
from tests.rag.conftest import HANDBOOK


def cut(text: str) -> list[str]:
    return [text[start:end] for start, end in units(text)]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        ("Ask Dr. Smith or Ms. Lee. Then wait.", ["Ask Dr. Smith or Ms. Lee.", "Then wait."]),
        ("Use tools, e.g. Levers, i.e. two. Done.", ["Use tools, e.g. Levers, i.e. two.", "Done."]),
        ("It costs 5.90 EUR. See No. 5.", ["It costs 5.90 EUR.", "See No. 5."]),
        ("J. K. Rowling wrote. Yes.", ["J. K. Rowling wrote.", "Yes."]),
        ("3. Loosen the nut.", ["3. Loosen the nut."]),
        ("It ends at 5 p.m. The shop closes.", ["It ends at 5 p.m.", "The shop closes."]),
        ('He said "Stop." Then he left.', ['He said "Stop."', "Then he left."]),
        ("- Lunch is free. On Fridays.\n* Two", ["Lunch is free. On Fridays.", "Two"]),
        (
            "Plan: Basic; Price: 10 EUR. Net. Yes; Seats: 5.",
            ["Plan: Basic; Price: 10 EUR. Net. Yes; Seats: 5."],
        ),
        ("It cost 4.6 out of 5. In total, 12 came.", ["It cost 4.6 out of 5.", "In total, 12 came."]),
        ("彼は来た。私は行く。", ["彼は来た。", "私は行く。"]),
        ("---\n***\n  \n", []),
        ("", []),
    ],
)
def test_units(text: str, wanted: list[str]) -> None:
    assert cut(text) == wanted


def test_a_unit_is_never_longer_than_the_limit() -> None:
    text = "word " * 5_000
    pieces = cut(text)
    assert max(map(len, pieces)) <= UNIT_CHARS
    assert "".join("".join(pieces).split()) == "word" * 5_000


@given(st.text(alphabet="ab .!?\n-;:1(\"'", max_size=600))
def test_units_are_ordered_spans_without_outer_space(text: str) -> None:
    last = 0
    for start, end in units(text):
        assert last <= start < end <= len(text)
        assert text[start:end].strip() == text[start:end] or end - start == UNIT_CHARS
        last = end


def test_chunks_are_slices_under_their_heading() -> None:
    extracted = extract("guide.md", HANDBOOK)
    chunks = chunk(extracted, 32)
    assert {piece.heading for piece in chunks} == {"", "Leaving", "Prices"}
    for piece in chunks:
        assert extracted.text[piece.start : piece.end] == piece.text
        assert token_estimate(piece.text) <= 32 * ESTIMATE


def test_chunks_of_a_section_are_about_equal() -> None:
    text = " ".join(f"Sentence number {n} has some words in it." for n in range(40))
    extracted = Extracted("text", "T", text, (Section("", 0, len(text), None),))
    sizes = [token_estimate(piece.text) for piece in chunk(extracted, 60)]
    assert len(sizes) > 3
    assert min(sizes) > 0.5 * max(sizes)


def test_one_long_line_takes_linear_time() -> None:
    text = "A short sentence stands here. " * 100_000
    assert len(units(text)) == 100_000
