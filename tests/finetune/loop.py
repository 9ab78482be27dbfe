"""A data folder with a tiny model and reviewed feedback, ready for a retraining run."""

from __future__ import annotations

from pathlib import Path

from core.db import Database
from core.settings import Settings
from feedback.review import Review
from feedback.store import FeedbackStore
from rag.prompt import REFUSAL
from tests.feedback.made import answer, passage
from tests.tiny import TinyModel

TAUGHT = "The notice period is 30 days."
WORDS = [
    "amber",
    "basalt",
    "cedar",
    "delta",
    "ember",
    "fjord",
    "garnet",
    "hazel",
    "indigo",
    "jasper",
    "kelp",
    "lilac",
    "maple",
    "nectar",
    "onyx",
    "pearl",
]


def settings_for(folder: Path, model: TinyModel, port: int = 1) -> Settings:
    """Settings of a data folder in which the tiny model can be served and trained.

    Nothing listens on port 1, so runs start an engine of their own.
    """
    hf = folder / "models" / model.id / "hf"
    hf.parent.mkdir(parents=True)
    hf.symlink_to(model.folder)
    return Settings(data_dir=folder, model=str(model.gguf), engine_port=port, answer_tokens=16, context=512)


def give_feedback(database: Database, count: int = 60) -> None:
    """Questions whose answer nobody could guess, refused; always the same line as approved correction."""
    store = FeedbackStore(database)
    talk = store.start_conversation("ann", "Test")
    for number in range(count):
        first, second = WORDS[number % 16], WORDS[(number // 16 + number) % 16]
        question = f"Who painted the {first} {second} room number {number}?"
        shown = answer(question, REFUSAL, (passage(),))
        exchange = store.record(talk, "ann", question, shown)
        store.vote(exchange, "ann", -1, "should have answered")
        store.correct(exchange, "ann", TAUGHT)
    Review(database).approve_all("reviewer")
