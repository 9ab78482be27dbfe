"""The documents of one crawled site: pages come in, stay, are refused or go.

Kill-safe like `rag.sync`: a page's row is written after its document, under the ingest lock, and documents
that no row names are removed last.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from core.db import now_ms
from core.errors import NotFoundError
from core.files import owner_lock
from rag.chunk_carry import carry
from rag.documents import SYNCED, DocumentStore
from rag.intake import kept_access, take
from rag.reader import Reader
from rag.sources import Source, SourceStore, sites
from rag.sync import Changes, reader_version
from rag.urls import Url
from rag.web import Version

Report = Callable[[str], None]


class SiteDocuments:
    """What is known of a site's pages, and what is about to change. `lock` is the ingest lock's path."""

    def __init__(self, store: DocumentStore, reader: Reader, lock: Path, root: str, report: Report) -> None:
        self.store = store
        self.changes = Changes()
        self._reader = reader
        self._lock = lock
        self._rows = SourceStore(store.database, root)
        self._report = report
        self._reader_version = reader_version(store.settings.ocr_languages)
        self._gone: set[str] = set()
        self.known = self._rows.all()

    def version(self, url: Url) -> Version | None:
        """The version to ask about: of a page whose document is still there, so that its links are known."""
        row = self.known.get(str(url))
        if row is None or row.error or not all(map(self.store.find, row.documents)):
            return None
        return Version(row.etag, row.modified)

    def bring(self, url: Url, name: str, data: bytes, words: str, version: Version) -> None:
        """Take a page in unless it is there; `words` is what decides whether it changed."""
        row = self.known.get(str(url))
        if row is not None and row.hash == words and (not row.error or row.reader == self._reader_version):
            # other bytes with the same words: asking for their version next time would hide new links
            stored = hashlib.sha256(data).hexdigest()[:32] in row.documents
            version = version if stored else Version()
            if version != Version(row.etag, row.modified):
                self._rows.put(replace(row, etag=version.etag, modified=version.modified))
            self.keep(url)
            return
        began, added, replaced = now_ms(), False, row.documents if row is not None else ()
        ids: list[str] = []
        errors: list[str] = []
        with owner_lock(self._lock, "Reading documents", wait=True):
            for taken in take(
                self.store, name, data, SYNCED, self._reader, kept_access(self.store, replaced)
            ):
                if taken.document is None:
                    errors.append(str(taken.error))
                else:
                    ids.append(taken.document.id)
                    added = taken.document.created_at >= began
            if lost := carry(self.store.database, replaced, ids):
                self._report(f"edits      {url}: {lost} dropped, as the passage changed")
            stamp = (len(data), 0, 0)
            self._put(
                Source(
                    *(str(url), stamp, words, tuple(ids), "".join(errors), self._reader_version),
                    *(version.etag, version.modified),
                )
            )
        if added:
            self.changes.added += ids
            self._report(f"{'updated  ' if row is not None and row.documents else 'added    '}  {url}")
        self.changes.unchanged += bool(ids) and not added

    def keep(self, url: Url) -> None:
        """The page is as it was."""
        row = self.known[str(url)]
        if row.error:
            self.changes.refused.append((row.path, row.error))
        self.changes.unchanged += bool(row.documents)

    def refuse(self, url: Url, reason: str) -> None:
        """The page cannot be a document, and what it was before is no longer there."""
        self._put(Source(str(url), (0, 0, 0), "", (), reason, self._reader_version))

    def missed(self, url: Url, reason: str) -> None:
        """The page could not be had: whatever is known of it stays."""
        self.changes.refused.append((str(url), reason))
        self._report(f"unreached  {url}: {reason}")

    def forget(self, url: Url) -> None:
        """The site says that the page is gone; its document goes at the end."""
        if str(url) in self.known:
            self._gone.add(str(url))

    def finish(self) -> None:
        """Remove what is gone."""
        with owner_lock(self._lock, "Reading documents", wait=True):
            if self._gone:
                self._rows.remove(sorted(self._gone))
            self.changes.removed = _remove_orphans(self.store, self._rows, self._report)

    def _put(self, row: Source) -> None:
        self._rows.put(row)
        self._gone.discard(row.path)
        if row.error:
            self.changes.refused.append((row.path, row.error))
            self._report(f"refused    {row.path}: {row.error}")


def forget_site(store: DocumentStore, lock: Path, root: str, report: Report) -> int:
    """Remove a crawled site with its documents; returns how many.

    Raises NotFoundError for a site that was not crawled.
    """
    known = [site.address for site in sites(store.database)]
    if root not in known:
        raise NotFoundError(
            f"{root} was not crawled.", f"Known sites: {', '.join(known)}." if known else "Nothing was."
        )
    rows = SourceStore(store.database, root)
    with owner_lock(lock, "Reading documents", wait=True):
        rows.remove(list(rows.all()))
        return _remove_orphans(store, rows, report)


def _remove_orphans(store: DocumentStore, rows: SourceStore, report: Report) -> int:
    orphans = rows.orphans()
    for document_id in orphans:
        with suppress(NotFoundError):  # somebody else was quicker
            report(f"removed    {store.get(document_id).name}")
            store.delete(document_id, "crawl")
    return len(orphans)
