"""Cases and results for the tests of evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from core.catalog import BUILTIN
from core.types import Passage
from evaluation.cases import Case
from evaluation.run import Result
from rag import prompt

HANDBOOK = "The notice period is 30 days. Send the letter to HR. Trial members may leave within 13 days."
PRICES = "Plan: Basic; Price per month: 10 EUR; Seats: 5.\nPlan: Team; Price per month: 1,250 EUR; Seats: 50."


def passage(document: str, text: str) -> Passage:
    return Passage(1, f"id-{document}", document, "Leaving", None, 0, len(text), text)


def case(
    question: str = "What is the notice period?",
    facts: Sequence[str] = ("30 days", "thirty days"),
    sources: Sequence[str] = ("id-handbook",),
    **changes: Any,
) -> Case:
    """A golden case whose prompt has units 1 to 3 of the handbook and 4 and 5 of the price list."""
    built = prompt.build(question, [passage("handbook", HANDBOOK), passage("prices", PRICES)], BUILTIN)
    values: dict[str, Any] = {
        "id": question,
        "question": question,
        "answerable": True,
        "facts": tuple(facts),
        "sources": tuple(sources),
        "evidence": "",
        "completion": "",
        "origin": "golden",
        "kind": "policy",
        "messages": built.messages,
        "passages": built.passages,
    }
    return Case(**(values | changes))


def heldout(reference: str, completion: str) -> Case:
    return case(facts=(reference,), sources=(), completion=completion, origin="heldout", kind="correction")


def results(scores: Sequence[float], **measures: Any) -> list[Result]:
    """Results with these case scores; `measures` override the other measures of every case."""
    return [
        Result(
            f"c{number}",
            "golden" if number % 2 else "heldout",
            "policy",
            f"Question {number}?",
            f"[1] Reply {number}.",
            {
                "score": value,
                "fact": value >= 0.5,
                "citation": value == 1,
                "refused": False,
                "refusal_right": True,
                "support": 1.0,
                "words": 10,
                "addresses": [],
                "reachable": True,
            }
            | measures,
            "builtin@base",
            None,
            100,
            10,
            5.0,
        )
        for number, value in enumerate(scores)
    ]
