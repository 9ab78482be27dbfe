"""Which questions an adapter was taught, as vectors beside its weights; no user's words are kept there."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from core.files import inside, write_bytes
from rag.embed import Embedder, Vectors

FILE = "taught.npy"
LIKE = 0.7  # cosine from which a question is like a taught one; 0.5 to 0.8 do as well (docs/log.md)


def remember(folder: Path, questions: Sequence[str], embedder: Embedder) -> None:
    """Keep the vectors of the questions that the adapter in `folder` was taught; it never learns others."""
    if not (folder / FILE).exists():
        buffer = io.BytesIO()
        np.save(buffer, embedder.encode(list(dict.fromkeys(questions))).astype(np.float16))
        write_bytes(folder / FILE, buffer.getvalue())


class Taught:
    """Answers whether a question is like one that an adapter was taught; `folder` holds the adapters."""

    def __init__(self, folder: Path, embedder: Embedder) -> None:
        self.folder = folder
        self.embedder = embedder

    def __call__(self, adapter: str, question: str) -> bool:
        """An adapter without such vectors, from elsewhere or an earlier version, was taught everything."""
        path = inside(self.folder, adapter) / FILE
        if not path.exists():
            return True
        vectors = _vectors(path)
        return bool(len(vectors)) and float((vectors @ self.embedder.encode([question])[0]).max()) >= LIKE


@lru_cache(maxsize=8)
def _vectors(path: Path) -> Vectors:
    return np.asarray(np.load(path), np.float32)
