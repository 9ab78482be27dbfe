"""Which adapters are in the engine: the one on stage, and those that requests name.

The registry says who should be on stage; this follows it about once a second. A candidate is switched to only
after its hash, header, fit and canary prompts passed; until then, and when it fails, the old one keeps
answering. A failure is reported and tried again only after a pause, or when the registry changes.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from core.adapters import Adapter, AdapterRegistry
from core.db import Database, audit
from core.errors import ConflictError, ModelError, NotFoundError, UnderstudyError
from core.settings import Settings
from engine.backend import Backend, Prompt
from engine.loading import Loader
from engine.requests import BadRequest, Request
from engine.scheduler import Scheduler

POLL_SECONDS = 1.0
RETRY_SECONDS = 60.0
MAX_SCALE = 2.0


class Stage:
    """Which adapter answers to `live`, and which others are loaded; `base_file` as for `Loader`."""

    def __init__(self, settings: Settings, base: str, base_file: Path | None, backend: Backend) -> None:
        self.base = base
        self.live: str | None = None
        self.seq = 0
        self.swaps = 0
        self.error = ""
        self.scheduler = Scheduler(backend, self.adapter_of)
        self._settings = settings
        self._backend = backend
        self._loader = Loader(settings, base_file, backend, self.scheduler)
        self._registry: AdapterRegistry | None = None
        self._aside: OrderedDict[str, None] = OrderedDict()  # the one named last is last
        self._kept: Counter[str] = Counter()  # how many hold on to a name, see `keep`
        self._scales: dict[str, float] = {}
        self._failed_seq: int | None = None
        self._retry_at = 0.0
        self._lock = threading.Lock()  # of whoever loads and frees, for seconds
        self._opening = threading.Lock()
        self._names = threading.Lock()  # over what is loaded and kept, never for longer than a look
        self._closing = threading.Event()
        self._settled = threading.Event()

    @property
    def loaded(self) -> list[str]:
        """Ids of the adapters in memory, the one on stage first."""
        return [str(adapter["id"]) for adapter in self.adapters()]

    @property
    def loads(self) -> int:
        """How many adapters were loaded since the start."""
        return self._loader.loads

    def facts(self) -> dict[str, Any]:
        """What the backend says about the model."""
        return self._backend.facts()

    def adapters(self) -> list[dict[str, Any]]:
        """The loaded adapters with their scale, the one on stage first, as of one moment."""
        with self._names:
            return [
                {"id": name, "on_stage": name == self.live, "scale": self._scales.get(name, 1.0)}
                for name in (self.live, *self._aside)
                if name is not None
            ]

    def prepare(self, request: Request) -> Prompt:
        """A request's prompt, encoded and checked (raises BadRequest)."""
        return self._backend.prepare(request)

    def fingerprint(self, adapter_id: str | None) -> str:
        """`<base>@<adapter or base>`, as every reply carries it."""
        return f"{self.base}@{adapter_id or 'base'}"

    def adapter_of(self, name: str) -> str | None:
        """The adapter a model name stands for now (raises ModelError when it is not loaded)."""
        if name in ("live", "base", self.base):
            return None if name == "base" else self.live
        if name not in self.loaded:  # who asks by way of `keep` and `ensure` never sees this
            raise ModelError(f"Adapter {name} is not loaded any more.", "Ask again.")
        return name

    @property
    def state(self) -> str:
        """`ready` once the model is loaded and whoever is on stage was brought on; else loading or failed."""
        return self.scheduler.state if self._settled.is_set() else "loading"

    def watch(self) -> None:
        """Follow the registry until closed; runs on a thread of its own."""
        while self.scheduler.state == "loading" and not self._closing.wait(0.02):
            pass
        while self.scheduler.state == "ready":
            self.sync()
            # only now: a reply to `live` before this would have come from the bare base
            self._settled.set()
            if self._closing.wait(POLL_SECONDS):
                return
        self._settled.set()

    def close(self) -> None:
        """Stop watching and stop the owner thread; an adapter on trial is not to blame."""
        self._closing.set()
        self._loader.trials.abandon()
        self.scheduler.stop()

    def sync(self, *, force: bool = False) -> None:
        """Make `live` what the registry says. Never raises: `error` says what went wrong.

        `force` tries again at once what failed before.
        """
        with self._lock:
            seq = self._failed_seq
            try:
                registry = self._open()
                promotion = registry.on_stage(self.base) if registry else None
                seq, wanted = (promotion.seq, promotion.adapter_id) if promotion else (0, None)
                waiting = seq == self._failed_seq and time.monotonic() < self._retry_at
                if seq == self.seq and wanted == self.live:
                    self._failed_seq, self.error = None, ""
                    self._evict()  # those that were in use when their room was needed
                elif force or not waiting:
                    self._switch(wanted, seq)
            except Exception as error:  # the old adapter goes on answering, whatever is wrong with the new
                self._failed(seq, error)

    @contextmanager
    def keep(self, name: str) -> Iterator[None]:
        """Free no adapter of this name within the block: from before `ensure` until a request is in the line.

        From then on the request itself keeps it. The name may stand for anything, loaded or not; as it is
        the last that was named, others go before it.
        """
        with self._names:
            self._kept[name] += 1
            if name in self._aside:
                self._aside.move_to_end(name)
        try:
            yield
        finally:
            with self._names:
                self._kept[name] -= 1
                if not self._kept[name]:
                    del self._kept[name]

    def ensure(self, name: str) -> None:
        """Load the adapter that a request names, unless it is there; only `keep` makes it stay.

        Raises NotFoundError when the registry has no such adapter for this base, ModelError when it is unfit.
        """
        with self.keep(name):
            if self.answers_to(name):
                return
            adapter = self.find(name)
            with self._lock:
                if self.answers_to(name):  # another request had it loaded meanwhile
                    return
                self._load(adapter)
                with self._names:
                    self._aside[name] = None
                self._evict()

    def answers_to(self, name: str) -> bool:
        """Whether a request that names this could begin now; waits for nothing."""
        return name in ("live", "base", self.base) or name in self.loaded

    def candidates(self) -> list[Adapter]:
        """Every adapter of the registry that may be for this base, newest first; a request may name any."""
        registry = self._open()
        found = registry.all(self.base) if registry is not None else []
        return [adapter for adapter in found if self._loader.fits(adapter)]

    def find(self, name: str) -> Adapter:
        """The adapter of the registry, whatever is being loaded meanwhile.

        Raises NotFoundError when there is none of this name for this base.
        """
        registry = self._open()
        if registry is None:
            raise NotFoundError(f"No adapter is called {name}.", "Use live, base or an adapter's id.")
        adapter = registry.get(name)
        if adapter.base != self.base:
            raise NotFoundError(f"Adapter {name} belongs to {adapter.base}, not to {self.base}.")
        return adapter

    def scale(self, name: str, scale: float) -> None:
        """How strongly an adapter acts on requests from now on: 1 as trained, 0 not at all.

        Raises BadRequest outside 0 to MAX_SCALE, otherwise what `ensure` raises.
        """
        if not 0 <= scale <= MAX_SCALE:
            raise BadRequest(f"scale must lie from 0 to {MAX_SCALE:g}.", "scale")
        if name in ("live", "base", self.base):
            raise NotFoundError(f"{name} is no adapter's id.", "See GET /adapters.")

        def act() -> None:
            self._backend.scale_adapter(name, scale)
            with self._names:
                self._scales[name] = scale

        with self.keep(name):  # else its next load would begin with a scale that nobody gave it
            self.ensure(name)
            self.scheduler.call(act).result()

    def unload(self, name: str) -> None:
        """Free an adapter that is neither on stage nor in use; replies in work finish on theirs.

        Raises NotFoundError when it is not loaded, ConflictError when it is on stage or a request needs it.
        """
        with self._lock:
            if name not in self.loaded:
                raise NotFoundError(f"No adapter {name} is loaded.", "See GET /adapters.")
            if not self._free_idle(name):
                raise ConflictError(f"Adapter {name} is in use.", "Roll back first, or wait.")

    def _switch(self, wanted: str | None, seq: int) -> None:
        if wanted is not None and wanted not in self.loaded:
            self._load(self.find(wanted))
        with self._names:
            old, self.live, self.seq = self.live, wanted, seq
            self._aside.pop(wanted or "", None)
            if old is not None and old != wanted:
                self._aside[old] = None
        self.swaps += old != wanted
        self._failed_seq, self.error = None, ""
        self._note("adapter.live", f"{wanted or 'base'} (promotion {seq})")
        self._evict()

    def _load(self, adapter: Adapter) -> None:
        assert self._registry is not None
        self._loader.load(self._registry, adapter)

    def _evict(self) -> None:
        """Free adapters that no request names, the longest unnamed first, down to `adapters_aside`."""
        with self._names:
            idle = [name for name in self._aside if not self._named(name)]
            spare = max(0, len(self._aside) - self._settings.adapters_aside)
        for name in idle[:spare]:
            self._free_idle(name)

    def _named(self, name: str) -> bool:
        """Whether an adapter is on stage or any request names it; call it with the names locked."""
        return name == self.live or name in self._kept or name in self.scheduler.models_in_use()

    def _free_idle(self, name: str) -> bool:
        """Free an adapter unless it is on stage or a request names it; whether it was freed.

        The owner thread decides, between two turns: only then no request is on its way from line to work.
        """

        def free() -> bool:
            with self._names:
                if self._named(name):
                    return False
                self._aside.pop(name, None)
                self._scales.pop(name, None)
            self._backend.free_adapter(name)
            return True

        return bool(self.scheduler.call(free).result())

    def _open(self) -> AdapterRegistry | None:
        with self._opening:
            if self._registry is None and self._settings.database.exists():
                database = Database(self._settings.database)
                self._registry = AdapterRegistry(database, self._settings.data_dir / "adapters")
            return self._registry

    def _failed(self, seq: int | None, error: Exception) -> None:
        message = str(error)
        self._failed_seq, self._retry_at = seq, time.monotonic() + RETRY_SECONDS
        if message != self.error:
            self.error = message
            self._note("adapter.failed", message)

    def _note(self, action: str, detail: str) -> None:
        print(f"engine: {action}: {detail}", flush=True)
        if self._registry is not None:
            with suppress(UnderstudyError), self._registry.database.write() as connection:
                audit(connection, "engine", action, detail)
