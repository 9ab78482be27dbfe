"""Five hundred damaged model files: whatever they do to the process that loads them, this one lives."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

from core.errors import ModelError
from core.gguf import check_gguf
from core.settings import PROJECT
from tests.engine.mutants import mutants
from tests.tiny import TinyModel

MUTANTS = 500
# as the engine loads a model, one path a line; a line back for each
LOADER = """
import sys
from pathlib import Path
from core.catalog import local_model
from core.errors import UnderstudyError
from core.settings import Settings
from engine.runtime import LlamaBackend
for line in sys.stdin:
    path = Path(line.strip())
    backend = None
    try:
        backend = LlamaBackend(Settings(threads=1, context=256, slots=2), local_model(path), path)
        backend.load()
        print("loaded", flush=True)
    except UnderstudyError:
        print("refused", flush=True)
    finally:
        if backend is not None:
            backend.close()
"""


class Loader:
    """A child process that loads models; started again when one kills it."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None

    def load(self, path: Path) -> str:
        if self.process is None or self.process.poll() is not None:
            self.process = subprocess.Popen(
                [sys.executable, "-c", LOADER], cwd=PROJECT, text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            )  # fmt: skip
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{path}\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline().strip()
        if answer in ("loaded", "refused"):
            return answer
        # nothing, or what a debugger says that llama.cpp calls when it aborts
        self.process.kill()
        self.process.communicate()
        return "died"

    def close(self) -> None:
        if self.process is not None:
            self.process.communicate()


def test_no_damaged_model_reaches_us(tiny_model: TinyModel, tmp_path: Path) -> None:
    outcomes: Counter[str] = Counter()
    loader = Loader()
    path = tmp_path / "mutant.gguf"
    for _, data in mutants(tiny_model.gguf.read_bytes(), MUTANTS):
        path.write_bytes(data)
        try:
            check_gguf(path)
        except ModelError:
            outcomes["refused by its header"] += 1
        else:
            outcomes[loader.load(path)] += 1
    loader.close()
    assert outcomes.total() == MUTANTS
    assert outcomes["refused by its header"] > MUTANTS / 2
    # what the check lets through is harmless to llama.cpp as well
    assert outcomes["died"] == 0, outcomes
