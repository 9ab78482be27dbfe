"""The adapter registry: which adapters exist, which one is on stage, and who put it there.

`promotions` is append-only; the last row of a base names its adapter (or the bare base). Promoting, rolling
back and their audit are one transaction, so a killed process leaves either the old or the new adapter on
stage, never neither. The engine watches `on_stage` and swaps when it changes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.db import Database, audit, now_ms
from core.errors import ConflictError, ModelError, NotFoundError, StorageError
from core.files import inside, read_json, sealed_copy, sha256_of

CARD = "card.json"
GGUF = "adapter.gguf"


@dataclass(frozen=True)
class Adapter:
    """One registered adapter. `folder` holds `adapter.gguf`, the safetensors and `card.json`."""

    id: str
    base: str
    base_sha256: str
    sha256: str
    run_id: str | None
    dataset_version: str | None
    parent_id: str | None
    method: str
    verdict: str
    metrics: dict[str, Any]
    created_at: int


@dataclass(frozen=True)
class Promotion:
    """One change of who is on stage; `adapter_id` None is the bare base model."""

    seq: int
    base: str
    adapter_id: str | None
    action: str
    actor: str
    reason: str
    created_at: int


class AdapterRegistry:
    """Reads and writes the `adapters` and `promotions` tables."""

    def __init__(self, database: Database, folder: Path) -> None:
        self.database = database
        self.folder = folder

    def path(self, adapter_id: str) -> Path:
        """The adapter's GGUF file."""
        return inside(self.folder, adapter_id) / GGUF

    def register(self, adapter: Adapter) -> None:
        """Add an adapter whose files are complete; registering the same id again is harmless.

        Raises ModelError when its card is missing or the file does not have the recorded hash.
        """
        self.verify(adapter)
        with self.database.write() as connection:
            connection.execute(
                "INSERT INTO adapters VALUES (?,?,?,?,?,?,?,?,?,?,?) ON CONFLICT(id) DO NOTHING",
                (
                    adapter.id,
                    adapter.base,
                    adapter.base_sha256,
                    adapter.sha256,
                    adapter.run_id,
                    adapter.dataset_version,
                    adapter.parent_id,
                    adapter.method,
                    adapter.verdict,
                    json.dumps(adapter.metrics),
                    adapter.created_at,
                ),
            )
            audit(connection, "registry", "adapter.register", adapter.id)

    def verify(self, adapter: Adapter) -> Path:
        """Return the GGUF path after checking card and hash (raises ModelError)."""
        path = self._complete(adapter)
        _require(adapter, sha256_of(path))
        return path

    @contextmanager
    def verified(self, adapter: Adapter) -> Iterator[Path]:
        """A path to the adapter's bytes that cannot be swapped for others after they were checked.

        It is a sealed copy in memory, valid within the block. Raises ModelError as `verify` does.
        """
        with sealed_copy(self._complete(adapter)) as (copy, digest):
            _require(adapter, digest)
            yield copy

    def _complete(self, adapter: Adapter) -> Path:
        """The GGUF path of an adapter whose card says what was registered."""
        path = self.path(adapter.id)
        if not (path.parent / CARD).exists() or not path.exists():
            raise ModelError(
                f"Adapter {adapter.id} is incomplete: {path.parent} lacks its card or GGUF.",
                "Run the retraining again; it resumes at the export.",
            )
        _require(adapter, read_json(path.parent / CARD).get("sha256"))
        return path

    def get(self, adapter_id: str) -> Adapter:
        """The adapter with this id (raises NotFoundError)."""
        with self.database.read() as connection:
            row = connection.execute("SELECT * FROM adapters WHERE id = ?", (adapter_id,)).fetchone()
        if row is None:
            raise NotFoundError(f"No adapter is called {adapter_id}.", "See `understudy adapters list`.")
        return _adapter(row)

    def all(self, base: str | None = None) -> list[Adapter]:
        """Every adapter (of a base), newest first."""
        with self.database.read() as connection:
            rows = connection.execute(
                "SELECT * FROM adapters WHERE base = coalesce(?, base) ORDER BY created_at DESC, id", (base,)
            ).fetchall()
        return [_adapter(row) for row in rows]

    def set_verdict(self, adapter_id: str, verdict: str, metrics: dict[str, Any]) -> None:
        """Record what the gate decided (`passed` or `refused`) and the metrics it decided on."""
        with self.database.write() as connection:
            connection.execute(
                "UPDATE adapters SET verdict = ?, metrics = ? WHERE id = ?",
                (verdict, json.dumps(metrics, sort_keys=True), adapter_id),
            )
            audit(connection, "gate", f"adapter.{verdict}", adapter_id)

    def on_stage(self, base: str) -> Promotion | None:
        """The promotion in force for a base, or None when nothing was ever promoted."""
        history = self.history(base, limit=1)
        return history[0] if history else None

    def history(self, base: str, limit: int = 100) -> list[Promotion]:
        """Promotions and rollbacks of a base, newest first."""
        with self.database.read() as connection:
            rows = connection.execute(
                "SELECT * FROM promotions WHERE base = ? ORDER BY seq DESC LIMIT ?", (base, limit)
            ).fetchall()
        return [Promotion(**dict(row)) for row in rows]

    def promote(
        self, adapter_id: str, actor: str, reason: str, *, expected_seq: int | None = None
    ) -> Promotion:
        """Put an adapter on stage.

        `expected_seq` is the promotion the caller compared it with (0 for none): when another one came in
        between, ConflictError is raised and nothing changes. A refused adapter raises ConflictError too.
        """
        adapter = self.get(adapter_id)
        if adapter.verdict == "refused":
            raise ConflictError(f"Adapter {adapter_id} was refused by the gate.", "Read its report.")
        self.verify(adapter)
        return self._append(adapter.base, adapter_id, "promote", actor, reason, expected_seq)

    def rollback(self, base: str, actor: str, reason: str) -> Promotion:
        """Put back what was on stage before the current adapter, at last the bare base model.

        Raises ConflictError when the bare base is on stage already.
        """
        history = self.history(base, limit=1_000_000)
        if not history or history[0].adapter_id is None:
            raise ConflictError("The bare base model is on stage already; there is nothing to roll back.")
        # replay as a stack: a promotion pushes, a rollback pops, so two rollbacks go back two steps
        stack: list[str | None] = [None]
        for entry in reversed(history):
            if entry.action == "promote":
                stack.append(entry.adapter_id)
                continue
            stack = stack[:-1] or [None]
            while len(stack) > 1 and stack[-1] != entry.adapter_id:
                stack.pop()
        stack = stack[:-1] or [None]
        # an adapter whose file is gone or changed cannot come back: go on to the one before it
        while len(stack) > 1 and not self._intact(stack[-1]):
            stack.pop()
        previous = stack[-1]
        return self._append(base, previous, "rollback", actor, reason, history[0].seq)

    def _intact(self, adapter_id: str | None) -> bool:
        try:
            return adapter_id is None or bool(self.verify(self.get(adapter_id)))
        except (ModelError, StorageError):
            return False

    def _append(
        self, base: str, adapter_id: str | None, action: str, actor: str, reason: str, expected: int | None
    ) -> Promotion:
        with self.database.write() as connection:
            row = connection.execute(
                "SELECT * FROM promotions WHERE base = ? ORDER BY seq DESC LIMIT 1", (base,)
            ).fetchone()
            if expected is not None and (row["seq"] if row else 0) != expected:
                raise ConflictError(
                    "Another adapter was promoted meanwhile.", "Evaluate again against the one on stage."
                )
            if row and action == "promote" and row["adapter_id"] == adapter_id:
                return Promotion(**dict(row))  # a second click, which a rollback must not count
            created = now_ms()
            seq = connection.execute(
                "INSERT INTO promotions (base, adapter_id, action, actor, reason, created_at)"
                " VALUES (?,?,?,?,?,?)",
                (base, adapter_id, action, actor, reason, created),
            ).lastrowid
            audit(connection, actor, f"adapter.{action}", f"{base}: {adapter_id or 'base'}: {reason}")
        return Promotion(int(seq or 0), base, adapter_id, action, actor, reason, created)


def _require(adapter: Adapter, sha256: object) -> None:
    if sha256 != adapter.sha256:
        raise ModelError(
            f"Adapter {adapter.id} does not have the bytes it was registered with.",
            "Export it again or restore it from a backup.",
        )


def _adapter(row: Any) -> Adapter:
    values = dict(row)
    values["metrics"] = json.loads(values["metrics"])
    return Adapter(**values)
