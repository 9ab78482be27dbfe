"""A newer version of an upload on the Documents page: what is said, and the older one replaced on demand."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from app.documents_page import enqueue
from app.resources import USER, Resources
from rag.documents import Document
from tests.app.site import until
from tests.app.test_pages import click, open_page, parts, shown

__all__ = ["parts"]

NAME = "medlars.md"


def added(parts: Resources, text: str) -> tuple[str, Document]:
    """Upload a version; returns what was said, and the document when it is ready."""
    data = f"# Medlars\n\n{text}".encode()
    [(accepted, told)] = enqueue(parts, [(NAME, data)])
    assert accepted

    def ready() -> Document | None:
        known = parts.documents.known(data)
        return known if known is not None and known.status == "ready" else None

    found = until(ready, "the upload is ready")
    assert found is not None
    return told, found


@pytest.fixture
def versions(parts: Resources) -> Iterator[list[tuple[str, Document]]]:
    """Two versions, the older one first."""
    made = [added(parts, text) for text in ("Medlars are hard.", "Medlars are soft.")]
    yield made
    for _, document in made:
        if parts.documents.find(document.id):
            parts.documents.delete(document.id)


def test_the_older_version_is_replaced_when_somebody_says_so(
    parts: Resources, versions: list[tuple[str, Document]]
) -> None:
    (first, older), (second, newer) = versions
    assert first.endswith("added to the queue.")
    assert "stays and answers, too, until you replace it in the list below." in second
    at = open_page("documents")
    assert "has the same name, and both answer" in shown(at)
    assert not any(str(button.key) == f"replace-{older.id}" for button in at.button)
    at.button(key=f"replace-{newer.id}").click().run()
    assert "add its file again" in shown(at)
    assert parts.documents.find(older.id) is not None  # asked first
    click(at, "Replace")
    assert parts.documents.find(older.id) is None
    assert not any(str(button.key) == f"replace-{newer.id}" for button in open_page("documents").button)
    assert parts.documents.text(newer.id, USER).strip().endswith("Medlars are soft.")
