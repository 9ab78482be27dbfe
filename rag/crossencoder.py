"""A cross-encoder: reads question and line together and says how likely the line answers the question.

MiniLM's vectors compare a question with a line that were read apart; here every word of one attends to every
word of the other, which tells "What does the repair cost?" from "How long does the repair take?". It costs
some milliseconds a pair, so `rag.focus` lets it read only the best candidates. Source: Nogueira and Cho,
"Passage Re-ranking with BERT", 2019. The weights are made by `python -m finetune.base_crossencoder` and come
with the project; an installation without them does without.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core.settings import PROJECT, Settings
from rag.citations import Likelihood
from rag.embed import library, processor_knows

FOLDER = PROJECT / "data" / "models" / "crossencoder"
TOKENS = 160  # of question and line; a longer line loses its end
BATCH = 32
REMEMBERED = 20_000  # pairs


class CrossEncoder:
    """Pairs of question and line to probabilities; loads on first use and is safe in threads."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self.folder = folder
        self._model: Any = None
        self._lock = threading.Lock()
        self._known: OrderedDict[tuple[str, str], float] = OrderedDict()

    @property
    def available(self) -> bool:
        """Whether the weights are there."""
        return (self.folder / "model.safetensors").is_file()

    def opinion(self, settings: Settings) -> Likelihood | None:
        """`answers`, where the weights are there and the setting wants them."""
        return self.answers if settings.cross_encoder and self.available else None

    def answers(self, question: str, lines: Sequence[str]) -> list[float]:
        """For each line (see `rag.citations.line_of`) the probability, 0 to 1, that it answers `question`.

        The latest are remembered, since `rag.shown` asks again about the lines of the prompt.
        """
        with self._lock:
            missing = [line for line in dict.fromkeys(lines) if (question, line) not in self._known]
            if missing:
                self._remember(question, missing)
            for line in lines:
                self._known.move_to_end((question, line))
            likely = [self._known[question, line] for line in lines]
            while len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        return likely

    def warm(self) -> None:
        """Load the model now instead of at the first question."""
        with self._lock:
            self._load()

    def _remember(self, question: str, lines: Sequence[str]) -> None:
        scores = self._load().predict(
            [(question, line) for line in lines], batch_size=BATCH, show_progress_bar=False
        )
        self._known |= {(question, line): float(score) for line, score in zip(lines, scores, strict=True)}

    def _load(self) -> Any:
        if self._model is None:
            self._model = library().CrossEncoder(
                str(self.folder),
                device="cpu",
                max_length=TOKENS,
                local_files_only=True,
                # The file's own half precision is slow on a CPU. bfloat16 is nearly twice as fast where the
                # processor multiplies it itself, else far slower.
                model_kwargs={
                    "dtype": "bfloat16" if processor_knows("avx512_bf16", "amx_bf16") else "float32"
                },
            )
        return self._model
