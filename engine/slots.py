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

from engine.context import BASE, Variant

# Evaluated in whole blocks, so that llama.cpp's kernels, which take four rows at a time, see the same rows
BLOCK = 64
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
        """How many tokens of a prompt, in whole blocks, this slot holds; at least one is left over."""
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
    """The length of the common beginning in whole blocks, less than all of `tokens`."""
    common = 0
    for left, right in zip(held, tokens, strict=False):
        if left != right:
            break
        common += 1
    return min(common, len(tokens) - 1) // BLOCK * BLOCK
