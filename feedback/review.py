"""The review queue: only a correction that a reviewer approved may answer other users or train a model."""

from __future__ import annotations

from dataclasses import dataclass

from core.db import Database, audit, now_ms
from core.errors import ConflictError, NotFoundError
from feedback.records import Correction, Exchange, to_exchange


@dataclass(frozen=True)
class Pending:
    """A correction beside what it corrects: `exchange` has the question, the answer and its passages."""

    correction: Correction
    exchange: Exchange


class Review:
    """Reads and decides corrections; every decision keeps reviewer and time and is audited."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def pending(self, limit: int = 100) -> list[Pending]:
        """Corrections that wait for a decision, oldest first."""
        with self.database.read() as connection:
            corrections = connection.execute(
                "SELECT * FROM corrections WHERE status = 'pending' ORDER BY created_at, rowid LIMIT ?",
                (limit,),
            ).fetchall()
            exchanges = [
                connection.execute("SELECT * FROM exchanges WHERE id = ?", (row["exchange_id"],)).fetchone()
                for row in corrections
            ]
        return [
            Pending(Correction(**dict(correction)), to_exchange(exchange))
            for correction, exchange in zip(corrections, exchanges, strict=True)
        ]

    def get(self, correction_id: str) -> Correction:
        """The correction with this id (raises NotFoundError)."""
        with self.database.read() as connection:
            row = connection.execute("SELECT * FROM corrections WHERE id = ?", (correction_id,)).fetchone()
        if row is None:
            raise NotFoundError(f"No correction is called {correction_id}.")
        return Correction(**dict(row))

    def approve(self, correction_id: str, reviewer: str, *, text: str | None = None) -> None:
        """Let a pending correction answer everybody and train.

        `text` is what the reviewer read: when its author changed it meanwhile, or another reviewer decided
        first, ConflictError is raised and nothing changes. Raises NotFoundError for an unknown id.
        """
        self._decide(correction_id, "approved", reviewer, text)

    def reject(self, correction_id: str, reviewer: str, *, text: str | None = None) -> None:
        """Keep a pending correction out of answers and training; raises as `approve` does."""
        self._decide(correction_id, "rejected", reviewer, text)

    def undo(self, correction_id: str, reviewer: str = "local") -> None:
        """Put a decided correction back into the queue; harmless when it is there."""
        self.get(correction_id)
        with self.database.write() as connection:
            changed = connection.execute(
                "UPDATE corrections SET status = 'pending', reviewer = NULL, reviewed_at = NULL"
                " WHERE id = ? AND status != 'pending'",
                (correction_id,),
            ).rowcount
            if changed:
                audit(connection, reviewer, "correction.undo", correction_id)

    def approve_all(self, reviewer: str) -> int:
        """Approve everything that waits, in one transaction; returns how many that were."""
        with self.database.write() as connection:
            rows = connection.execute(
                "UPDATE corrections SET status = 'approved', reviewer = ?, reviewed_at = ?"
                " WHERE status = 'pending' RETURNING id",
                (reviewer, now_ms()),
            ).fetchall()
            for row in rows:
                audit(connection, reviewer, "correction.approved", row["id"])
        return len(rows)

    def _decide(self, correction_id: str, status: str, reviewer: str, text: str | None) -> None:
        with self.database.write() as connection:
            changed = connection.execute(
                "UPDATE corrections SET status = ?1, reviewer = ?2, reviewed_at = ?3"
                " WHERE id = ?4 AND status = 'pending' AND (?5 IS NULL OR text = ?5)",
                (status, reviewer, now_ms(), correction_id, text),
            ).rowcount
            if changed:
                audit(connection, reviewer, f"correction.{status}", correction_id)
                return
        found = self.get(correction_id)
        if found.status == status and found.reviewer == reviewer:
            return  # the same click twice
        if found.status == "pending":
            raise ConflictError("The correction was changed while you read it.", "Read it again.")
        raise ConflictError(
            f"The correction was already {found.status} by {found.reviewer}.", "Undo that first."
        )
