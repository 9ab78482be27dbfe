"""Bringing an adapter's file into the engine: check it, load it, and let it try itself, or free it again."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from core.adapters import Adapter, AdapterRegistry
from core.errors import ModelError
from core.files import sha256_of
from core.settings import Settings
from engine.backend import Backend, Failed, Finished
from engine.canary import canaries, require_words
from engine.requests import Request
from engine.scheduler import Event, Scheduler, Ticket
from engine.trials import Trials

TRIAL_SECONDS = 120.0


class Loader:
    """Loads adapters, one at a time.

    `base_file` None (the scripted engine, or another server whose model has no file here) believes the
    registry without looking at files.
    """

    def __init__(
        self, settings: Settings, base_file: Path | None, backend: Backend, scheduler: Scheduler
    ) -> None:
        self.loads = 0
        self.trials = Trials(settings.data_dir)
        self._base_file = base_file
        self._base_sha256 = ""
        self._backend = backend
        self._scheduler = scheduler

    def fits(self, adapter: Adapter) -> bool:
        """Whether an adapter may be for this base's file, whose hash is not known before the first load."""
        return self._base_sha256 in ("", adapter.base_sha256)

    def load(self, registry: AdapterRegistry, adapter: Adapter) -> None:
        """Load an adapter that is not loaded.

        Raises ModelError, and keeps nothing, when its bytes are not those registered, do not fit, crashed the
        engine before, or do not pass the self-test.
        """
        with self._checked(registry, adapter) as path, self.trials.trial(adapter):
            self._backend.check_adapter(adapter.id, path)
            self._scheduler.call(lambda: self._backend.load_adapter(adapter.id, path)).result()
            if self._base_file is not None:
                self._self_test(adapter.id)
        self.loads += 1

    @contextmanager
    def _checked(self, registry: AdapterRegistry, adapter: Adapter) -> Iterator[Path]:
        """The very bytes whose hash was checked, for as long as they are being loaded (raises ModelError)."""
        if self._base_file is None:
            yield Path()
            return
        # seconds for a large file, so only when the first adapter comes
        self._base_sha256 = self._base_sha256 or sha256_of(self._base_file)
        if not self.fits(adapter):
            raise ModelError(
                f"Adapter {adapter.id} was made for another file of {adapter.base}.",
                "Train it again on this one.",
            )
        with registry.verified(adapter) as path:
            try:
                yield path
            except ModelError as error:  # a message about the copy is about the file
                message = error.message.replace(str(path), str(registry.path(adapter.id)))
                raise ModelError(message, error.next_step) from error

    def _self_test(self, adapter_id: str) -> None:
        """Let a loaded adapter answer the canary prompts beside the replies in work.

        Raises ModelError, and frees the adapter, when its numbers are not finite or it says nothing at all.
        """
        try:
            # one after the other: three prompts at once are read in pieces three times as long (see `pace`),
            # and other replies wait for each; on a CPU, decoding three rows takes as long as three times one
            require_words(sum(self._tokens(request, adapter_id) for request in canaries()))
        except BaseException:
            self._scheduler.call(lambda: self._backend.free_adapter(adapter_id)).result()
            raise

    def _tokens(self, request: Request, adapter_id: str) -> int:
        """Tokens that an adapter answers a canary prompt with."""
        events: queue.Queue[Event] = queue.Queue()
        ticket = Ticket(request, self._backend.prepare(request), events.put, trial=adapter_id)
        self._scheduler.submit(ticket)
        try:
            while not isinstance(event := events.get(timeout=TRIAL_SECONDS), Finished):
                if isinstance(event, Failed):
                    raise event.error
        except queue.Empty:
            self._scheduler.cancel(ticket)
            message = f"Adapter {adapter_id} did not answer its self-test in time."
            raise ModelError(message, "Try again when it is quiet.") from None
        return event.completion_tokens
