"""`understudy crawl`, its job, and kill -9 in the middle of a walk."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import threading
import time
from pathlib import Path

import pytest

from core.db import Database
from core.errors import ConflictError, DocumentError, SettingsError
from core.files import owner_lock
from core.jobs import Job, Jobs
from core.settings import Settings, load_settings
from rag import crawl_command as module
from rag.addresses import Rules
from rag.crawl import Limits, Tools, crawl
from rag.crawl_command import main
from rag.documents import DocumentStore
from rag.ingest import Ingestor
from rag.reader import Reader
from rag.retrieve import Retriever
from rag.sources import SourceStore, sites
from rag.urls import parse_url
from rag.web import Fetcher
from tests.rag.webs import Reply, Web, page


@pytest.fixture
def settings(tmp_path: Path, web: Web) -> Settings:
    """Crawling is on, and the test's server is named."""
    return load_settings({}, data_dir=str(tmp_path / "data"), crawl=True, crawl_hosts=f"127.0.0.1:{web.port}")


@pytest.fixture
def site(web: Web, settings: Settings, ingestor: Ingestor, monkeypatch: pytest.MonkeyPatch) -> str:
    """A site of three pages; the command works on the test's data folder."""
    web.table = {
        "/": page("Start", "The shop opens at eight.", "/fees", "/staff"),
        "/fees": page("Fees", "Parking costs 3 EUR an hour."),
        "/staff": page("Staff", "Ms. Adeyemi runs the office."),
    }
    monkeypatch.setattr(module, "load_settings", lambda: settings)
    monkeypatch.setattr(module, "open_ingestor", lambda _: ingestor)
    return f"{web.address}/"


def test_it_is_off_unless_the_setting_says_so(
    settings: Settings, site: str, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not Settings().crawl
    monkeypatch.setattr(module, "load_settings", lambda: load_settings({}, data_dir=str(settings.data_dir)))
    with pytest.raises(SettingsError, match="switched off") as caught:
        main([site])
    assert "crawl = true" in caught.value.next_step
    assert web.asked == []


def test_pages_can_be_searched_afterwards(
    site: str, web: Web, ingestor: Ingestor, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([site, "--delay", "0"]) == 0
    out = capsys.readouterr().out
    assert f"added      {site}fees" in out
    assert f"{site}: 3 pages seen, 3 added or updated, 0 unchanged, 0 removed, 0 refused." in out
    retriever = Retriever(ingestor.settings, ingestor.passages.database, ingestor.index, ingestor.embedder)
    assert "3 EUR" in retriever.search("What does parking cost?", 1)[0].text
    web.table["/fees"] = Reply(b"", 404)
    assert main([site, "--delay", "0"]) == 0
    assert "2 unchanged, 1 removed" in capsys.readouterr().out
    assert all("3 EUR" not in found.text for found in retriever.search("What does parking cost?", 4))
    web.table["/staff"] = Reply(b"", 500)
    assert main([site, "--delay", "0"]) == 2
    assert f"unreached  {site}staff: It answers with status 500." in capsys.readouterr().out
    assert main([site, "--forget"]) == 0
    assert ingestor.documents.list() == []


@pytest.mark.parametrize(
    "arguments", [[], ["--pages", "0"], ["--depth", "-1"], ["--pages", "many"], ["--delay", "99"]]
)
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["http://example.org/", *arguments] if arguments else [])
    assert caught.value.code == 2


def test_a_bad_address_is_one_sentence(site: str) -> None:
    with pytest.raises(DocumentError, match="cannot be fetched"):
        main(["file:///etc/passwd"])
    with pytest.raises(DocumentError, match="not a public one"):
        main(["http://169.254.169.254/"])


def test_one_crawl_at_a_time_and_uploads_do_not_wait(site: str, settings: Settings, web: Web) -> None:
    with (
        owner_lock(settings.data_dir / "crawl.lock", "Crawling"),
        pytest.raises(ConflictError, match="Crawling is already in use"),
    ):
        main([site])
    free: list[bool] = []

    def look(path: str) -> None:
        with owner_lock(settings.data_dir / "ingest.lock", "Reading documents"):
            free.append(True)

    web.hook = look
    main([site, "--delay", "0"])
    assert len(free) == 5  # robots.txt, sitemap.xml, three pages


def job(database: Database, **payload: object) -> Job:
    jobs = Jobs(database)
    jobs.submit("crawl", {"pages": 10, "depth": 2} | payload)
    leased = jobs.lease(("crawl",))
    assert leased is not None
    return leased


@pytest.fixture
def undisturbed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The job's handler of SIGTERM stays out of the test's own process, and pages come without a pause."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(time, "sleep", lambda _: None)


def test_the_job_crawls_and_leaves_the_rest_to_an_ingest_job(
    site: str, database: Database, undisturbed: None
) -> None:
    leased = job(database, url=site)
    with pytest.raises(ConflictError, match="taken over"):
        main(["--job", leased.id, "--token", str(leased.token - 1)])
    assert main(["--job", leased.id, "--token", str(leased.token)]) == 0
    done = Jobs(database).get(leased.id)
    assert (done.status, done.result) == ("done", {"address": site, "pages": 3})
    assert "3 added or updated" in done.message
    (waiting,) = Jobs(database).list("ingest")
    assert waiting.status == "queued"
    forgets = job(database, url=site, forget=True)
    main(["--job", forgets.id, "--token", str(forgets.token)])
    assert Jobs(database).get(forgets.id).message == "3 removed."


def test_a_job_that_cannot_says_why(site: str, database: Database, undisturbed: None) -> None:
    for url in (f"{site}nowhere", "http://10.0.0.1/", "nonsense"):
        leased = job(database, url=url)
        main(["--job", leased.id, "--token", str(leased.token)])
        done = Jobs(database).get(leased.id)
        assert done.status == "failed"
        assert len(done.message) > 20
        assert "\n" not in done.message


def test_a_job_is_cancelled_between_two_pages(
    site: str, web: Web, database: Database, undisturbed: None, ingestor: Ingestor
) -> None:
    leased = job(database, url=site)
    web.hook = lambda path: Jobs(database).cancel(leased.id) if path == "/fees" else None
    main(["--job", leased.id, "--token", str(leased.token)])
    done = Jobs(database).get(leased.id)
    assert done.status == "cancelled"
    assert {document.title for document in ingestor.documents.list()} == {"Start", "Fees"}


def test_a_worker_that_stops_keeps_the_job(
    site: str, web: Web, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    handlers = []
    monkeypatch.setattr(signal, "signal", lambda number, handler: handlers.append(handler))
    monkeypatch.setattr(time, "sleep", lambda _: None)
    leased = job(database, url=site)
    web.hook = lambda path: handlers[0](signal.SIGTERM, None) if path == "/fees" else None
    main(["--job", leased.id, "--token", str(leased.token)])
    assert Jobs(database).get(leased.id).status == "running"  # the worker gives it back


def work(data_dir: str, address: str, port: int, stay: bool) -> None:
    """Crawl; with `stay`, be there to be killed however quick the walk was."""
    settings = load_settings({}, data_dir=data_dir)
    store = DocumentStore(Database(settings.database), settings)
    with Reader(settings) as reader:
        fetcher = Fetcher(Rules(frozenset({f"127.0.0.1:{port}"})))
        limits = Limits(delay=0)
        crawl(Tools(store, fetcher, reader, settings.data_dir / "ingest.lock", limits), parse_url(address))
        while stay:
            time.sleep(1)


def test_kills_leave_nothing_half_done(web: Web, settings: Settings, database: Database) -> None:
    """Eight walks are killed at any moment while the site changes; the ninth puts everything right."""
    store = DocumentStore(database, settings)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["rag.crawl", "rag.web"])
    draw = random.Random(3)
    arguments = (str(settings.data_dir), f"{web.address}/", web.port)
    for turn in range(9):
        alive = [n for n in range(12) if (n + turn) % 4]
        web.table = {f"/{n}": page(f"Page {n}", f"Version {(turn + n) // 3} of {n}.") for n in alive}
        web.table["/"] = page("Start", "Words.", *[f"/{n}" for n in range(12)])
        reached = threading.Event()
        after = draw.randint(1, 14)
        web.asked.clear()
        web.hook = lambda path, reached=reached, after=after: (  # type: ignore[misc]
            reached.set() if len(web.asked) > after else None
        )
        child = context.Process(target=work, args=(*arguments, turn < 8))
        child.start()
        if turn < 8:
            reached.wait(60)
            time.sleep(draw.uniform(0, 0.05))
            assert child.pid is not None
            os.kill(child.pid, signal.SIGKILL)
        child.join(60)
        assert child.exitcode == (-signal.SIGKILL if turn < 8 else 0)
        assert half_done(store, web) == []
    assert {document.title for document in store.list()} == {"Start", *(f"Page {n}" for n in alive)}
    assert all(f"Version {(8 + n) // 3} of" in store.text(find(store, f"Page {n}")) for n in alive)
    assert [site.pages for site in sites(database)] == [len(alive) + 1]


def half_done(store: DocumentStore, web: Web) -> list[str]:
    """Rows that name documents which are not there, documents without bytes, and damage."""
    known = {document.id for document in store.list()}
    rows = SourceStore(store.database, f"{web.address}/").all()
    found = [row.path for row in rows.values() if not set(row.documents) <= known]
    found += [name for name in known if not (store.folder / name).exists()]
    with store.database.read() as connection:
        found += [] if connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok" else ["damaged"]
    return found


def find(store: DocumentStore, title: str) -> str:
    return next(document.id for document in store.list() if document.title == title)
