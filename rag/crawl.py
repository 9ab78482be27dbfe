"""A site and its documents kept the same: pages are walked breadth first and brought in, replaced or removed.

A page that the server, or its visible text, says is unchanged costs one request. Only what the site itself
says is gone is removed (404, 410, moved, noindex, robots.txt): a site that does not answer, or a walk that
ends at a limit, removes nothing. Safe to kill anywhere: the next run finishes what this one began.
"""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from core.errors import DocumentError, NotFoundError
from rag.documents import DocumentStore
from rag.loaders_links import Scan
from rag.reader import Reader
from rag.robots import RobotsOf
from rag.site_documents import SiteDocuments
from rag.sitemaps import listed
from rag.sync import Changes
from rag.urls import Url, join
from rag.web import Answer, Fetcher, UnreachableError
from rag.web_files import MEDIA, as_utf8, file_name, is_html, may_be_page

PATIENCE = 5  # pages in a row that cannot be had before the walk is ended
MAX_QUEUED = 50_000  # addresses; a calendar without end has no more of them
GONE, MOVED, BUSY = (404, 410), (301, 308), (429, 503)

Beat = Callable[[float, str], None]
"""Told the share done and a line about it before each request; may raise Cancelled."""


@dataclass(frozen=True)
class Limits:
    """How far a walk goes: pages asked for, links from the first page, size of all, seconds between two."""

    pages: int = 200
    depth: int = 3
    megabytes: int = 200
    delay: float = 1.0


@dataclass(frozen=True)
class Tools:
    """What a crawl works with; `lock` is the ingest lock, held only while a document comes or goes."""

    store: DocumentStore
    fetcher: Fetcher
    reader: Reader
    lock: Path
    limits: Limits = Limits()
    report: Callable[[str], None] = lambda line: None
    beat: Beat = lambda share, line: None


@dataclass
class Crawled:
    """What a walk did; `cut` says why it ended before every page was seen, "" when it did not."""

    address: str = ""
    pages: int = 0
    cut: str = ""
    changes: Changes = field(default_factory=Changes)


def crawl(tools: Tools, start: Url) -> Crawled:
    """Bring the documents up to date with the site that `start` lies in; the new ones are left pending.

    The site is every page with the same scheme and host below the folder of the address that `start` leads
    to. Raises DocumentError when that address cannot be had; nothing is changed then.
    """
    robots = RobotsOf(tools.fetcher)
    if not robots.allows(start):
        raise DocumentError(f"{start} is closed to programs by robots.txt.", "Ask who runs the site.")
    tools.beat(0.0, f"Asking {start.netloc} …")
    largest = tools.store.settings.upload_mb << 20
    first = tools.fetcher.fetch(start, largest, media=MEDIA, may=robots.allows)
    if first.status != 200:
        raise DocumentError(
            f"{first.url} answers with status {first.status}, so nothing was changed.",
            "Check the address in a browser.",
        )
    return _Walk(tools, robots, site_of(first.url)).run(start, first)


def site_of(url: Url) -> Url:
    """The address that stands for the site of a page: its folder."""
    return replace(url, target=url.folder)


class _Walk:
    """One walk over a site: a queue of addresses and what to do with each answer."""

    def __init__(self, tools: Tools, robots: RobotsOf, site: Url) -> None:
        self.tools = tools
        self.robots = robots
        self.site = site
        self.pages = SiteDocuments(tools.store, tools.reader, tools.lock, str(site), tools.report)
        self.result = Crawled(str(site), 1, changes=self.pages.changes)
        self._queue: deque[tuple[Url, int]] = deque()
        self._queued: set[Url] = set()
        self._failures = 0
        self._delay = max(tools.limits.delay, robots(site).delay)
        self._ready_at = time.monotonic() + self._delay

    def run(self, start: Url, first: Answer) -> Crawled:
        """Walk from the first page, which is there already."""
        self._queued |= {start, first.url}
        self._page(first, 0)
        tools, robots = self.tools, self.robots(self.site)
        if tools.limits.pages > 1 and tools.limits.depth:
            self._enqueue(listed(tools.fetcher, tools.reader, robots, self.site), 1)
        self._drain()
        # known, but not met on this walk: perhaps only the link is gone
        self._enqueue(_links(self.site, Scan(), self.pages.known), tools.limits.depth)
        self._drain()
        self.pages.finish()
        return self.result

    def _covers(self, url: Url) -> bool:
        return url.origin == self.site.origin and url.path.startswith(self.site.path)

    def _enqueue(self, urls: Iterable[Url], depth: int) -> None:
        for url in urls if depth <= self.tools.limits.depth else ():
            fresh = url not in self._queued and len(self._queued) < MAX_QUEUED
            if fresh and self._covers(url) and may_be_page(url):
                self._queued.add(url)
                self._queue.append((url, depth))

    def _drain(self) -> None:
        limits = self.tools.limits
        while self._queue and not self.result.cut:
            if self.result.pages >= limits.pages:
                self.result.cut = f"it was to ask for {limits.pages} at most"
            elif self.tools.fetcher.received >= limits.megabytes << 20:
                self.result.cut = f"the pages have {limits.megabytes} MB together"
            else:
                self._visit(*self._queue.popleft())

    def _visit(self, url: Url, depth: int) -> None:
        if not self.robots.allows(url):
            self.pages.forget(url)
            return
        self._pause()
        self.result.pages += 1
        fetch, largest = self.tools.fetcher.fetch, self.tools.store.settings.upload_mb << 20
        try:
            known = self.pages.version(url)
            self._judge(url, depth, fetch(url, largest, media=MEDIA, may=self._may_lead, known=known))
        except UnreachableError as error:
            self._failures += 1
            self.pages.missed(url, str(error))
        except DocumentError as error:
            self.pages.refuse(url, str(error))
        if self._failures >= PATIENCE:
            self.result.cut = f"{PATIENCE} pages in a row could not be had"

    def _may_lead(self, target: Url) -> bool:
        return self._covers(target) and target not in self._queued and self.robots.allows(target)

    def _pause(self) -> None:
        """Report, then wait as long as the limits and robots.txt ask for."""
        limits, done = self.tools.limits, self.result.pages
        waiting = min(len(self._queue) + 1, limits.pages - done)
        self.tools.beat(done / (done + waiting), f"{done} pages seen, {waiting} to go")
        time.sleep(max(0.0, self._ready_at - time.monotonic()))
        self._ready_at = time.monotonic() + self._delay

    def _judge(self, url: Url, depth: int, answer: Answer) -> None:
        """Draw the conclusion from an answer's status."""
        status, known = answer.status, str(answer.url) in self.pages.known
        if status in BUSY:
            self.result.cut = f"{url.netloc} asks to be left alone for a while (status {status})"
            return
        self._failures = self._failures + 1 if status >= 500 else 0
        if answer.url != url:
            self._queued.add(answer.url)
            self.pages.forget(url)
        if status == 304 and known:
            self.pages.keep(answer.url)
            self._follow_stored(answer.url, depth)
        elif status == 200 and answer.media in MEDIA:
            self._page(answer, depth)
        elif answer.target is not None:
            self._enqueue([answer.target], depth)
            if status in MOVED or self._covers(answer.target):
                self.pages.forget(answer.url)
            elif known:  # for now it leads elsewhere: to a login, to a notice about repairs
                self.pages.missed(answer.url, f"It leads to {answer.target}.")
        elif status in (200, *GONE):
            self.pages.forget(answer.url)
        else:
            self.pages.missed(url, f"It answers with status {status}.")

    def _page(self, answer: Answer, depth: int) -> None:
        """Follow a page's links, then bring it in unless it asks not to be."""
        data, url = as_utf8(answer), answer.url
        if not is_html(answer):
            digest = hashlib.sha256(data).hexdigest()
            self.pages.bring(url, file_name(answer), data, digest, answer.version)
            return
        scan = self.tools.reader.scan(data)
        tags = {tag.strip() for tag in answer.robots.split(",")}
        if scan.follow and not tags & {"nofollow", "none"}:
            self._enqueue(_links(url, scan, scan.links), depth + 1)
        better = [other for other in _links(url, scan, [scan.canonical]) if self._covers(other)]
        if not scan.index or tags & {"noindex", "none"}:
            self.pages.forget(url)
        elif scan.canonical and better and better != [url]:
            self._enqueue(better, depth)
            self.pages.forget(url)
        else:
            digest = scan.words or hashlib.sha256(data).hexdigest()
            self.pages.bring(url, file_name(answer, scan.title), data, digest, answer.version)

    def _follow_stored(self, url: Url, depth: int) -> None:
        """Follow the links of a page that is as it was."""
        store = self.tools.store
        for document_id in self.pages.known[str(url)].documents:
            with suppress(DocumentError, NotFoundError):
                if store.get(document_id).kind == "html":
                    scan = self.tools.reader.scan(store.original(document_id))
                    self._enqueue(_links(url, scan, scan.links if scan.follow else ()), depth + 1)


def _links(page: Url, scan: Scan, links: Iterable[str]) -> Iterator[Url]:
    """The addresses that a page's links mean; those that are no web addresses are left out."""
    base = page
    with suppress(DocumentError):
        base = join(page, scan.base) if scan.base else page
    for link in links:
        with suppress(DocumentError):
            yield join(base, link)
