"""What is shown of a reply: believed, quoted or refused, by model, line and teaching."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from core.catalog import BUILTIN
from core.types import Passage, Unit
from rag.citations import Likelihood, Similarity
from rag.embed import Embedder
from rag.prompt import REFUSAL
from rag.shown import Showing
from rag.taught import Taught, remember

TEXTS = ("The notice period is 30 days.", "Parking costs 3 EUR a day.", "The canteen opens at noon.")
LIKELY = {"notice": 0.9, "Parking": 0.4, "canteen": 0.1}
PASSAGES = [
    Passage(
        1, "d", "Guide", "", None, 0, 99, " ".join(TEXTS),
        units=tuple(Unit(number, text, 0, len(text)) for number, text in enumerate(TEXTS, 1)),
    )
]  # fmt: skip
QUESTION = "How long must I wait?"
FIRST, SECOND = f"[1] {TEXTS[0]}", f"[2] {TEXTS[1]}"


@dataclass(frozen=True)
class Opinions:
    """A finder that thinks as it is told."""

    answers: Likelihood | None
    similarity: Similarity | None = None


def likely(question: str, lines: Sequence[str]) -> list[float]:
    return [next(value for word, value in LIKELY.items() if word in line) for line in lines]


def doubting(question: str, lines: Sequence[str]) -> list[float]:
    return [0.1] * len(lines)


SHOWING = Showing(BUILTIN, 0.6, Opinions(likely), lambda adapter, question: adapter == "taught")


@pytest.mark.parametrize(
    ("raw", "adapter", "mode", "said"),
    [
        (FIRST, None, "answer", FIRST),
        (SECOND, None, "quotes", FIRST),  # another line than the one that would be quoted
        (f"{SECOND} {FIRST}", None, "answer", f"{SECOND} {FIRST}"),
        (REFUSAL, None, "quotes", FIRST),
        ("[1] The notice period is 31 days.", None, "quotes", FIRST),
        ("", None, "quotes", FIRST),
        (SECOND, "taught", "answer", SECOND),
        (REFUSAL, "taught", "refusal", REFUSAL),
        ("[2] Parking costs 4 EUR a day.", "taught", "quotes", FIRST),  # unsupported, whoever says it
        (SECOND, "untaught", "quotes", FIRST),
        (REFUSAL, "untaught", "quotes", FIRST),
    ],
)
def test_a_small_model_is_believed_on_the_best_line_and_on_what_it_was_taught(
    raw: str, adapter: str | None, mode: str, said: str
) -> None:
    shown = SHOWING.show(QUESTION, raw, PASSAGES, adapter)
    assert (shown.mode, shown.said) == (mode, said)
    assert shown.supported == (mode == "answer" or (mode == "refusal" and raw == REFUSAL))


def test_where_no_line_is_likely_the_answer_is_a_refusal() -> None:
    nothing = replace(SHOWING, finder=Opinions(doubting))
    for raw, supported in ((FIRST, False), (REFUSAL, True)):
        shown = nothing.show(QUESTION, raw, PASSAGES)
        assert (shown.mode, shown.said, shown.supported) == ("refusal", REFUSAL, supported)
    assert nothing.show(QUESTION, SECOND, PASSAGES, "taught").mode == "answer"


def test_without_a_cross_encoder_support_is_enough() -> None:
    words_only = replace(SHOWING, finder=Opinions(None))
    assert words_only.show(QUESTION, SECOND, PASSAGES).said == SECOND
    assert words_only.show("What does parking cost a day?", REFUSAL, PASSAGES).said == SECOND


def test_a_model_that_judges_well_needs_support_alone() -> None:
    def unasked(question: str, lines: Sequence[str]) -> list[float]:
        raise AssertionError("reading the lines again takes seconds on some machines")

    able = replace(SHOWING, model=replace(BUILTIN, second_look=False, cite_first=False))
    assert replace(able, finder=Opinions(unasked)).show(QUESTION, SECOND, PASSAGES).said == SECOND
    assert able.show(QUESTION, SECOND, PASSAGES).said == SECOND
    assert able.show(QUESTION, REFUSAL, PASSAGES).mode == "refusal"
    assert able.show(QUESTION, "[1] The notice period is 31 days.", PASSAGES).mode == "quotes"


def test_what_an_adapter_was_taught_is_known_by_meaning(tmp_path: Path) -> None:
    embedder = Embedder()
    taught = Taught(tmp_path, embedder)
    (tmp_path / "one").mkdir()
    assert taught("one", "What is on the menu?")  # nothing is known about it
    remember(tmp_path / "one", ["How long is the notice period?"], embedder)
    assert taught("one", "What is the length of the notice period?")
    assert not taught("one", "What is on the menu?")
    remember(tmp_path / "one", ["What is on the menu?"], embedder)  # an adapter never changes
    assert not taught("one", "What is on the menu?")
    (tmp_path / "none").mkdir()
    remember(tmp_path / "none", [], embedder)
    assert not taught("none", "What is on the menu?")
