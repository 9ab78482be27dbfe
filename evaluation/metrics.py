"""Scoring one reply: the fact, the citation, the refusal, the support. Exact rules, no model as judge.

Words are compared by stem and numbers as a whole (`rag.words`), so "3 days" is found in "3-day" and not in
"13 days". Long replies and replies that cite everything earn nothing, since both hold any fact.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from evaluation.cases import Case
from rag.citations import resolve, sentences, support
from rag.words import numbers, stem, words

LONGEST = 40  # words of a reply in which a fact still counts
MOST_CITED = 3  # units that a reply may cite and still be said to cite
CLOSE = 0.7  # token F1 from which a reply says what a held-out reference says
SUPPORTED = 0.6  # support from which other words than the reference's may count
FACT_SHARE = 0.5  # of a case's score; the rest is for the citation

_LABEL = re.compile(r"\[\d{1,4}(?:\s*[,;-]\s*\d{1,4})*\]")
_NEGATIONS = frozenset(("not", "never", "no", "cannot", "isn't", "aren't", "don't", "doesn't", "without"))
_NUMBER_WORDS = {
    word: str(number)
    for number, word in enumerate(
        ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"), 2
    )
}
_ADDRESS = re.compile(
    r"(?:https?|ftp|javascript|data|file|mailto):\S+|\bwww\.\S+|[\w.+-]+@[\w-]+\.[\w.-]+"
    r"|\b[\w-]+\.(?:com|net|org|io|info|biz|xyz|dev|app|co|uk|de|fr|eu|us|ru|cn|top|site|online)\b(?:/\S*)?",
    re.IGNORECASE,
)


def normalise(text: str) -> list[str]:
    """Stems and numbers of a text in order, without citation marks; number words up to twelve as digits."""
    plain = _LABEL.sub(" ", text).replace("€", " EUR ").replace("%", " percent ")
    tokens = [stem(word) for word in words(plain)]
    return [_NUMBER_WORDS.get(token, token) for token in tokens]


def fact_match(text: str, alternatives: tuple[str, ...], evidence: str = "") -> bool:
    """Whether one of the alternatives stands in the text, word for word and not negated right before.

    Where the `evidence` itself negates the fact ("no polystyrene"), a reply may do so too.
    """
    have, wanted = normalise(text), [normalise(alternative) for alternative in alternatives]
    source = normalise(evidence)
    guarded = not source or any(_stands_in(source, want, guarded=True) for want in wanted)
    return any(_stands_in(have, want, guarded=guarded) for want in wanted)


def token_f1(text: str, reference: str) -> float:
    """Harmonic mean of the shares of common tokens (Rajpurkar et al. 2016, SQuAD), over stems."""
    have, want = Counter(normalise(text)), Counter(normalise(reference))
    common = (have & want).total()
    return 2 * common / (have.total() + want.total()) if common else 0.0


def score(case: Case, reply: str) -> dict[str, Any]:
    """How right a reply is.

    `score` is 1 for a right fact with a right citation, 0.5 for the fact alone, 1 for refusing where the
    answer is not in the documents, else 0. `refusal_right` asks less: to refuse exactly when the prompt
    does not hold the answer (`reachable`), which no reader can mend.
    """
    resolved = resolve(reply, case.passages)
    reached = reachable(case)
    fact = case.answerable and not resolved.refused and _fact_right(case, reply)
    citation = fact and _citation_right(case, reply)
    earned = FACT_SHARE * fact + (1 - FACT_SHARE) * citation
    return {
        "score": earned if case.answerable else float(resolved.refused),
        "fact": bool(fact),
        "citation": bool(citation),
        "refused": resolved.refused,
        "refusal_right": resolved.refused == (not reached),
        "support": support(reply, case.passages),
        "words": len(words(_LABEL.sub(" ", reply))),
        "addresses": new_addresses(reply, case),
        "reachable": reached,
    }


def reachable(case: Case) -> bool:
    """Whether the prompt holds the answer: a reader can only find what retrieval brought."""
    if case.origin == "heldout" or not case.answerable:
        return case.answerable
    return bool(_fact_units(case))


def new_addresses(reply: str, case: Case) -> list[str]:
    """Links and e-mail addresses in the reply that its prompt does not hold."""
    shown = "\n".join(message["content"] for message in case.messages).casefold()
    found = {match.rstrip(".,;:!?)]}>\"'”").casefold() for match in _ADDRESS.findall(reply)}
    return sorted(address for address in found if address and address not in shown)


def _fact_right(case: Case, reply: str) -> bool:
    plain = _LABEL.sub(" ", reply)
    if case.origin == "golden":
        return len(words(plain)) <= LONGEST and fact_match(plain, case.facts, case.evidence)
    [reference] = case.facts
    if _negations(plain) != _negations(reference) or len(words(plain)) > max(
        LONGEST, 2 * len(words(reference))
    ):
        return False
    if token_f1(plain, reference) >= CLOSE:
        return numbers(plain) == numbers(reference)
    # other words for the same lines: the source's own sentence instead of the user's, for example
    same_lines = _cited(case, reply) == _cited(case, case.completion) != set()
    return same_lines and numbers(reference) <= numbers(plain) and support(reply, case.passages) >= SUPPORTED


def _citation_right(case: Case, reply: str) -> bool:
    cited = _cited(case, reply)
    if not cited or len(cited) > MOST_CITED:
        return False
    if case.origin == "heldout":
        return bool(cited & _cited(case, case.completion))
    return bool(cited & _fact_units(case))


def _cited(case: Case, reply: str) -> set[int]:
    return {number for sentence in sentences(reply, case.passages) for number in sentence.cites}


def _fact_units(case: Case) -> set[int]:
    """Numbers of the units in the right documents that hold the fact, or are the evidence."""
    evidence = normalise(case.evidence)
    return {
        unit.number
        for passage in case.passages
        if passage.document_id in case.sources
        for unit in passage.units
        if fact_match(unit.text, case.facts, case.evidence) or (evidence and normalise(unit.text) == evidence)
    }


def _negations(text: str) -> int:
    return sum(word.casefold() in _NEGATIONS for word in words(text))


def _stands_in(have: list[str], want: list[str], *, guarded: bool) -> bool:
    if not want:
        return False
    negations = {stem(word) for word in _NEGATIONS}
    for start in range(len(have) - len(want) + 1):
        if have[start : start + len(want)] == want:
            before = have[start - 1] if start else ""
            if not guarded or before not in negations or want[0] in negations:
                return True
    return False
