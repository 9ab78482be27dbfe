"""Another embedder comes into service beside the running index, in one commit, and goes out the same way."""

from __future__ import annotations

import json
import shutil

import pytest

from core.db import Database
from core.errors import Cancelled, ConflictError, ModelError, NotFoundError
from core.jobs import Jobs
from core.settings import Settings
from rag.embed import DIMENSIONS, EMBEDDING, Embedder
from rag.embedders import BEFORE, IN_SERVICE, MADE_BY, WEIGHTS, Embedders, packaged
from rag.index import Index
from rag.ingest import Ingestor
from rag.reader import Reader
from rag.reindex import Reindex, reindex, run_job
from rag.retrieve import Retriever
from tests.rag.conftest import HANDBOOK

QUESTION = "When can I have a midday meal?"
CANTEEN = b"# Canteen\n\n## Food\n\nSoup is served at noon.\n\n## Car park\n\nParking costs 3 EUR a day.\n"


@pytest.fixture
def retriever(ingestor: Ingestor, reader: Reader, settings: Settings, index: Index) -> Retriever:
    for name, data in (("guide.md", HANDBOOK), ("canteen.md", CANTEEN)):
        ingestor.documents.add(name, data, "upload", reader)
    ingestor.process_pending()
    return Retriever(settings, ingestor.passages.database, index, ingestor.embedder)


def tell(_done: float, _what: str) -> None:
    """Somebody listens."""


def dense(retriever: Retriever) -> list[float]:
    return [round(passage.scores["dense"], 3) for passage in retriever.stages(QUESTION, 10)["dense"]]


def test_model_hash_and_dimension_are_stored_with_the_index(retriever: Retriever) -> None:
    noted = json.loads(retriever.passages.note(MADE_BY))
    assert noted == {"id": EMBEDDING, "sha256": packaged().sha256, "dimensions": DIMENSIONS}
    retriever.passages.put_note(**{MADE_BY: EMBEDDING})  # as the first version noted it
    assert retriever.index.status().usable


def test_a_switch_and_the_way_back(
    retriever: Retriever, tuned: str, settings: Settings, database: Database
) -> None:
    before = dense(retriever)
    assert "in service now" in reindex(settings, database, tuned, "ann", tell)
    after = dense(retriever)  # in the same process, which had the old index open
    assert after != before
    assert retriever.passages.note(IN_SERVICE) == tuned
    assert json.loads(retriever.passages.note(MADE_BY))["id"] == tuned
    assert "already" in reindex(settings, database, tuned, "ann", tell)
    reindex(settings, database, retriever.passages.note(BEFORE), "ann", tell)
    assert dense(retriever) == before
    assert retriever.passages.note(BEFORE) == tuned
    assert [path.name for path in retriever.index.folder.iterdir() if path.is_dir()] == ["3"]


def test_a_trial_searches_beside_the_index_and_changes_nothing(
    retriever: Retriever, tuned: str, settings: Settings, database: Database
) -> None:
    before = dense(retriever)
    way = Reindex(settings, database, Embedders(settings, database).get(tuned))
    way.embed(tell)
    tried = dense(way.retriever(retriever.embedder))
    assert tried != before
    assert dense(retriever) == before
    reindex(settings, database, tuned, "ann", tell)
    # the trial computes the question in bfloat16 too, where that is quick
    assert dense(retriever) == pytest.approx(tried, abs=3e-3)
    way.drop()


def test_documents_that_come_later_get_the_new_vectors(
    retriever: Retriever,
    tuned: str,
    settings: Settings,
    database: Database,
    ingestor: Ingestor,
    reader: Reader,
) -> None:
    reindex(settings, database, tuned, "ann", tell)
    added = ingestor.documents.add("new.txt", b"The midday meal is free.", "upload", reader)
    ingestor.process_pending()
    [(chunk_id, text)] = ingestor.documents.chunk_texts(added.id)
    folder = Embedders(settings, database).get(tuned).folder
    expected = Embedder(folder=folder).encode([text])[0]
    assert float(retriever.passages.vectors([chunk_id])[0] @ expected) == pytest.approx(1.0, abs=1e-4)
    assert dense(retriever)[0] == pytest.approx(
        float(Embedder(folder=folder).encode([QUESTION])[0] @ expected), abs=2e-3
    )
    assert "in service now" in reindex(settings, database, EMBEDDING, "ann", tell)
    plain = ingestor.embedder.encode([text])[0]
    assert float(retriever.passages.vectors([chunk_id])[0] @ plain) == pytest.approx(1.0, abs=1e-4)


def test_a_cancelled_switch_leaves_the_old_index_serving(
    retriever: Retriever, tuned: str, settings: Settings, database: Database
) -> None:
    before = dense(retriever)

    def stop(done: float, _what: str) -> None:
        if done > 0:
            raise Cancelled("Stop.")

    with pytest.raises(Cancelled):
        reindex(settings, database, tuned, "ann", stop)
    assert dense(retriever) == before
    assert retriever.passages.note(IN_SERVICE) == ""


def test_another_embedder_on_disk_is_never_mixed_in(
    retriever: Retriever,
    settings: Settings,
    database: Database,
    ingestor: Ingestor,
    reader: Reader,
) -> None:
    """The packaged model was exchanged: words alone, no new vectors, and a job that embeds anew."""
    made_by = json.dumps({"id": EMBEDDING, "sha256": "other", "dimensions": DIMENSIONS})
    retriever.passages.put_note(**{MADE_BY: made_by})
    assert "another embedding model" in retriever.index.status().reason
    assert retriever.stages(QUESTION, 5)["dense"] == []
    assert retriever.search("parking", 3)
    ingestor.documents.add("new.txt", b"Tea is free.", "upload", reader)
    with pytest.raises(ConflictError, match="another embedding model"):
        ingestor.process_pending()
    assert not retriever.index.open().usable
    [job] = Jobs(database).list("reindex")
    assert job.payload == {"embedder": EMBEDDING}
    leased = Jobs(database).lease(("reindex",))
    assert leased is not None
    run_job(settings, database, leased.id, leased.token)
    assert Jobs(database).get(job.id).status == "done"
    assert retriever.index.status().usable
    assert dense(retriever)
    assert Jobs(database).list("ingest")  # the document that waited is read now


def test_a_damaged_embedder_is_refused_and_search_goes_on_by_words(
    retriever: Retriever, tuned: str, settings: Settings, database: Database
) -> None:
    reindex(settings, database, tuned, "ann", tell)
    folder = settings.data_dir / "embedders" / tuned
    with (folder / WEIGHTS).open("ab") as file:
        file.write(b"x")
    with pytest.raises(ModelError, match="not those that were judged"):
        Embedders(settings, database).get(tuned)
    assert retriever.search("parking", 3)
    assert "not those that were judged" in retriever.index.status().reason
    shutil.rmtree(folder)
    with pytest.raises(NotFoundError):
        Embedders(settings, database).get(tuned)
    reindex(settings, database, EMBEDDING, "ann", tell)
    assert retriever.index.status().usable


def test_vectors_kept_by_other_weights_of_the_same_name_are_not_used(
    retriever: Retriever, tuned: str, settings: Settings, database: Database
) -> None:
    """The packaged model was exchanged while another one served: going back embeds everything anew."""
    before = dense(retriever)
    reindex(settings, database, tuned, "ann", tell)
    with database.write() as connection:
        connection.execute("UPDATE vectors SET embedder = ?, vector = zeroblob(1536)", (f"{EMBEDDING} old",))
    reindex(settings, database, EMBEDDING, "ann", tell)
    assert dense(retriever) == pytest.approx(before, abs=3e-3)  # exact vectors before, perhaps bfloat16 now
