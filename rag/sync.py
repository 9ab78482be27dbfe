"""A folder and its documents kept the same: `understudy ingest PATH --sync` adds, updates and removes.

A file whose size, time of change and inode are as they were costs one `stat`; one whose bytes are as they
were is not read again. All others are queued first (`rag.queue`) and then read, so everybody sees how far it
is. What a changed file was before goes on answering until its new version is ready, and longer where that
cannot be read (`rag.versions`). Safe to kill anywhere: rows are written after the documents they name, and
documents that no row names are removed last, so the worker reads what is left in the queue and the next run
finishes what this one began.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from core.db import now_ms
from core.errors import DocumentError
from rag.documents import Documents, DocumentStore
from rag.files import NoFileError, UnreadError, below
from rag.mounts import UNMOUNTED, mounted, unmounted
from rag.ocr import Ocr
from rag.queue import Entry, Queue
from rag.queue_work import QueueWork, came_since
from rag.reader import Reader
from rag.renew import Renewed, give_up, remove_gone, renew
from rag.sources import Source, Sources, SourceStore
from rag.words import display_name, one_line

YOUNG_NS = 2_000_000_000  # the coarsest clock of a file system that is met
READER = "2"  # raise it when a loader learns to read what it refused
KEPT = "What is known of it stays, and the next run tries again."

Report = Callable[[str], None]
Offer = Callable[[Documents], object]


@dataclass
class Changes:
    """What a run did, in documents and files; `refused` holds (path, reason), old refusals too.

    `removed` counts what went and what goes when its successor is ready; the latter are `replaced`, by id.
    `unread` has the files and folders that could not be read this time, with the reason.
    """

    added: list[str] = field(default_factory=list)
    unchanged: int = 0
    removed: int = 0
    replaced: list[str] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)
    unread: list[tuple[str, str]] = field(default_factory=list)

    @property
    def touched(self) -> bool:
        """Whether any document came or went."""
        return bool(self.added or self.removed)


def sync(
    store: DocumentStore, root: Path, reader: Reader, report: Report, offer: Offer = lambda documents: None
) -> Changes:
    """Bring the documents up to date with the folder. For the lock's holder.

    The new documents are left pending, and each file's are given to `offer`, which may raise. What cannot be
    read, and all below it, stays as it is known; so does what a file was whose new version is refused. Raises
    DocumentError when the folder is missing, or empty while it was not before: an unmounted disk must not
    delete its documents.
    """
    if not os.path.isdir(root) or root.is_symlink():
        raise DocumentError(f"{root} is not a folder.", "Name the folder to keep in step with.")
    sources = SourceStore(store.database, str(root.resolve()))
    known = sources.all()
    changes = Changes()
    run = _Run(store, sources, reader, report, changes, reader_version(store.settings.ocr_languages))

    def unlisted(folder: Path, reason: str) -> None:
        run.unread(str(folder.relative_to(root)), reason)

    found = {str(path.relative_to(root)): path for path in below(root, unlisted)}
    if known and not found:
        raise DocumentError(
            f"{root} is empty or cannot be read, so nothing was removed.",
            "Mount it again, or delete its documents on the Documents page.",
        )
    run.look_for_disks(root, known, found)
    stale = [(name, _stamp(path)[0]) for name, path in found.items() if not run.unchanged(path, name, known)]
    queue = Queue(store.database, store, store.settings)
    work = QueueWork(queue)
    work.recover()
    waiting = queue.put_files(sources.root, stale, found)
    with store.database.relaxed():  # the folder still has what a power cut takes
        for queued in waiting:
            entry = work.claim(queued.id)
            if entry is not None:  # else somebody cancelled it
                offer(run.entry(work, entry, known))
    if gone := [name for name in sorted(set(known) - set(found)) if not run.below_unread(name)]:
        sources.remove(gone)
    changes.removed = remove_gone(store, sources, changes.replaced, report, "sync")
    return changes


def read_queued(store: DocumentStore, work: QueueWork, entry: Entry, reader: Reader) -> Documents:
    """Read a claimed file of a folder that an earlier run queued; returns its documents."""
    sources = SourceStore(store.database, entry.root)
    version = reader_version(store.settings.ocr_languages)
    run = _Run(store, sources, reader, lambda line: None, Changes(), version)
    return run.entry(work, entry, {})


@dataclass
class _Run:
    store: DocumentStore
    sources: SourceStore
    reader: Reader
    report: Report
    changes: Changes
    version: str

    def unchanged(self, path: Path, name: str, known: Sources) -> bool:
        """Whether the file looks as it did; then its documents are kept."""
        before = known.get(name)
        if before is None or before.stamp != _stamp(path) or not self._still_valid(before):
            return False
        self._keep(before)
        return True

    def entry(self, work: QueueWork, entry: Entry, known: Sources) -> Documents:
        """Read a claimed entry of the queue, tell the queue what came of it and return the documents."""
        taken: Documents = []
        began = now_ms()
        with work.at_work(entry):
            done = self.file(Path(self.sources.root) / entry.path, entry.path, known, taken)
            source = done.source
            if not source.documents:
                raise DocumentError(source.error or "The archive holds no files.", ". ".join(done.remarks))
            told = "\n".join([*done.refused, *done.remarks])
            work.read(entry, source.documents, told, came_since(began, taken))
        return taken

    def file(self, path: Path, name: str, known: Sources, found: Documents) -> Renewed:
        """Read a file; its documents are added to `found`.

        Raises DocumentError when it cannot be read this time; what is known of it then stays.
        """
        before = known.get(name)
        stamp = _settled(_stamp(path))
        try:
            data = self.store.read_file(path)
        except UnreadError as error:
            self.unread(name, error.message)
            raise DocumentError(error.message, KEPT) from None
        except DocumentError as error:
            refused = Source(name, stamp, "", (), str(error), self.version)
            gone = isinstance(error, NoFileError)
            return self._renewed(give_up(self.sources, refused, path.name, gone=gone))
        digest = hashlib.sha256(data).hexdigest()
        if before is not None and before.hash == digest and self._still_valid(before):
            kept = Source(name, stamp, digest, before.documents, before.error, before.reader)
            self.sources.put(kept)
            self._keep(kept)
            return Renewed(kept, [], kept.error.splitlines(), 0, [])
        began = now_ms()
        done = renew(
            *(self.store, self.sources, self.reader, (name, path.name, data)),
            lambda ids, error: Source(name, stamp, digest, ids, error, self.version),
        )
        found += done.documents
        fresh = [document for document in done.documents if document.created_at >= began]
        self.changes.added += [document.id for document in fresh]
        for document in fresh:
            self.report(f"added      {document.name}")
        self.changes.unchanged += not done.refused and not fresh
        return self._renewed(done)

    def unread(self, name: str, reason: str) -> None:
        """A file or folder could not be read this time: it may still hold what it held."""
        self.changes.unread.append((name, reason))
        self.report(f"unread     {one_line(name)}: {reason} {KEPT}")

    def below_unread(self, name: str) -> bool:
        """Whether a file or folder is, or lies below, what could not be read this time."""
        return any(PurePath(name).is_relative_to(above) for above, _ in self.changes.unread)

    def look_for_disks(self, root: Path, known: Iterable[str], found: Iterable[str]) -> None:
        """Call unread where a disk was mounted and is not any more, and remember where disks are."""
        remembered = self.sources.mounts()
        for name in sorted(unmounted(root, remembered)):
            if any(PurePath(one).is_relative_to(name) for one in known):
                self.unread(name, UNMOUNTED)
        kept = {name for name in remembered if self.below_unread(name)}
        self.sources.put_mounts(mounted(root, {*known, *found}) | kept)

    def _renewed(self, done: Renewed) -> Renewed:
        name = display_name(done.source.path)
        self.changes.replaced += done.replaced
        if done.lost_edits:
            self.report(f"edits      {name}: {done.lost_edits} dropped, as the passage changed")
        for error in done.refused:
            self.changes.refused.append((done.source.path, error))
            self.report(f"refused    {name}: {error}")
        for remark in done.remarks:
            self.report(f"earlier    {remark}")
        return done

    def _keep(self, source: Source) -> None:
        if source.error:
            self.changes.refused += [(source.path, line) for line in source.error.splitlines()]
        self.changes.unchanged += bool(source.documents)

    def _still_valid(self, before: Source) -> bool:
        return not before.error or before.reader == self.version


def reader_version(languages: str) -> str:
    """What decides whether a file can be read: the loaders' version and how scanned pages are read."""
    ocr = Ocr(languages)
    return " ".join([READER, *(one for one in languages.split("+") if one not in ocr.lacking)])


def _stamp(path: Path) -> tuple[int, int, int]:
    """Size, time of the last change and inode; unlike the time of modification, nobody can set that back."""
    try:
        seen = os.stat(path, follow_symlinks=False)
    except OSError:
        return 0, 0, 0
    return seen.st_size, seen.st_ctime_ns, seen.st_ino


def _settled(stamp: tuple[int, int, int]) -> tuple[int, int, int]:
    """The stamp to remember of a file that is about to be read.

    One that has just changed may change again with the same time on it, so it gets a time that no file has
    and is read once more by the next run (as git does, "racy git").
    """
    size, changed, inode = stamp
    return (size, changed if time.time_ns() - changed > YOUNG_NS else 0, inode)
