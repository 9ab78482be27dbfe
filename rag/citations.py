"""From what the model wrote to what is shown: citations resolved, support checked, markup disarmed.

A model cites `[2] Sentence.` or `Sentence [2].`; both become `Sentence. [1]`, numbered by unit in order of
first appearance. Numbers that the prompt did not hold are dropped. A sentence is supported when its words,
and every one of its numbers, stand in the units it cites; a reply is as well supported as its worst sentence.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from core.types import Citation, Passage, Unit
from rag.chunks import units
from rag.parts import parts
from rag.prompt import REFUSAL, heading_line, is_refusal
from rag.words import asks, content, may_answer, numbers, one_line, overlap, rarity

# A unit is quoted when it reaches either. Chosen on 128 questions about the samples: 84 of 109 answers found,
# 9 wrong quotes, nothing quoted for half of the questions that have no answer.
QUOTE_OVERLAP = 0.45  # share of the question's words
QUOTE_COSINE = 0.6  # similarity to the question
HELD = 0.6  # share of a sentence's words that a unit holds to be cited for it
QUOTE_LIKELIHOOD = 0.2  # of being the answer, where a cross-encoder says; then only this counts
LENT = 0.25  # share that counts of a likelihood under a question: enough to be quoted, seldom to be first
ANSWERS_AT_ALL = 0.01  # without that question; three of four short answers reach it, one of four orders does
NOT_FOUND = "The documents do not seem to answer:"
Similarity = Callable[[str, Sequence[str]], Sequence[float]]
"""Cosine similarity (-1 to 1) of a question to each text."""
Likelihood = Callable[[str, Sequence[str]], Sequence[float]]
"""Probability (0 to 1) that each text, a unit under its heading, answers a question."""

_MARKS = re.compile(r"\s*((?:\[\d{1,4}(?:\s*[,;-]\s*\d{1,4})*\]\s*)+)([.!?]*)")
_OPEN_MARK = re.compile(r"\s*\[[\d,;\s-]*$")
_UNSAFE = re.compile(r"([\\`*_{}\[\]<>()#+!|~$:&=-])")
_SCHEME = re.compile(r"\b(?:https?|ftp|file|data|javascript|vbscript|mailto|tel|blob)(?=:)", re.IGNORECASE)
_WWW = re.compile(r"\bwww(?=\.)", re.IGNORECASE)
_AT = re.compile(r"@")
_LIST_NUMBER = re.compile(r"^(\s*\d{1,9})([.)])(?=\s|$)", re.MULTILINE)


@dataclass(frozen=True)
class Sentence:
    """A stretch of the reply and the numbers of the units it cites (those that exist)."""

    text: str
    cites: tuple[int, ...]


@dataclass(frozen=True)
class Resolved:
    """A reply ready to show: text with `[n]` after each sentence, its citations and the cited units."""

    text: str
    citations: tuple[Citation, ...]
    units: tuple[Unit, ...]
    refused: bool

    @property
    def said(self) -> str:
        """The cited units as a model would write them."""
        return " ".join(f"[{unit.number}] {unit.text}" for unit in self.units)


def sentences(raw: str, passages: Sequence[Passage]) -> list[Sentence]:
    """Split a reply at its citation marks; the style (mark first or last) is told by how it starts."""
    known = {unit.number for passage in passages for unit in passage.units}
    found: list[Sentence] = []
    position = 0
    pending: tuple[int, ...] = ()
    first = bool(_MARKS.match(raw.strip()))
    raw = raw.strip()
    for mark in _MARKS.finditer(raw):
        text = raw[position : mark.start()] + (mark.group(2) if not first else "")
        cites = tuple(n for n in _numbers(mark.group(1)) if n in known)
        if first:
            found.append(Sentence(one_line(text), pending))
            pending = cites
        else:
            found.append(Sentence(one_line(text), cites))
        position = mark.end()
    found.append(Sentence(one_line(_OPEN_MARK.sub("", raw[position:])), pending))
    return [sentence for sentence in found if any(char.isalnum() for char in sentence.text)]


def cited(raw: str, passages: Sequence[Passage]) -> list[Sentence]:
    """As `sentences`; in a reply without any mark, each gets the unit that holds it, if there is one.

    Small models often answer rightly and forget the marks. What no unit holds stays without one, and the
    support check then rejects it. Wrong marks are not mended: whoever cites is taken at its word.
    """
    found = sentences(raw, passages)
    if _MARKS.search(raw) or not found:
        return found
    text = found[0].text
    parts = [text[start:end] for start, end in units(text)]
    return [Sentence(part, _holders(part, passages)) for part in parts]


def _holders(text: str, passages: Sequence[Passage]) -> tuple[int, ...]:
    """The number of the unit that holds most of the words of `text`, with every number in it."""
    said = content(text)
    if len(said) < 2:
        return ()
    held = {
        unit.number: overlap(said, source) if numbers(text) <= numbers(source) else 0.0
        for passage in passages
        for unit in passage.units
        for source in [headed(passage, unit)]
    }
    number = max(held, key=held.__getitem__, default=0)
    return (number,) if number and held[number] >= HELD else ()


def _numbers(marks: str) -> Iterator[int]:
    for part in re.findall(r"\d+\s*-\s*\d+|\d+", marks):
        low, _, high = part.partition("-")
        last = int(high or low)
        yield from range(int(low), min(last, int(low) + 9) + 1)


def resolve(raw: str, passages: Sequence[Passage]) -> Resolved:
    """Turn a reply (even an unfinished one) into display text and citations; never raises."""
    if is_refusal(raw):
        return Resolved(REFUSAL, (), (), True)
    places = {unit.number: (passage, unit) for passage in passages for unit in passage.units}
    text, shown = _join(cited(raw, passages))
    citations = tuple(_citation(label, *places[number]) for number, label in shown.items())
    return Resolved(text, citations, tuple(places[number][1] for number in shown), False)


def so_far(raw: str, passages: Sequence[Passage]) -> str:
    """What to show of a reply that is still being written: no mark before its sentence is complete.

    Each longer `raw` gives a text that begins with the shorter one's, but for rare replies that mix styles.
    """
    found = sentences(raw, passages)
    finished = _MARKS.search(raw.rstrip(), len(raw.rstrip()) - 8) if not _MARKS.match(raw.strip()) else None
    if found and (finished is None or not finished.group(2)):
        found[-1] = Sentence(found[-1].text, ())
    return _join(found)[0]


def _join(found: Sequence[Sentence]) -> tuple[str, dict[int, int]]:
    """The display text, and the label of each cited unit in order of first appearance."""
    shown: dict[int, int] = {}
    parts: list[str] = []
    for sentence in found:
        labels = dict.fromkeys(shown.setdefault(number, len(shown) + 1) for number in sentence.cites)
        parts.append(" ".join([sentence.text, "".join(f"[{label}]" for label in labels)]).strip())
    return " ".join(parts), shown


def _citation(label: int, passage: Passage, unit: Unit) -> Citation:
    return Citation(
        number=label,
        unit=unit.number,
        document_id=passage.document_id,
        document=passage.document,
        heading=passage.heading,
        page=passage.page,
        start=passage.start if passage.edited else unit.start,
        end=passage.end if passage.edited else unit.end,
        quote=unit.text,
        edited=passage.edited,
    )


def support(raw: str, passages: Sequence[Passage]) -> float:
    """How far the cited units hold what the reply says, 0 to 1: the share of its worst sentence.

    A sentence without a citation, or with a number that none of its units (or their heading) holds,
    counts 0. A refusal asserts nothing and counts 1; an empty reply 0.
    """
    if is_refusal(raw):
        return 1.0
    return min((share for _, share in supports(raw, passages)), default=0.0)


def supports(raw: str, passages: Sequence[Passage]) -> list[tuple[Sentence, float]]:
    """Each sentence of a reply with how far the units that it cites hold it, 0 to 1."""
    held = {unit.number: headed(passage, unit) for passage in passages for unit in passage.units}
    found = cited(raw, passages)
    return [(one, _held(one, "\n".join(held[n] for n in one.cites))) for one in found]


def _held(sentence: Sentence, source: str) -> float:
    if not sentence.cites or numbers(sentence.text) - numbers(source):
        return 0.0
    parts = [content(sentence.text[start:end]) for start, end in units(sentence.text)]
    # a word alone ("Yes.") asserts nothing that could be looked up
    return min((overlap(words, source) for words in parts if len(words) > 1), default=1.0)


def quote(
    question: str,
    passages: Sequence[Passage],
    similarity: Similarity | None = None,
    answers: Likelihood | None = None,
) -> Resolved | None:
    """The unit that fits the question best, quoted and cited; None when none fits well.

    Of a question in several parts (`rag.parts`), the best unit of each, and what no unit answers is said.
    `answers` decides where it is given. Otherwise the share of the question's words (rare ones weigh more) in
    unit and heading counts, plus the cosine similarity when `similarity` is given. Equal ones: the first. A
    unit that asks something itself, or only repeats the question's words, is no answer.
    """
    pairs = [
        (passage, unit) for passage in passages for unit in passage.units if may_answer(question, unit.text)
    ]
    asked = parts(question)
    found = [_best(part.searched, pairs, similarity, answers) for part in asked]
    best = list(dict.fromkeys(at for at in found if at is not None))
    if not best:
        return None
    lines = [f"“{pairs[at][1].text}” [{label}]" for label, at in enumerate(best, 1)]
    lines += [f"{NOT_FOUND} {part.asked}" for part, at in zip(asked, found, strict=True) if at is None]
    cites = tuple(_citation(label, *pairs[at]) for label, at in enumerate(best, 1))
    return Resolved("\n\n".join(lines), cites, tuple(pairs[at][1] for at in best), False)


def _best(
    question: str,
    pairs: Sequence[tuple[Passage, Unit]],
    similarity: Similarity | None,
    answers: Likelihood | None,
) -> int | None:
    """Which of the units fits one question best; None when none fits well."""
    asked = content(question)
    if not pairs or not asked:
        return None
    if answers:
        scores = [round(p, 3) for p in likelihoods(question, pairs, answers)]
        fitting = [score >= QUOTE_LIKELIHOOD for score in scores]
    else:
        scores, fitting = _fit(question, asked, pairs, similarity)
    best = max(range(len(pairs)), key=lambda i: (scores[i], -pairs[i][1].number))
    return best if fitting[best] else None


def _fit(
    question: str,
    asked: Sequence[str],
    pairs: Sequence[tuple[Passage, Unit]],
    similarity: Similarity | None,
) -> tuple[list[float], list[bool]]:
    """Scores of units by words and similarity, and which of them fit well enough to be quoted."""
    weights = rarity(unit.text for _, unit in pairs)
    shares = [overlap(asked, headed(passage, unit), weights) for passage, unit in pairs]
    own = [overlap(asked, unit.text, weights) for _, unit in pairs]
    close = similarity(question, [unit.text for _, unit in pairs]) if similarity else [0.0] * len(pairs)
    scores = [share + 0.25 * o + c for share, o, c in zip(shares, own, close, strict=True)]
    fitting = [s >= QUOTE_OVERLAP or c >= QUOTE_COSINE for s, c in zip(shares, close, strict=True)]
    return scores, fitting


def headed(passage: Passage, unit: Unit) -> str:
    """A unit with the names it stands under: what its words are compared with."""
    return "\n".join((*_question_before(passage, unit), unit.text, passage.document, passage.heading))


def likelihoods(question: str, lines: Sequence[tuple[Passage, Unit]], answers: Likelihood) -> list[float]:
    """How likely each unit answers the question.

    Under a question like the one asked anything looks like its answer to a cross-encoder: 0.99 for a line of
    an FAQ and for "ignore your rules" alike. So a unit counts as it is without that question; what it gains
    by it counts LENT times: less than most lines that answer by themselves.
    """
    full = [line_of(passage, unit) for passage, unit in lines]
    bare = [_bare_line_of(passage, unit) for passage, unit in lines]
    lent = [at for at in range(len(lines)) if full[at] != bare[at]]
    found = answers(question, [*bare, *(full[at] for at in lent)])
    likely = list(found[: len(lines)])
    for at, probability in zip(lent, found[len(lines) :], strict=True):
        if likely[at] >= ANSWERS_AT_ALL:
            likely[at] = max(likely[at], LENT * probability)
    return likely


def line_of(passage: Passage, unit: Unit) -> str:
    """A unit under its heading, as a cross-encoder reads it."""
    return " ".join((f"{heading_line(passage)}:", *_question_before(passage, unit), unit.text))


def _bare_line_of(passage: Passage, unit: Unit) -> str:
    """The same without the questions that it stands under."""
    names = [name for name in heading_line(passage).split(" > ") if not asks(name)]
    return f"{' > '.join(names)}: {unit.text}" if names else unit.text


def _question_before(passage: Passage, unit: Unit) -> list[str]:
    """The question that a unit stands right behind, as in an FAQ, if there is one."""
    before = passage.text[: max(0, unit.start - passage.start)].rstrip()
    return [before[start:end] for start, end in units(before)[-1:]] if asks(before) else []


def safe_markdown(text: str) -> str:
    """Escape `text` so that a Markdown renderer shows it as it is: no image, link, HTML, formula or icon.

    Citation marks like `[3]` stay readable. Addresses stay legible but do not become links (a zero-width
    joiner breaks the scheme, the `www` and the `@`).
    """
    text = text.replace("\r", "").replace("\0", "")
    text = _SCHEME.sub(lambda match: match.group()[0] + "\u2060" + match.group()[1:], text)
    text = _AT.sub("\u2060@", _WWW.sub("ww\u2060w", text))
    text = _UNSAFE.sub(r"\\\1", text)
    text = _LIST_NUMBER.sub(r"\1\\\2", text)
    text = re.sub(r"^[ \t]+", "", text, flags=re.MULTILINE)  # four spaces would make a code block
    return re.sub(r"(?<!\n)\n(?!\n)", "  \n", text)
