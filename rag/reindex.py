"""Another embedder into service: embed every passage beside the running index, then switch in one commit.

A job of kind `reindex` runs this under the worker. Until the switch the old vectors and the old index serve;
a process that is killed leaves them as they were, and what it had embedded is used by the next try.
"""

from __future__ import annotations

import argparse
import signal
from collections.abc import Callable
from typing import cast

import numpy as np

from core.db import Database, audit
from core.errors import Cancelled, ConflictError, NotFoundError, UnderstudyError, run_main
from core.files import owner_lock
from core.jobs import Jobs
from core.settings import Settings, load_settings, quiet_environment
from rag.documents import DocumentStore
from rag.embed import Embedder, Vectors, quick_half
from rag.embedders import BEFORE, IN_SERVICE, MADE_BY, Embedders, Identity, InService
from rag.index import Index, IndexStatus
from rag.passages import put_notes
from rag.retrieve import Retriever
from rag.vectors import StagedVectors

BATCH = 64

Tell = Callable[[float, str], None]
"""Says how far it is (0 to 1) and what is done; raises Cancelled when it should stop."""


class Exact:
    """Stands for the index while an embedder is tried: exact search in its vectors, not indexed yet."""

    def __init__(self, passages: StagedVectors) -> None:
        self.ids, self.vectors = passages.ready_vectors(sorted(passages.ready_ids()))

    def status(self) -> IndexStatus:
        """Always usable."""
        return IndexStatus(True, "", 0)

    def query(self, vector: Vectors, limit: int) -> list[tuple[int, float]]:
        """(chunk id, cosine similarity) of the nearest chunks, best first."""
        near = self.vectors @ vector
        return [(self.ids[at], float(near[at])) for at in np.argsort(-near, kind="stable")[:limit]]


class Reindex:
    """One embedder's way into service."""

    def __init__(self, settings: Settings, database: Database, target: Identity) -> None:
        self.settings = settings
        self.database = database
        self.target = target
        self.embedders = Embedders(settings, database)
        self.staged = StagedVectors(database, target.key)
        self.model = Embedder(quick_half(), target.folder)

    def embed(self, tell: Tell) -> None:
        """Embed every passage that has no vector of the target yet; the old ones serve meanwhile."""
        documents = DocumentStore(self.database, self.settings)
        lacking = self.staged.lacking()
        for number, document_id in enumerate(lacking):
            try:
                pieces = documents.chunk_texts(document_id)
            except NotFoundError:
                continue  # deleted a moment ago
            for at in range(0, len(pieces), BATCH):
                tell(number / len(lacking), f"Embedding document {number + 1} of {len(lacking)}")
                step = pieces[at : at + BATCH]
                self.staged.save([i for i, _ in step], self.model.encode([text for _, text in step]))

    def retriever(self, plain: Embedder) -> Retriever:
        """A search with the target's vectors, before they are in service."""
        found = Retriever(self.settings, self.database, cast(Index, Exact(self.staged)), plain)
        found.passages = self.staged
        found.vectors = cast(InService, self.model)
        return found

    def switch(self, actor: str, reason: str, tell: Tell) -> None:
        """Put the target into service with one commit, once every passage is embedded and indexed.

        Nobody may ingest meanwhile, or a document would come with the old one's vectors.
        """
        with owner_lock(self.settings.data_dir / "ingest.lock", "Reading documents", wait=True):
            self.embed(tell)
            tell(0.95, "Building the index")
            serving = None if self.embedders.mismatch() else self.embedders.in_service()
            before = serving if serving and serving.id != self.target.id else None

            def exchange(connection: object) -> None:
                self.staged.exchange(connection, before.key if before else "")
                notes = {IN_SERVICE: self.target.id, MADE_BY: self.target.note}
                notes[BEFORE] = before.id if before else ""
                put_notes(connection, notes)
                audit(connection, actor, "embedder.switch", f"{self.target.id}: {reason}")  # type: ignore[arg-type]

            index = Index(self.settings, self.database)
            try:
                index.replace(self.staged, exchange)
            finally:
                index.close()

    def drop(self) -> None:
        """Forget the target's vectors: it was not better."""
        self.staged.drop()


def reindex(settings: Settings, database: Database, target: str, actor: str, tell: Tell) -> str:
    """Put the embedder `target` into service; returns a sentence (raises NotFoundError, ModelError)."""
    embedders = Embedders(settings, database)
    identity = embedders.get(target)
    if embedders.notes.note(MADE_BY) == identity.note:
        return f"{identity.id} is in service already."
    way = Reindex(settings, database, identity)
    way.embed(lambda done, what: tell(0.9 * done, what))
    way.switch(actor, "reindexed", tell)
    if DocumentStore(database, settings).pending():  # they waited for this
        Jobs(database).submit("ingest", once=True)
    return f"{identity.id} is in service now."


def run_job(settings: Settings, database: Database, job_id: str, token: int) -> None:
    """`reindex` under the worker; the payload names the embedder (`embedder`)."""
    jobs = Jobs(database)
    job = jobs.get(job_id)
    if job.token != token:
        raise ConflictError(f"Job {job_id} was taken over by another worker.")
    signal.signal(signal.SIGTERM, signal.default_int_handler)

    def tell(done: float, what: str) -> None:
        if jobs.heartbeat(job, done, what):
            raise Cancelled("Embedding anew was cancelled; the old index serves on.")

    try:
        jobs.finish(job, "done", reindex(settings, database, job.payload["embedder"], "job", tell))
    except Cancelled as error:
        jobs.finish(job, "cancelled", error.message)
    except UnderstudyError as error:
        jobs.finish(job, "failed", str(error))


def main(arguments: list[str] | None = None) -> int:
    """Only as a child of the worker."""
    parser = argparse.ArgumentParser(prog="python -m rag.reindex", description=__doc__)
    parser.add_argument("--job", required=True)
    parser.add_argument("--token", type=int, required=True)
    options = parser.parse_args(arguments)
    quiet_environment()
    settings = load_settings()
    run_job(settings, Database(settings.database), options.job, options.token)
    return 0


if __name__ == "__main__":
    run_main(main)
