"""Which embedder is in service: MiniLM as it is packaged, or one that was trained on votes.

An embedder is known by its name, the hash of its weights and the length of its vectors, and these are stored
with the vectors. Vectors of one are never compared with those of another: where the embedder on disk is not
the one that the index was made by, search goes on by words alone until the passages are embedded anew.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from core.db import Database
from core.errors import ModelError, NotFoundError, UnderstudyError
from core.files import inside, read_json, sha256_of
from core.settings import Settings
from rag.embed import DIMENSIONS, EMBEDDING, Embedder, Step, Vectors, weights
from rag.passages import PassageStore

IN_SERVICE, BEFORE, MADE_BY = "embedder", "embedder_before", "index_embedding"
"""Notes in the database: the ids of the embedder in service and of the one before, who made the vectors."""

CARD, WEIGHTS = "card.json", "model.safetensors"


@dataclass(frozen=True)
class Identity:
    """An embedder: `id` is the packaged one's name or the folder's below `data/embedders`."""

    id: str
    sha256: str
    dimensions: int
    folder: Path

    @property
    def packaged(self) -> bool:
        """Whether it is MiniLM as it comes."""
        return self.id == EMBEDDING

    @property
    def note(self) -> str:
        """What is stored with the vectors."""
        return json.dumps({"id": self.id, "sha256": self.sha256, "dimensions": self.dimensions})

    @property
    def key(self) -> str:
        """What its vectors are kept under while it is not in service: other weights are another embedder."""
        return f"{self.id} {self.sha256[:16]}"

    def made(self, note: str) -> bool:
        """Whether vectors with this note are its own; the first versions noted the name alone."""
        return note == self.note or (self.packaged and note == EMBEDDING)


class Embedders:
    """The embedders of an installation."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self.folder = settings.data_dir / "embedders"
        self.notes = PassageStore(database)

    def in_service(self) -> Identity:
        """The one whose vectors are searched (raises ModelError when its files are gone or changed)."""
        return self.get(self.serving_id())

    def serving_id(self) -> str:
        """Its id, whether or not its files are there."""
        return self.notes.note(IN_SERVICE) or EMBEDDING

    def before(self) -> str:
        """The id of the one that a rollback returns to; empty when there is none."""
        return self.notes.note(BEFORE)

    def get(self, embedder_id: str) -> Identity:
        """The embedder with this id (raises NotFoundError, and ModelError when its weights were changed)."""
        if embedder_id == EMBEDDING:
            return packaged()
        folder = inside(self.folder, embedder_id)
        if not (folder / CARD).exists():
            raise NotFoundError(
                f"No embedder is called {embedder_id}.", "Run `understudy embedder rollback`."
            )
        card = read_json(folder / CARD)
        if _hash(folder) != card["sha256"]:
            raise ModelError(
                f"The weights of the embedder {embedder_id} are not those that were judged.",
                "Run `understudy embedder rollback`.",
            )
        return Identity(embedder_id, card["sha256"], card["dimensions"], folder)

    def cards(self) -> list[dict[str, Any]]:
        """What is known of every embedder that was trained, newest first."""
        found = [dict(read_json(path)) for path in self.folder.glob(f"*/{CARD}")]
        return sorted(found, key=lambda card: -card["created_at"])

    def mismatch(self) -> str:
        """Why the stored vectors cannot be searched with the embedder in service; empty when they can."""
        try:
            current = self.in_service()
        except UnderstudyError as error:
            return error.message
        made_by = self.notes.note(MADE_BY)
        if not made_by or current.made(made_by):
            return ""
        return (
            "The vector index was made by another embedding model; its passages are being embedded anew,"
            " or `understudy embedder reindex` does it."
        )


def packaged() -> Identity:
    """MiniLM as it comes."""
    folder = weights()
    return Identity(EMBEDDING, _hash(folder), DIMENSIONS, folder)


def _hash(folder: Path) -> str:
    """The hash of the weights; empty when they are gone. Read again only when the file changed."""
    path = folder / WEIGHTS
    if not path.exists():
        return ""
    seen = path.stat()
    return _hash_of(path, seen.st_size, seen.st_mtime_ns)


@cache
def _hash_of(path: Path, _size: int, _modified: int) -> str:
    return sha256_of(path)


class InService:
    """Encodes with the embedder in service, whichever that is at the moment; safe in threads.

    `plain` is MiniLM as it is packaged. It also compares lines with questions when another one is in service,
    since what follows from such a comparison was measured with it.
    """

    def __init__(self, embedders: Embedders, plain: Embedder) -> None:
        self.embedders = embedders
        self.plain = plain
        self._lock = threading.Lock()
        self._tuned: tuple[Identity, Embedder] | None = None

    def encode(self, texts: Sequence[str], step: Step = lambda: None) -> Vectors:
        """Vectors of shape (len(texts), 384), unit length (raises ModelError when the files are gone)."""
        return self.model().encode(texts, step)

    def model(self) -> Embedder:
        """The model itself."""
        if not self.embedders.notes.note(IN_SERVICE):
            return self.plain
        identity = self.embedders.in_service()
        if identity.packaged:
            return self.plain
        with self._lock:
            if self._tuned is None or self._tuned[0] != identity:
                self._tuned = identity, Embedder(self.plain.half, identity.folder)
            return self._tuned[1]

    def warm(self) -> None:
        """Load what the first question needs."""
        self.plain.warm()
        with suppress(UnderstudyError):  # the search says so itself, and goes on by words alone
            self.model().warm()
