"""Embedding goes on in a thread of its own while the caller reads the next files.

Documents are offered as soon as they are stored. The thread takes whatever was offered meanwhile, at most
GROUP_CHUNKS chunks at once: a document that comes alone waits for no other, and a folder's small files are
embedded together. Reading may be AHEAD groups ahead. The caller alone reports progress, is interrupted and
gets errors, those of the thread too; when it leaves with one, the thread ends at its next step. What was
offered is no more than a list of what the database calls pending, so nothing is lost with it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from types import TracebackType

from rag.documents import Document
from rag.embed import Step

GROUP_CHUNKS = 512
AHEAD = 2  # groups
BEAT_SECONDS = 1.0

Group = Sequence[Document]


class _Left(Exception):
    """The caller has left."""


class Pipeline:
    """A context manager for one thread, which leaves it with everything embedded or with an error.

    `embed` makes documents ready and calls the step that it is given now and then; `after` is called with the
    same documents in the same thread. `beat`, called while the caller waits, may raise to end it all.
    """

    def __init__(
        self,
        embed: Callable[[Group, Step], object],
        after: Callable[[Group], None],
        beat: Callable[[Document], None],
    ) -> None:
        self._embed = embed
        self._after = after
        self._beat = beat
        self._changed = threading.Condition()
        self._known: set[str] = set()
        self._offered: deque[Document] = deque()
        self._group: list[Document] = []  # in the thread's hands
        self._chunks = 0  # of both
        self._error: BaseException | None = None
        self._leaving = False
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.wait()
        finally:
            with self._changed:
                self._leaving = True
                self._changed.notify_all()
            if self._thread is not None:
                self._thread.join()

    def offer(self, documents: Group) -> int:
        """Have those that are pending embedded, each once; returns how many were not known.

        Waits while reading is too far ahead. Raises what embedding raised.
        """
        before = len(self._known)
        with self._changed:
            for document in documents:
                if document.status == "pending" and document.id not in self._known:
                    self._wait(AHEAD * GROUP_CHUNKS)
                    self._known.add(document.id)
                    self._offered.append(document)
                    self._chunks += _size(document)
            if self._offered:
                self._go_on()
        return len(self._known) - before

    def wait(self) -> bool:
        """Wait until everything offered is embedded; False when it was. Raises what embedding raised."""
        with self._changed:
            return self._wait(0)

    def _wait(self, chunks: int) -> bool:
        waited = False
        while self._error is None and self._chunks > chunks:
            self._go_on()
            self._beat([*self._group, *self._offered][0])
            waited = True
            self._changed.wait(BEAT_SECONDS)
        if self._error is not None:
            raise self._error
        return waited

    def _go_on(self) -> None:
        self._changed.notify_all()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="embedding", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        try:
            while group := self._take():
                self._embed(group, self._step)
                self._after(group)
        except _Left:
            pass
        except BaseException as error:  # whatever it is, the caller must get it
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _take(self) -> Group:
        """The oldest documents, one at least; none when it is over."""
        with self._changed:
            self._chunks -= sum(_size(document) for document in self._group)
            self._group = []
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._offered or self._leaving)
            room = GROUP_CHUNKS
            while self._offered and not self._leaving:
                room -= _size(self._offered[0])
                if self._group and room < 0:
                    break
                self._group.append(self._offered.popleft())
            return list(self._group)

    def _step(self) -> None:
        if self._leaving:
            raise _Left


def _size(document: Document) -> int:
    """Chunks; a document without any is work, too."""
    return max(1, document.chunks)
