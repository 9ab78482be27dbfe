"""Every job ends done, failed with a reason, or cancelled, whoever is killed; children die with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

import finetune.worker
from core.db import Database
from core.errors import ConflictError
from core.files import owner_lock
from core.jobs import Job, Jobs
from core.runs import Runs
from core.settings import PROJECT, Settings, child_environment
from feedback.store import FeedbackStore
from finetune.worker import Worker, due
from tests.feedback.made import answer

SLEEPER = "tests.finetune.sleeper"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path)


@pytest.fixture
def jobs(settings: Settings) -> Jobs:
    return Jobs(Database(settings.database))


@pytest.fixture
def worker(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    """A worker driven by hand, whose jobs sleep, die or finish."""
    monkeypatch.setattr(finetune.worker, "MODULES", dict.fromkeys(finetune.worker.MODULES, SLEEPER))
    monkeypatch.setattr(finetune.worker, "BEAT", 0.05)
    monkeypatch.setattr(finetune.worker, "GRACE", 0.5)
    made = Worker(settings)
    yield made
    for child in made.children.values():
        child.process.kill()


def drive(worker: Worker, until: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end
        worker.tick()
        time.sleep(0.02)


def started(worker: Worker, job: Job) -> Callable[[], bool]:
    return (worker.settings.data_dir / f"pid-{job.id}").exists


def closed(jobs: Jobs, job: Job) -> Callable[[], bool]:
    return lambda: not jobs.get(job.id).open


def test_a_job_is_done_at_low_priority(worker: Worker, jobs: Jobs) -> None:
    job = jobs.submit("ingest", {"do": "done"})
    drive(worker, closed(jobs, job))
    done = jobs.get(job.id)
    assert (done.status, done.progress) == ("done", 1)
    pid, nice = (worker.settings.data_dir / f"pid-{job.id}").read_text().split()
    assert int(nice) >= 10
    assert int(pid) == done.result["pid"]


@pytest.mark.parametrize(
    ("do", "how"), [("die", "killed by signal 9: The cause of death"), ("exit", "status 7")]
)
def test_a_dead_child_is_a_failed_job_with_its_last_words(
    worker: Worker, jobs: Jobs, do: str, how: str
) -> None:
    job = jobs.submit("retrain", {"do": do})
    run = Runs(worker.database).start({"job": job.id})
    drive(worker, closed(jobs, job))
    assert jobs.get(job.id).status == "failed"
    assert how in jobs.get(job.id).message
    assert Runs(worker.database).get(run.id).status == "failed"


def test_a_killed_ingest_goes_on_by_itself_a_few_times(worker: Worker, jobs: Jobs) -> None:
    job = jobs.submit("ingest", {"do": "die"})
    drive(worker, closed(jobs, job))
    assert (jobs.get(job.id).status, jobs.get(job.id).attempts) == ("failed", 3)


@pytest.mark.parametrize("do", ["hang", "ignore"])
def test_cancelling_ends_the_child(worker: Worker, jobs: Jobs, do: str) -> None:
    job = jobs.submit("retrain", {"do": do})
    run = Runs(worker.database).start({"job": job.id})
    drive(worker, started(worker, job))
    jobs.cancel(job.id)
    drive(worker, closed(jobs, job))
    assert jobs.get(job.id).status == "cancelled"
    assert Runs(worker.database).get(run.id).status == "cancelled"
    assert worker.children == {}


def test_an_upload_does_not_wait_for_training_and_trainings_wait_for_each_other(
    worker: Worker, jobs: Jobs
) -> None:
    training, next_one = jobs.submit("retrain", {"do": "hang"}), jobs.submit("retrain", {"do": "done"})
    drive(worker, started(worker, training))
    upload = jobs.submit("ingest", {"do": "done"})
    drive(worker, closed(jobs, upload))
    assert jobs.get(training.id).status == "running"
    assert jobs.get(next_one.id).status == "queued"
    jobs.cancel(training.id)
    drive(worker, closed(jobs, next_one))
    assert jobs.get(next_one.id).status == "done"


def test_a_lost_lease_ends_the_child_and_leaves_the_job_to_its_new_holder(worker: Worker, jobs: Jobs) -> None:
    job = jobs.submit("ingest", {"do": "hang"})
    drive(worker, started(worker, job))
    jobs.expire_leases()
    taken = jobs.lease(("ingest",))
    assert taken is not None
    assert taken.token == job.token + 2
    drive(worker, lambda: worker.children == {})
    assert jobs.get(job.id).status == "running"
    assert jobs.get(job.id).token == taken.token


PROGRAM = f"""
import finetune.worker as worker
worker.MODULES = dict.fromkeys(worker.MODULES, "{SLEEPER}")
raise SystemExit(worker.main([]))
"""


def launch(settings: Settings) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", PROGRAM]
    return subprocess.Popen(command, cwd=PROJECT, env=child_environment(settings), stderr=subprocess.PIPE)


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2]
    except FileNotFoundError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux only")
def test_a_killed_worker_takes_its_children_along_and_the_next_one_takes_over(
    settings: Settings, jobs: Jobs, tmp_path: Path
) -> None:
    job = jobs.submit("retrain", {"do": "once"})
    mark = tmp_path / f"pid-{job.id}"
    first = launch(settings)
    wait_for(lambda: mark.exists() and bool(mark.read_text()), first)
    pid = int(mark.read_text().split()[0])
    first.kill()
    first.wait()
    end = time.monotonic() + 30
    while alive(pid):
        assert time.monotonic() < end
        time.sleep(0.02)
    assert jobs.get(job.id).status == "running"  # nobody was left to say otherwise
    second = launch(settings)
    wait_for(closed(jobs, job), second)
    assert (jobs.get(job.id).status, jobs.get(job.id).attempts) == ("done", 2)
    # asked to stop, a worker gives back what it is doing
    hanging = jobs.submit("ingest", {"do": "hang"})
    wait_for((tmp_path / f"pid-{hanging.id}").exists, second)
    second.send_signal(signal.SIGTERM)
    assert second.wait(30) == 0
    assert (jobs.get(hanging.id).status, jobs.get(hanging.id).attempts) == ("queued", 0)


def test_there_is_one_worker(settings: Settings) -> None:
    with (
        owner_lock(settings.data_dir / "worker.lock", "test"),
        pytest.raises(ConflictError, match=str(os.getpid())),
    ):
        Worker(settings).run()


def vote(database: Database, count: int) -> None:
    store = FeedbackStore(database)
    talk = store.start_conversation("ann", "t")
    for number in range(count):
        store.vote(store.record(talk, "ann", f"What is {number}?", answer(f"What is {number}?")), "ann", 1)


NIGHT = datetime(2026, 3, 1, 2, 30)


def test_nightly_runs_once_a_night_and_only_with_new_votes(settings: Settings, jobs: Jobs) -> None:
    settings = replace(settings, schedule="nightly", schedule_hour=2)
    assert due(settings, jobs.database, NIGHT) == ""
    vote(jobs.database, 1)
    assert due(settings, jobs.database, NIGHT.replace(hour=3)) == ""
    assert due(replace(settings, schedule="off"), jobs.database, NIGHT) == ""
    reason = due(settings, jobs.database, NIGHT)
    assert "2026-03-01" in reason
    job = jobs.submit("retrain", {"schedule": reason, "votes": 1})
    assert due(settings, jobs.database, NIGHT) == ""
    jobs.cancel(job.id)
    assert due(settings, jobs.database, NIGHT) == ""  # also after a restart: the job's row remembers
    vote(jobs.database, 1)
    assert due(settings, jobs.database, NIGHT) == ""
    assert due(settings, jobs.database, NIGHT.replace(day=2)) != ""


def test_votes_start_a_run_when_there_are_enough_new_ones(settings: Settings, jobs: Jobs) -> None:
    settings = replace(settings, schedule="votes", schedule_votes=5)
    vote(jobs.database, 4)
    assert due(settings, jobs.database, NIGHT) == ""
    vote(jobs.database, 1)
    assert due(settings, jobs.database, NIGHT) == "5 new votes"
    Runs(jobs.database).start({"votes": 5})
    assert due(settings, jobs.database, NIGHT) == ""
    vote(jobs.database, 5)
    running = jobs.submit("retrain", {})
    assert due(settings, jobs.database, NIGHT) == ""  # never two at once
    jobs.cancel(running.id)
    assert due(settings, jobs.database, NIGHT) == "5 new votes"


def test_the_schedule_queues_a_run(worker: Worker, jobs: Jobs) -> None:
    worker.settings = replace(worker.settings, schedule="votes", schedule_votes=1)
    vote(jobs.database, 1)
    worker.looked_at_schedule = -1e9
    worker._schedule()
    queued = jobs.list("retrain")
    assert [job.payload["methods"] for job in queued] == [["sft", "dpo"]]
    worker.looked_at_schedule = -1e9
    worker._schedule()
    assert len(jobs.list("retrain")) == 1
