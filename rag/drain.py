"""The work on the queue: read each waiting file, oldest first, while those before it are embedded.

For whoever holds the ingest lock. Killed anywhere, nothing is lost and nothing comes twice: a document's id
is its content's hash, the queue's row says `embedding` only when the documents are stored, and `ready` only
when they are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from core.db import now_ms
from core.errors import DocumentError
from rag.access import new_access
from rag.approval import CHOSEN_AGAIN, Approval
from rag.documents import Document, Documents
from rag.embed import Step
from rag.index import Index
from rag.intake import take
from rag.pipeline import Group, Pipeline
from rag.queue import ACTIVE, Entry, Queue
from rag.queue_work import QueueWork, came_since
from rag.reader import Reader
from rag.sync import read_queued
from rag.versions import retire_all

INDEX_SECONDS = 15.0  # how long a document may be found by its words alone
SETTLE_SECONDS = 1.0

Beat = Callable[[float, str], None]
Embed = Callable[[Sequence[Document], Step], int]
Tell = Callable[[Group], None]


class Drain:
    """Works until nothing waits. `embed` makes pending documents ready; `beat` may raise Cancelled."""

    def __init__(self, queue: Queue, index: Index, embed: Embed, beat: Beat | None = None) -> None:
        self.queue = queue
        self.work = QueueWork(queue)
        self.documents = queue.documents
        self.index = index
        self.count = 0  # documents that became ready
        self._embed = embed
        self._beat = beat or (lambda share, message: None)
        self._pending = 0  # when the work began
        self._indexed = self._settled = time.monotonic()

    @contextmanager
    def reading(self, tell: Tell | None = None) -> Iterator[Pipeline]:
        """Embed what is pending and what is offered in the block; `tell` is called with what is ready.

        Commits of the caller are relaxed: the queue or the folder has a file until its document's vectors
        are committed, which another thread does, and in full.
        """

        def embed(group: Group, step: Step) -> None:
            self.count += self._embed(group, step)

        def after(group: Group) -> None:
            self._keep_up()
            if tell is not None:
                tell(group)

        def beat(first: Document) -> None:
            self._beat(self._share(), f"Preparing {first.name} …")

        with self.queue.database.relaxed(), Pipeline(embed, after, beat) as pipeline:
            yield pipeline

    def run(self, reader: Reader) -> int:
        """Read and embed everything; returns how many documents."""
        self.work.recover()
        with self.reading() as pipeline:
            pipeline.offer(self._all_pending())
            while (entry := self.work.claim()) or pipeline.wait():
                if entry is None:
                    continue  # embedding took a while: look again
                found: Documents = []
                with self.work.at_work(entry):
                    self._beat(self._share(), f"Reading {entry.name} …")
                    found = self._read(entry, reader)
                pipeline.offer(found)
        self.finish()
        return self.count

    def finish(self) -> None:
        """Make every pending document ready, wherever it came from, and let all of it be searched."""
        retire_all(self.documents)  # what was replaced before it was ready is not embedded any more
        with self.reading() as pipeline:
            pipeline.offer(self._all_pending())
        retire_all(self.documents)
        self.work.settle()
        self.index.sync()

    def _all_pending(self) -> Documents:
        pending = self.documents.pending()
        self._pending = self.count + len(pending)
        return pending

    def _read(self, entry: Entry, reader: Reader) -> Documents:
        """Read a claimed file; returns its documents."""
        if entry.root:
            return read_queued(self.documents, self.work, entry, reader)
        access = new_access(self.documents.settings, entry.owner, entry.visibility, entry.group_names)
        began, approval = now_ms(), Approval(self.documents.database)
        taken = list(take(self.documents, entry.name, self.queue.data(entry), entry.origin, reader, access))
        found = [one.document for one in taken if one.document is not None]
        refused = [one for one in taken if one.error is not None]
        if not found and len(taken) == 1 and taken[0].error is not None:
            raise taken[0].error
        if not found:
            lines = "; ".join(f"{one.name}: {one.error}" for one in refused)
            raise DocumentError(f"Nothing in the archive can be read. {lines}".strip())
        told = [f"{one.name} was not added: {one.error}" for one in refused]
        known = [document for document in found if document.created_at < began]
        told += [f"{one.name} was {CHOSEN_AGAIN}" for one in known if approval.choose_again(one, access)]
        ids = list(dict.fromkeys(document.id for document in found))
        self.work.read(entry, ids, "\n".join(told), came_since(began, found))
        return found

    def _keep_up(self) -> None:
        """Close what is done, and let the new vectors be searched, now and then."""
        now = time.monotonic()
        if now - self._settled > SETTLE_SECONDS:
            self.work.settle()
            self._settled = now
        if now - self._indexed > INDEX_SECONDS:
            self.index.sync()
            self._indexed = now

    def _share(self) -> float:
        """How much is done."""
        counts = self.queue.counts()
        done = max(counts["done"], self.count)
        left = max(1, self._pending - self.count, sum(counts[status] for status in ACTIVE))
        return done / (done + left)
