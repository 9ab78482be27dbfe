"""What GRPO pays for: the right facts, from the unit that is cited, briefly. Pure functions from 0 to 1.

Every term has a cheap trick that would earn it (citing every label, echoing the question, copying the
passages, refusing always), so the terms multiply instead of adding up: form and citations alone earn nothing,
and tests hold each trick below an honest answer.
"""

from __future__ import annotations

import re
from collections import Counter

REFUSAL = "Not in the documents."
"""The reply that says the passages do not hold the answer; a test keeps it equal to `rag.prompt.REFUSAL`."""

CITATION_SHARE = 0.4  # of the reward; the rest is paid for the facts alone
MOST_LABELS = 3  # a sentence that cites more is not telling where it has its words from

_UNIT = re.compile(r"^\[(\d+)\] (.+)$", re.MULTILINE)
_PIECE = re.compile(r"\[(\d{1,4})\]|([^\[]+|\[)")
_WORD = re.compile(r"\d+(?:[.,:/]\d+)*|[^\W\d_]+")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_SMALL = frozenset(
    [
        "a",
        "an",
        "the",
        "of",
        "in",
        "on",
        "at",
        "to",
        "for",
        "from",
        "by",
        "with",
        "and",
        "or",
        "is",
        "are",
        "was",
        "were",
        "be",
        "it",
        "its",
        "this",
        "that",
    ]
)


def reward(question: str, reference: str, reply: str) -> float:
    """How good a reply to the prompt `question` (with its numbered units) is, given a known good one.

    A refusal is worth 1 where the reference refuses and 0 elsewhere. An answer is paid for its facts, partly
    only when the units it cites hold them, and less the more it exceeds the reference's length.
    """
    if is_refusal(reference) or is_refusal(reply):
        return float(is_refusal(reference) and is_refusal(reply))
    facts = fact_score(reference, reply)
    cited = citation_score(units_of(question), reply)
    return facts * (1 - CITATION_SHARE + CITATION_SHARE * cited) * brevity(reference, reply)


def is_refusal(text: str) -> bool:
    """Whether a text is the refusal and nothing else."""
    return text.strip().rstrip(".").lower() == REFUSAL.rstrip(".").lower()


def exact_match(reference: str, reply: str) -> float:
    """1 when both hold the same words in the same order, labels, case and punctuation aside."""
    return float(bool(_words(reference)) and _words(reference) == _words(reply))


def fact_score(reference: str, reply: str) -> float:
    """Overlap (F1) of the words, labels aside, and 0 when a number is missing or made up.

    F1 instead of recall: what a reply adds to the reference costs as much as what it leaves out.
    """
    wanted, said = _words(reference), _words(reply)
    if not wanted or not said or _numbers(wanted) != _numbers(said):
        return 0.0
    common = sum((Counter(wanted) & Counter(said)).values())
    return 2 * common / (len(wanted) + len(said))


def citation_score(units: dict[int, str], reply: str) -> float:
    """Mean share of each sentence's words that the units it cites hold; a missing or unknown label is 0."""
    pairs = cited_sentences(reply)
    return sum(_supported(units, text, labels) for text, labels in pairs) / len(pairs) if pairs else 0.0


def brevity(reference: str, reply: str) -> float:
    """1 up to 1.5 times the reference plus 5 words, falling to 0 at three times that."""
    allowed = 1.5 * len(_words(reference)) + 5
    return max(0.0, min(1.0, 1 - (len(reply.split()) - allowed) / (2 * allowed)))


def units_of(question: str) -> dict[int, str]:
    """The numbered units of a prompt."""
    return {int(number): text for number, text in _UNIT.findall(question)}


def cited_sentences(reply: str) -> list[tuple[str, list[int]]]:
    """A reply as texts with the labels before (`[3] text`) or behind them (`text [3]`)."""
    first = reply.lstrip().startswith("[")
    pairs: list[tuple[str, list[int]]] = []
    labels: list[int] = []
    for number, text in _PIECE.findall(reply):
        if number and not first and pairs:
            pairs[-1][1].append(int(number))
        elif number:
            labels.append(int(number))
        elif _words(text):
            pairs.append((text, labels if first else []))
            labels = []
    return pairs


def _supported(units: dict[int, str], text: str, labels: list[int]) -> float:
    if not labels or len(labels) > MOST_LABELS or not set(labels) <= set(units):
        return 0.0
    held, said = set(_words(" ".join(units[label] for label in labels))), _words(text)
    return sum(word in held for word in said) / len(said)


def _words(text: str) -> list[str]:
    plain = re.sub(r"\[\d{1,4}\]", " ", text)
    words = [_THOUSANDS.sub("", word.lower()) for word in _WORD.findall(plain)]
    return [word for word in words if word not in _SMALL]


def _numbers(words: list[str]) -> set[str]:
    return {word for word in words if word[0].isdigit()}
