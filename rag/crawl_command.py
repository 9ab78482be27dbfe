"""`understudy crawl URL`, and the same as a job that the Documents page submits."""

from __future__ import annotations

import argparse
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from core.errors import Cancelled, ConflictError, SettingsError, UnderstudyError, run_main
from core.files import owner_lock
from core.jobs import Job, Jobs
from core.settings import Settings, load_settings, quiet_environment
from rag.addresses import Rules
from rag.crawl import Crawled, Limits, Tools, crawl, site_of
from rag.ingest import Ingestor, open_ingestor
from rag.reader import Reader
from rag.site_documents import forget_site
from rag.urls import Url, parse_url
from rag.web import Fetcher

MOST_PAGES, DEEPEST = 5_000, 20
SWITCH_ON = (
    "Whoever runs this installation can set crawl = true in understudy.toml, or UNDERSTUDY_CRAWL=true."
)


def require_on(settings: Settings) -> None:
    """Raises SettingsError while fetching web pages is switched off."""
    if not settings.crawl:
        raise SettingsError(
            "Fetching web pages is switched off.",
            SWITCH_ON,
        )


def main(arguments: list[str] | None = None) -> int:
    """`understudy crawl URL`; exit code 2 when pages were refused or not reached."""
    options = _options(arguments)
    quiet_environment()
    settings = load_settings()
    require_on(settings)
    ingestor = open_ingestor(settings)
    if options.job:
        return _run_job(ingestor, options.job, options.token)
    url = parse_url(options.url)
    if options.forget:
        removed = _forget(ingestor, url)
        print(f"{removed} removed.")
        return 0
    limits = Limits(pages=options.pages, depth=options.depth, delay=options.delay)
    done = _crawl(ingestor, url, limits, report=_say)
    if done.changes.touched or ingestor.documents.pending():
        ingestor.process_pending()
    print(_summary(done))
    return 2 if done.changes.refused else 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    limits = Limits()
    parser = argparse.ArgumentParser(
        prog="understudy crawl",
        description="Add the pages of a web site to the documents, and keep them in step when it is repeated:"
        " changed pages are replaced, pages that are gone are removed, unchanged ones cost a request. The"
        " site is what lies on the same host in the folder of the address: https://example.org/docs/ and all"
        " below it. robots.txt is respected. Needs the setting crawl.",
    )
    parser.add_argument("url", nargs="?", default="", metavar="URL", help="the page to begin with")
    parser.add_argument(
        "--pages",
        type=_number(1, MOST_PAGES),
        default=limits.pages,
        metavar="N",
        help=f"ask for so many pages at most, {limits.pages} unless told, 1 for this page alone",
    )
    parser.add_argument(
        "--depth",
        type=_number(0, DEEPEST),
        default=limits.depth,
        metavar="D",
        help=f"follow links so many times from the first page, {limits.depth} unless told",
    )
    parser.add_argument(
        "--delay",
        type=_number(0, 60),
        default=limits.delay,
        metavar="SECONDS",
        help="wait so long between two requests, 1 unless told; robots.txt may ask for longer",
    )
    parser.add_argument("--forget", action="store_true", help="remove the site's documents instead")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    parser.add_argument("--token", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if not options.job and not options.url:
        parser.error("name the address to begin with")
    return options


def _number(low: int, high: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        value = int(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{value} does not lie from {low} to {high}")
        return value

    return number


def _crawl(ingestor: Ingestor, url: Url, limits: Limits, **told: Any) -> Crawled:
    settings = ingestor.settings
    with _turn(settings), Reader(settings) as reader:
        fetcher = Fetcher(Rules.of(settings))
        return crawl(Tools(ingestor.documents, fetcher, reader, ingestor.lock, limits, **told), url)


def _forget(ingestor: Ingestor, url: Url) -> int:
    with _turn(ingestor.settings):
        removed = forget_site(ingestor.documents, ingestor.lock, str(site_of(url)), _say)
    ingestor.index.sync()
    return removed


def _turn(settings: Settings) -> Any:
    """One crawl at a time: two would ask a site twice as often as is polite."""
    return owner_lock(Path(settings.data_dir / "crawl.lock"), "Crawling")


def _run_job(ingestor: Ingestor, job_id: str, token: int) -> int:
    """Crawl as a job says; what came in is prepared for search by an ingest job."""
    jobs = Jobs(ingestor.passages.database)
    job: Job = jobs.get(job_id)
    if job.token != token:
        raise ConflictError(f"Job {job_id} was taken over by another worker.")
    stopping = []
    signal.signal(signal.SIGTERM, lambda number, frame: stopping.append(number))

    def beat(share: float, message: str) -> None:
        if jobs.heartbeat(job, share, message) or stopping:
            raise Cancelled("The crawl was cancelled; what had come in stays.")

    try:
        require_on(ingestor.settings)
        url = parse_url(str(job.payload["url"]))
        if job.payload.get("forget"):
            removed = forget_site(ingestor.documents, ingestor.lock, str(site_of(url)), _say)
            jobs.finish(job, "done", f"{removed} removed.", {"removed": removed})
        else:
            limits = Limits(pages=int(job.payload["pages"]), depth=int(job.payload["depth"]))
            done = _crawl(ingestor, url, limits, report=_say, beat=beat)
            jobs.finish(job, "done", _summary(done), {"address": done.address, "pages": done.pages})
    except Cancelled as error:
        # a worker that only stops takes the job up again when it starts
        if jobs.get(job.id).cancel_requested:
            jobs.finish(job, "cancelled", error.message)
    except UnderstudyError as error:
        jobs.finish(job, "failed", str(error))
    jobs.submit("ingest", once=True)
    return 0


def _summary(done: Crawled) -> str:
    changes = done.changes
    text = (
        f"{done.address}: {done.pages} pages seen, {len(changes.added)} added or updated,"
        f" {changes.unchanged} unchanged, {changes.removed} removed, {len(changes.refused)} refused."
    )
    return f"{text} It ended early: {done.cut}." if done.cut else text


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    run_main(main)
