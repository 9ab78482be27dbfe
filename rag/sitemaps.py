"""The pages that a site's sitemaps list (sitemaps.org), for pages that no link leads to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from core.errors import DocumentError
from rag.reader import Reader
from rag.robots import Robots
from rag.urls import Url, parse_url
from rag.web import Fetcher, gunzip

LARGEST = 10 << 20  # bytes, unpacked
MAX_FILES = 10


def listed(fetcher: Fetcher, reader: Reader, robots: Robots, site: Url) -> Iterator[Url]:
    """The addresses in the sitemaps that robots.txt names, or in /sitemap.xml.

    Only sitemaps on the site's own host are fetched; what cannot be read is skipped.
    """
    waiting = list(robots.sitemaps) or [f"{site.origin}/sitemap.xml"]
    asked: set[Url] = set()
    while waiting and len(asked) < MAX_FILES:
        with suppress(DocumentError):
            place = parse_url(waiting.pop(0))
            if place in asked or place.origin != site.origin or not robots.allows(place):
                continue
            asked.add(place)
            answer = fetcher.fetch(place, LARGEST, may=lambda url: url.origin == site.origin)
            data = answer.data
            if data.startswith(b"\x1f\x8b"):
                data = gunzip([data], LARGEST)[0]
            found = reader.sitemap(data)
            waiting += found.sitemaps
            for page in found.pages:
                with suppress(DocumentError):
                    yield parse_url(page)
