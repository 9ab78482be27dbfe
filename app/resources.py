"""Builds what pages and API share: one database, one set of stores, one retriever, one engine client.

Nothing of a user is kept here. The light parts are made at once; the assistant imports the embedding model
(seconds), so a thread makes it at start (`warm`) and whoever asks earlier waits for it.
"""

from __future__ import annotations

import gc
import logging
import threading
from typing import TYPE_CHECKING, Any

from core.adapters import AdapterRegistry
from core.catalog import BUILTIN, CATALOG, CatalogModel
from core.db import Database
from core.endpoint import record
from core.errors import ModelError
from core.files import read_json
from core.jobs import Jobs
from core.settings import Settings, load_settings
from feedback.review import Review
from feedback.store import FeedbackStore
from rag.access import OPERATOR
from rag.documents import DocumentStore
from rag.listing import Listing
from rag.model import ModelClient, client_of
from rag.page_view import PageViewer
from rag.queue import Queue

if TYPE_CHECKING:
    from rag.answer import Assistant

USER = OPERATOR  # pages have one operator until accounts exist
log = logging.getLogger("understudy.web")


class Resources:
    """Everything a page or an API call works with."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.database = Database(settings.database)
        self.jobs = Jobs(self.database)
        self.documents = DocumentStore(self.database, settings)
        self.listing = Listing(self.database)
        self.pages = PageViewer(self.documents)
        self.queue = Queue(self.database, self.documents, settings)
        self.feedback = FeedbackStore(self.database)
        self.review = Review(self.database)
        self.registry = AdapterRegistry(self.database, settings.data_dir / "adapters")
        self.client: ModelClient = client_of(settings)
        self.model = catalog_model(settings)
        self.warm = False  # whether the embedding model is loaded and the index open
        self._assistant: Assistant | None = None
        self._lock = threading.Lock()

    @property
    def assistant(self) -> Assistant:
        """The question answerer; the first call loads the embedding model and opens the index."""
        with self._lock:
            if self._assistant is None:
                from rag.answer import Assistant
                from rag.embed import Embedder
                from rag.index import Index
                from rag.retrieve import Retriever

                index = Index(self.settings, self.database)
                retriever = Retriever(self.settings, self.database, index, Embedder())
                self._assistant = Assistant(self.settings, retriever, self.client, self.model)
            return self._assistant

    def warm_up(self) -> None:
        """Load the assistant in the background, so that the first question is quick."""

        def load() -> None:
            try:
                self.assistant.warm()
                self.warm = True
                # what is loaded now stays: the collector need not walk it at every pass
                gc.collect()
                gc.freeze()
            except Exception:
                log.exception("Loading the assistant failed; the first question tries again.")

        threading.Thread(target=load, name="warm-up", daemon=True).start()

    def resume(self) -> None:
        """Let the worker go on with the files that an earlier run left waiting."""
        if self.queue.active() or self.documents.pending():
            self.jobs.submit("ingest", once=True)

    def supervisor_state(self) -> dict[str, Any]:
        """What `understudy serve` says about its processes; empty without one."""
        path = self.settings.data_dir / "serve.json"
        return dict(read_json(path)) if path.exists() else {}

    def engine_given_up(self) -> bool:
        """Whether the supervisor has stopped restarting the engine."""
        return bool(self.supervisor_state().get("parts", {}).get("engine", {}).get("gave_up"))


def catalog_model(settings: Settings) -> CatalogModel:
    """The record of the model in the settings; its file is the engine's affair."""
    try:
        return record(settings)[0]
    except ModelError:
        return CATALOG.get(settings.model, BUILTIN)


_made: dict[Settings, Resources] = {}
_making = threading.Lock()


def resources(settings: Settings | None = None) -> Resources:
    """The one Resources of these settings (those of the environment when none are given)."""
    settings = settings or load_settings()
    with _making:
        if settings not in _made:
            _made[settings] = Resources(settings)
        return _made[settings]
