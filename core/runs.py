"""Retraining runs as rows: the worker writes them, the pages read them; their files are in `data/runs/<id>/`.

In `core` because `app` shows runs and may not import `finetune`, which makes them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from core.db import Database, new_id, now_ms
from core.errors import NotFoundError


@dataclass(frozen=True)
class Run:
    """One retraining run. `status` is running, promoted, refused, failed or cancelled; times are UTC ms."""

    id: str
    status: str
    stage: str
    options: dict[str, Any]
    dataset_version: str | None
    adapter_id: str | None
    report: dict[str, Any]
    error: str
    created_at: int
    updated_at: int


class Runs:
    """Reads and writes the `runs` table."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def start(self, options: dict[str, Any]) -> Run:
        """Record a new run."""
        run_id, now = new_id(), now_ms()
        with self.database.write() as connection:
            connection.execute(
                "INSERT INTO runs (id, status, stage, options, created_at, updated_at) VALUES (?,?,?,?,?,?)",
                (run_id, "running", "", json.dumps(options, sort_keys=True), now, now),
            )
        return self.get(run_id)

    def get(self, run_id: str) -> Run:
        """The run with this id (raises NotFoundError)."""
        with self.database.read() as connection:
            row = connection.execute("SELECT * FROM runs WHERE id = ?", (run_id,)).fetchone()
        if row is None:
            raise NotFoundError(f"No run is called {run_id}.")
        return _run(row)

    def list(self, status: str | None = None, limit: int = 50) -> list[Run]:
        """Runs (with a status), newest first."""
        with self.database.read() as connection:
            rows = connection.execute(
                "SELECT * FROM runs WHERE ?1 IS NULL OR status = ?1"
                " ORDER BY created_at DESC, rowid DESC LIMIT ?2",
                (status, limit),
            ).fetchall()
        return [_run(row) for row in rows]

    def record(self, run_id: str, **changes: Any) -> Run:
        """Change columns of a run: status, stage, dataset_version, adapter_id, report or error."""
        values = {key: json.dumps(value) if key == "report" else value for key, value in changes.items()}
        names = ", ".join(f"{name} = ?" for name in values)
        with self.database.write() as connection:
            connection.execute(
                f"UPDATE runs SET {names}, updated_at = ? WHERE id = ?", (*values.values(), now_ms(), run_id)
            )
        return self.get(run_id)


def _run(row: Any) -> Run:
    values = dict(row)
    values["options"] = json.loads(values["options"])
    values["report"] = json.loads(values["report"])
    return Run(**values)
