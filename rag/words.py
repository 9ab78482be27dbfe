"""What counts as a word: cleaning, light stemming, content words, numbers, and a token estimate.

Everything that compares texts (retrieval, support check, quotes) uses these, so that it compares alike.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache
from math import log
from pathlib import PurePath

STEMS = 20_000  # that are kept, some 3 MB: the words of what is searched come again and again

_FUNCTION_WORDS = """
    a an the of in on at to for from by with without and or but nor is are was were be been being am do does
    did done has have had having will would shall should can could may might must it its this that these those
    they them their he him his she her we us our you your i me my who whom whose which what when where why how
    as than then there here so such if into about also just very please tell
    many much get got give
"""
STOP = frozenset(_FUNCTION_WORDS.split())
# 18.4 and 08:30 | 30 | codes such as F05 | words, with it's
_WORD = re.compile(r"\d+(?:[.,:/]\d+)+|\d+(?![^\W_])|[^\W_]*\d[^\W_]*|[^\W\d_]+(?:['’][^\W\d_]+)*")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_ENDINGS = ("ations", "ation", "ings", "ing", "ment", "ed", "es", "ly", "er", "s", "e", "y")
# what most text consists of; nothing of it changes when it is cleaned, and looking is 50 times as quick
_PLAIN = re.compile(r"[ -~\u00a1-\u00ac\u00ae-\u02af\u2010-\u2027\u2030-\u205e\u20ac]*")
_HIDDEN = ("Cc", "Cf", "Cs", "Co", "Cn")
_TOKEN = re.compile(r"\n|[^\W\d_]+|\d|[^\w\s]|_")


def clean(text: str, keep: str = "\n") -> str:
    """Normalise to NFC and drop what no reader sees: controls, zero-width, tag and unassigned characters.

    Characters in `keep` survive; other white space becomes a plain space. At most four combining marks
    in a row are kept. The result is valid UTF-8 without NUL or lone surrogates.
    """
    if _PLAIN.fullmatch(text):
        return text
    out: list[str] = []
    marks = 0
    for char in unicodedata.normalize("NFC", text):
        marks = marks + 1 if unicodedata.combining(char) else 0
        if char in keep:
            out.append(char)
        elif char.isspace():
            out.append(" ")
        elif marks <= 4 and unicodedata.category(char) not in _HIDDEN and not _invisible(char):
            out.append(char)
    # dropping a character can bring two together that compose
    return unicodedata.normalize("NFC", "".join(out))


def _invisible(char: str) -> bool:
    code = ord(char)
    return 0xFE00 <= code <= 0xFE0F or 0xE0000 <= code <= 0xE0FFF or code in (0x034F, 0x115F, 0x1160, 0x3164)


def one_line(text: str) -> str:
    """`clean` text with every run of white space as one space."""
    return " ".join(clean(" ".join(text.split()), keep="").split())


@lru_cache(STEMS)
def stem(word: str) -> str:
    """A crude stem, enough to see that `costs` and `cost` are one word; numbers lose thousands commas."""
    word = word.lower().replace("’", "'").removesuffix("'s")
    if any(char.isdigit() for char in word):
        return _THOUSANDS.sub("", word)
    if word.endswith(("ies", "ied")) and len(word) > 4:
        return word[:-3]
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word[: -len(ending)]
    return word


def content(text: str) -> list[str]:
    """Stems of the words that carry meaning, in order, with repeats."""
    return [stem(word) for word in _WORD.findall(text) if word.lower() not in STOP]


def numbers(text: str) -> set[str]:
    """The numbers of a text as written (1,500 and 1500 are one): prices, times, dates and codes."""
    return {stem(word) for word in _WORD.findall(text) if any(char.isdigit() for char in word)}


def words(text: str) -> list[str]:
    """Every word and number of a text, as written."""
    return _WORD.findall(text)


def rarity(texts: Iterable[str]) -> dict[str, float]:
    """Weight of each stem: rare among `texts` is heavy (inverse document frequency, always positive)."""
    counts: dict[str, int] = {}
    total = 0
    for text in texts:
        total += 1
        for word in set(content(text)):
            counts[word] = counts.get(word, 0) + 1
    return {word: log(1 + total / count) for word, count in counts.items()}


def overlap(asked: Iterable[str], text: str, weights: dict[str, float] | None = None) -> float:
    """Weighted share (0 to 1) of the stems `asked` that stand in `text`; unknown stems weigh most."""
    wanted = set(asked)
    have = set(content(text))
    heaviest = max(weights.values(), default=1.0) if weights else 1.0
    weigh = {word: (weights or {}).get(word, heaviest) for word in wanted}
    total = sum(weigh.values())
    return sum(weigh[word] for word in wanted & have) / total if total else 0.0


def token_estimate(text: str) -> int:
    """A cautious count of the tokens a small (8k) vocabulary needs; bytes for scripts it does not know.

    Measured on the samples it lies above the tokenizers' own counts; see tests/rag/test_words.py.
    """
    pieces = _TOKEN.findall(text)  # words, and single characters
    return sum(
        [1 + (len(piece) - 1) // 4 if piece.isascii() else len(piece.encode("utf-8")) for piece in pieces]
    )


def asks(text: str) -> bool:
    """Whether a unit of text is a question, such as those of an FAQ."""
    return text.rstrip(" \t\n\"'”’»)*_").endswith(("?", "？", "؟"))


def echoes(question: str, text: str) -> bool:
    """Whether a unit of text, or what follows its label, only repeats words of the question in a row."""
    asked = f" {_lowered(question)} "
    said = [part for part in (_lowered(text), _lowered(text.partition(":")[2])) if part]
    return any(f" {part} " in asked for part in said)


def may_answer(question: str, text: str) -> bool:
    """Whether a unit of text can be an answer: it asks nothing, and says more than the question does."""
    return not asks(text) and not echoes(question, text)


def _lowered(text: str) -> str:
    return " ".join(words(text)).lower()


def display_name(name: str) -> str:
    """A file name as display text: no folders, no controls or direction marks, at most 200 characters."""
    base = one_line(PurePath(name.replace("\\", "/")).name)
    if len(base) <= 200:
        return base or "untitled"
    ending = PurePath(base).suffix[:12]
    return base[: 200 - len(ending)] + ending
