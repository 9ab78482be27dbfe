"""Fixtures of the rag tests: a data folder of their own, the real embedder, real SQLite and Chroma."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from core.db import Database
from core.files import sha256_of, write_json
from core.settings import Settings, load_settings
from rag import intake
from rag.crawl import Crawled, Limits, Tools, crawl
from rag.documents import DocumentStore
from rag.embed import DIMENSIONS, Embedder, library
from rag.embedders import CARD, WEIGHTS, packaged
from rag.index import Index
from rag.ingest import Ingestor
from rag.reader import Reader
from rag.urls import parse_url
from tests.rag.webs import Web, page, serving

HANDBOOK = b"""# Staff guide

Everyone works here.

## Leaving

The notice period is 30 days. Send the letter to Ms. Adeyemi, e.g. by post. Do not call.

## Prices

| Plan | Price per month | Seats |
|---|---|---|
| Basic | 10 EUR | 5 |
| Large | 24.50 EUR | 20 |

- Lunch is free on Fridays.
- Parking costs 3 EUR.
"""


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Defaults, with state in a temporary folder."""
    return load_settings({}, data_dir=str(tmp_path / "data"))


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    """An empty database."""
    database = Database(settings.database)
    yield database
    database.close()


@pytest.fixture(scope="session")
def embedder() -> Embedder:
    """MiniLM, loaded once."""
    return Embedder()


@pytest.fixture(scope="session")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    """One parser child for all tests that do not kill it."""
    with Reader(load_settings({}, data_dir=str(tmp_path_factory.mktemp("reader")))) as reader:
        yield reader


@pytest.fixture
def index(settings: Settings, database: Database) -> Iterator[Index]:
    """An index on the test's folder."""
    index = Index(settings, database)
    yield index
    index.close()


@pytest.fixture
def ingestor(settings: Settings, database: Database, index: Index, embedder: Embedder) -> Ingestor:
    """An ingestor with everything real."""
    return Ingestor(settings, database, index, embedder)


@pytest.fixture
def web() -> Iterator[Web]:
    """A web server on loopback with an empty table."""
    with serving() as web:
        yield web


Crawl = Callable[..., Crawled]


@pytest.fixture
def run(web: Web, database: Database, settings: Settings, reader: Reader, tmp_path: Path) -> Crawl:
    """Crawls the server, without pauses unless told."""

    def go(path: str = "/docs/", limits: Limits | None = None, **told: Any) -> Crawled:
        limits = limits or Limits(delay=0)
        store = DocumentStore(database, settings)
        return crawl(
            Tools(store, web.fetcher(), reader, tmp_path / "lock", limits, **told),
            parse_url(web.address + path),
        )

    return go


@pytest.fixture
def shop(web: Web) -> Web:
    """A site of four pages below /docs/, and one beside it."""
    web.table = {
        "/docs/": page(
            "Start", "Welcome to the shop.", "apples", "boats.html", "/outside", "http://x.example/"
        ),
        "/docs/apples": page("Apples", "Apples are red.", "deep/cats", "apples#top", "apples?utm_source=x"),
        "/docs/boats.html": page("Boats / Ships", "Boats are blue.", "missing", "photo.jpg"),
        "/docs/deep/cats": page("Cats", "Cats are grey.", "/docs/"),
        "/outside": page("Outside", "Not below the folder."),
    }
    return web


@pytest.fixture
def store(database: Database, settings: Settings) -> DocumentStore:
    return DocumentStore(database, settings)


def titles(store: DocumentStore) -> set[str]:
    return {document.title for document in store.list()}


def counts(result: Crawled) -> tuple[int, int, int, int]:
    changes = result.changes
    return len(changes.added), changes.unchanged, changes.removed, len(changes.refused)


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MiniLM with its second half of layers gone: the same shape of vectors, other vectors."""
    folder = tmp_path_factory.mktemp("embedder")
    model = library().SentenceTransformer(str(packaged().folder), device="cpu")
    layers = model[0].auto_model.encoder.layer
    model[0].auto_model.encoder.layer = layers[: len(layers) // 2]
    model[0].auto_model.config.num_hidden_layers = len(layers) // 2
    model.save(str(folder))
    return folder


@pytest.fixture
def tuned(other: Path, settings: Settings) -> str:
    folder = settings.data_dir / "embedders" / "tuned"
    shutil.copytree(other, folder)
    card = {
        "id": "tuned",
        "sha256": sha256_of(folder / WEIGHTS),
        "dimensions": DIMENSIONS,
        "created_at": 1,
    }
    write_json(folder / CARD, card)
    return "tuned"


def act_once_read(patch: pytest.MonkeyPatch, act: Callable[[], None]) -> None:
    """Have the queue `act` when a file was read and is not stored as read yet."""
    take = intake.take

    def acting(*rest: object) -> object:
        found = list(take(*rest))  # type: ignore[arg-type]
        act()
        return found

    patch.setattr("rag.drain.take", acting)
