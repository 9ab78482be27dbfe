"""The files of the folder benchmark are the same every time, and no two hold the same text."""

from __future__ import annotations

from benchmarks.folder import made
from rag.loaders import extract


def test_the_files_are_made_by_rule() -> None:
    files = list(made(6))
    assert files == list(made(6))
    assert [name for name, _ in files[:2]] == ["00000.md", "00001.html"]
    documents = [extract(name, text.encode()) for name, text in files]
    assert len({document.text for document in documents}) == 6
    assert all(len(document.sections) == 3 and document.title.startswith("Paper ") for document in documents)
