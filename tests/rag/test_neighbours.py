"""Neighbours become one passage whose units and offsets are those they had apart."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.catalog import BUILTIN, CATALOG
from core.types import Passage, Unit
from rag.chunks import chunk
from rag.focus import focus
from rag.loaders import extract
from rag.neighbours import merged
from rag.prompt import MAX_UNITS, build
from rag.words import token_estimate

SENTENCES = "\n\n".join(
    f"The rule number {n} says that a bike of kind {n} costs {n} EUR a day. It holds." for n in range(12)
)
READ = extract("rules.md", f"# Rules\n\n## Prices\n\n{SENTENCES}\n\n## Others\n\nNothing else.\n".encode())
CHUNKS = [
    Passage(number, "d1", "Rules", piece.heading, piece.page, piece.start, piece.end, piece.text)
    for number, piece in enumerate(chunk(READ, 32))
]
PRICES = [passage for passage in CHUNKS if passage.heading == "Prices"]
LARGE = CATALOG["qwen3-4b"]


def spans(passages: list[Passage] | tuple[Passage, ...]) -> set[tuple[int, int, str]]:
    """Every unit of a prompt by its place."""
    return {(u.start, u.end, u.text) for p in build("What?", passages, LARGE).passages for u in p.units}


def test_neighbours_are_joined_in_reading_order_at_the_best_place() -> None:
    other = replace(PRICES[0], document_id="d2", chunk_id=99)
    second, first = replace(PRICES[1], scores={"fused": 2.0}), PRICES[0]
    joined = merged([second, other, first])
    assert [passage.chunk_id for passage in joined] == [second.chunk_id, 99]
    assert joined[0].scores == {"fused": 2.0}
    assert (joined[0].start, joined[0].end) == (first.start, second.end)
    assert joined[0].text.startswith(first.text)
    assert joined[0].text.endswith(second.text)
    assert len(joined[0].text) == joined[0].end - joined[0].start


@given(st.permutations(range(len(CHUNKS))), st.integers(1, len(CHUNKS)))
def test_every_unit_stays_itself_at_its_place(order: list[int], count: int) -> None:
    chosen = [CHUNKS[i] for i in order[:count]]
    prompt = build("What?", merged(chosen), replace(LARGE, passages=len(CHUNKS)))
    for passage in prompt.passages:
        for unit in passage.units:
            assert READ.text[unit.start : unit.end] == unit.text
    apart = {u for passage in chosen for u in spans([passage])}
    units = [(u.start, u.end, u.text) for p in prompt.passages for u in p.units]
    assert len(units) == len(set(units))
    if len(apart) <= MAX_UNITS:
        assert set(units) == apart


def test_overlap_is_taken_out() -> None:
    text = "One is here. Two is here. Three is here."
    left, right = (
        Passage(n, "d", "D", "H", None, start, end, text[start:end])
        for n, start, end in ((1, 0, 25), (2, 13, 40))
    )
    (joined,) = merged([right, left])
    assert (joined.text, joined.start, joined.end, joined.chunk_id) == (text, 0, 40, 2)
    inner = replace(left, chunk_id=3, start=4, end=11, text=text[4:11])
    (joined,) = merged([left, inner, right])
    assert joined.text == text


@pytest.mark.parametrize(
    "change",
    [
        {"document_id": "d2"},
        {"heading": "Others"},
        {"page": 2},
        {"edited": True},
        {"units": (Unit(0, "x", 0, 1),)},
        {"start": PRICES[1].start + 40, "end": PRICES[1].end + 40},
    ],
)
def test_what_does_not_belong_together_stays_apart(change: dict[str, object]) -> None:
    assert len(merged([PRICES[0], PRICES[1]])) == 1
    pair = [PRICES[0], replace(PRICES[1], **change)]  # type: ignore[arg-type]
    assert merged(pair) == pair


def test_a_prompt_writes_their_heading_once_and_keeps_to_its_room() -> None:
    prompt = build("What?", [PRICES[1], PRICES[0]], LARGE)
    content = prompt.messages[-1]["content"]
    assert content.count("Rules > Prices") == 1
    assert content.index("rule number 0 ") < content.index("rule number 1 ")
    room = 700
    small = build("What?", PRICES, replace(LARGE, passages=len(PRICES)), room=room)
    assert sum(token_estimate(message["content"]) for message in small.messages) <= room
    assert sum(len(passage.units) for passage in small.passages) <= MAX_UNITS


def test_a_model_that_reads_chosen_units_is_asked_as_before() -> None:
    chosen = focus("What does a bike of kind 3 cost a day?", PRICES[:3], BUILTIN.units)
    prompt = build("What does a bike of kind 3 cost a day?", chosen, BUILTIN)
    assert [p.chunk_id for p in prompt.passages] == [p.chunk_id for p in chosen]
    assert [u.text for p in prompt.passages for u in p.units] == [u.text for p in chosen for u in p.units]
