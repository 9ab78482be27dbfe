"""The exam a candidate sits: today's golden and held-out questions, and an engine to ask.

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
from core.types import Unit
from evaluation.cases import CARD, Case, freeze_cases, load_cases, read_golden
from rag.documents import DocumentStore
from rag.embed import Embedder
from rag.index import Index
from rag.model import ModelClient, engine_client
from rag.prompt import Prompt, build, cite
from rag.retrieve import Retriever


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


def set_exam(
    settings: Settings,
    database: Database,
    model: CatalogModel,
    heldout: Iterable[Mapping[str, Any]],
    folder: Path,
) -> list[Case]:
    """The cases, their prompts frozen into `folder` with today's passages; later calls read them there."""
    if (folder / CARD).exists():
        return load_cases(folder)
    most, context = settings.passages or model.passages, settings.context or model.context
    model = replace(model, passages=most, context=context)
    retriever = Retriever(settings, database, Index(settings, database), Embedder())

    def ask(question: str) -> Prompt:
        return build(
            question, retriever.read_for(question, model), model, room=context - settings.answer_tokens
        )

    names = _names(settings, database)
    return freeze_cases(golden(settings, database), heldout, ask, names, folder)


def _names(settings: Settings, database: Database) -> dict[str, str]:
    documents = DocumentStore(database, settings).list()
    return {document.id: document.name for document in documents if document.status == "ready"}
