"""Checkpoints that are complete or deleted.

A checkpoint counts only with a manifest of sizes and hashes, written last: transformers resumes into a
truncated checkpoint without a word.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from core.errors import StorageError
from core.files import fsync_dir, read_json, sha256_of, write_json

MANIFEST = "manifest.json"


def complete(checkpoint: Path) -> None:
    """Write a checkpoint's manifest.

    The reference adapter that DPO puts beside ours is removed first: with it there, transformers would
    restore only the reference, and train on from untrained weights.
    """
    shutil.rmtree(checkpoint / "ref", ignore_errors=True)
    fsync_dir(checkpoint)
    write_json(
        checkpoint / MANIFEST, {path.name: _mark(path) for path in checkpoint.iterdir() if path.is_file()}
    )


def is_complete(checkpoint: Path) -> bool:
    """Whether every file of the manifest is there with its size and hash."""
    try:
        manifest = read_json(checkpoint / MANIFEST)
        return bool(manifest) and all(_mark(checkpoint / name) == mark for name, mark in manifest.items())
    except (OSError, StorageError):
        return False


def newest_complete(folder: Path) -> Path | None:
    """The newest complete checkpoint in `folder`; newer broken ones are deleted."""
    for checkpoint in sorted(folder.glob("checkpoint-*"), key=step_of, reverse=True):
        if is_complete(checkpoint):
            return checkpoint
        shutil.rmtree(checkpoint)
    return None


def step_of(checkpoint: Path | None) -> int:
    """The step a checkpoint was saved after (0 for none)."""
    return int(checkpoint.name.rsplit("-", 1)[1]) if checkpoint else 0


def _mark(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
