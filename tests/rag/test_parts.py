"""Questions in several parts: what is taken apart, and that each part gets its passages and its line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from core.catalog import BUILTIN
from core.settings import Settings
from core.types import Passage, Unit
from rag.citations import quote, resolve
from rag.index import Index
from rag.ingest import Ingestor
from rag.parts import Part, parts, together
from rag.reader import Reader
from rag.retrieve import Retriever


@pytest.mark.parametrize(
    ("question", "searched"),
    [
        (
            "How long is a repair quote valid? Who handles complaints?",
            ["How long is a repair quote valid?", "Who handles complaints?"],
        ),
        (
            "What does a household membership cost and which tram stop is nearest to the main shop?",
            ["What does a household membership cost", "which tram stop is nearest to the main shop?"],
        ),
        (
            "Is there public money for a cargo bike, and how much?",
            ["Is there public money for a cargo bike", "how much? (public money cargo bike)"],
        ),
        (
            "Who repairs Otters and when do they open on Sunday?",
            ["Who repairs Otters", "when do they open on Sunday? (repairs Otters)"],
        ),
        (
            "My bike was stolen. How much do I pay? Who do I call about stolen bikes?",
            ["My bike was stolen. How much do I pay?", "Who do I call about stolen bikes?"],
        ),
        (
            "What does it cost and when is it open? (workshop)",  # as `rag.followup` puts a follow-up
            ["What does it cost (workshop)", "when is it open? (cost) (workshop)"],
        ),
        (
            "Does it cost extra; when is the late fee due for vans?",
            ["Does it cost extra", "when is the late fee due for vans?"],
        ),
        (
            "I want to know how derating works and why the fan starts at night",
            ["I want to know how derating works", "why the fan starts at night"],
        ),
    ],
)
def test_what_asks_several_things_is_taken_apart(question: str, searched: list[str]) -> None:
    assert [part.searched for part in parts(question)] == searched
    assert all(part.asked in question for part in parts(question))


@pytest.mark.parametrize(
    "question",
    [
        "How long is a repair quote valid?",
        "What do bread and butter cost?",
        "Are the shop and the kiosk open on Sunday?",
        "If there is a conflict between EU law and national law, which law takes precedence?",
        "When many people are arrested, what is a common tactic?",
        "My rented bike was stolen although I had locked it. How much do I pay?",
        "How much is the deposit? I need a van by Friday and will pay in cash.",
        "Those who ride and those who walk",
        "Bikes that are broken and can be repaired",
        "Otter battery price",
        "? ?",
        "",
        "What is A? What is B? What is C? What is D? What is E?",  # too many to share the passages
    ],
)
def test_one_question_stays_as_it_is(question: str) -> None:
    assert parts(question) == (Part(question, question),)


def passage(chunk_id: int, *texts: str) -> Passage:
    whole, spans = " ".join(texts), []
    for text in texts:
        at = whole.index(text)
        spans.append(Unit(0, text, at, at + len(text)))
    return Passage(chunk_id, f"d{chunk_id}", "Guide", "", None, 0, len(whole), whole, units=tuple(spans))


def test_parts_share_the_places_by_turns_and_a_passage_of_both_is_one() -> None:
    both = passage(2, "Costs 3 EUR.", "Opens at noon.")
    first = [passage(1, "A."), replace(both, units=both.units[:1])]
    second = [replace(both, units=both.units[1:]), passage(3, "B."), passage(4, "C.")]
    merged = together([first, second], 3)
    assert [one.chunk_id for one in merged] == [1, 2, 3]
    assert [unit.text for unit in merged[1].units] == ["Opens at noon.", "Costs 3 EUR."]
    assert together([], 3) == []


TRADES = ("bakers", "carpenters", "divers", "farmers")
HANDBOOKS = {
    f"{trade}.md": f"# Notice of {trade}\n\nThe notice period of {trade} is {days} days.\n"
    for days, trade in enumerate(TRADES, 30)
}
TWO = replace(BUILTIN, units=0, passages=2)
ASKED = "How long is the notice period of bakers, the notice of divers? Where does the tram stop?"


@pytest.fixture
def retriever(ingestor: Ingestor, reader: Reader, settings: Settings, index: Index) -> Retriever:
    for name, text in {**HANDBOOKS, "tram.md": "# Way here\n\nThe tram stops at Customs House.\n"}.items():
        ingestor.documents.add(name, text.encode(), "upload", reader)
    ingestor.process_pending()
    return Retriever(settings, ingestor.passages.database, index, ingestor.embedder)


def test_no_part_of_a_question_takes_all_places(retriever: Retriever) -> None:
    assert "Way here" not in {one.document for one in retriever.read_whole(ASKED, TWO).passages}
    found = retriever.read_for(ASKED, TWO)
    assert [one.document for one in found] in (
        ["Notice of bakers", "Way here"],
        ["Notice of divers", "Way here"],
    )
    lines = [unit.text for one in retriever.read_for(ASKED, BUILTIN) for unit in one.units]
    assert "The tram stops at Customs House." in lines
    assert any("bakers" in line for line in lines)


LINES = [
    Passage(
        1, "d", "Guide", "", None, 0, 99, "Parking costs 3 EUR a day. The canteen opens at noon.",
        units=(Unit(1, "Parking costs 3 EUR a day.", 0, 26), Unit(2, "The canteen opens at noon.", 27, 53)),
    )
]  # fmt: skip


def likely(question: str, lines: Sequence[str]) -> list[float]:
    return [
        float(any(word in question and word in line.lower() for word in ("parking", "canteen")))
        for line in lines
    ]


def test_the_best_line_of_each_part_is_quoted_and_what_none_answers_is_said() -> None:
    asked = "How much is parking in a day? When does the canteen open at noon? Who runs the whole shop?"
    found = quote(asked, LINES, answers=likely)
    assert found is not None
    assert [citation.quote for citation in found.citations] == [unit.text for unit in LINES[0].units]
    assert found.text.endswith("The documents do not seem to answer: Who runs the whole shop?")
    assert found.said == "[1] Parking costs 3 EUR a day. [2] The canteen opens at noon."
    # as the exam reads it
    assert resolve(found.said, LINES).citations == found.citations
    same = quote("How much is parking in a day? What does parking cost for a day?", LINES, answers=likely)
    assert same is not None
    assert len(same.citations) == 1
    assert quote("Who runs the whole shop? Who sweeps the whole floor?", LINES, answers=likely) is None
