from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.context import BASE, CPU_ROWS, Variant
from engine.slots import BLOCK, PREFIX_BYTES, PREFIXES, Prefixes, Slot, Slots, call_size, common_blocks

TUNED: Variant = ("a1", 1.0)


def prompt(*blocks: int, rest: int = 3) -> tuple[int, ...]:
    """A prompt of whole blocks of one token each and a few tokens more."""
    return tuple(token for block in blocks for token in [block] * BLOCK) + (9,) * rest


def used(slots: Slots, variant: Variant, owner: str, tokens: tuple[int, ...]) -> tuple[Slot, int]:
    """Take a slot for a prompt, evaluate it and give it back; the slot and how much was reused."""
    slot = slots.take(variant, owner, tokens)
    reused = len(slot.tokens)
    slot.tokens = tokens
    slots.give_back(slot)
    return slot, reused


def test_the_longest_own_beginning_wins() -> None:
    slots = Slots(3)
    short, _ = used(slots, BASE, "me", prompt(1, 2))
    other, _ = used(slots, BASE, "you", prompt(1, 2, 3, 4))
    again, reused = used(slots, BASE, "me", prompt(1, 2, 3, 4))
    assert (again, reused) == (short, 2 * BLOCK)
    assert used(slots, BASE, "you", prompt(1, 2, 3, 4, 5)) == (other, 4 * BLOCK)


def test_adapters_scales_and_owners_are_never_mixed() -> None:
    slots = Slots(4)
    used(slots, BASE, "me", prompt(1, 2))
    assert used(slots, TUNED, "me", prompt(1, 2))[1] == 0
    assert used(slots, ("a1", 0.5), "me", prompt(1, 2))[1] == 0
    assert used(slots, BASE, "", prompt(1, 2))[1] == 0
    assert used(slots, BASE, "", prompt(1, 2))[1] == 0
    assert used(slots, TUNED, "me", prompt(1, 2))[1] == 2 * BLOCK
    slots.forget("a1")
    assert used(slots, TUNED, "me", prompt(1, 2))[1] == 0


def test_the_longest_unused_slot_is_taken_and_empty_ones_before() -> None:
    slots = Slots(3)
    first, _ = used(slots, BASE, "one", prompt(1))
    second, _ = used(slots, BASE, "two", prompt(2))
    third, _ = used(slots, BASE, "three", prompt(3))
    assert [slot.number for slot in (first, second, third)] == [0, 1, 2]
    assert used(slots, BASE, "one", prompt(1, 4))[0] is first
    assert used(slots, BASE, "four", prompt(5))[0] is second
    assert slots.cached_tokens == sum(len(slot.tokens) for slot in (first, second, third))


def test_copies_of_system_messages_are_few() -> None:
    prefixes = Prefixes()
    for number in range(PREFIXES + 1):
        prefixes.keep(BASE, prompt(number), b"x")
    assert prefixes.find(BASE, prompt(0)) is None
    assert prefixes.find(BASE, prompt(1)) == b"x"
    assert prefixes.find(TUNED, prompt(1)) is None
    prefixes.keep(TUNED, prompt(1), b"y")
    prefixes.forget("a1")
    assert prefixes.find(TUNED, prompt(1)) is None
    prefixes.keep(BASE, prompt(7), bytes(PREFIX_BYTES + 1))
    assert prefixes.find(BASE, prompt(7)) == b"x"


TOKENS = st.lists(st.integers(0, 2), max_size=4 * BLOCK)


@settings(max_examples=200, deadline=None)
@given(TOKENS, TOKENS.filter(bool))
def test_only_whole_equal_blocks_are_common(held: list[int], asked: list[int]) -> None:
    common = common_blocks(held, asked)
    assert common % BLOCK == 0
    assert common < max(2, len(asked) - 1)  # the last call never has a row alone
    assert held[:common] == asked[:common]


@settings(max_examples=500, deadline=None)
@given(st.integers(1, 1200), st.integers(1, 32), st.sampled_from([32, 512]))
def test_no_call_has_a_row_alone(rest: int, blocks: int, most: int) -> None:
    alone = rest == 1
    while rest:
        count = call_size(rest, blocks * BLOCK, most)
        assert 0 < count <= min(rest, most, blocks * BLOCK + 1)
        assert alone or count % CPU_ROWS != 1
        rest -= count
        assert rest == 0 or (count % BLOCK == 0 and rest > 1)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["", "a", "b"]), st.booleans()), max_size=30))
def test_nobody_ever_gets_a_busy_slot(turns: list[tuple[str, bool]]) -> None:
    slots = Slots(3)
    busy: list[Slot] = []
    for owner, ends in turns:
        if busy and (ends or len(busy) == 3):
            slots.give_back(busy.pop(0))
        slot = slots.take(BASE, owner, prompt(1, 2))
        assert slot not in busy
        slot.tokens = prompt(1, 2)
        busy.append(slot)
