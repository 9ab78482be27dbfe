"""Files into searchable documents: `understudy ingest PATH`, uploads, and the samples of a new installation.

Safe to kill anywhere: a document is pending until its vectors are committed, and whatever is pending or in
the queue is taken up by the next run. The lock lets one ingest run at a time; the kernel frees it with the
process.
"""

from __future__ import annotations

import argparse
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from core.db import Database, now_ms
from core.errors import Cancelled, ConflictError, DocumentError, NotFoundError, UnderstudyError, run_main
from core.files import owner_lock
from core.jobs import Job, Jobs
from core.settings import PROJECT, Settings, load_settings, quiet_environment
from rag.documents import Document, DocumentStore
from rag.drain import Beat, Drain
from rag.embed import Embedder, Step, quick_half
from rag.embedders import Embedders, InService
from rag.files import below
from rag.filetypes import KINDS
from rag.index import Index
from rag.intake import take_file
from rag.passages import PassageStore
from rag.pipeline import Pipeline
from rag.queue import Queue
from rag.queue_work import QueueWork
from rag.reader import Reader
from rag.sync import sync
from rag.versions import hand_on, retire
from rag.words import display_name

SAMPLES = PROJECT / "data" / "samples" / "documents"

Report = Callable[[str], None]


@dataclass
class Summary:
    """What came of a run: `refused` and `unread` hold (name, reason), see `rag.sync.Changes`."""

    added: int = 0
    unchanged: int = 0
    refused: list[tuple[str, str]] = field(default_factory=list)
    removed: int = 0
    unread: list[tuple[str, str]] = field(default_factory=list)

    def join(self, other: Summary) -> None:
        """Add another run's counts to this one."""
        self.added += other.added
        self.unchanged += other.unchanged
        self.refused += other.refused
        self.removed += other.removed
        self.unread += other.unread


class Ingestor:
    """Takes documents from bytes to searchable."""

    def __init__(self, settings: Settings, database: Database, index: Index, embedder: Embedder) -> None:
        self.settings = settings
        self.documents = DocumentStore(database, settings)
        self.passages = PassageStore(database)
        self.queue = Queue(database, self.documents, settings)
        self.index = index
        self.embedder = embedder
        self.vectors = InService(Embedders(settings, database), embedder)

    def process(self, documents: Sequence[Document], step: Step = lambda: None) -> int:
        """Embed pending documents and make them ready in one commit; the next `Index.sync` has them.

        The same commit removes the earlier versions that they replace (see `rag.versions`).
        Returns how many are ready; those that were deleted meanwhile are left out. `step` is called before
        each batch and may raise. Raises ConflictError while the passages are to be embedded anew: vectors of
        two embedders are never mixed.
        """
        if reason := self.index.embedders.mismatch():
            raise ConflictError(reason, "The document waits until then.")
        found: list[tuple[str, list[int]]] = []
        texts: list[str] = []
        for document in documents:
            with suppress(NotFoundError):
                pieces = self.documents.chunk_texts(document.id)
                if not pieces:
                    self.documents.fail(document.id, "The document holds no text that can be searched.")
                    continue
                found.append((document.id, [i for i, _ in pieces]))
                texts += [text for _, text in pieces]
        if not texts:
            return 0
        import numpy as np

        ends = np.cumsum([len(ids) for _, ids in found])
        vectors = np.split(self.vectors.encode(texts, step), ends[:-1])
        embedded = [(*one, part) for one, part in zip(found, vectors, strict=True)]
        gone: list[str] = []
        count = self.documents.save_documents(
            embedded, hand_on, lambda connection, ids: gone.extend(retire(connection, ids))
        )
        self.documents.unlink(gone)
        return count

    def process_pending(self, beat: Beat | None = None) -> int:
        """Process every pending document and bring the index up to date; returns how many."""
        with owner_lock(self.lock, "Reading documents", wait=True):
            return self._process_pending(beat)

    def drain(self, beat: Beat | None = None) -> int:
        """Read the whole queue and process every pending document; returns how many documents."""
        with owner_lock(self.lock, "Reading documents", wait=True), Reader(self.settings) as reader:
            self.documents.sweep()
            return self._drain(beat).run(reader)

    def _drain(self, beat: Beat | None = None) -> Drain:
        return Drain(self.queue, self.index, self.process, beat)

    @property
    def lock(self) -> Path:
        """Held by whoever ingests."""
        return self.settings.data_dir / "ingest.lock"

    def _process_pending(self, beat: Beat | None = None) -> int:
        self.documents.sweep()
        drain = self._drain(beat)
        drain.finish()
        return drain.count

    def ingest(
        self, paths: Sequence[Path], report: Report, origin: str = "folder", wait: bool = False
    ) -> Summary:
        """Add and process files and folders (recursively); one report line per file, when it is done.

        Lines of added files come from another thread. Raises ConflictError when another process is
        ingesting, unless it is to `wait` for it.
        """
        summary = Summary()

        def ready(documents: Sequence[Document]) -> None:
            for document in documents:
                summary.added += 1
                report(f"added      {document.name} ({document.chunks} passages)")

        def unlisted(folder: Path, reason: str) -> None:
            summary.refused.append((folder.name, reason))
            report(f"refused    {display_name(folder.name)}: {reason}")

        with owner_lock(self.lock, "Reading documents", wait=wait), Reader(self.settings) as reader:
            self.index.sync()
            with self._drain().reading(ready) as pipeline:
                for path in _files(paths, unlisted):
                    self._one(path, origin, reader, (pipeline, summary, report))
            self._process_pending()
        return summary

    def _one(self, path: Path, origin: str, reader: Reader, state: tuple[Pipeline, Summary, Report]) -> None:
        pipeline, summary, report = state
        began = now_ms()
        for taken in take_file(self.documents, path, origin, reader):
            document = taken.document
            if document is None:
                reason = taken.error.message if taken.error else ""
                summary.refused.append((taken.name, reason))
                report(f"refused    {taken.name}: {taken.error}")
            elif document.created_at < began or not pipeline.offer([document]):
                summary.unchanged += 1
                report(f"unchanged  {document.name}")

    def sync(self, folder: Path, report: Report) -> Summary:
        """Make the documents those of the folder: see `rag.sync`. Nothing is loaded when nothing changed.

        Raises ConflictError when another process is ingesting, DocumentError when the folder cannot be right.
        """
        with owner_lock(self.lock, "Reading documents"), Reader(self.settings) as reader:
            with self._drain().reading() as pipeline:
                changes = sync(self.documents, folder, reader, report, pipeline.offer)
            if changes.touched or self.documents.pending():
                self._process_pending()
            QueueWork(self.queue).settle()
        return Summary(
            len(changes.added), changes.unchanged, changes.refused, changes.removed, changes.unread
        )

    def add_samples(self, report: Report | None = None) -> int:
        """Add the sample documents, once per data folder, so that a deleted sample stays deleted.

        Returns how many documents were processed. Safe when several processes start at once.
        """
        if self.passages.note("samples") == "added" or not SAMPLES.is_dir():
            return 0
        # loading MiniLM takes longer than reading the samples, so both at once
        warming = threading.Thread(target=self.embedder.warm, daemon=True)
        warming.start()
        with owner_lock(self.lock, "Reading documents", wait=True), Reader(self.settings) as reader:
            if self.passages.note("samples") == "added":
                return 0
            for path in sorted(SAMPLES.iterdir()):
                self.documents.add_file(path, "sample", reader)
            warming.join()
            count = self._process_pending(lambda _, message: report(message) if report else None)
            self.passages.put_note(samples="added")
        return count

    def delete(self, document_id: str, actor: str = "local") -> None:
        """Delete a document everywhere: rows, search entries, bytes and vectors (raises NotFoundError)."""
        self.documents.delete(document_id, actor)
        self.index.sync()


def open_ingestor(settings: Settings) -> Ingestor:
    """An ingestor with its own database connection, index and embedder (all load on first use)."""
    database = Database(settings.database)
    return Ingestor(settings, database, Index(settings, database), Embedder(half=quick_half()))


def _files(paths: Sequence[Path], unlisted: Callable[[Path, str], None]) -> Iterator[Path]:
    """Files named or below folders named, sorted; links to folders are not followed, hidden names skipped."""
    for path in paths:
        if not path.is_dir() or path.is_symlink():
            yield path
            continue
        yield from below(path, unlisted)


def _run_job(ingestor: Ingestor, job_id: str, token: int) -> None:
    jobs = Jobs(ingestor.passages.database)
    job: Job = jobs.get(job_id)
    if job.token != token:
        raise ConflictError(f"Job {job_id} was taken over by another worker.")

    def beat(share: float, message: str) -> None:
        if jobs.heartbeat(job, share, message):
            raise Cancelled("Reading documents was cancelled; what is ready stays.")

    try:
        beat(0.0, "Loading the embedding model …")
        ingestor.index.open()
        count = ingestor.drain(beat)
        failed = ingestor.queue.counts()["failed"]
        said = f" {failed} of the queue's files failed; the Documents page says why." if failed else ""
        jobs.finish(job, "done", f"{count} documents read.{said}", {"documents": count})
        if ingestor.queue.active() or ingestor.documents.pending():  # came after the last look
            jobs.submit("ingest", once=True)
    except Cancelled as error:
        jobs.finish(job, "cancelled", error.message)
    except UnderstudyError as error:
        if not isinstance(error, ConflictError):
            jobs.finish(job, "failed", str(error))
        raise


def _stop_in_order() -> None:
    """Let SIGTERM, by which the worker stops its children, put the file in hand back into the queue."""

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, leave)


def main(arguments: list[str] | None = None) -> int:
    """`understudy ingest PATH ...`; exit code 2 when files were refused."""
    parser = argparse.ArgumentParser(
        prog="understudy ingest",
        description=f"Add documents to search: {', '.join(sorted(KINDS))}. Folders are read with all below"
        " them. A file that is refused is named with the reason; stopping and repeating does no harm.",
    )
    parser.add_argument("paths", nargs="*", type=Path, metavar="PATH", help="a file or a folder")
    parser.add_argument(
        "--sync",
        action="store_true",
        help="keep the documents in step with a folder: add what is new, update what changed, remove what is"
        " gone; unchanged files are not read",
    )
    parser.add_argument("--job", help=argparse.SUPPRESS)
    parser.add_argument("--token", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    quiet_environment()
    if not options.job and not options.paths:
        parser.error("name at least one file or folder")
    missing = [path for path in options.paths if not os.path.lexists(path)]
    if missing:
        raise DocumentError(f"{missing[0]} does not exist.", "Check the path.")
    ingestor = open_ingestor(load_settings())
    if options.job:
        if threading.current_thread() is threading.main_thread():
            _stop_in_order()
        _run_job(ingestor, options.job, options.token)
        return 0
    total = Summary()
    if options.sync:
        for path in options.paths:
            total.join(ingestor.sync(path, _say))
    else:
        total = ingestor.ingest(options.paths, _say)
    removed = f", {total.removed} removed" if options.sync else ""
    unread = f", {len(total.unread)} could not be read and stay as they were" if total.unread else ""
    print(f"{total.added} added, {total.unchanged} unchanged{removed}, {len(total.refused)} refused{unread}.")
    return 2 if total.refused or total.unread else 0


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    run_main(main)
