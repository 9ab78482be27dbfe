"""When two questions are the same one: the key that corrections, datasets and held-out splits share."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence

from core.types import Message

_NEGATIVE = re.compile(r"(?<!\w)[-−](?=\d)")
_KEPT = frozenset("#%&@−")  # they tell C# from C and 5 % from 5
_DROPPED = frozenset("'’`´")  # so that what's and whats are one word
_LEANING = re.compile(
    r"^(and|but|so|then|or|what about|how about|why|really)\b"
    r"|\b(it|its|they|them|their|this|that|these|those|he|she|him|her|his|there|same|one|ones)\b"
)
_FILLER = frozenset(
    re.findall(
        r"\w+",
        "a an the of in on at to for from by with and or is are was were be do does did has have had will"
        " would can could should may must i we you my our your me us it this that there what which who whom"
        " when where why how please tell",
    )
)
_PUT = "Question: "  # what a prompt's question stands behind (`rag.prompt.layout`)
NGRAM = 13
OVERLAP = 0.8


def question_key(question: str) -> str:
    """The question without case, punctuation, spacing and width variants; empty when no word is left.

    Symbols that carry meaning (`+`, `#`, `%`, currency signs, a minus before a number) stay.
    """
    text = _NEGATIVE.sub("−", unicodedata.normalize("NFKC", question).casefold())
    return " ".join("".join(_folded(char) for char in text).split())


def _folded(char: str) -> str:
    if char in _DROPPED:
        return ""
    if char in _KEPT:
        return char
    return " " if unicodedata.category(char)[0] in "PZC" else char


def context_key(question: str, messages: Sequence[Message]) -> str:
    """`question_key` after those of the prompt's earlier questions ("And for juniors?" alone says little)."""
    earlier = [question_key(message["content"]) for message in messages if message["role"] == "user"][:-1]
    return " / ".join([*earlier, question_key(as_put(question, messages))])


def as_put(question: str, messages: Sequence[Message]) -> str:
    """The question as the prompt put it: a model that reads no earlier turns gets a follow-up made whole."""
    sent = [message["content"] for message in messages if message["role"] == "user"][-1:]
    line = sent[0].partition("\n")[0] if sent else ""
    put = line.removeprefix(_PUT)
    return question if put == line or _letters(put) == _letters(question) else put


def _letters(question: str) -> str:
    return question_key(question).replace(" ", "")  # a prompt drops what nobody sees, a key makes it a space


def stands_alone(question: str, messages: Sequence[Message]) -> bool:
    """Whether the question means the same in any conversation.

    One that was sent without earlier turns, and as it was asked, does; of the others, those without a word
    that leans on them.
    """
    if as_put(question, messages) != question:
        return False
    turns = sum(message["role"] == "user" for message in messages)
    return turns < 2 or not _LEANING.search(question_key(question))


class Excluded:
    """Questions that must not be trained on, with exact, 13-gram and content-word comparison.

    13-grams are the contamination measure of Brown et al. 2020 (appendix C); questions are usually shorter,
    so two that share at least 80 % of their content words (three or more) count as one too.
    """

    def __init__(self, questions: Iterable[str]) -> None:
        self._keys = {question_key(question) for question in questions} - {""}
        self._grams = {gram for key in self._keys for gram in _grams(key)}
        self._contents = [content for key in self._keys if len(content := content_words(key)) >= 3]

    def reason(self, question: str, completion: str) -> str:
        """Why a training row is too close to an excluded question, or an empty string."""
        key = question_key(question)
        if key in self._keys:
            return "is an evaluation question"
        if self._grams & (_grams(key) | _grams(question_key(completion))):
            return f"shares {NGRAM} words in a row with an evaluation question"
        content = content_words(key)
        if any(len(content & other) / len(content | other) >= OVERLAP for other in self._contents):
            return "is nearly an evaluation question"
        return ""


def content_words(key: str) -> frozenset[str]:
    """The words of a `question_key` that say what it is about."""
    return frozenset(key.split()) - _FILLER


def _grams(key: str) -> set[str]:
    words = key.split()
    return {" ".join(words[start : start + NGRAM]) for start in range(len(words) - NGRAM + 1)}
