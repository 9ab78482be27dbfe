"""Answers, exchanges and a citing function as the product makes them, for the tests of feedback."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from core.catalog import BUILTIN
from core.db import Database
from core.types import Answer, Citation, Message, Passage, Unit
from feedback.review import Review
from feedback.store import FeedbackStore
from rag import prompt

TEXT = "The notice period is 30 days. Send the letter to HR."


def cite(text: str, units: Sequence[Unit]) -> str:
    return prompt.cite(text, units, BUILTIN)


def passage(text: str = TEXT, document: str = "Employee handbook") -> Passage:
    scores = {"lexical": 1.5, "dense": 0.25, "fused": 0.03}
    return Passage(1, f"doc-{document}", document, "Leaving", None, 0, len(text), text, (), scores)


def answer(
    question: str, raw: str = "[1] The notice period is 30 days.", passages: Sequence[Passage] = (passage(),)
) -> Answer:
    """What the assistant returns for `question` when the model writes `raw`."""
    built = prompt.build(question, passages, BUILTIN)
    unit = built.passages[0].units[0]
    citation = Citation(1, 1, "doc-Employee handbook", "Employee handbook", "Leaving", 3, 0, 29, unit.text)
    refused = prompt.is_refusal(raw)
    return Answer(
        text=prompt.REFUSAL if refused else "The notice period is 30 days. [1]",
        raw=raw,
        mode="refusal" if refused else "answer",
        citations=() if refused else (citation,),
        passages=built.passages,
        messages=built.messages,
        model="builtin",
        adapter=None,
        prompt_version=built.version,
        supported=True,
        finish_reason="stop",
        sampling={"temperature": 0.0, "seed": 7, "stop": ["<|im_end|>"]},
        timings={"ttft_ms": 12.5, "total_ms": 80.0},
    )


def with_history(made: Answer, *earlier: str) -> Answer:
    """The same answer, asked after earlier questions."""
    turns: list[Message] = []
    for question in earlier:
        turns += [{"role": "user", "content": question}, {"role": "assistant", "content": "Yes."}]
    return replace(made, messages=(made.messages[0], *turns, made.messages[1]))


class House:
    """A database with a store and a review, and short ways to fill it."""

    def __init__(self, folder: Path) -> None:
        self.database = Database(folder / "understudy.db")
        self.store = FeedbackStore(self.database)
        self.review = Review(self.database)

    def ask(self, question: str, raw: str = "[1] The notice period is 30 days.", user: str = "ann") -> str:
        conversation = self.store.start_conversation(user, question)
        return self.store.record(conversation, user, question, answer(question, raw))

    def corrected(
        self, question: str, text: str, raw: str = "[2] Send the letter to HR.", user: str = "ann"
    ) -> str:
        """Ask, correct, approve; the correction's id."""
        correction = self.store.correct(self.ask(question, raw, user), user, text)
        self.review.approve(correction, "rita")
        return correction
