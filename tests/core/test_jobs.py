"""Jobs end as done, failed or cancelled with a reason, whoever dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.db import Database
from core.errors import ConflictError, NotFoundError
from core.jobs import MAX_ATTEMPTS, Job, Jobs
from core.settings import PROJECT

KINDS = ("ingest", "retrain")


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[Jobs]:
    database = Database(tmp_path / "d.db")
    yield Jobs(database)
    database.close()


def leased(jobs: Jobs) -> Job:
    job = jobs.lease(KINDS)
    assert job is not None
    return job


def test_a_job_runs_from_queued_to_done(jobs: Jobs) -> None:
    queued = jobs.submit("retrain", {"methods": ["sft"]})
    assert (queued.status, queued.payload, queued.open) == ("queued", {"methods": ["sft"]}, True)
    job = leased(jobs)
    assert (job.id, job.status, job.attempts, job.token) == (queued.id, "running", 1, 1)
    assert not jobs.heartbeat(job, 0.5, "half way")
    assert (jobs.get(job.id).progress, jobs.get(job.id).message) == (0.5, "half way")
    assert not jobs.heartbeat(job)
    assert jobs.get(job.id).message == "half way"
    jobs.finish(job, "done", "Finished.", {"adapter": "a1"})
    done = jobs.get(job.id)
    assert (done.status, done.progress, done.result, done.open) == ("done", 1.0, {"adapter": "a1"}, False)
    assert jobs.lease(KINDS) is None


def test_oldest_first_and_only_of_the_kinds_asked_for(jobs: Jobs) -> None:
    first, second = jobs.submit("ingest", {"n": 1}), jobs.submit("ingest", {"n": 2})
    jobs.submit("other")
    assert [leased(jobs).id, leased(jobs).id] == [first.id, second.id]
    assert jobs.lease(KINDS) is None
    assert [job.kind for job in jobs.list()] == ["other", "ingest", "ingest"]
    assert [job.id for job in jobs.list("ingest", limit=1)] == [second.id]


def test_submitted_once_while_open(jobs: Jobs) -> None:
    first = jobs.submit("ingest", {}, once=True)
    assert jobs.submit("ingest", {}, once=True).id == first.id
    assert jobs.submit("ingest", {"force": True}, once=True).id != first.id
    jobs.finish(leased(jobs), "done", "Finished.")
    assert jobs.submit("ingest", {}, once=True).id != first.id


def test_a_lapsed_lease_is_taken_over_and_the_sleeper_is_fenced_off(jobs: Jobs) -> None:
    jobs.submit("retrain")
    sleeper = leased(jobs)
    assert jobs.lease(KINDS) is None
    jobs.expire_leases()
    taker = leased(jobs)
    assert (taker.id, taker.token, taker.attempts) == (sleeper.id, 2, 2)
    with pytest.raises(ConflictError, match="taken over"):
        jobs.heartbeat(sleeper, 0.9)
    with pytest.raises(ConflictError, match="taken over"):
        jobs.finish(sleeper, "done", "Mine.")
    jobs.release(sleeper)
    assert jobs.get(taker.id).status == "running"
    jobs.finish(taker, "done", "Finished.")
    with pytest.raises(ConflictError):
        jobs.finish(taker, "failed", "Twice.")


def test_a_heartbeat_renews_the_lease(jobs: Jobs) -> None:
    jobs.submit("retrain")
    job = leased(jobs)
    jobs.expire_leases()
    jobs.heartbeat(job)
    assert jobs.lease(KINDS) is None


def test_a_job_that_kills_its_workers_fails_with_the_reason(jobs: Jobs) -> None:
    identity = jobs.submit("ingest").id
    for _ in range(MAX_ATTEMPTS):
        last = leased(jobs)
        jobs.expire_leases()
    assert jobs.lease(KINDS) is None
    failed = jobs.get(identity)
    assert failed.status == "failed"
    assert f"died {MAX_ATTEMPTS} times" in failed.message
    with pytest.raises(ConflictError):
        jobs.heartbeat(last)


def test_a_stopping_worker_gives_back_without_losing_an_attempt(jobs: Jobs) -> None:
    jobs.submit("ingest")
    for _ in range(MAX_ATTEMPTS + 2):
        job = leased(jobs)
        assert job.attempts == 1
        jobs.release(job)
    assert jobs.get(job.id).status == "queued"


def test_cancelling(jobs: Jobs) -> None:
    waiting, running, orphan = (jobs.submit("ingest", {"n": n}).id for n in range(3))
    jobs.cancel(waiting)
    assert jobs.get(waiting).status == "cancelled"
    job = leased(jobs)
    assert job.id == running
    jobs.cancel(running)
    assert jobs.get(running).status == "running"
    assert jobs.heartbeat(job)
    jobs.finish(job, "cancelled", "Stopped.")
    assert leased(jobs).id == orphan
    jobs.cancel(orphan)
    jobs.expire_leases()
    assert jobs.lease(KINDS) is None
    assert jobs.get(orphan).status == "cancelled"
    jobs.cancel(running)  # closed already: harmless
    assert jobs.get(running).message == "Stopped."


def test_unknown_jobs_are_named(jobs: Jobs) -> None:
    for act in (jobs.get, jobs.cancel):
        with pytest.raises(NotFoundError, match="nothing"):
            act("nothing")


def test_many_workers_take_each_job_once(jobs: Jobs) -> None:
    for number in range(30):
        jobs.submit("ingest", {"n": number})
    taken: list[str] = []

    def work() -> None:
        while (job := jobs.lease(KINDS)) is not None:
            taken.append(job.id)
            jobs.finish(job, "done", "Finished.")

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == len(set(taken)) == 30


WORKER = """
import sys, time
from pathlib import Path
from core.db import Database
from core.jobs import Jobs
jobs = Jobs(Database(Path(sys.argv[1])))
job = jobs.lease(("ingest", "retrain"))
jobs.heartbeat(job, 0.3, "training")
print(job.id, flush=True)
time.sleep(600)
"""


def test_a_killed_worker_leaves_a_job_that_is_taken_again(jobs: Jobs) -> None:
    """G3, quick: kill -9; nothing stays running for good."""
    identity = jobs.submit("retrain").id
    child = subprocess.Popen(
        [sys.executable, "-c", WORKER, str(jobs.database.path)],
        cwd=PROJECT, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(PROJECT)},
    )  # fmt: skip
    assert child.stdout is not None
    with child.stdout:
        assert child.stdout.readline().decode().strip() == identity
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert jobs.get(identity).status == "running"
    jobs.expire_leases()
    job = leased(jobs)
    assert (job.id, job.progress, job.attempts) == (identity, 0.3, 2)
    jobs.finish(job, "done", "Finished.")
