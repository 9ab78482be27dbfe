"""From votes and corrections to training rows, with the prompt exactly as the model saw it.

Per question (`questions.context_key`) the newest approved correction speaks for all: its text becomes the
completion wanted, and every answer that was corrected the one to avoid. Where there is none, answers with
more up than down votes are completions. What a user wrote enters only after a reviewer approved it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from core.db import Database
from core.types import Message, Unit
from feedback.questions import context_key, question_key
from feedback.records import Correction, Exchange, Vote
from feedback.store import FeedbackStore

Cite = Callable[[str, Sequence[Unit]], str]
"""Puts the numbers of supporting units into a text, as its model writes them (see `rag.prompt.cite`)."""

REFUSAL = "Not in the documents."
"""The reply that says the passages do not hold the answer; a test keeps it equal to `rag.prompt.REFUSAL`."""

GROUNDED_SHARE = 0.6  # of a completion's words that the units it cites must hold
_LABEL = re.compile(r"\[(\d+)\]")
_WORD = re.compile(r"\d+(?:[.,:/]\d+)*|[^\W\d_]{4,}")

Judged = tuple[Exchange, list[Vote], list[Correction]]


@dataclass(frozen=True)
class Example:
    """A prompt, the completion wanted and, for a preference pair, the one rejected (else empty).

    `reference` is the completion in the words of whoever judged it, without unit numbers. `grounded` says
    that units of this prompt hold the completion, or that it is the refusal.
    """

    key: str
    exchange: Exchange
    completion: str
    rejected: str
    reference: str
    grounded: bool
    provenance: dict[str, Any]

    @property
    def pair(self) -> bool:
        """Whether the rejected answer says something else than the completion."""
        return bool(self.rejected) and _same(self.rejected) != _same(self.completion)

    def sft(self) -> dict[str, Any]:
        """{"messages": [... as sent, assistant], "grounded", "provenance"}."""
        wanted: Message = {"role": "assistant", "content": self.completion}
        messages = [*self.exchange.answer.messages, wanted]
        return {"messages": messages, "grounded": self.grounded, "provenance": self.provenance}

    def preference(self) -> dict[str, Any]:
        """{"prompt": [... as sent], "chosen": [assistant], "rejected": [assistant], ...}."""
        return {
            "prompt": list(self.exchange.answer.messages),
            "chosen": [{"role": "assistant", "content": self.completion}],
            "rejected": [{"role": "assistant", "content": self.rejected}],
            "grounded": self.grounded,
            "provenance": self.provenance,
        }

    def case(self) -> dict[str, Any]:
        """A held-out row from which an evaluation case is made: question, prompt, passages and reference."""
        return {
            "id": self.exchange.id,
            "question": self.exchange.question,
            "reference": self.reference,
            "completion": self.completion,
            "answerable": self.completion != REFUSAL,
            "messages": list(self.exchange.answer.messages),
            "passages": [asdict(passage) for passage in self.exchange.answer.passages],
            "provenance": self.provenance,
        }


@dataclass(frozen=True)
class Drop:
    """Feedback that makes no row, and why."""

    exchange_id: str
    reason: str


def examples(database: Database, cite: Cite) -> tuple[list[Example], list[Drop]]:
    """Every example that the feedback holds, in order of the exchanges, and what was dropped."""
    store = FeedbackStore(database)
    groups: dict[str, list[Judged]] = {}
    for judged in store.judged():
        groups.setdefault(context_key(judged[0].question, judged[0].answer.messages), []).append(judged)
    found: list[Example] = []
    drops: list[Drop] = []
    for key, members in groups.items():
        corrected = [member for member in members if any(c.status == "approved" for c in member[2])]
        made = _corrected(key, corrected, cite, drops) if corrected else _voted(key, members, cite, drops)
        if corrected:
            drops += [
                Drop(exchange.id, "a correction of the same question outranks it")
                for exchange, votes, corrections in members
                if _sum(votes) > 0 and not any(c.status == "approved" for c in corrections)
            ]
        found += made
    users = {user for example in found for user in example.provenance["users"]}
    names = {user: store.pseudonym(user) for user in users}
    return [_with_pseudonyms(example, names) for example in found], drops


def best(found: Sequence[Example]) -> list[Example]:
    """One example per question and completion: a grounded one if there is any, then the newest."""
    chosen: dict[tuple[str, str], Example] = {}
    for example in found:
        slot = (example.key, _same(example.completion))
        other = chosen.get(slot)
        if other is None:
            chosen[slot] = example
        else:
            winner = example if example.grounded >= other.grounded else other
            chosen[slot] = replace(
                winner, provenance=_merged(other.provenance, example.provenance, winner.provenance)
            )
    return list(chosen.values())


def _corrected(key: str, members: list[Judged], cite: Cite, drops: list[Drop]) -> list[Example]:
    approved = [c for _, _, corrections in members for c in corrections if c.status == "approved"]
    newest = max(approved, key=lambda c: (c.reviewed_at or 0, c.created_at, c.id))
    made = []
    for exchange, _, corrections in members:
        if not exchange.answer.messages:
            drops.append(Drop(exchange.id, "no prompt was sent to a model"))
            continue
        completion = cite(newest.text, exchange.units).strip()
        makers = [newest, *(c for c in corrections if c.status == "approved" and c.id != newest.id)]
        reference = " ".join(_LABEL.sub(" ", newest.text).split())
        grounded = is_grounded(completion, exchange)
        provenance = _provenance("correction", exchange, makers, [c.user_id for c in makers])
        rejected = exchange.answer.raw.strip()
        made.append(Example(key, exchange, completion, rejected, reference, grounded, provenance))
    return made


def _voted(key: str, members: list[Judged], cite: Cite, drops: list[Drop]) -> list[Example]:
    made = []
    for exchange, votes, _ in members:
        if _sum(votes) <= 0:
            continue
        completion, reason = _liked(exchange, cite)
        if reason:
            drops.append(Drop(exchange.id, reason))
            continue
        users = [vote.user_id for vote in votes if vote.value > 0]
        reference = " ".join(_LABEL.sub(" ", completion).split())
        provenance = _provenance("vote", exchange, [], users)
        # what was liked may have stood in for the model's reply: a quote, a refusal, the marks it forgot
        raw = exchange.answer.raw.strip()
        rejected = "" if _same_text(raw, completion) else raw
        grounded = is_grounded(completion, exchange)
        made.append(Example(key, exchange, completion, rejected, reference, grounded, provenance))
    return made


def _liked(exchange: Exchange, cite: Cite) -> tuple[str, str]:
    """The completion an up-voted answer teaches, or why it teaches none."""
    answer = exchange.answer
    if not answer.messages:
        return "", "no prompt was sent to a model"
    if answer.mode in ("correction", "chat", "memory"):
        return "", f"its mode is {answer.mode}: the model did not answer from passages"
    if answer.mode == "quotes":  # the reply was not believed: what was liked is the quote
        if len(answer.citations) != 1:
            return "", "several quotes were shown: which one was liked is unknown"
        return cite(answer.citations[0].quote, exchange.units).strip(), ""
    if answer.mode == "refusal":
        return REFUSAL, ""
    if answer.finish_reason == "length":
        return "", "it was cut off at the longest answer"
    raw = answer.raw.strip()
    if not raw:
        return "", "the model wrote nothing"
    return (raw if _LABEL.search(raw) else cite(raw, exchange.units).strip()), ""


def _same_text(one: str, other: str) -> bool:
    """Whether two replies differ in nothing but how they are spaced, written and ended."""
    return one.casefold().rstrip(". ").split() == other.casefold().rstrip(". ").split()


def is_grounded(completion: str, exchange: Exchange) -> bool:
    """Whether the cited units (with their headings) hold every number and most words of the completion."""
    if completion == REFUSAL:
        return True
    cited = {int(number) for number in _LABEL.findall(completion)}
    held = {
        unit.number: f"{passage.document} {passage.heading} {unit.text}"
        for passage in exchange.answer.passages
        for unit in passage.units
    }
    if not cited or not cited <= set(held):
        return False
    said = _stems(_LABEL.sub(" ", completion))
    shown = _stems(" ".join(held[number] for number in cited))
    numbers = {word for word in said if word[0].isdigit()}
    return numbers <= shown and len(said & shown) >= GROUNDED_SHARE * len(said)


def _stems(text: str) -> set[str]:
    """Numbers, and the first five letters of longer words, so that `costs` meets `cost`."""
    return {word if word[0].isdigit() else word[:5] for word in _WORD.findall(text.casefold())}


def _same(completion: str) -> str:
    return question_key(_LABEL.sub(" ", completion))


def _sum(votes: Sequence[Vote]) -> int:
    return sum(vote.value for vote in votes)


def _provenance(
    kind: str, exchange: Exchange, corrections: Sequence[Correction], users: Sequence[str]
) -> dict[str, Any]:
    return {
        "kind": kind,
        "exchanges": [exchange.id],
        "users": sorted(set(users)),
        "corrections": [correction.id for correction in corrections],
        "documents": sorted({passage.document_id for passage in exchange.answer.passages}),
        "model": exchange.answer.model,
        "adapter": exchange.answer.adapter,
        "created_at": exchange.created_at,
    }


def _with_pseudonyms(example: Example, names: dict[str, str]) -> Example:
    users = sorted(names[user] for user in example.provenance["users"])
    return replace(example, provenance=example.provenance | {"users": users})


def _merged(first: dict[str, Any], second: dict[str, Any], winner: dict[str, Any]) -> dict[str, Any]:
    lists = ("exchanges", "users", "corrections", "documents")
    return winner | {name: sorted({*first[name], *second[name]}) for name in lists}
