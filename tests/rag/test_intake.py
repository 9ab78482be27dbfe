from __future__ import annotations

import json
from pathlib import Path

import pytest

from core.db import Database
from core.settings import Settings
from rag.documents import DocumentStore
from rag.intake import take, take_file
from rag.quality import warnings
from rag.reader import Reader
from tests.rag.files import archive


@pytest.fixture
def store(database: Database, settings: Settings) -> DocumentStore:
    return DocumentStore(database, settings)


def test_each_file_of_an_archive_becomes_a_document(store: DocumentStore, reader: Reader) -> None:
    data = archive(
        {
            "manual/pump.md": b"# Pump\n\nOil it.",
            "prices.csv": b"Part,Price\nPump,9 EUR\n",
            "photo.jpg": b"\xff\xd8\xff",
            "empty.txt": b"",
            "more.zip": archive({"x.md": b"# X\n\nY."}),
        }
    )
    taken = list(take(store, "all.zip", data, "upload", reader))
    assert [(one.name, one.document is not None) for one in taken] == [
        ("pump.md", True),
        ("prices.csv", True),
        ("photo.jpg", False),
        ("empty.txt", False),
        ("more.zip", False),
    ]
    assert all(one.error for one in taken if one.document is None)
    assert {document.title for document in store.list()} == {"Pump", "Prices"}


def test_an_unsafe_archive_leaves_nothing(store: DocumentStore, reader: Reader) -> None:
    data = archive({"good.md": b"# Good\n\nWords.", "../bad.md": b"# Bad\n\nWords."})
    (taken,) = take(store, "all.zip", data, "upload", reader)
    assert taken.error is not None
    assert "leads out" in taken.error.message
    assert store.list() == []


def test_a_file_that_changes_once_is_read_again(
    store: DocumentStore, reader: Reader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "grows.md"
    path.write_text("# Grows\n\nStill.")
    plain = DocumentStore.check_size
    times = []

    def grow(self: DocumentStore, size: int) -> None:
        times.append(size)
        if len(times) <= limit:
            path.write_text(path.read_text() + " More.")
        plain(self, size)

    monkeypatch.setattr(DocumentStore, "check_size", grow)
    limit = 1
    (taken,) = take_file(store, path, "folder", reader)
    assert taken.document is not None
    times.clear()
    limit = 9
    (taken,) = take_file(store, path, "folder", reader)
    assert taken.error is not None
    assert "changed" in taken.error.message


def test_the_quality_report_is_stored_and_said_in_words(store: DocumentStore, reader: Reader) -> None:
    text = "# A\n\n" + "The pump needs two litres of oil each month and a look at its three belts.  " * 2
    hidden = "# B\n\nKeep\u200b dry\u200b. " + text[4:] + "\n\n" + text[4:]
    document = store.add("b.md", hidden.encode(), "upload", reader)
    assert json.loads(document.quality) == {"hidden": 2, "repeated": 1} or "hidden" in document.quality
    assert "2 hidden characters" in warnings(document.quality)


def test_the_same_text_in_another_file_is_named(store: DocumentStore, reader: Reader) -> None:
    first = store.add("one.txt", b"The pump needs oil.\n\nEvery month.", "upload", reader)
    second = store.add("two.txt", b"The pump needs oil.\n\n\nEvery month.\n", "upload", reader)
    assert (first.same_as, second.same_as) == ("", "one.txt")
    assert warnings(second.quality, second.same_as) == ["the same text as one.txt"]


def test_warnings_count_in_words() -> None:
    report = json.dumps({"pages": 3, "empty_pages": 1, "repaired": 1200, "tables": 4})
    assert warnings(report) == ["1 of 3 pages without text", "1,200 damaged characters"]
    assert warnings("{}") == []
