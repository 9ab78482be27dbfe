"""The self-test: a few prompts that a model, and every adapter before it goes on stage, must answer."""

from __future__ import annotations

from core.errors import ModelError
from engine.requests import Request, parse

CANARIES = (
    "What is the notice period?",
    "Question: Who may sign?\n\nHandbook > Signing\n[1] The board signs.\n\nQuestion: Who may sign?",
    "Grüße! 1 2 3 — 你好",
)
CANARY_TOKENS = 8


def canaries(model: str = "base") -> list[Request]:
    """The canary prompts as greedy requests of a few tokens."""
    return [
        parse(
            "chat",
            {
                "model": model,
                "messages": [{"role": "user", "content": text}],
                "max_tokens": CANARY_TOKENS,
                "seed": 0,
            },
        )
        for text in CANARIES
    ]


def require_words(made: int) -> None:
    """Raise ModelError when all canary prompts together were answered with no token."""
    if made == 0:
        raise ModelError("It answers every canary prompt with nothing.", "Train it again.")
