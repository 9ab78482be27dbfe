"""The queue as the Documents page shows it; see `tests.app.test_pages` for how pages are driven."""

from __future__ import annotations

from dataclasses import replace

import pytest

from app.resources import Resources
from tests.app.test_pages import click, open_page, parts, shown

__all__ = ["parts"]


def test_the_queue_is_shown_cancelled_retried_and_cleared(
    parts: Resources, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts.jobs, "submit", lambda *_, **__: None)  # the worker sleeps
    entries = [parts.queue.put(f"shed *{n}*.txt", b"Shed number %d." % n, "api:anna") for n in range(3)]
    at = open_page("documents")
    assert "shed \\*0\\*" in shown(at)
    assert "next · by api:anna" in shown(at).replace("\\", "")
    assert "number 3 in line" in shown(at)
    next(e for e in at.button if e.key == f"cancel-{entries[0].id}").click()
    at.run()
    assert parts.queue.get(entries[0].id).status == "cancelled"
    next(e for e in at.button if e.key == f"again-{entries[0].id}").click()
    at.run()
    assert parts.queue.get(entries[0].id).status == "waiting"
    click(at, "Cancel all waiting (3)")
    assert parts.queue.active() == 0
    click(at, "Clear what is finished")
    assert "The queue is empty" in shown(at)


def test_more_files_than_may_wait_are_refused_in_one_sentence(
    parts: Resources, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts.jobs, "submit", lambda *_, **__: None)
    monkeypatch.setattr(parts.queue, "settings", replace(parts.settings, waiting_files=2))
    at = open_page("documents")
    files = [(f"q{n}.txt", b"Quota %d." % n, "text/plain") for n in range(9)]
    at.file_uploader[0].set_value(files).run()
    click(at, "Add 9 files")
    assert "**q0.txt, q1.txt** were added to the queue" in shown(at).replace("\\", "")
    assert "and 2 more were not added: 2 of your files wait already" in shown(at)
    parts.queue.cancel_waiting()
    parts.queue.clear()
