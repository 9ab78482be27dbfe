"""Who orders a run, a terminal or a job under the worker, and which run goes on after a crash."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

from core.db import Database
from core.errors import Cancelled, ConflictError, UnderstudyError
from core.files import owner_lock
from core.jobs import Job, Jobs
from core.runs import Run, Runs
from core.settings import METHODS, Settings
from finetune.telling import Heartbeat
from finetune.worker import votes_for_training

Tell = Callable[[float, str], None]
"""Says how far a run is (0 to 1) and what it does; raises Cancelled when it should stop."""

Go = Callable[[Run, Tell], Run]
"""Does a run, or the rest of it, and returns it promoted or refused."""


def run_here(settings: Settings, database: Database, go: Go, options: dict[str, Any], tell: Tell) -> Run:
    """One run from start to verdict; its row says so when it fails or is cancelled.

    Raises ConflictError when another run is at work, Cancelled, and the error of the step that failed.
    """
    with owner_lock(settings.data_dir / "retrain.lock", "Retraining"):
        run = open_run(database, options | {"votes": votes_for_training(database)})
        try:
            return go(run, tell)
        except UnderstudyError as error:
            status = "cancelled" if isinstance(error, Cancelled) else "failed"
            Runs(database).record(run.id, status=status, error=str(error))
            raise


def run_job(settings: Settings, database: Database, go: Go, job_id: str, token: int) -> int:
    """A run under the worker (see `under_worker`)."""

    def work(job: Job, heartbeat: Heartbeat) -> tuple[str, dict[str, Any]]:
        methods = [method for method in job.payload.get("methods", settings.method_list) if method in METHODS]
        four_bit = bool(job.payload.get("four_bit", settings.four_bit))
        options = {"methods": methods, "four_bit": four_bit, "job": job.id}
        run = run_here(settings, database, go, options, heartbeat)
        return outcome(run), {"run": run.id, "status": run.status, "adapter": run.adapter_id}

    return under_worker(database, job_id, token, work)


def under_worker(
    database: Database,
    job_id: str,
    token: int,
    work: Callable[[Job, Heartbeat], tuple[str, dict[str, Any]]],
) -> int:
    """Do the work of a job: its row gets progress, and message and result or the error.

    `work` returns message and result. Returns an exit code; raises ConflictError when the job is another's.
    """
    jobs = Jobs(database)
    job = jobs.get(job_id)
    if job.token != token or job.status != "running":
        raise ConflictError(f"Job {job_id} was taken over by another worker.")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends like Ctrl-C, training process included
    heartbeat = Heartbeat(jobs, job)
    try:
        message, result = work(job, heartbeat)
    except KeyboardInterrupt:
        return 130  # the worker settles the job: cancelled, or given back and then it goes on
    except UnderstudyError as error:
        heartbeat.close()
        if not heartbeat.lost:
            status = "cancelled" if isinstance(error, Cancelled) else "failed"
            jobs.finish(job, status, str(error), job.result)
        return 1
    heartbeat.close()
    jobs.finish(job, "done", message, result)
    return 0


def open_run(database: Database, options: dict[str, Any]) -> Run:
    """The unfinished run of the same job (or, by hand, with the same options and votes), else a new one.

    The caller holds the lock, so every other run that says `running` is dead: unless its job is to be taken
    up again, it is closed as failed.
    """
    runs, jobs = Runs(database), Jobs(database)
    for run in runs.list("running"):
        job = run.options.get("job")
        if job == options.get("job") and (job or run.options == options):
            return run
        if not any(each.id == job and each.open for each in jobs.list("retrain")):
            runs.record(run.id, status="failed", error="The process of this run died.")
    return runs.start(options)


def outcome(run: Run) -> str:
    """How a run ended, in sentences."""
    return " ".join(part for part in (f"{run.status.capitalize()}.", run.report["reason"], run.error) if part)
