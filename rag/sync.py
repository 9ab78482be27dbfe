"""A folder and its documents kept the same: `understudy ingest PATH --sync` adds, updates and removes.

A file whose size, time and inode are as they were costs one `stat`; one whose bytes are as they were is not
read again. Safe to kill anywhere: rows are written after the documents they name, and documents that no row
names are removed last, so the next run finishes what this one began.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from core.db import now_ms
from core.errors import DocumentError
from rag.chunk_carry import carry
from rag.documents import SYNCED, DocumentStore, display_name
from rag.files import below
from rag.intake import take
from rag.ocr import Ocr
from rag.reader import Reader
from rag.sources import Source, Sources, SourceStore

READER = "1"  # raise it when a loader learns to read what it refused

Report = Callable[[str], None]


@dataclass
class Changes:
    """What a run did, in documents and files; `refused` holds (path, reason), old refusals too."""

    added: list[str] = field(default_factory=list)
    unchanged: int = 0
    removed: int = 0
    refused: list[tuple[str, str]] = field(default_factory=list)

    @property
    def touched(self) -> bool:
        """Whether any document came or went."""
        return bool(self.added or self.removed)


def sync(store: DocumentStore, root: Path, reader: Reader, report: Report) -> Changes:
    """Bring the documents up to date with the folder; the new ones are left pending.

    Raises DocumentError when the folder is missing, or empty while it was not before: an unmounted disk must
    not delete its documents.
    """
    if not root.is_dir() or root.is_symlink():
        raise DocumentError(f"{root} is not a folder.", "Name the folder to keep in step with.")
    sources = SourceStore(store.database, str(root.resolve()))
    known = sources.all()
    found = {str(path.relative_to(root)): path for path in below(root)}
    if known and not found:
        raise DocumentError(
            f"{root} is empty, so nothing was removed.",
            "Mount it again, or delete its documents on the Documents page.",
        )
    changes = Changes()
    run = _Run(store, sources, reader, report, changes, reader_version())
    for name, path in found.items():
        run.file(path, name, known)
    gone = sorted(set(known) - set(found))
    if gone:
        sources.remove(gone)
    for document_id in sources.orphans():
        report(f"removed    {store.get(document_id).name}")
        store.delete(document_id, "sync")
        changes.removed += 1
    return changes


@dataclass
class _Run:
    store: DocumentStore
    sources: SourceStore
    reader: Reader
    report: Report
    changes: Changes
    version: str

    def file(self, path: Path, name: str, known: Sources) -> None:
        before = known.get(name)
        stamp = _stamp(path)
        if before is not None and before.stamp == stamp and self._still_valid(before):
            self._keep(before)
            return
        try:
            data = self.store.read_file(path)
        except DocumentError as error:
            self._write(Source(name, stamp, "", (), str(error), self.version), [str(error)])
            return
        digest = hashlib.sha256(data).hexdigest()
        if before is not None and before.hash == digest and self._still_valid(before):
            kept = Source(name, stamp, digest, before.documents, before.error, before.reader)
            self.sources.put(kept)
            self._keep(kept)
            return
        began = now_ms()
        ids: list[str] = []
        errors: list[str] = []
        for taken in take(self.store, path.name, data, SYNCED, self.reader):
            if taken.document is None:
                errors.append(f"{taken.name}: {taken.error}" if taken.name != path.name else str(taken.error))
                continue
            ids.append(taken.document.id)
            if taken.document.created_at >= began:
                self.changes.added.append(taken.document.id)
                self.report(f"added      {taken.document.name}")
        if before is not None and (lost := carry(self.store.database, before.documents, ids)):
            self.report(f"edits      {display_name(name)}: {lost} dropped, as the passage changed")
        self._write(Source(name, stamp, digest, tuple(ids), "\n".join(errors), self.version), errors)
        self.changes.unchanged += not errors and not set(ids) & set(self.changes.added)

    def _write(self, source: Source, errors: list[str]) -> None:
        self.sources.put(source)
        for error in errors:
            self.changes.refused.append((source.path, error))
            self.report(f"refused    {display_name(source.path)}: {error}")

    def _keep(self, source: Source) -> None:
        if source.error:
            self.changes.refused += [(source.path, line) for line in source.error.splitlines()]
        self.changes.unchanged += bool(source.documents)

    def _still_valid(self, before: Source) -> bool:
        return not before.error or before.reader == self.version


def reader_version() -> str:
    """What decides whether a file can be read: the loaders' version and the programs that are installed."""
    return f"{READER}{' tesseract' if Ocr().available else ''}"


def _stamp(path: Path) -> tuple[int, int, int]:
    try:
        seen = os.stat(path, follow_symlinks=False)
    except OSError:
        return 0, 0, 0
    return seen.st_size, seen.st_mtime_ns, seen.st_ino
