"""After a restore a question gets the same passages and citations as before, whatever was lost meanwhile.

Everything real: MiniLM and an embedder trained on votes in its place, Chroma, a scripted engine.
"""

from __future__ import annotations

import json
import shutil
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from app.backup import backup
from app.manifest import verify
from app.restore import rebuild, restore
from core.catalog import BUILTIN
from core.db import Database
from core.settings import Settings
from core.types import Answer
from feedback.review import Review
from feedback.store import FeedbackStore
from rag.access import Access
from rag.answer import Assistant
from rag.chunk_edits import ChunkEditor, ChunkStore
from rag.embed import Embedder
from rag.embedders import Embedders
from rag.index import Index
from rag.ingest import Ingestor
from rag.model import engine_client
from rag.reader import Reader
from rag.reindex import reindex
from rag.retrieve import Retriever
from tests.rag.conftest import HANDBOOK
from tests.rag.test_reindex import CANTEEN, tell

SCRIPT = [
    {"match": "notice period", "reply": "[1] The notice period is 14 days for apprentices."},
    {"match": "midday meal", "reply": "[1] Soup is served at noon."},
    {"match": "Anna", "reply": "[1] Anna keeps bees."},
]
QUESTIONS = ("How long is the notice period?", "When can I have a midday meal?", "What does Anna keep?")
ANNA = "api:anna"


def quiet(_what: str, _done: float) -> None:
    """Nobody listens."""


def answers(settings: Settings, script: Path, embedder: Embedder) -> list[Answer]:
    """What everybody and Anna are answered, by processes that have just started."""
    with (
        closing(Database(settings.database)) as database,
        closing(Index(settings, database)) as index,
        engine_client(settings, scripted=script) as client,
    ):
        assistant = Assistant(settings, Retriever(settings, database, index, embedder), client, BUILTIN)
        given = [assistant.ask(question, viewer=viewer) for question in QUESTIONS for viewer in ("", ANNA)]
        return [replace(one, timings={}) for one in given]


def test_answers_are_as_before(
    settings: Settings, database: Database, ingestor: Ingestor, index: Index, reader: Reader, tuned: str,
    tmp_path: Path,
) -> None:  # fmt: skip
    documents, script = ingestor.documents, tmp_path / "script.json"
    script.write_text(json.dumps(SCRIPT))
    guide = documents.add("guide.md", HANDBOOK, "upload", reader)
    documents.add("canteen.md", CANTEEN, "upload", reader)
    documents.add("bees.md", b"# Bees\n\nAnna keeps bees.\n", "upload", reader, Access(ANNA, "owner"))
    ingestor.process_pending()
    reindex(settings, database, tuned, "ann", tell)  # the embedder in service is one of our own
    editor = ChunkEditor(ChunkStore(database), ingestor.vectors, index)
    chunk = next(one for one in editor.store.all(guide.id) if "30 days" in one.text)
    edited = editor.edit(chunk.id, "The notice period is 14 days for apprentices.", "ann")
    before = answers(settings, script, ingestor.embedder)
    assert "14 days" in before[0].text
    assert before[4].citations == ()
    assert before[5].citations[0].document == "Bees"
    store = FeedbackStore(database)
    exchange = store.record(store.start_conversation("ann", "Meals"), "ann", QUESTIONS[1], before[2])
    store.vote(exchange, "ann", -1, "incomplete")
    Review(database).approve(store.correct(exchange, "ann", "Soup is served at noon, in the hall."), "rita")
    backup(settings, tmp_path / "b", quiet)

    editor.restore(edited, "ann")
    documents.delete(guide.id)
    reindex(settings, database, Embedders(settings, database).before(), "ann", tell)
    shutil.rmtree(settings.data_dir / "embedders")
    index.close()
    database.close()
    restore(settings, tmp_path / "b", verify(tmp_path / "b", quiet), quiet)
    assert rebuild(settings, quiet).usable
    assert answers(settings, script, ingestor.embedder) == before
    with closing(Database(settings.database)) as restored:
        assert FeedbackStore(restored).find_correction(QUESTIONS[1], "bob")
        assert FeedbackStore(restored).counts()["down"] == 1
        assert Embedders(settings, restored).in_service().id == tuned
