"""Which adapters were on trial when an engine died, so that none makes it die for ever.

A trial is counted before native code sees the adapter and uncounted when it ends, well or badly; so what
stays counted are the trials that nobody ended, which are crashes. Counts belong to bytes, not to names.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from core.adapters import Adapter
from core.errors import EngineUnavailable, ModelError, StorageError, UnderstudyError
from core.files import owner_lock, read_json, write_json

NOTE = "engine-trial.json"
MAX_CRASHES = 2
MAX_NOTED = 100  # hashes; those tried longest ago are forgotten first


class Trials:
    """The note of a data folder, which engines may share: a temporary one evaluates candidates.

    A trial that runs in another engine counts like a crash until it ends.
    """

    def __init__(self, folder: Path) -> None:
        self._note = folder / NOTE
        self._running: set[str] = set()  # hashes on trial in this process
        self._stopping = False

    @contextmanager
    def trial(self, adapter: Adapter) -> Iterator[None]:
        """Count the block as a crash unless it ends; one that ends without an error clears its adapter.

        Raises ModelError when the adapter crashed an engine MAX_CRASHES times since it was last cleared,
        StorageError when the trial cannot be noted, EngineUnavailable after `abandon`.
        """
        self._begin(adapter)
        cleared = False
        try:
            yield
            cleared = True
        finally:
            with suppress(UnderstudyError, OSError):  # what becomes of the adapter does not hang on the note
                self._end(adapter.sha256, cleared=cleared)

    def abandon(self) -> None:
        """Uncount what is on trial here and begin no more: the engine stops and may not see its end."""
        self._stopping = True
        with suppress(UnderstudyError, OSError), self._counts() as counts:
            for digest in self._running:
                _uncount(counts, digest)
            self._running.clear()

    def _begin(self, adapter: Adapter) -> None:
        try:
            with self._counts() as counts:
                if self._stopping:
                    raise EngineUnavailable("The engine is stopping.", "Ask again in some seconds.")
                count = counts.get(adapter.sha256, 0)
                if count >= MAX_CRASHES:
                    raise ModelError(
                        f"Adapter {adapter.id} crashed the engine {count} times.",
                        f"Roll back or train it again; without {self._note} it would be tried once more.",
                    )
                counts.pop(adapter.sha256, None)
                counts[adapter.sha256] = count + 1  # the latest is last
                self._running.add(adapter.sha256)
        except OSError as error:
            message = f"Could not note the trial of adapter {adapter.id}: {error.strerror or error}."
            raise StorageError(message, "Free some space, then try again.") from error

    def _end(self, digest: str, *, cleared: bool) -> None:
        with self._counts() as counts:
            if cleared:
                counts.pop(digest, None)
            elif digest in self._running:
                _uncount(counts, digest)
            self._running.discard(digest)

    @contextmanager
    def _counts(self) -> Iterator[dict[str, int]]:
        """The noted counts by hash, to be changed within the block by nobody else; kept unless it raises."""
        with owner_lock(self._note.with_suffix(".lock"), "The note of trials", wait=True):
            noted: dict[str, int] = {}
            with suppress(UnderstudyError, TypeError, ValueError):  # none, or one that somebody damaged
                noted = {str(digest): int(count) for digest, count in dict(read_json(self._note)).items()}
            counts = dict(noted)
            yield counts
            if not counts:
                self._note.unlink(missing_ok=True)
            elif counts != noted:
                write_json(self._note, list(counts.items())[-MAX_NOTED:])  # pairs, since it sorts keys


def _uncount(counts: dict[str, int], digest: str) -> None:
    counts[digest] = counts.get(digest, 0) - 1
    if counts[digest] <= 0:
        del counts[digest]
