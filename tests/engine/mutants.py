"""Damaged copies of a GGUF file: its header's fields replaced by what an attacker would write there."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
EXTREMES = (0, 1, 2, 3, 7, 255, 256, 65_535, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)


@dataclass
class Fields:
    """Where a header's fields lie: (offset, bytes), by what they are."""

    counts: list[tuple[int, int]] = field(default_factory=list)
    lengths: list[tuple[int, int]] = field(default_factory=list)
    types: list[tuple[int, int]] = field(default_factory=list)
    values: list[tuple[int, int]] = field(default_factory=list)
    tensors: list[tuple[int, int]] = field(default_factory=list)
    texts: list[tuple[int, int]] = field(default_factory=list)
    end: int = 0


def locate(data: bytes) -> Fields:
    """The fields of a well-formed header."""
    found = Fields(counts=[(0, 4), (4, 4), (8, 8), (16, 8)])
    tensors, keys = struct.unpack_from("<QQ", data, 8)
    at = 24

    def text(at: int) -> int:
        (length,) = struct.unpack_from("<Q", data, at)
        found.lengths.append((at, 8))
        found.texts.append((at + 8, length))
        return int(at + 8 + length)

    for _ in range(keys):
        at = text(at)
        (kind,) = struct.unpack_from("<I", data, at)
        found.types.append((at, 4))
        at += 4
        if kind == 8:
            at = text(at)
        elif kind == 9:
            item, count = struct.unpack_from("<IQ", data, at)
            found.types.append((at, 4))
            found.lengths.append((at + 4, 8))
            at += 12
            for _ in range(count if item == 8 else 0):
                (length,) = struct.unpack_from("<Q", data, at)
                at += 8 + length
            at += 0 if item == 8 else count * SIZES[item]
        else:
            found.values.append((at, SIZES[kind]))
            at += SIZES[kind]
    for _ in range(tensors):
        at = text(at)
        (dimensions,) = struct.unpack_from("<I", data, at)
        found.tensors += [(at, 4), *((at + 4 + 8 * d, 8) for d in range(dimensions))]
        at += 4 + 8 * dimensions
        found.tensors += [(at, 4), (at + 4, 8)]
        at += 12
    found.end = at
    return found


def mutants(data: bytes, number: int, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """Kind of damage and the damaged file, `number` times."""
    rng, fields = random.Random(seed), locate(data)
    kinds = ("counts", "lengths", "types", "values", "values", "tensors", "tensors", "texts", "bytes", "cut")
    for index in range(number):
        kind = kinds[index % len(kinds)]
        made = bytearray(data)
        if kind == "cut":
            made = made[: rng.randrange(len(made))]
        elif kind == "bytes":
            for _ in range(rng.randrange(1, 9)):
                made[rng.randrange(fields.end)] = rng.randrange(256)
        else:
            at, size = rng.choice([place for place in getattr(fields, kind) if place[1]])
            if kind == "texts":
                made[at + rng.randrange(size)] = rng.choice((0, 0x7F, 0xFF, rng.randrange(256)))
            else:
                value = rng.choice((*EXTREMES, rng.randrange(2**64))) % 2 ** (8 * size)
                made[at : at + size] = value.to_bytes(size, "little")
        yield kind, bytes(made)
