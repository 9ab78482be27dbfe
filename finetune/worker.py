"""The worker: `python -m finetune.worker` takes jobs from the database and runs each in a child process.

Documents, crawls and training have a lane each, so that an upload never waits for a slow site or a night's
training, and no two trainings ever run at once. While a child lives, the worker renews its job's lease; when
the child dies without closing the job, the worker closes it with the child's last words. Cancelling ends the
child's whole process group. There is one worker for a data folder, so leases left by a dead one are taken
over at once.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import time
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from core.children import last_words, signal_group, start, stop
from core.db import Database
from core.errors import ConflictError, run_main
from core.files import owner_lock
from core.jobs import Job, Jobs
from core.runs import Runs
from core.settings import Settings, load_settings, quiet_environment
from feedback.store import FeedbackStore

MODULES = {
    "ingest": "rag.ingest",
    "index": "rag.index",
    "crawl": "rag.crawl_command",
    "reindex": "rag.reindex",
    "retrain": "finetune.retrain",
    "embedder": "finetune.embedder",
}
LANES = (("ingest", "index", "reindex"), ("crawl",), ("retrain", "embedder"))
RESUMED = LANES[0]  # go on by themselves after a kill, where they were
TICK, BEAT, GRACE, SCHEDULE = 0.5, 2.0, 10.0, 30.0  # seconds


@dataclass
class Child:
    """A job's process; times are monotonic seconds."""

    job: Job
    process: subprocess.Popen[bytes]
    log: Path
    beat: float = field(default_factory=time.monotonic)
    asked_to_stop: float | None = None


class Worker:
    """Runs jobs until `stopping`."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.database = Database(settings.database)
        self.jobs = Jobs(self.database)
        self.children: dict[tuple[str, ...], Child] = {}
        self.stopping = False
        self.looked_at_schedule = -SCHEDULE

    def run(self) -> None:
        """Work until SIGTERM or Ctrl-C; then give unfinished jobs back.

        Raises ConflictError when another worker serves the same data folder.
        """
        with owner_lock(self.settings.data_dir / "worker.lock", "The worker's place"):
            self.jobs.expire_leases()
            try:
                while not self.stopping:
                    self.tick()
                    time.sleep(TICK)
            finally:
                for child in self.children.values():
                    stop(child.process, GRACE)
                    self._close(child, released=True)
                self.database.close()

    def tick(self) -> None:
        """Look after the children, then fill free lanes."""
        for lane, child in list(self.children.items()):
            if child.process.poll() is not None:
                del self.children[lane]
                self._close(child)
            else:
                self._watch(child)
        self._schedule()
        for lane in LANES:
            if lane not in self.children and (job := self.jobs.lease(lane)):
                self.children[lane] = self._start(job)

    def _start(self, job: Job) -> Child:
        log = self.settings.data_dir / "logs" / f"job-{job.id}.log"
        arguments = ["--job", job.id, "--token", str(job.token)]
        return Child(job, start(MODULES[job.kind], arguments, self.settings, log, own_group=True), log)

    def _watch(self, child: Child) -> None:
        """Renew the lease; end a child that was cancelled or lost its job."""
        now = time.monotonic()
        if child.asked_to_stop is not None:
            if now - child.asked_to_stop > GRACE:
                signal_group(child.process, signal.SIGKILL)
        elif now - child.beat > BEAT:
            child.beat = now
            try:
                cancelled = self.jobs.heartbeat(child.job)
            except ConflictError:
                cancelled = True  # closed by the child a moment ago, or taken over
            if cancelled:
                child.asked_to_stop = now
                signal_group(child.process, signal.SIGTERM)

    def _close(self, child: Child, *, released: bool = False) -> None:
        """Settle the job of a child that has ended, unless the child did."""
        job = self.jobs.get(child.job.id)
        if job.status != "running" or job.token != child.job.token:
            return
        if released and not job.cancel_requested:
            self.jobs.release(child.job)
            return
        if job.kind in RESUMED and child.process.returncode < 0 and self.jobs.retry(child.job):
            return
        status, message = ("cancelled", "Cancelled.") if job.cancel_requested else ("failed", _epitaph(child))
        runs = Runs(self.database)
        for run in runs.list("running"):
            if run.options.get("job") == job.id:
                runs.record(run.id, status=status, error=message)
        self.jobs.finish(child.job, status, message, job.result)

    def _schedule(self) -> None:
        """Queue a retraining run when the schedule asks for one."""
        if time.monotonic() - self.looked_at_schedule < SCHEDULE:
            return
        self.looked_at_schedule = time.monotonic()
        if reason := due(self.settings, self.database, datetime.now()):
            payload = {"methods": list(self.settings.method_list), "four_bit": self.settings.four_bit}
            votes = votes_for_training(self.database)
            self.jobs.submit("retrain", payload | {"schedule": reason, "votes": votes})


def _epitaph(child: Child) -> str:
    code = child.process.returncode
    how = f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"
    words = last_words(child.log)
    return f"The {child.job.kind} process {how}{': ' + words if words else '.'}"


def due(settings: Settings, database: Database, now: datetime) -> str:
    """Why a scheduled run should start at local time `now`; empty when none should.

    Nightly: in the hour that is set, once a day. Votes: when so many upvotes and approved corrections came in
    since the last run. Both only with new feedback, and never while a run is queued or running.
    """
    jobs = Jobs(database).list("retrain")
    if settings.schedule == "off" or any(job.open for job in jobs):
        return ""
    fresh = votes_for_training(database) - _votes_at_last_run(database)
    if settings.schedule == "votes":
        return f"{fresh} new votes" if fresh >= settings.schedule_votes else ""
    if now.hour != settings.schedule_hour or fresh <= 0:
        return ""
    reason = f"night of {now.date()}"
    return "" if any(job.payload.get("schedule") == reason for job in jobs) else reason


def votes_for_training(database: Database) -> int:
    """How many upvotes and approved corrections there are."""
    counts = FeedbackStore(database).counts()
    return counts["up"] + counts["approved"]


def _votes_at_last_run(database: Database) -> int:
    """What the newest run or scheduled job saw; a job may have failed before it had a run."""
    seen = [run.options.get("votes", 0) for run in Runs(database).list(limit=1)]
    return max([*seen, *(job.payload.get("votes", 0) for job in Jobs(database).list("retrain"))], default=0)


def main(argv: list[str] | None = None) -> int:
    """Run the worker until it is told to stop."""
    quiet_environment()
    argparse.ArgumentParser(prog="python -m finetune.worker", description=__doc__).parse_args(argv)
    worker = Worker(load_settings())

    def ask(number: int, frame: object) -> None:
        worker.stopping = True

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, ask)
    worker.run()
    return 0


if __name__ == "__main__":
    run_main(main)
