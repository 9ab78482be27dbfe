"""What pages ask for and what they are: robots tags, sitemaps, files of other kinds, hostile ones."""

from __future__ import annotations

import pytest

from rag.documents import DocumentStore
from rag.ingest import Ingestor
from rag.site_documents import forget_site
from rag.sources import sites, web_address
from tests.rag.conftest import Crawl, counts, titles
from tests.rag.files import pdf
from tests.rag.webs import Reply, Web, page


def test_nofollow_noindex_and_canonical(web: Web, store: DocumentStore, run: Crawl) -> None:
    canonical = '<link rel="canonical" href="/docs/apples">'
    web.table = {
        "/docs/": Reply(
            b"<title>Start</title><p>Words here.</p><a href=a rel=nofollow>a</a><a href=b>b</a>"
            b"<a href=c>c</a><a href=d>d</a><a href='print?page=1'>print</a><a href=e>e</a>",
            headers={"Content-Type": "text/html"},
        ),
        "/docs/a": page("A", "Not followed."),
        "/docs/b": page("B", "Bees.", "hidden", head='<meta name="robots" content="nofollow">'),
        "/docs/c": page("C", "Not indexed.", "found", head='<meta name="robots" content="noindex">'),
        "/docs/d": Reply(page("D", "Nor this.", "hidden").body, headers={"Content-Type": "text/html"}),
        "/docs/e": page("E", "Elsewhere.", head='<link rel="canonical" href="https://x.example/">'),
        "/docs/hidden": page("Hidden", "Behind nofollow."),
        "/docs/found": page("Found", "Behind noindex."),
        "/docs/apples": page("Apples", "Apples are red.", head=canonical),
        "/docs/print?page=1": page("Apples", "Apples are red. Printed.", head=canonical),
    }
    reply = web.table["/docs/d"]
    assert isinstance(reply, Reply)
    reply.headers["X-Robots-Tag"] = "noindex, nofollow"
    run()
    assert titles(store) == {"Start", "B", "Found", "Apples", "E"}
    assert sorted(site.pages for site in sites(store.database)) == [5]


def test_sitemaps_name_pages_without_links(web: Web, store: DocumentStore, run: Crawl) -> None:
    def sitemap(kind: str, *places: str) -> Reply:
        entries = "".join(f"<entry><loc>{place}</loc></entry>" for place in places)
        return Reply(
            f'<{kind} xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">{entries}</{kind}>'.encode()
        )

    base = web.address
    web.table["/docs/"] = page("Start", "Welcome.")
    web.table["/robots.txt"] = Reply(
        f"Sitemap: {base}/index.xml\nSitemap: http://169.254.169.254/s.xml".encode()
    )
    web.table["/index.xml"] = sitemap(
        "sitemapindex", f"{base}/a.xml", f"{base}/index.xml", f"{base}/none.xml"
    )
    web.table["/a.xml"] = sitemap("urlset", f"{base}/docs/lonely", f"{base}/outside", "ftp://x/", "nonsense")
    web.table["/docs/lonely"] = page("Lonely", "No link leads here.")
    run()
    assert "Lonely" in titles(store)
    assert "Outside" not in titles(store)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<urlset><url><loc>",
        b"not xml",
        b"\x1f\x8bbroken",
        b'<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]><urlset><loc>&b;</loc></urlset>',
        b'<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/hostname">]><urlset><url><loc>&e;</loc></url></urlset>',
    ],
)
def test_a_broken_sitemap_is_no_sitemap(web: Web, store: DocumentStore, run: Crawl, body: bytes) -> None:
    web.table = {"/docs/": page("Start", "Welcome."), "/sitemap.xml": Reply(body)}
    assert counts(run()) == (1, 0, 0, 0)


def test_other_kinds_of_files(web: Web, store: DocumentStore, run: Crawl) -> None:
    web.table = {
        "/docs/": page(
            "Start", "Files.", "price%20list.pdf", "notes", "film", "fake.pdf", "latin", "big", "bare"
        ),
        "/docs/price%20list.pdf": Reply(
            pdf([["Prices", "Ten euros."]]), headers={"Content-Type": "application/pdf"}
        ),
        "/docs/notes": Reply(b"Plain notes.", headers={"Content-Type": "text/plain"}),
        "/docs/film": Reply(b"\0" * 10, headers={"Content-Type": "video/mp4"}),
        "/docs/fake.pdf": Reply(b"MZ\x90 a program", headers={"Content-Type": "application/pdf"}),
        "/docs/latin": Reply(
            "<title>Привет</title><p>Слова стоят здесь.</p>".encode("windows-1251"),
            headers={"Content-Type": "text/html; charset=windows-1251"},
        ),
        "/docs/big": Reply(b"x", headers={"Content-Type": "text/html", "Content-Length": "9999999999"}),
        "/docs/bare": Reply(b"<!doctype html><title>Bare</title><p>No type was sent.</p>"),
    }
    result = run()
    assert {d.name for d in store.list()} == {
        "Start.html", "price list.pdf", "notes.txt", "Привет.html", "Bare.html",
    }  # fmt: skip
    assert {path.rpartition("/")[2] for path, _ in result.changes.refused} == {"fake.pdf", "big"}
    assert "Слова стоят здесь." in next(store.text(d.id) for d in store.list() if d.name == "Привет.html")
    assert run().changes.added == []


def test_a_page_whose_new_version_is_refused_keeps_the_earlier_one(
    web: Web, store: DocumentStore, run: Crawl, ingestor: Ingestor
) -> None:
    kind = {"Content-Type": "application/pdf"}
    web.table = {
        "/docs/": page("Start", "Files.", "prices.pdf"),
        "/docs/prices.pdf": Reply(pdf([["Prices", "Ten euros."]]), headers=kind),
    }
    run()
    ingestor.process_pending()
    old = next(document for document in store.list() if document.name == "prices.pdf")
    web.table["/docs/prices.pdf"] = Reply(b"%PDF-1.4 nonsense", headers=kind)
    said: list[str] = []
    assert counts(run(report=said.append)) == (0, 1, 0, 1)
    assert any(line.startswith("earlier    prices.pdf: the version of ") for line in said)
    assert store.get(old.id) == old
    assert sites(store.database)[0].documents == 2
    assert web_address(store.database, old.id) == f"{web.address}/docs/prices.pdf"
    web.table["/docs/prices.pdf"] = Reply(pdf([["Prices", "Twelve euros."]]), headers=kind)
    assert counts(run()) == (1, 1, 1, 0)
    assert store.get(old.id) == old  # until the new one is ready
    ingestor.process_pending()
    assert store.find(old.id) is None
    assert len(store.list()) == 2
    forget_site(store, ingestor.lock, f"{web.address}/docs/", said.append)
    assert store.list() == []


def test_hostile_pages_stay_words(web: Web, store: DocumentStore, run: Crawl) -> None:
    web.table = {
        "/docs/": page(
            "../../etc/passwd\u202e <img src=x>", "Words.", "deep", *[f"javascript:{n}" for n in range(9)]
        ),
    }
    web.table["/docs/deep"] = Reply(b"<div>" * 5000, headers={"Content-Type": "text/html"})
    run()
    (document,) = store.list()
    assert "/" not in document.name
    assert "\u202e" not in document.name
    assert list(store.folder.iterdir()) == [store.folder / document.id]
