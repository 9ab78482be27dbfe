"""A small installation with every kind of state, and how two of them are compared."""

from __future__ import annotations

import json
import os
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.manifest import FOLDERS
from core.adapters import CARD, GGUF, Adapter, AdapterRegistry
from core.db import Database
from core.files import sha256_of, write_json, write_text
from core.settings import Settings, load_settings
from feedback.store import FeedbackStore
from finetune.embedder import VERDICT
from rag.access import Access
from rag.index import Index
from rag.ingest import Ingestor
from rag.reader import Reader
from tests.feedback.made import House
from tests.rag.test_kill import HashedVectors


def quiet(_what: str, _done: float) -> None:
    """Nobody listens."""


@dataclass
class Installation:
    """A data folder in use."""

    settings: Settings
    ingestor: Ingestor

    @property
    def data(self) -> Path:
        return self.settings.data_dir

    @property
    def database(self) -> Database:
        return self.ingestor.passages.database

    def close(self) -> None:
        self.ingestor.index.close()
        self.database.close()


def installed(folder: Path) -> Installation:
    """Open, or make, an installation whose vectors are hashes."""
    settings = load_settings({}, data_dir=str(folder))
    database = Database(settings.database)
    index = Index(settings, database)
    return Installation(settings, Ingestor(settings, database, index, HashedVectors()))


def fill(house: Installation, reader: Reader | None = None) -> None:
    """Documents of two people, waiting files, votes, an adapter, a dataset, embedders and records."""
    documents, data = house.ingestor.documents, house.data
    with Reader(house.settings) if reader is None else reader as reading:
        for number in range(4):
            text = f"# Document {number}\n\nIt holds the word w{number}.\n"
            documents.add(f"{number}.md", text.encode(), "upload", reading)
        documents.add(
            "hers.md", b"# Hers\n\nFor Anna alone.\n", "upload", reading, Access("api:anna", "owner")
        )
    house.ingestor.process_pending()
    house.ingestor.queue.put("waiting.md", b"# Waiting\n\nNot read yet.\n")
    cancelled = house.ingestor.queue.put("cancelled.md", b"# Cancelled\n\nNot wanted.\n")
    house.ingestor.queue.cancel(cancelled.id)
    votes = House(data)
    votes.store.vote(votes.ask("How long is the notice period?"), "ann", 1)
    votes.corrected("And where does the letter go?", "Send the letter to HR.")
    votes.database.close()
    add_adapter(house, "first")
    version = "0123456789abcdef"
    write_text(data / "datasets" / version / "sft.jsonl", "{}\n")
    write_json(data / "datasets" / version / CARD, {"version": version})
    FeedbackStore(house.database).save_dataset(version, {"version": version})
    for name in (CARD, VERDICT, "1_Pooling/config.json"):
        write_json(data / "embedders" / "refused" / name, {"created_at": 1, "id": "refused"})
    write_json(data / "embedders" / "at-work" / "plan.json", {})  # training: not worth keeping
    write_json(data / "embedders" / "refused" / "work" / "plan.json", {})
    write_text(data / "runs" / "r1" / "report.md", "It was better.\n")
    write_text(data / "runs" / "r1" / "1-sft" / "checkpoint-1" / "optimizer.pt", "large")
    write_json(data / "bench" / "1.json", {"at": 1})
    write_json(data / "bench" / "half.json.partial", {})
    write_text(data / "eval" / "golden.jsonl", "{}\n")
    write_text(data / "engine.key", "secret")
    write_text(data / "models" / "pulled" / "model.gguf", "weights")


def add_adapter(house: Installation, name: str) -> None:
    """An adapter whose files are words: nobody loads it."""
    registry = AdapterRegistry(house.database, house.data / "adapters")
    folder = registry.folder / name
    for file in (GGUF, "adapter_model.safetensors", "taught.npy"):
        write_text(folder / file, f"{name} {file}")
    digest = sha256_of(folder / GGUF)
    write_json(folder / CARD, {"sha256": digest})
    registry.register(Adapter(name, "tiny", "0", digest, None, None, None, "sft", "passed", {}, 1))
    registry.promote(name, "test", "it is there")


def rows(database: Path) -> dict[str, list[str]]:
    """Everything in a database, but for what a restore itself writes: its audit and notes on the index."""
    with closing(sqlite3.connect(database)) as connection:
        tables = [
            row[0]
            for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")
        ]
        found = {
            table: [repr(row) for row in connection.execute(f"SELECT * FROM {table}")] for table in tables
        }
    found["meta"] = sorted(row for row in found["meta"] if not row.startswith("('index_"))
    found["audit"] = [row for row in found["audit"] if "'restore'" not in row]
    found.pop("sqlite_sequence")
    return found


def files(folder: Path, tops: tuple[str, ...] = FOLDERS) -> dict[str, str]:
    """The hash of every file in the folders that a backup may hold."""
    return {
        (Path(parent) / name).relative_to(folder).as_posix(): sha256_of(Path(parent) / name)
        for top in tops
        for parent, _, names in os.walk(folder / top)
        for name in names
    }


def wrong(data: Path) -> list[str]:
    """What is missing or damaged in a data folder, seen from its database (for installations of `fill`)."""
    with closing(sqlite3.connect(data / "understudy.db")) as connection:

        def column(query: str) -> list[Any]:
            return [row[0] for row in connection.execute(query)]

        found = [word for word in column("PRAGMA integrity_check") if word != "ok"]
        names = [f"documents/{one}" for one in column("SELECT id FROM documents")]
        names += [f"queue/{one}" for one in column("SELECT id FROM intake WHERE status != 'ready'")]
        adapters = connection.execute("SELECT id, sha256 FROM adapters").fetchall()
        sizes = dict(connection.execute("SELECT 'documents/' || id, bytes FROM documents"))
        sizes |= dict(connection.execute("SELECT 'queue/' || id, bytes FROM intake WHERE status != 'ready'"))
    for name in names:
        if not (data / name).is_file() or (data / name).stat().st_size != sizes[name]:
            found.append(name)
    for adapter, digest in adapters:
        path = data / "adapters" / adapter / GGUF
        if not path.is_file() or sha256_of(path) != digest:
            found.append(str(path))
        elif json.loads((path.parent / CARD).read_text())["sha256"] != digest:
            found.append(f"card of {adapter}")
    return found
