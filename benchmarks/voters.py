"""Simulated readers of an organisation's papers: half of its questions are asked and voted on.

The answer to each is the product without a model, the line that the cross-encoder likes best. A reader who
knows the right line votes up when it was quoted; else down, as a wrong source, and every second such reader
also writes the right line as a correction, which is approved. The other half of the questions measures.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

from core.catalog import BUILTIN
from core.db import Database
from core.settings import Settings, load_settings
from core.types import Answer
from feedback.review import Review
from feedback.store import FeedbackStore
from finetune.base_papers import HELD_OUT, Asked, Domain, domains
from rag.citations import quote
from rag.embed import Embedder
from rag.index import Index
from rag.ingest import Ingestor
from rag.passages import PassageStore
from rag.prompt import REFUSAL, build, question_line
from rag.retrieve import Retriever
from rag.votes import BLAMES_THE_SOURCE

READERS = 12
CORRECTED = 2  # of the readers who were answered wrongly, one in so many corrects


@dataclass(frozen=True)
class Gold:
    """A question that measures: the passages that hold its line, and whether a voting one asks for it too."""

    question: str
    chunks: frozenset[int]
    seen: bool


class House:
    """An installation with one organisation's papers; use it in a `with` block."""

    def __init__(self, settings: Settings, home: Domain, embedder: Embedder) -> None:
        self.settings = settings
        self.database = Database(settings.database)
        self.index = Index(settings, self.database)
        ingestor = Ingestor(settings, self.database, self.index, embedder)
        ingestor.ingest(home.write(settings.data_dir / "papers"), lambda line: None)
        self.name = home.name
        self.embedder = embedder
        self.retriever = Retriever(settings, self.database, self.index, embedder)
        self.texts = _texts(PassageStore(self.database))
        answerable = [asked for asked in home.asked if asked.line]
        random.Random(settings.seed).shuffle(answerable)
        self.voting, measuring = answerable[::2], answerable[1::2]
        lines = {asked.line for asked in self.voting}
        self.gold = [
            Gold(question_line(asked.question), self.holding(asked), asked.line in lines)
            for asked in measuring
        ]

    def __enter__(self) -> House:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.index.close()
        self.database.close()

    def holding(self, asked: Asked) -> frozenset[int]:
        """The passages that hold the line of a question."""
        line = " ".join((asked.line or "").split())
        return frozenset(i for i, text in self.texts.items() if line in text)

    def vote(self, most: int | None = None) -> dict[str, int]:
        """Ask and judge (at most `most` questions); returns how many votes and corrections came of it."""
        store, review = FeedbackStore(self.database), Review(self.database)
        counts = {"up": 0, "down": 0, "corrections": 0}
        for number, asked in enumerate(self.voting[:most]):
            user, answer = f"reader-{number % READERS}", self.answer(question_line(asked.question))
            exchange = store.record(
                store.start_conversation(user, asked.question), user, asked.question, answer
            )
            if any(asked.line in citation.quote for citation in answer.citations if asked.line):
                store.vote(exchange, user, 1)
                counts["up"] += 1
                continue
            store.vote(exchange, user, -1, BLAMES_THE_SOURCE)
            counts["down"] += 1
            if counts["down"] % CORRECTED == 0:
                review.approve(store.correct(exchange, user, asked.line or ""), "reviewer")
                counts["corrections"] += 1
        return counts

    def answer(self, question: str) -> Answer:
        """What the product answers without a model."""
        prompt = build(question, self.retriever.read_for(question, BUILTIN), BUILTIN)
        found = quote(question, prompt.passages, self.retriever.similarity, self.retriever.answers)
        return Answer(
            found.text if found else REFUSAL, "", "quotes" if found else "refusal",
            found.citations if found else (), prompt.passages, prompt.messages, BUILTIN.id, None,
            prompt.version, False, "stop", {}, {},
        )  # fmt: skip


def houses(part: str, embedder: Embedder, *, one: bool = False) -> Iterator[House]:
    """The held-out organisations with `part` in their names, or `one` of them, each open until the next."""
    homes = [home for home in domains() if home.name in HELD_OUT and part in home.name]
    for home in homes[:1] if one else homes:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, home.name.replace(" ", "-").lower())
            path.mkdir()
            settings = replace(load_settings(model="builtin", vote_priors=False), data_dir=path)
            with House(settings, home, embedder) as house:
                yield house


def _texts(passages: PassageStore) -> Mapping[int, str]:
    ids: Sequence[int] = sorted(passages.ready_ids())
    return {i: " ".join(passage.text.split()) for i, passage in passages.get(ids).items()}
