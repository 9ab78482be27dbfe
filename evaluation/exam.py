"""The exam a candidate sits: today's golden and held-out questions, an engine to ask, and what users see.

Training may not import the reading side, so what it needs of it is handed on here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from core.catalog import CatalogModel
from core.db import Database
from core.settings import PROJECT, Settings
from core.types import Message, Unit
from evaluation.cases import CARD, Case, freeze_cases, load_cases, read_golden
from evaluation.run import Show
from rag.documents import DocumentStore
from rag.embed import Embedder
from rag.followup import with_context
from rag.index import Index
from rag.model import ModelClient, engine_client
from rag.prompt import Prompt, asked_in, build, cite
from rag.retrieve import Retriever
from rag.shown import Showing
from rag.taught import Taught, remember


def engine(settings: Settings) -> AbstractContextManager[ModelClient]:
    """A client of the running engine, or of a temporary one (raises EngineUnavailable)."""
    return engine_client(settings)


def citer(model: CatalogModel) -> Callable[[str, Sequence[Unit]], str]:
    """What puts unit numbers into a text in this model's style, for `feedback.dataset.freeze`."""
    return partial(cite, model=model)


def golden(settings: Settings, database: Database) -> list[dict[str, Any]]:
    """The golden questions that today's documents can be asked: those about removed documents are left out.

    `data_dir/eval/golden.jsonl` comes before the golden questions about the samples.
    """
    own, ours = (folder / "eval" / "golden.jsonl" for folder in (settings.data_dir, PROJECT / "data"))
    path = own if own.exists() else ours
    if not path.exists():
        return []
    names = set(_names(settings, database).values())
    rows = read_golden(path)
    answerable = [row for row in rows if row["answerable"] and set(row["sources"]) <= names]
    # a question without an answer belongs to the documents that the others are about
    return [row for row in rows if row in answerable or (answerable and not row["answerable"])]


class Exam:
    """The exam of one run: its cases, and how replies to them are shown."""

    def __init__(self, settings: Settings, database: Database, model: CatalogModel) -> None:
        most, context = settings.passages or model.passages, settings.context or model.context
        self.settings = settings
        self.database = database
        self.model = replace(model, passages=most, context=context)
        self.retriever = Retriever(settings, database, Index(settings, database), Embedder())

    def set(self, heldout: Iterable[Mapping[str, Any]], folder: Path) -> list[Case]:
        """The cases, their prompts frozen into `folder` with today's passages; later calls read them."""
        if (folder / CARD).exists():
            return load_cases(folder)
        names = _names(self.settings, self.database)
        return freeze_cases(golden(self.settings, self.database), heldout, self._ask, names, folder)

    def _ask(self, question: str) -> Prompt:
        passages = self.retriever.read_for(question, self.model)
        return build(question, passages, self.model, room=self.model.context - self.settings.answer_tokens)

    def remember(self, adapter: Path, rows: Iterable[Mapping[str, Any]]) -> None:
        """Keep beside an adapter what it was taught: the questions of its training rows (`Dataset.sft`)."""
        questions = [searched_for(row["messages"][:-1]) for row in rows]
        remember(adapter, questions, self.retriever.embedder)

    @property
    def show(self) -> Show:
        """What users would see of a reply."""
        adapters = Taught(self.settings.data_dir / "adapters", self.retriever.embedder)
        showing = Showing(self.model, self.settings.support_threshold, self.retriever, adapters)
        reads = "with" if self.retriever.answers else "without"

        def said(case: Case, reply: str, adapter: str | None) -> str:
            return showing.show(searched_for(case.messages), reply, case.passages, adapter).said

        return Show(f"shown at support {showing.threshold:g}, {reads} cross-encoder", said)


def searched_for(messages: Sequence[Message]) -> str:
    """What was searched for when a prompt was built: its question, with the words that a follow-up needs.

    A prompt without the earlier turns holds the question with these words already (`rag.answer`).
    """
    *earlier, asked = [message["content"] for message in messages if message["role"] == "user"]
    return with_context(asked_in(asked), earlier)


def _names(settings: Settings, database: Database) -> dict[str, str]:
    documents = DocumentStore(database, settings).list()
    return {document.id: document.name for document in documents if document.status == "ready"}
