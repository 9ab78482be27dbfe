"""`kill -SEGV` of the engine in mid-answer, again and again: the app stays up and answers go on (row R12)."""

from __future__ import annotations

import os
import queue
import signal
import threading
import time
from pathlib import Path

import httpx
import pytest

from tests.app.site import HANDBOOK, Site, add_documents, site, until

RESUME_S = 10.0  # from the crash to the next whole answer
HOLIDAY = "How many days of holiday does everybody have?"


def listen(running: Site, lines: queue.Queue[str]) -> None:
    body = {"stream": True, "messages": [{"role": "user", "content": "What is the notice period, slowly?"}]}
    url = f"{running.url}/v1/chat/completions"
    with httpx.stream("POST", url, json=body, timeout=120, trust_env=False) as response:
        for line in response.iter_lines():
            lines.put(line)


def answered(running: Site) -> bool:
    body = {"messages": [{"role": "user", "content": HOLIDAY}]}
    url = f"{running.url}/v1/chat/completions"
    response = httpx.post(url, json=body, timeout=120, trust_env=False)
    assert response.status_code in (200, 503), response.text
    return response.status_code == 200 and response.json()["understudy"]["mode"] == "answer"


def crash(running: Site) -> float:
    """Kill the engine in mid-answer; seconds until a question is answered again."""
    before, web = running.part("engine"), running.part("web")["pid"]
    lines: queue.Queue[str] = queue.Queue()
    reader = threading.Thread(target=listen, args=(running, lines))
    reader.start()
    heard = [lines.get(timeout=60)]
    while sum('"content": ' in line for line in heard) < 3:
        heard.append(lines.get(timeout=60))
    os.kill(before["pid"], signal.SIGSEGV)
    began = time.monotonic()
    until(lambda: answered(running), "an answer after the crash")
    took = time.monotonic() - began
    reader.join(60)
    assert not reader.is_alive()
    heard += list(lines.queue)
    assert any("EngineUnavailable" in line or "Interrupted" in line for line in heard)
    assert "data: [DONE]" not in heard
    assert httpx.get(f"{running.url}/health", trust_env=False).json() == {"status": "ok"}
    until(lambda: running.part("engine")["ready"], "the engine ready again")
    after = running.part("engine")
    assert (after["restarts"], after["gave_up"]) == (before["restarts"] + 1, False)
    assert after["pid"] != before["pid"]
    assert running.part("web")["pid"] == web
    return took


def test_three_crashes(running: Site) -> None:
    for _ in range(3):
        crash(running)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_fifty_crashes(tmp_path: Path) -> None:
    with site(tmp_path / "data") as own:
        add_documents(own, {"handbook.md": HANDBOOK})
        took = sorted(crash(own) for _ in range(50))
        print(f"answers after {took[0]:.1f} to {took[-1]:.1f} s, median {took[25]:.1f} s")
        assert took[-1] <= RESUME_S
        assert "SIGSEGV" in own.output.read_text()
