"""How a run tells how far it is, and hears that it should stop: at a terminal, or through its job's row."""

from __future__ import annotations

import threading
import time

from core.errors import Cancelled, ConflictError, StorageError
from core.jobs import Job, Jobs


class Terminal:
    """Prints a line when the stage changes, and every `every` seconds within one."""

    def __init__(self, every: float = 5.0) -> None:
        self.every = every
        self._stage = self._said = ""
        self._printed = 0.0

    def __call__(self, progress: float, sentence: str) -> None:
        """Say that the run is at `progress` (0 to 1)."""
        stage, now = sentence.split(",")[0], time.monotonic()
        if sentence != self._said and (stage != self._stage or now - self._printed > self.every):
            print(f"{progress:4.0%}  {sentence}", flush=True)
            self._stage, self._said, self._printed = stage, sentence, now


class Heartbeat:
    """Keeps a job's lease and message fresh from a thread, whatever the run is busy with.

    Calling it raises Cancelled when somebody cancelled the job, ConflictError when another worker has it now.
    """

    def __init__(self, jobs: Jobs, job: Job, every: float = 2.0) -> None:
        self.jobs, self.job, self.every = jobs, job, every
        self.cancelled = self.lost = False
        self._said: tuple[float, str] = (job.progress, job.message)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def __call__(self, progress: float, sentence: str) -> None:
        """Say that the run is at `progress` (0 to 1)."""
        self._said = (progress, sentence)
        if self.lost:
            raise ConflictError(f"Job {self.job.id} was taken over by another worker.")
        if self.cancelled:
            raise Cancelled("The run was cancelled. Finished stages are kept.")

    def close(self) -> None:
        """Stop beating; call before the job is finished."""
        self._end.set()
        self._thread.join()

    def _beat(self) -> None:
        while not self._end.wait(self.every):
            try:
                self.cancelled = self.jobs.heartbeat(self.job, *self._said)
            except ConflictError:
                self.lost = True
                return
            except StorageError:
                continue  # a full disk: the lease may still outlast it
