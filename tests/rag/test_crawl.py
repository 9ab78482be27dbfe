"""A site on loopback and its documents: added, updated and removed, with what robots and limits ask for."""

from __future__ import annotations

from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from core.errors import Cancelled, DocumentError, NotFoundError
from rag.crawl import Limits
from rag.documents import DocumentStore
from rag.reader import Reader
from rag.site_documents import forget_site
from rag.sources import Site, sites, web_address
from rag.web import UnreachableError
from tests.rag.conftest import Crawl, counts, titles
from tests.rag.webs import Reply, Web, page


def test_pages_of_the_site_become_documents(shop: Web, store: DocumentStore, run: Crawl) -> None:
    result = run()
    assert counts(result) == (4, 0, 0, 0)
    assert (result.address, result.pages, result.cut) == (f"{shop.address}/docs/", 5, "")
    assert titles(store) == {"Start", "Apples", "Boats / Ships", "Cats"}
    assert {document.name for document in store.list()} == {
        "Start.html",
        "Apples.html",
        "Boats - Ships.html",
        "Cats.html",
    }
    assert shop.pages() == ["/docs/", "/docs/apples", "/docs/boats.html", "/docs/deep/cats", "/docs/missing"]
    addresses = {document.title: web_address(store.database, document.id) for document in store.list()}
    assert addresses["Cats"] == f"{shop.address}/docs/deep/cats"
    assert sites(store.database) == [Site(f"{shop.address}/docs/", 4, 4)]


def test_again_adds_updates_and_removes(shop: Web, store: DocumentStore, run: Crawl) -> None:
    run()
    shop.table["/docs/apples"] = page("Apples", "Apples are green now.", "new")
    shop.table["/docs/new"] = page("New", "Something new.")
    del shop.table["/docs/deep/cats"]
    lines: list[str] = []
    assert counts(run(report=lines.append)) == (2, 2, 2, 0)  # cats, and the old version of apples
    assert titles(store) == {"Start", "Apples", "Boats / Ships", "New"}
    assert "green" in next(store.text(d.id) for d in store.list() if d.title == "Apples")
    assert f"updated    {shop.address}/docs/apples" in lines
    assert counts(run()) == (0, 4, 0, 0)


def test_unchanged_pages_cost_a_request(
    shop: Web, store: DocumentStore, run: Crawl, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, reply in enumerate(shop.table.values()):
        assert isinstance(reply, Reply)
        reply.headers["ETag"] = f'"{number}"'
    run()
    shop.asked.clear()
    monkeypatch.setattr("rag.renew.take", lambda *rest: pytest.fail("a page was taken again"))
    result = run()
    assert counts(result) == (0, 4, 0, 0)
    assert [headers.get("if-none-match") for headers in shop.seen[-4:]] == ['"1"', '"2"', '"3"', None]
    assert shop.pages() == ["/docs/", "/docs/apples", "/docs/boats.html", "/docs/deep/cats", "/docs/missing"]


def test_a_page_that_only_carries_a_new_token_is_unchanged(
    shop: Web, store: DocumentStore, run: Crawl
) -> None:
    def token(number: int, *links: str) -> Reply:
        made = page("Apples", "Apples are red.", *links, head=f"<script>t='{number}'</script>")
        made.headers["ETag"] = f'"{number}"'
        return made

    shop.table["/docs/apples"] = token(1)
    run()
    before = {document.id for document in store.list()}
    shop.table["/docs/apples"] = token(2, "later")
    shop.table["/docs/later"] = page("Later", "Added later.")
    assert counts(run()) == (1, 3, 0, 0)
    assert before < {document.id for document in store.list()}
    shop.table["/docs/later"] = page("Later", "Changed later.")
    assert counts(run())[0] == 1  # its link is still followed, though apples' stored version lacks it


def test_what_the_site_takes_back_goes(shop: Web, store: DocumentStore, run: Crawl) -> None:
    run()
    shop.table["/docs/apples"] = Reply(b"", 410)
    shop.table["/docs/boats.html"] = page(
        "Boats / Ships", "Boats.", head='<meta name="robots" content="noindex">'
    )
    shop.table["/docs/deep/cats"] = Reply(b"", 301, {"Location": "/outside"})
    assert counts(run()) == (0, 1, 3, 0)
    assert titles(store) == {"Start"}


def test_robots_are_respected_and_what_they_close_goes(shop: Web, store: DocumentStore, run: Crawl) -> None:
    run()
    shop.asked.clear()
    shop.table["/robots.txt"] = Reply(b"User-agent: *\nDisallow: /docs/deep\nDisallow: /*.html$\n")
    assert run().changes.removed == 2
    assert titles(store) == {"Start", "Apples"}
    assert shop.pages() == ["/docs/", "/docs/apples"]
    shop.table["/robots.txt"] = Reply(b"User-agent: understudy\nDisallow: /\n")
    with pytest.raises(DocumentError, match=r"closed to programs by robots\.txt"):
        run()
    assert shop.pages() == []
    assert titles(store) == {"Start", "Apples"}


@pytest.mark.parametrize("status", [500, 503, 429, 404, 403])
def test_a_site_that_is_ill_removes_nothing(shop: Web, store: DocumentStore, run: Crawl, status: int) -> None:
    run()
    shop.table = {"/docs/": Reply(b"", status)}
    with pytest.raises(DocumentError, match="nothing was changed"):
        run()
    shop.table["/docs/"] = page("Start", "Welcome to the shop.", "apples", "boats.html")
    if status != 404:
        shop.table |= dict.fromkeys(
            ("/docs/apples", "/docs/boats.html", "/docs/deep/cats"), Reply(b"", status)
        )
        assert run().changes.removed == 0
        assert len(titles(store)) == 4


def test_a_site_that_is_gone_removes_nothing(shop: Web, store: DocumentStore, run: Crawl) -> None:
    run()
    shop.server.shutdown()
    shop.server.server_close()
    with pytest.raises(UnreachableError, match="could not be reached"):
        run()
    assert len(store.list()) == 4


def test_a_login_in_the_way_removes_nothing(shop: Web, store: DocumentStore, run: Crawl) -> None:
    run()
    shop.table["/docs/apples"] = Reply(b"", 302, {"Location": "/login"})
    shop.table["/login"] = page("Log in", "Who are you?")
    result = run()
    assert result.changes.removed == 0
    assert "It leads to" in result.changes.refused[0][1]
    assert "Log in" not in titles(store)


def test_a_site_that_falls_silent_is_left(shop: Web, store: DocumentStore, run: Crawl) -> None:
    run()

    def silent(request: BaseHTTPRequestHandler) -> None:
        request.close_connection = True

    shop.table["/docs/"] = page("Start", "Welcome to the shop.", *[f"page{n}" for n in range(30)])
    shop.table |= {f"/docs/page{n}": silent for n in range(30)}
    shop.asked.clear()
    result = run()
    assert result.cut == "5 pages in a row could not be had"
    assert len(shop.pages()) == 6
    assert result.changes.removed == 0


def test_limits_end_a_walk_and_remove_nothing(shop: Web, store: DocumentStore, run: Crawl) -> None:
    run()
    shop.asked.clear()
    result = run(limits=Limits(pages=2, delay=0))
    assert (result.pages, result.cut, result.changes.removed) == (2, "it was to ask for 2 at most", 0)
    assert len(shop.pages()) == 2
    run(limits=Limits(pages=1, delay=0))
    assert shop.asked == ["/robots.txt", "/docs/"]
    assert run(limits=Limits(megabytes=0, delay=0)).cut == "the pages have 0 MB together"
    assert len(store.list()) == 4


def test_depth_counts_links(shop: Web, store: DocumentStore, run: Crawl) -> None:
    run(limits=Limits(depth=0, delay=0))
    assert titles(store) == {"Start"}
    run(limits=Limits(depth=1, delay=0))
    assert titles(store) == {"Start", "Apples", "Boats / Ships"}


def test_an_endless_site_ends(shop: Web, run: Crawl) -> None:
    def calendar(request: BaseHTTPRequestHandler) -> None:
        number = int("0" + "".join(filter(str.isdigit, request.path)))
        made = page(
            f"Day {number}", f"Day {number} is empty.", f"/docs/?day={2 * number + 1}", "/docs/?day=7"
        )
        shop.table[f"/docs/?day={2 * number + 1}"] = calendar
        request.send_response(200)
        request.send_header("Content-Type", "text/html")
        request.send_header("Content-Length", str(len(made.body)))
        request.end_headers()
        request.wfile.write(made.body)

    shop.table["/docs/"] = calendar
    shop.table["/docs/?day=7"] = calendar
    assert run(limits=Limits(pages=12, depth=100, delay=0)).pages == 12


class Clock:
    """Stands still but for sleep, so that a busy machine changes nothing."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return sum(self.slept)

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)


def test_requests_keep_their_distance(shop: Web, run: Crawl, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr("rag.crawl.time", clock)
    run(limits=Limits(delay=0.5))
    assert clock.slept == [0.5] * 4  # before each page but the first
    shop.table["/robots.txt"] = Reply(b"User-agent: *\nCrawl-delay: 4\n")
    clock.slept.clear()
    run(limits=Limits(delay=0.5))
    assert clock.slept == [4.0] * 4


def test_the_first_page_may_lead_to_the_site(shop: Web, store: DocumentStore, run: Crawl) -> None:
    shop.table["/"] = Reply(b"", 302, {"Location": "/docs/"})
    assert run("/").address == f"{shop.address}/docs/"
    assert len(store.list()) == 4


def test_a_redirect_within_the_site_is_one_document(shop: Web, store: DocumentStore, run: Crawl) -> None:
    run()
    shop.table["/docs/fruit"] = page("Apples", "Apples are red, still.", "deep/cats")
    shop.table["/docs/apples"] = Reply(b"", 301, {"Location": "fruit"})
    assert counts(run()) == (1, 3, 1, 0)
    addresses = {web_address(store.database, document.id) for document in store.list()}
    assert f"{shop.address}/docs/fruit" in addresses
    assert f"{shop.address}/docs/apples" not in addresses


def test_what_somebody_uploaded_stays(shop: Web, store: DocumentStore, run: Crawl, reader: Reader) -> None:
    reply = shop.table["/docs/apples"]
    assert isinstance(reply, Reply)
    kept = store.add("mine.html", reply.body, "upload", reader)
    run()
    shop.table["/docs/apples"] = Reply(b"", 404)
    run()
    assert store.find(kept.id) is not None


def test_a_document_deleted_by_hand_stays_away(shop: Web, store: DocumentStore, run: Crawl) -> None:
    run()
    store.delete(next(d.id for d in store.list() if d.title == "Apples"))
    assert counts(run()) == (0, 4, 0, 0)
    assert "Apples" not in titles(store)


def test_a_cancelled_walk_is_finished_by_the_next(shop: Web, store: DocumentStore, run: Crawl) -> None:
    run()
    shop.table["/docs/apples"] = page("Apricots", "Apricots are orange.", "deep/cats")
    shop.table["/docs/boats.html"] = Reply(b"", 404)

    def beat(share: float, message: str) -> None:
        assert 0 <= share <= 1
        if message.startswith("2 pages"):
            raise Cancelled("stop")

    with pytest.raises(Cancelled):
        run(beat=beat)
    assert titles(store) == {"Start", "Apples", "Apricots", "Boats / Ships", "Cats"}
    assert counts(run()) == (0, 3, 2, 0)
    assert titles(store) == {"Start", "Apricots", "Cats"}


def test_a_site_is_forgotten(shop: Web, store: DocumentStore, run: Crawl, tmp_path: Path) -> None:
    run()
    with pytest.raises(NotFoundError, match="was not crawled"):
        forget_site(store, tmp_path / "lock", f"{shop.address}/other/", lambda line: None)
    assert forget_site(store, tmp_path / "lock", f"{shop.address}/docs/", lambda line: None) == 4
    assert store.list() == []
    assert sites(store.database) == []
