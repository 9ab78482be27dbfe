"""Which sequence a prompt goes into, and what it may reuse of what was evaluated before.

Reuse makes a prompt quicker to answer, and a quicker answer tells that somebody asked the same before. So a
finished sequence is used again only for the same owner (a conversation, or a user) under the same adapter and
scale; a request without an owner finds nothing of anybody's. What all users share is the system message: its
cache is copied when it was first evaluated and given to every new sequence under the same adapter.
Only whole blocks of the prompt are reused, never generated tokens, so that a prompt goes through the same
arithmetic whatever was asked before.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

from engine.context import BASE, CPU_ROWS, Variant

# Evaluated in whole blocks, so that llama.cpp's kernels, which take four rows at a time, see the same rows: a
# prompt that went on from any multiple of 16 had the same last logits to the bit as when evaluated in one go
# (0 of 144 differed; F16, Q8_0 and Q4_K_M), if its last call has two rows or more, see `call_size`
BLOCK = 16
PREFIXES = 8  # system messages kept, of all adapters
PREFIX_BYTES = 128 << 20


@dataclass(eq=False)
class Slot:
    """One sequence: whose it is, and the prompt tokens that its cache holds from position 0 on."""

    number: int
    variant: Variant = BASE
    owner: str = ""
    tokens: tuple[int, ...] = ()
    busy: bool = False
    used: int = 0

    def common(self, tokens: Sequence[int]) -> int:
        """How many tokens of a prompt, in whole blocks, this slot holds; at least two are left over."""
        return common_blocks(self.tokens, tokens)


class Slots:
    """All sequences of a context."""

    def __init__(self, number: int) -> None:
        self._slots = [Slot(index) for index in range(number)]
        self._clock = count(1)

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens in the cache, of requests in work and of finished ones."""
        return sum(len(slot.tokens) for slot in self._slots)

    def take(self, variant: Variant, owner: str, tokens: Sequence[int]) -> Slot:
        """A free slot for a prompt: the owner's that holds most of it, else the one longest unused.

        The slot keeps what can be reused in `tokens`; the caller drops the rest from the cache. An empty slot
        is preferred to one that somebody may come back to, and among equals the lowest number, because
        llama.cpp evaluates neighbouring sequences together.
        """
        free = [slot for slot in self._slots if not slot.busy]
        own = [slot for slot in free if owner and (slot.owner, slot.variant) == (owner, variant)]
        best = max(own, key=lambda slot: slot.common(tokens), default=None)
        reused = best.common(tokens) if best else 0
        slot = best if best and reused else min(free, key=_reluctance)
        slot.tokens = slot.tokens[:reused]
        slot.variant, slot.owner, slot.busy, slot.used = variant, owner, True, next(self._clock)
        return slot

    def give_back(self, slot: Slot) -> None:
        """The reply ended; what its cache holds of the prompt stays until the slot is needed.

        Without an owner nobody may use it again, so it is emptied.
        """
        slot.busy = False
        if not slot.owner:
            slot.tokens = ()

    def forget(self, adapter_id: str) -> None:
        """Empty the free slots of an adapter that changed."""
        for slot in self._slots:
            if slot.variant[0] == adapter_id and not slot.busy:
                slot.tokens = ()


def _reluctance(slot: Slot) -> tuple[bool, int]:
    return (True, slot.used) if slot.tokens else (False, slot.number)


class Prefixes:
    """Copies of evaluated system messages, by adapter; the longest unused goes first."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[Variant, tuple[int, ...]], bytes] = OrderedDict()

    def find(self, variant: Variant, prefix: tuple[int, ...]) -> bytes | None:
        """The copy of exactly this prefix."""
        data = self._kept.get((variant, prefix))
        if data is not None:
            self._kept.move_to_end((variant, prefix))
        return data

    def keep(self, variant: Variant, prefix: tuple[int, ...], data: bytes) -> None:
        """Add a copy, within PREFIXES and PREFIX_BYTES."""
        if len(data) > PREFIX_BYTES:
            return
        self._kept[variant, prefix] = data
        while len(self._kept) > PREFIXES or sum(map(len, self._kept.values())) > PREFIX_BYTES:
            self._kept.popitem(last=False)

    def forget(self, adapter_id: str) -> None:
        """Drop the copies made under an adapter."""
        for key in [key for key in self._kept if key[0][0] == adapter_id]:
            del self._kept[key]


def common_blocks(held: Sequence[int], tokens: Sequence[int]) -> int:
    """The length of the common beginning in whole blocks; at least two of `tokens` are left over."""
    common = 0
    for left, right in zip(held, tokens, strict=False):
        if left != right:
            break
        common += 1
    return max(0, min(common, len(tokens) - 2)) // BLOCK * BLOCK


def call_size(rest: int, allowed: int, most: int) -> int:
    """How many of `rest` tokens to evaluate in one call of about `allowed`, at most `most` (BLOCK at least).

    No call, and no part of one that llama.cpp makes by its `n_ubatch`, has a single row, for which it takes
    other kernels: the logits of such a last row differed by up to 0.005 (F16) from those of the same row in
    company. `allowed` is a multiple of BLOCK, and so is where the next call begins.
    """
    count = min(rest, allowed, most)
    if rest - count == 1:
        alone = count % CPU_ROWS == 0 or count == most
        return count - BLOCK if alone else count + 1
    return count - 1 - BLOCK if count > 1 and count % CPU_ROWS == 1 else count
