"""The documents of one crawled site: pages come in, stay, are refused or go.

Kill-safe like `rag.sync`: a page's row is written after its document, under the ingest lock, and documents
that no row names are removed last.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from core.db import now_ms
from core.errors import NotFoundError
from core.files import owner_lock
from rag.documents import DocumentStore
from rag.reader import Reader
from rag.renew import Renewed, give_up, remove_gone, renew
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
        began = now_ms()
        with owner_lock(self._lock, "Reading documents", wait=True):
            done = renew(
                *(self.store, self._rows, self._reader, (str(url), name, data)),
                lambda ids, error: Source(
                    *(str(url), (len(data), 0, 0), words, ids, error, self._reader_version),
                    *(version.etag, version.modified),
                ),
            )
        fresh = [document.id for document in done.documents if document.created_at >= began]
        if done.lost_edits:
            self._report(f"edits      {url}: {done.lost_edits} dropped, as the passage changed")
        self._told(done)
        if fresh:
            self.changes.added += fresh
            self._report(f"{'updated  ' if row is not None and row.documents else 'added    '}  {url}")
        self.changes.unchanged += bool(done.documents) and not fresh

    def keep(self, url: Url) -> None:
        """The page is as it was."""
        row = self.known[str(url)]
        if row.error:
            self.changes.refused.append((row.path, row.error))
        self.changes.unchanged += bool(row.documents)

    def refuse(self, url: Url, reason: str) -> None:
        """The page cannot be a document, and what it was before is no longer there."""
        row = Source(str(url), (0, 0, 0), "", (), reason, self._reader_version)
        self._told(give_up(self._rows, row, str(url), gone=True))

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
            replaced = self.changes.replaced
            self.changes.removed = remove_gone(self.store, self._rows, replaced, self._report, "crawl")

    def _told(self, done: Renewed) -> None:
        """Say what came of a page; it is not gone."""
        path = done.source.path
        self._gone.discard(path)
        self.changes.replaced += done.replaced
        for error in done.refused:
            self.changes.refused.append((path, error))
            self._report(f"refused    {path}: {error}")
        for remark in done.remarks:
            self._report(f"earlier    {remark}")


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
        return remove_gone(store, rows, [], report, "crawl")
