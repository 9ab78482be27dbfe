"""Long work as rows: queued, leased by one worker, watched by the pages, cancelled or resumed.

A lease lasts LEASE_MS and is renewed by heartbeats. A worker that dies leaves a lease that runs out, and the
job is taken again (its stages skip what is done) or, after MAX_ATTEMPTS, fails with the reason. The fencing
token grows with every lease: a worker that was only asleep finds its token stale and may not write.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from core.db import Database, new_id, now_ms
from core.errors import ConflictError, NotFoundError

LEASE_MS = 60_000
MAX_ATTEMPTS = 3


@dataclass(frozen=True)
class Job:
    """One piece of long work. `progress` runs from 0 to 1; times are UTC milliseconds."""

    id: str
    kind: str
    payload: dict[str, Any]
    status: str
    progress: float
    message: str
    result: dict[str, Any]
    attempts: int
    token: int
    lease_until: int
    cancel_requested: bool
    created_at: int
    updated_at: int

    @property
    def open(self) -> bool:
        """Whether the job still has something to do."""
        return self.status in ("queued", "running")


class Jobs:
    """Reads and writes the `jobs` table."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def submit(self, kind: str, payload: dict[str, Any] | None = None, *, once: bool = False) -> Job:
        """Queue a job; with `once`, an open job of the same kind and payload is returned instead."""
        text = json.dumps(payload or {}, sort_keys=True)
        with self.database.write() as connection:
            if once:
                row = connection.execute(
                    "SELECT * FROM jobs WHERE kind = ? AND payload = ? AND status IN ('queued', 'running')",
                    (kind, text),
                ).fetchone()
                if row is not None:
                    return _job(row)
            job_id, created = new_id(), now_ms()
            connection.execute(
                "INSERT INTO jobs (id, kind, payload, status, created_at, updated_at) VALUES (?,?,?,?,?,?)",
                (job_id, kind, text, "queued", created, created),
            )
        return self.get(job_id)

    def get(self, job_id: str) -> Job:
        """The job with this id (raises NotFoundError)."""
        with self.database.read() as connection:
            row = connection.execute("SELECT * FROM jobs WHERE id = ?", (job_id,)).fetchone()
        if row is None:
            raise NotFoundError(f"No job is called {job_id}.")
        return _job(row)

    def list(self, kind: str | None = None, limit: int = 50) -> list[Job]:
        """Jobs (of a kind), newest first."""
        with self.database.read() as connection:
            rows = connection.execute(
                "SELECT * FROM jobs WHERE ?1 IS NULL OR kind = ?1"
                " ORDER BY created_at DESC, rowid DESC LIMIT ?2",
                (kind, limit),
            ).fetchall()
        return [_job(row) for row in rows]

    def lease(self, kinds: tuple[str, ...]) -> Job | None:
        """Take the oldest job that is queued, or whose worker's lease ran out; None when there is none.

        A job that was cancelled, or that outlived MAX_ATTEMPTS workers, is closed instead of taken.
        """
        now = now_ms()
        marks = ",".join("?" * len(kinds))
        with self.database.write() as connection:
            connection.execute(
                "UPDATE jobs SET status = 'cancelled', message = 'Cancelled.', updated_at = ?1"
                " WHERE cancel_requested = 1"
                " AND (status = 'queued' OR (status = 'running' AND lease_until < ?1))",
                (now,),
            )
            connection.execute(
                "UPDATE jobs SET status = 'failed', updated_at = ?1, token = token + 1,"
                " message = 'The worker died ' || attempts || ' times while doing this. See its log.'"
                " WHERE status = 'running' AND lease_until < ?1 AND attempts >= ?2",
                (now, MAX_ATTEMPTS),
            )
            row = connection.execute(
                f"SELECT id FROM jobs WHERE kind IN ({marks})"
                " AND (status = 'queued' OR (status = 'running' AND lease_until < ?))"
                " ORDER BY created_at, rowid LIMIT 1",
                (*kinds, now),
            ).fetchone()
            if row is None:
                return None
            connection.execute(
                "UPDATE jobs SET status = 'running', attempts = attempts + 1, token = token + 1,"
                " lease_until = ?, updated_at = ? WHERE id = ?",
                (now + LEASE_MS, now, row["id"]),
            )
        return self.get(row["id"])

    def expire_leases(self) -> None:
        """End every lease; for the one worker of a data folder at its start, when all holders are dead."""
        with self.database.write() as connection:
            connection.execute("UPDATE jobs SET lease_until = 0 WHERE status = 'running'")

    def heartbeat(self, job: Job, progress: float | None = None, message: str | None = None) -> bool:
        """Renew the lease and report progress; returns whether cancelling was asked for.

        Raises ConflictError when another worker holds the job now.
        """
        with self.database.write() as connection:
            changed = connection.execute(
                "UPDATE jobs SET lease_until = ?, progress = COALESCE(?, progress),"
                " message = COALESCE(?, message), updated_at = ?"
                " WHERE id = ? AND token = ? AND status = 'running'",
                (now_ms() + LEASE_MS, progress, message, now_ms(), job.id, job.token),
            ).rowcount
        if not changed:
            raise ConflictError(f"Job {job.id} was taken over by another worker.")
        return self.get(job.id).cancel_requested

    def finish(self, job: Job, status: str, message: str, result: dict[str, Any] | None = None) -> None:
        """Close the job as done, failed or cancelled (raises ConflictError when the lease was lost)."""
        with self.database.write() as connection:
            changed = connection.execute(
                "UPDATE jobs SET status = ?, message = ?, result = ?, updated_at = ?,"
                " progress = CASE WHEN ? = 'done' THEN 1 ELSE progress END"
                " WHERE id = ? AND token = ? AND status = 'running'",
                (status, message, json.dumps(result or {}), now_ms(), status, job.id, job.token),
            ).rowcount
        if not changed:
            raise ConflictError(f"Job {job.id} was taken over by another worker.")

    def release(self, job: Job) -> None:
        """Give a running job back unfinished (a worker that is stopping); it does not count as an attempt."""
        with self.database.write() as connection:
            connection.execute(
                "UPDATE jobs SET status = 'queued', attempts = attempts - 1, lease_until = 0, updated_at = ?"
                " WHERE id = ? AND token = ? AND status = 'running'",
                (now_ms(), job.id, job.token),
            )

    def retry(self, job: Job) -> bool:
        """Queue a job again whose process died; False when it must stop or had MAX_ATTEMPTS."""
        with self.database.write() as connection:
            changed = connection.execute(
                "UPDATE jobs SET status = 'queued', lease_until = 0, updated_at = ?"
                " WHERE id = ? AND token = ? AND status = 'running'"
                " AND attempts < ? AND cancel_requested = 0",
                (now_ms(), job.id, job.token, MAX_ATTEMPTS),
            ).rowcount
        return bool(changed)

    def cancel(self, job_id: str) -> None:
        """Ask for a job to stop: at once when queued, at its next heartbeat when running."""
        self.get(job_id)
        with self.database.write() as connection:
            connection.execute(
                "UPDATE jobs SET cancel_requested = 1, updated_at = ?,"
                " message = CASE status WHEN 'queued' THEN 'Cancelled.' ELSE 'Cancelling …' END,"
                " status = CASE status WHEN 'queued' THEN 'cancelled' ELSE status END"
                " WHERE id = ? AND status IN ('queued', 'running')",
                (now_ms(), job_id),
            )


def _job(row: Any) -> Job:
    values = dict(row)
    values["payload"] = json.loads(values["payload"])
    values["result"] = json.loads(values["result"])
    values["cancel_requested"] = bool(values["cancel_requested"])
    return Job(**values)
