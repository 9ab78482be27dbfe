"""What to search for when a question leans on earlier ones: "And for students?", "Can they pay monthly?".

By word lists alone, so that it costs nothing, is the same every time, and serves models that read no earlier
turns. A conversation has a topic: the last question that stood on its own. Follow-ups add to it (a new name
takes the place of the old one), and a question that stands on its own begins another.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from typing import Literal

from rag.smalltalk import small_talk
from rag.words import STOP, stem, words

LOOKED_BACK = 20  # earlier questions; a topic that is older has been asked enough about
CARRIED = 12  # words of the topic that are searched for besides the question


def _listed(text: str) -> frozenset[str]:
    return frozenset(text.split())


_ASKING = _listed("what which who whom whose where when why how")
_AUXILIARY = _listed(
    "is are was were do does did can could may might must shall should will would has have had"
)
_ABOUT = (["what", "about"], ["how", "about"])
_TELLING = _listed("explain describe tell show list name give define compare")
_OPENERS = _listed("and but or so also then only even really")
_SUBJECTS = _listed("it they he she")
_POSSESSIVES = _listed("its their his")
_OBJECTS = _listed("them him her")
_POINTERS = _listed("this these those")
_BACK = _listed("same ones instead otherwise")
_LAST = _listed("there then that one")  # these point back at the end of a question
_PREPOSITIONS = _listed("for on of with without to in at about from by under over after before during")
_ARTICLES = _listed("the a an my our your each every any all some")
_CALENDAR = _listed(
    "monday tuesday wednesday thursday friday saturday sunday mondays tuesdays wednesdays thursdays fridays"
    " saturdays sundays weekdays weekends january february march april june july august september october"
    " november december spring summer autumn winter"
)
_PERIODS = _listed("day days week weekend month year years season time summer winter")
_DUMMY_IT = re.compile(r"\bit(?: \w+){0,3}? (?:to|that|if|when) (?P<rest>.+)")  # how long does it take to ...
FEW = 3  # content words below which a question says too little; with a question word one less
FRAGMENT = 4  # the same for what has no verb and begins with a preposition ("For pensioners without work?")

Kind = Literal["word", "name", "number", "date"]


@dataclass(frozen=True)
class FollowUp:
    """A question as asked, what to search for, and how many of the latest questions were needed to say it."""

    asked: str
    text: str
    reach: int


@dataclass(frozen=True)
class _Term:
    """A content word of a question. `asked` says that it is what was asked ("how heavy"), not what about."""

    word: str
    kind: Kind
    asked: bool = False


_Terms = tuple[_Term, ...]


def with_context(question: str, earlier: Sequence[str]) -> str:
    """The question to search for: one that leans on the `earlier` ones, oldest first, gets their topic."""
    return in_context(question, earlier).text


def in_context(question: str, earlier: Sequence[str]) -> FollowUp:
    """As `with_context`, and how far back its words come from (0: the question stands on its own)."""
    recent = [(at, past) for at, past in enumerate(earlier) if small_talk(past, "") is None][-LOOKED_BACK:]
    if not recent or not leans(question):
        return FollowUp(question, question, 0)
    start = max((at for at, (_, past) in enumerate(recent) if not leans(past)), default=0)
    talk = _Talk(recent[start][1], _terms(recent[start][1]))
    for _, past in recent[start + 1 :]:
        talk = _after(talk, past)
    text = _whole(talk, question)
    return FollowUp(question, text, len(earlier) - recent[start][0] if text != question else 0)


@dataclass(frozen=True)
class _Talk:
    """What a conversation is about: the last whole question, its topic, and what was asked about it since."""

    text: str
    topic: _Terms
    latest: _Terms = ()


def _after(talk: _Talk, question: str) -> _Talk:
    """What it is about after a follow-up."""
    if not _is_fragment(question):
        return _Talk(_whole(talk, question), talk.topic, _terms(question))
    if other := _exchanged(talk.text, question):
        return _Talk(other, _terms(other))
    return replace(talk, topic=_joined(talk.topic, _terms(question)))


def _whole(talk: _Talk, question: str) -> str:
    """A follow-up as a question that stands on its own, for searching: as asked, its topic behind it.

    The cross-encoder takes words before a question for the question, and finds what they say.
    """
    fragment = _is_fragment(question)
    if fragment and (other := _exchanged(talk.text, question)):
        return other
    topic = talk.topic if fragment and not talk.latest else _about_what(talk.topic)
    said = {stem(word) for word in words(question)}
    carried = _joined(topic, talk.latest if fragment else _about_what(talk.latest))
    new = [term.word for term in carried if stem(term.word) not in said][:CARRIED]
    return f"{question} ({' '.join(new)})" if new else question


def _exchanged(text: str, fragment: str) -> str | None:
    """The whole question `text` with the fragment's name, number or date in the place of its own.

    None unless both have exactly one. A name after "in" ("And in Port Ellery?") says where, and takes
    nobody's place.
    """
    plain, _ = _unopened(fragment)
    for kind in ("name", "number", "date"):
        old, new = _spans(text, kind), _spans(fragment, kind)
        if len(old) == len(new) == 1 and (kind != "name" or plain[0] != "in"):
            return text.replace(old[0], new[0])
    return None


def _spans(text: str, kind: Kind) -> list[str]:
    """The stretches of a question that are of a kind, as written: names of several words are one."""
    found: list[list[str]] = []
    spoken = words(text)
    before = -1
    for at, own in enumerate(_kinds(spoken)):
        if own == kind:
            if at - 1 != before or not found:
                found.append([])
            found[-1].append(spoken[at])
            before = at
    return list(dict.fromkeys(span for span in (" ".join(one) for one in found) if span in text))


def leans(question: str) -> bool:
    """Whether a question needs the ones before it: it points back, or says too little by itself."""
    plain, opened = _unopened(question)
    if _points_back(plain) or (opened and plain[:1] == ["if"]):
        return True
    said = sum(word not in STOP | _TELLING | _OPENERS for word in plain)
    if not plain or _is_fragment(question):
        return said < (FRAGMENT if opened or set(plain[:1]) & _PREPOSITIONS else FEW)
    if plain[0] in _ASKING | _TELLING and not opened:
        return said < (1 if _introduces(question, plain) else FEW - 1)
    return said < FEW


def _unopened(question: str) -> tuple[list[str], bool]:
    """The words, lowered, without "and", "what about" and the like before them; and whether those stood."""
    plain = [word.lower() for word in words(question)]
    kept = plain
    while kept and (kept[0] in _OPENERS or kept[:2] in _ABOUT):
        kept = kept[1:] if kept[0] in _OPENERS else kept[2:]
    return kept, len(kept) < len(plain)


def _is_fragment(question: str) -> bool:
    """Whether it only names another case, as in "And the Otter?", and asks nothing itself."""
    plain, _ = _unopened(question)
    return plain[:1] != [] and plain[0] not in _TELLING and not set(plain) & (_ASKING | _AUXILIARY)


def _introduces(question: str, plain: Sequence[str]) -> bool:
    """Whether it says by a name what it is about, or brings something up ("What is a dropout?")."""
    return bool({"a", "an"} & set(plain[1:3])) or any(term.kind == "name" for term in _terms(question))


def _points_back(plain: Sequence[str]) -> bool:
    """Whether a word stands for something that the question itself does not name."""
    dummy = _DUMMY_IT.search(" ".join(plain))
    expletive = dummy is not None and sum(word not in STOP for word in dummy["rest"].split()) >= FEW - 1
    for at, word in enumerate(plain):
        before, after = plain[:at], plain[at + 1 :]
        previous = before[-1] if before else ""
        if word == "it" and expletive and "it" not in before:
            continue
        if word in _SUBJECTS and (previous in _PREPOSITIONS or (previous not in _AUXILIARY and not after)):
            return True  # an object: "the guarantee on it", "who repairs it"
        if word in _SUBJECTS | _POSSESSIVES and not _names_something(before):
            return True
        if word in _OBJECTS or word in _BACK:
            return True
        if word in _POINTERS and not set(after[:1]) & _PERIODS:
            return True
        if word == "that" and (not before or previous in _AUXILIARY | _PREPOSITIONS):
            return True
        if word in _LAST and (not after or (word == "one" and after[0] in STOP)):
            return True
    return False


def _names_something(before: Sequence[str]) -> bool:
    """Whether the words hold a noun phrase that a pronoun may stand for: one after an article or "do"."""
    noun = _ARTICLES | _AUXILIARY
    return any(left in noun and right not in STOP for left, right in pairwise(before))


def _terms(question: str) -> _Terms:
    """The content words of a question, each once."""
    found: dict[str, _Term] = {}
    spoken = words(question)
    plain = [word.lower() for word in spoken]
    verb = next((at for at, word in enumerate(plain) if word in _AUXILIARY), 0)
    asking = next((at for at, word in enumerate(plain[:verb]) if word in _ASKING), verb)
    for at, (word, kind) in enumerate(zip(spoken, _kinds(spoken), strict=True)):
        if plain[at] not in STOP and plain[at] not in _OPENERS | _TELLING:
            found.setdefault(stem(word), _Term(word, kind, asking < at < verb))
    return tuple(found.values())


def _kinds(spoken: Sequence[str]) -> list[Kind]:
    """What each word of a question is; a name is what is written as one, with the number after it."""
    kinds: list[Kind] = []
    for at, word in enumerate(spoken):
        if word.lower() in _CALENDAR:
            kinds.append("date")
        elif word[0].isdigit():
            kinds.append("name" if kinds[-1:] == ["name"] else "number")
        else:
            kinds.append("name" if at and word[0].isupper() and word.lower() not in STOP else "word")
    return kinds


def _about_what(terms: _Terms) -> _Terms:
    """The terms without what was asked ("how heavy"), unless that is all they name."""
    rest = tuple(term for term in terms if not term.asked)
    return rest if any(term.kind == "name" for term in rest) or len(rest) >= FEW - 1 else terms


def _joined(*parts: _Terms) -> _Terms:
    """All terms in order, each stem once."""
    found: dict[str, _Term] = {}
    for term in chain.from_iterable(parts):
        found.setdefault(stem(term.word), term)
    return tuple(found.values())
