"""What became of a correction: waiting, answering everybody, or part of what the adapter on stage learned."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from app.resources import Resources
from core.errors import UnderstudyError
from feedback.dataset import load
from feedback.records import Correction
from rag.citations import safe_markdown

_TRAINED = "The next adapter is trained on it if everybody may find these passages and they hold it."
PENDING = (
    "Thank you. From now on you get this correction for this question at once; after review everybody does "
    f"who may find the passages behind it. {_TRAINED}"
)
APPROVED = f"Approved. This correction answers everybody who may find the passages behind it. {_TRAINED}"
REJECTED = "A reviewer did not take this correction over. You can write another one."


def fate(parts: Resources, correction: Correction) -> str:
    """A sentence for the person who wrote it."""
    if correction.status == "pending":
        return PENDING
    if correction.status == "rejected":
        return REJECTED
    adapter = learned_by(parts, correction.id)
    if adapter is None:
        return APPROVED
    return f"Learned. The adapter on stage, {safe_markdown(adapter)}, was trained on this correction."


def learned_by(parts: Resources, correction_id: str) -> str | None:
    """The adapter on stage, when the correction is in the data set that made it."""
    stage = parts.registry.on_stage(parts.model.id)
    if stage is None or stage.adapter_id is None:
        return None
    version = parts.registry.get(stage.adapter_id).dataset_version
    if version is None or correction_id not in _taught(parts.settings.data_dir / "datasets", version):
        return None
    return stage.adapter_id


@lru_cache(maxsize=32)
def _taught(folder: Path, version: str) -> frozenset[str]:
    """The corrections in a frozen data set, which never changes; ids only, no user's words are kept."""
    try:
        rows = load(folder, version).sft()
    except UnderstudyError:  # the folder was removed; nothing can be said then
        return frozenset()
    return frozenset(correction for row in rows for correction in row["provenance"]["corrections"])
