"""The work on the queue: read each waiting file, oldest first, and make it searchable before the next.

For whoever holds the ingest lock. Killed anywhere, nothing is lost and nothing comes twice: a document's id
is its content's hash, the queue's row says `embedding` only when the documents are stored, and `ready` only
when they are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from core.db import now_ms
from core.errors import DocumentError
from rag.access import new_access
from rag.approval import CHOSEN_AGAIN, Approval
from rag.documents import Document, DocumentStore
from rag.index import Index
from rag.intake import take
from rag.queue import ACTIVE, Entry, Queue
from rag.queue_work import QueueWork
from rag.reader import Reader
from rag.sync import read_queued

INDEX_SECONDS = 15.0  # how long a document may be found by its words alone
SETTLE_SECONDS = 1.0
GROUP_CHUNKS = 128  # small documents are embedded together: four chunks at a time take twice as long

Beat = Callable[[float, str], None]
Embed = Callable[[Sequence[Document], Callable[[], None] | None], int]


class Drain:
    """Works until nothing waits. `embed` makes pending documents ready."""

    def __init__(
        self, queue: Queue, documents: DocumentStore, index: Index, reader: Reader, embed: Embed
    ) -> None:
        self.queue = queue
        self.work = QueueWork(queue)
        self.documents = documents
        self.index = index
        self.reader = reader
        self.embed = embed
        self.count = 0
        self._indexed = self._settled = time.monotonic()

    def run(self, beat: Beat | None = None) -> int:
        """Read and embed everything; returns how many documents. `beat` may raise Cancelled."""
        self.work.recover()
        self.embed_pending(beat)
        while entry := self.work.claim():
            with self.work.at_work(entry):
                if beat is not None:
                    beat(self._share(1), f"Reading {entry.name} …")
                self._read(entry)
            self.embed_pending(beat)
        self.index.sync()
        return self.count

    def _read(self, entry: Entry) -> None:
        if entry.root:
            read_queued(self.documents, self.work, entry, self.reader)
            return
        access = new_access(self.documents.settings, entry.owner, entry.visibility, entry.group_names)
        began, approval = now_ms(), Approval(self.documents.database)
        taken = list(
            take(self.documents, entry.name, self.queue.data(entry), entry.origin, self.reader, access)
        )
        found = [one.document.id for one in taken if one.document is not None]
        refused = [one for one in taken if one.error is not None]
        if not found and len(taken) == 1 and taken[0].error is not None:
            raise taken[0].error
        if not found:
            lines = "; ".join(f"{one.name}: {one.error}" for one in refused)
            raise DocumentError(f"Nothing in the archive can be read. {lines}".strip())
        told = [f"{one.name} was not added: {one.error}" for one in refused]
        known = [one.document for one in taken if one.document and one.document.created_at < began]
        told += [f"{one.name} was {CHOSEN_AGAIN}" for one in known if approval.choose_again(one, access)]
        self.work.read(entry, list(dict.fromkeys(found)), "\n".join(told))

    def embed_pending(self, beat: Beat | None = None) -> None:
        """Make every pending document ready, wherever it came from."""
        pending = self.documents.pending()
        left = len(pending)
        for group in _groups(pending):
            share, message = self._share(left), f"Preparing {group[0].name} …"
            self.count += self.embed(group, partial(beat, share, message) if beat else None)
            left -= len(group)
            self._keep_up()
        self.work.settle()

    def _keep_up(self) -> None:
        """Close what is done, and let the new vectors be searched, now and then."""
        now = time.monotonic()
        if now - self._settled > SETTLE_SECONDS:
            self.work.settle()
            self._settled = now
        if now - self._indexed > INDEX_SECONDS:
            self.index.sync()
            self._indexed = now

    def _share(self, left: int) -> float:
        """How much is done, when at least `left` is still to do."""
        counts = self.queue.counts()
        done = max(counts["done"], self.count)
        return done / (done + max(left, sum(counts[status] for status in ACTIVE)))


def _groups(documents: Sequence[Document]) -> Iterator[list[Document]]:
    """The documents in order, as many at once as have GROUP_CHUNKS chunks, one at least."""
    group: list[Document] = []
    for document in documents:
        if group and sum(one.chunks for one in group) + document.chunks > GROUP_CHUNKS:
            yield group
            group = []
        group.append(document)
    if group:
        yield group
