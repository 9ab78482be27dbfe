"""What a crawl needs of a page besides its text: title, links, what its robots tags say; and sitemaps.

Runs in the parsers' jail, like every parser (see `rag.reader`).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from core.errors import DocumentError
from rag.filetypes import decode
from rag.loaders_html import check_depth
from rag.words import one_line
from rag.xml import local, parse_xml

MAX_LINKS = 2_000
MAX_PLACES = 20_000  # of a sitemap
_AGENTS = ("robots", "understudy")


@dataclass(frozen=True)
class Scan:
    """A page's title, links as written, and robots tags; `words` is the hash of its visible text.

    Two versions that differ only in scripts and tokens have the same `words`; "" when there is no text.
    """

    title: str = ""
    base: str = ""
    canonical: str = ""
    links: tuple[str, ...] = ()
    index: bool = True
    follow: bool = True
    words: str = ""


@dataclass(frozen=True)
class Sitemap:
    """The addresses that a sitemap lists: of pages, and of further sitemaps."""

    pages: tuple[str, ...] = ()
    sitemaps: tuple[str, ...] = ()


def scan_html(data: bytes) -> Scan:
    """A page's links and tags (raises DocumentError for what is no page)."""
    from bs4 import BeautifulSoup

    text = decode(data)
    check_depth(text)
    soup = BeautifulSoup(text, "lxml")
    tags: set[str] = set()
    for meta in soup.find_all("meta"):
        if _value(meta, "name").lower() in _AGENTS:
            tags |= {word.strip() for word in _value(meta, "content").lower().split(",")}
    found = dict.fromkeys(
        _value(node, "href")
        for node in soup.find_all(["a", "area", "link"], href=True, limit=4 * MAX_LINKS)
        if "nofollow" not in _rel(node) and (node.name != "link" or "next" in _rel(node))
    )
    canonical = next((_value(n, "href") for n in soup.find_all("link") if "canonical" in _rel(n)), "")
    title = one_line(soup.title.get_text()) if soup.title else ""
    base = soup.find("base", href=True)
    return Scan(
        title=title[:200],
        base=_value(base, "href") if base else "",
        canonical=canonical,
        links=tuple(link for link in found if link)[:MAX_LINKS],
        index=not tags & {"noindex", "none"},
        follow=not tags & {"nofollow", "none"},
        words=_words(data, title),
    )


def scan_sitemap(data: bytes) -> Sitemap:
    """A sitemap's addresses (raises DocumentError for broken XML)."""
    root = parse_xml(data, "sitemap")
    places = [
        (node.text or "").strip()
        for entry in list(root)[:MAX_PLACES]
        for node in entry
        if local(node) == "loc"
    ]
    further = local(root) == "sitemapindex"
    return Sitemap(() if further else tuple(places), tuple(places) if further else ())


def _words(data: bytes, title: str) -> str:
    from rag.loaders import extract

    try:
        text = extract("page.html", data).text
    except DocumentError:
        return ""
    return hashlib.sha256(f"{title}\n{text}".encode()).hexdigest()


def _value(node: Any, name: str) -> str:
    value = (node.attrs or {}).get(name, "")
    return str(value if isinstance(value, str) else " ".join(value)).strip()


def _rel(node: Any) -> list[str]:
    return _value(node, "rel").lower().split()
