"""The queue in a real browser with real processes: the page stays alive, kill -9 loses nothing (row R01)."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import httpx

from core.db import Database
from rag.documents import DocumentStore
from rag.queue import Queue
from tests.app.site import Site, until
from tests.app.test_browser import CHROMIUM, Visit, browser, pytestmark, visit

__all__ = ["CHROMIUM", "browser", "pytestmark", "visit"]


def files(folder: Path, names: list[str]) -> list[str]:
    """Files to choose in the page."""
    made = []
    for name in names:
        path = folder / name
        path.write_text(f"# About {name}\n\nThe {name} stands in the yard.\n")
        made.append(str(path))
    return made


def of(running: Site) -> Queue:
    settings = running.settings
    database = Database(settings.database)
    return Queue(database, DocumentStore(database, settings), settings)


def ready(queue: Queue, name: str) -> list[str]:
    return [d.id for d in queue.documents.list() if d.name == name and d.status == "ready"]


def test_uploads_wait_in_sight_and_go_on_after_kills(running: Site, visit: Visit, tmp_path: Path) -> None:
    page, queue = visit.page, of(running)
    worker = int(running.part("worker")["pid"])
    page.goto(f"{running.url}/documents")
    page.get_by_text("The queue is empty").wait_for()
    visit.shot("queue-empty")
    os.kill(worker, signal.SIGSTOP)  # so that files wait
    names = ["barn.md", "cart.md", "plough.md", "scythe.md"]
    page.locator("input[type=file]").first.set_input_files(files(tmp_path, names))
    page.get_by_role("button", name="Add 4 files").click()
    page.get_by_text("were added to the queue").wait_for()
    page.get_by_text("number 4 in line").wait_for()
    page.get_by_text("0 of 4 files are done").wait_for()
    visit.shot("queue-waiting")
    page.get_by_label("Find by name").fill("handbook")  # the page works while files wait
    page.keyboard.press("Enter")
    page.get_by_text("prices.md").wait_for(state="detached")
    row = page.locator("[class*=st-key-queue-]", has_text="plough.md")
    row.get_by_role("button").click()
    row.get_by_text("cancelled").wait_for()
    os.kill(worker, signal.SIGKILL)  # the supervisor starts another, which goes on
    page.get_by_text("0 of 4 files are done").wait_for(state="detached", timeout=60_000)
    until(lambda: not queue.active(), "the queue is read", 90)
    page.locator("[class*=st-key-queue-]", has_text="scythe.md").wait_for(state="detached")
    page.get_by_label("Find by name").fill("")
    page.keyboard.press("Enter")
    page.locator("[class*=st-key-document-]", has_text="scythe.md").wait_for()
    assert [len(ready(queue, name)) for name in names] == [1, 1, 0, 1]
    row.get_by_role("button").click()  # try again
    until(lambda: len(ready(queue, "plough.md")) == 1, "the cancelled file is read after all", 90)
    page.get_by_text("The queue is empty").wait_for()
    visit.shot("queue-done")
    assert visit.outside == []


def test_the_ingest_process_is_killed_and_the_queue_goes_on(running: Site) -> None:
    import psutil

    queue = of(running)
    for number in range(40):
        queue.put(f"crate-{number}.md", f"# Crate {number}\n\nCrate {number} holds apples.\n".encode())
    from core.jobs import Jobs

    Jobs(queue.database).submit("ingest", once=True)
    killed = 0

    def child() -> psutil.Process | None:
        for process in psutil.Process(int(running.part("worker")["pid"])).children():
            if re.search(r"rag\.ingest", " ".join(process.cmdline())):
                return process
        return None

    while killed < 2 and queue.active():  # a job has three attempts
        process = until(child, "the ingest process")
        assert process is not None
        before = queue.active()
        until(lambda b=before: queue.active() < b or not queue.active(), "it reads", 90)  # type: ignore[misc]
        process.kill()
        process.wait(30)
        killed += 1
    until(lambda: not queue.active(), "the queue is read", 120)
    assert killed == 2
    found = [d for d in queue.documents.list() if d.name.startswith("crate-")]
    assert len(found) == 40
    assert {document.status for document in found} == {"ready"}
    assert httpx.get(f"{running.url}/health", trust_env=False).status_code == 200
