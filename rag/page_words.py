"""Cited words found again among the characters of a PDF page.

The stored text is not the page's: lines are joined, hyphens removed, ligatures taken apart, table rows carry
their column headers. So letters and digits alone are compared: the whole text first, then a table row's
values without the headers, then what two sequences have in common (Ratcliff and Obershelp, as in difflib).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import groupby, takewhile

CONTEXT = 80  # characters of the stored text on each side that tell equal places apart
ENOUGH = 0.6  # share of the letters that must be found where the text is not found whole
ANCHOR = 12  # letters of the longest common stretch, from which the rest is looked for
STRETCH = 3  # letters below which a common stretch is chance

Span = tuple[int, int]
"""First character and the one after the last, counted on the page."""


@dataclass(frozen=True)
class Letters:
    """The letters and digits of a text, plain and in lower case, and the character that each comes from."""

    text: str
    places: tuple[int, ...]

    def span(self, start: int, size: int) -> Span:
        """The characters that letters `start` to `start + size` come from."""
        return self.places[start], self.places[start + size - 1] + 1


def letters(chars: Iterable[str]) -> Letters:
    """What is compared of a text: compatibility characters taken apart, accents and all else left out."""
    pairs = [(letter, at) for at, char in enumerate(chars) for letter in _plain(char)]
    return Letters("".join(letter for letter, _ in pairs), tuple(at for _, at in pairs))


def _plain(char: str) -> Iterator[str]:
    return (letter for letter in unicodedata.normalize("NFKD", char).casefold() if letter.isalnum())


def find(page: Letters, wanted: str, before: str = "", after: str = "") -> list[Span]:
    """Where the lines of `wanted` stand on the page, in order; those that are not found are left out.

    `before` and `after` are the stored text around it: of equal places the one between them is taken.
    """
    spans: list[Span] = []
    lines = wanted.split("\n")
    for number, line in enumerate(lines):
        earlier = "\n".join([before, *lines[:number]])[-CONTEXT:]
        later = "\n".join([*lines[number + 1 :], after])[:CONTEXT]
        spans += _line(page, line, letters(earlier).text, letters(later).text)
    return spans


def _line(page: Letters, line: str, before: str, after: str) -> list[Span]:
    needle = letters(line).text
    if not needle:
        return []
    at = _exact(page.text, needle, before, after)
    if at >= 0:
        return [page.span(at, len(needle))]
    values = [value for value in (letters(cell).text for cell in _cells(line)) if value]
    if values:
        at = _exact(page.text, "".join(values), before, after)
        return [page.span(at, len("".join(values)))] if at >= 0 else _scattered(page, values)
    return _aligned(page, needle)


def _exact(page: str, needle: str, before: str, after: str) -> int:
    """Where `needle` begins on the page; of several places that with most of the context; else -1."""
    found: list[tuple[int, int]] = []
    at = page.find(needle)
    while at >= 0:
        end = at + len(needle)
        left = _alike(reversed(page[max(0, at - len(before)) : at]), reversed(before))
        found.append((left + _alike(page[end : end + len(after)], after), -at))
        at = page.find(needle, at + 1)
    return -max(found)[1] if found else -1


def _alike(one: Iterable[str], other: Iterable[str]) -> int:
    """How many letters are the same from the beginning."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _cells(line: str) -> Sequence[str]:
    """The values of a table row as loaders write it (`Plan: Basic; Price: 10 EUR.`), or nothing."""
    parts = [part.partition(": ") for part in line.split("; ")]
    return [value for _, colon, value in parts] if all(colon for _, colon, _ in parts) else []


def _scattered(page: Letters, values: Sequence[str]) -> list[Span]:
    """The values of a row whose cells do not follow one another: near the longest one, each the nearest."""
    anchor = max(values, key=len)
    at = page.text.find(anchor)
    if at < 0 or page.text.find(anchor, at + 1) >= 0:
        return []
    near = [
        (min(places, key=lambda place: abs(place - at)), len(value))
        for value in values
        if (places := list(_places(page.text, value)))
    ]
    enough = sum(size for _, size in near) >= ENOUGH * len("".join(values))
    return [page.span(*place) for place in near] if enough else []


def _places(page: str, value: str) -> Iterator[int]:
    at = page.find(value)
    while at >= 0:
        yield at
        at = page.find(value, at + 1)


def _aligned(page: Letters, needle: str) -> list[Span]:
    """What the page has in common with the text around their longest common stretch, if it is enough."""
    matcher = SequenceMatcher(None, page.text, needle, autojunk=False)
    longest = matcher.find_longest_match()
    if longest.size < min(ANCHOR, len(needle) / 2):
        return []
    spare = max(40, len(needle) // 2)
    first = max(0, longest.a - longest.b - spare)
    window = page.text[first : longest.a - longest.b + len(needle) + spare]
    matcher.set_seq1(window)
    blocks = [block for block in matcher.get_matching_blocks() if block.size >= STRETCH]
    if sum(block.size for block in blocks) < ENOUGH * len(needle):
        return []
    return [page.span(first + block.a, block.size) for block in blocks]


def joined(spans: Iterable[Span]) -> list[Span]:
    """The spans in order, those that touch or overlap made one."""
    chars = sorted({at for start, end in spans for at in range(start, end)})
    runs = [[at for _, at in run] for _, run in groupby(enumerate(chars), lambda pair: pair[1] - pair[0])]
    return [(run[0], run[-1] + 1) for run in runs]
