"""The queue in a real browser with real processes: the page stays alive, kill -9 loses nothing (row R01)."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import httpx
import psutil

from core.db import Database
from core.jobs import Jobs
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
    page.get_by_text("0 of 4 files are done").wait_for(state="detached")
    until(lambda: not queue.active(), "the queue is read")
    page.locator("[class*=st-key-queue-]", has_text="scythe.md").wait_for(state="detached")
    page.get_by_label("Find by name").fill("")
    page.keyboard.press("Enter")
    page.locator("[class*=st-key-document-]", has_text="scythe.md").wait_for()
    assert [len(ready(queue, name)) for name in names] == [1, 1, 0, 1]
    row.get_by_role("button").click()  # try again
    until(lambda: len(ready(queue, "plough.md")) == 1, "the cancelled file is read after all")
    page.get_by_text("The queue is empty").wait_for()
    visit.shot("queue-done")
    assert visit.outside == []


def test_the_ingest_process_is_killed_and_the_queue_goes_on(running: Site) -> None:
    queue = of(running)
    shelves = (f"## Shelf {shelf}\n\n{'It holds apples, pears and plums. ' * 40}" for shelf in range(4))
    text = "\n\n".join(shelves)  # 20 of them are seconds of work

    def child() -> psutil.Process:
        for process in psutil.Process(int(running.part("worker")["pid"])).children():
            if re.search(r"rag\.ingest", " ".join(process.cmdline())):
                return process
        raise AssertionError("no ingest process is at work")

    def embedding(names: set[str]) -> bool:
        return any(entry.status == "embedding" and entry.name in names for entry in queue.list(200))

    for crate in ("pine", "oak"):  # a job has three attempts
        names = {f"crate-{crate}-{number}.md" for number in range(20)}
        for name in names:
            queue.put(name, f"# {name}\n\n{text}\n".encode())
        Jobs(queue.database).submit("ingest", once=True)
        until(lambda expected=names: embedding(expected), "it reads")  # type: ignore[misc]
        process = child()
        process.kill()
        process.wait(30)
        assert queue.active()
    until(lambda: not queue.active(), "the queue is read")
    found = [d for d in queue.documents.list() if d.name.startswith("crate-")]
    assert len(found) == 40
    assert {document.status for document in found} == {"ready"}
    assert httpx.get(f"{running.url}/health", trust_env=False).status_code == 200
