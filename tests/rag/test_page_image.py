"""Pages drawn in the reader's child: marked where the words stand, bounded whatever the file claims."""

from __future__ import annotations

import io
import resource

import pytest
from PIL import Image

from core.errors import DocumentError, NotFoundError
from core.settings import PROJECT, Settings
from rag import page_view
from rag import reader as module
from rag.access import Access
from rag.chunks import chunk, units
from rag.documents import DocumentStore
from rag.loaders import extract
from rag.page_image import LONGEST_SIDE, MOST_PIXELS, Place, draw
from rag.page_view import NO_ORIGINAL, NOT_FOUND, PageViewer
from rag.reader import Reader
from tests.rag.files import bomb_pdf, pdf, sized_pdf

SAMPLES = PROJECT / "data" / "samples" / "documents"


def yellow(png: bytes) -> list[tuple[int, int]]:
    """Where the picture is marked."""
    image = Image.open(io.BytesIO(png)).convert("RGB")
    data = image.tobytes()
    return [
        (at % image.width, at // image.width)
        for at in range(image.width * image.height)
        if data[3 * at] > 240 and data[3 * at + 2] < 150
    ]


def test_the_words_are_marked_where_they_stand(reader: Reader) -> None:
    png, marks = reader.draw(
        pdf([["First line.", "The answer is 42.", "Last line."]]), Place(1, "The answer is 42.")
    )
    assert marks == 1
    places = yellow(png)
    assert places
    tall = Image.open(io.BytesIO(png)).height
    assert max(y for _, y in places) - min(y for _, y in places) < tall / 30


def test_every_unit_of_the_sample_pdfs_is_found() -> None:
    for path in sorted(SAMPLES.glob("*.pdf")):
        data = path.read_bytes()
        read = extract(path.name, data)
        for piece in chunk(read, 120)[::3]:
            start, end = units(piece.text)[0]
            start, end = piece.start + start, piece.start + end
            assert piece.page is not None
            place = Place(piece.page, read.text[start:end], read.text[:start][-80:], read.text[end:][:80])
            assert draw(data, place)[1] > 0, (path.name, read.text[start:end])


def test_words_that_are_not_there_mark_nothing(reader: Reader) -> None:
    png, marks = reader.draw(pdf([["First line."]]), Place(1, "Something quite different."))
    assert marks == 0
    assert yellow(png) == []


@pytest.mark.parametrize("size", ["0 0 14400 14400", "0 0 14400 3", "0 0 3 14400", "0 0 1e9 1e9"])
def test_huge_pages_become_small_pictures(reader: Reader, size: str) -> None:
    png, _ = reader.draw(sized_pdf(size), Place(1, "x"))
    image = Image.open(io.BytesIO(png))
    assert image.width * image.height <= 1.1 * MOST_PIXELS
    assert max(image.size) <= LONGEST_SIDE + 1


@pytest.mark.parametrize("page", [0, 2, -1])
def test_a_page_that_is_not_there_is_refused(reader: Reader, page: int) -> None:
    with pytest.raises(DocumentError, match="has no page"):
        reader.draw(pdf([["One."]]), Place(page, "One."))


def test_what_is_no_pdf_is_refused(reader: Reader) -> None:
    with pytest.raises(DocumentError, match="cannot be drawn"):
        reader.draw(b"%PDF-1.4 nonsense", Place(1, "x"))


def test_a_bomb_kills_only_the_child(reader: Reader) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DocumentError):
        reader.draw(bomb_pdf(), Place(1, "x"))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB
    assert reader.draw(pdf([["One."]]), Place(1, "One."))[1] == 1


@pytest.fixture
def store(settings: Settings, database: object) -> DocumentStore:
    return DocumentStore(database, settings)  # type: ignore[arg-type]


def test_a_view_is_drawn_once_and_says_what_is_wrong(
    store: DocumentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = store.add("a.pdf", pdf([["The answer is 42.", "More."]]), "upload")
    viewer = PageViewer(store)
    start = store.text(document.id).index("The answer")
    first = viewer.view(document.id, 1, start, start + 17)
    assert first is not None
    assert first.png.startswith(b"\x89PNG")
    assert first.note == ""
    monkeypatch.setattr(page_view, "Reader", None)  # nothing is drawn again
    assert viewer.view(document.id, 1, start, start + 17) is first
    monkeypatch.undo()

    lost = viewer.view(document.id, 1, 0, 0)
    assert lost is not None
    assert lost.png
    assert lost.note == NOT_FOUND
    bad = viewer.view(document.id, 7, 0, 3)
    assert bad is not None
    assert bad.png == b""
    assert "has no page 7" in bad.note


def test_a_kept_picture_is_shown_to_those_alone_who_may_read(store: DocumentStore) -> None:
    mine = store.add("a.pdf", pdf([["The answer is 42."]]), "upload", access=Access("api:anna", "owner"))
    viewer = PageViewer(store)
    view = viewer.view(mine.id, 1, 0, 3, "api:anna")
    assert view is not None
    assert view.png
    for other in ("", "api:ben"):
        with pytest.raises(NotFoundError):
            viewer.view(mine.id, 1, 0, 3, other)


def test_text_formats_and_lost_originals_have_no_picture(store: DocumentStore) -> None:
    text = store.add("a.md", b"# A\n\nWords.", "upload")
    document = store.add("a.pdf", pdf([["The answer is 42."]]), "upload")
    viewer = PageViewer(store)
    assert viewer.view(text.id, None, 0, 3) is None
    assert viewer.view(text.id, 1, 0, 3) is None
    (store.folder / document.id).unlink()
    assert viewer.view(document.id, 1, 0, 3) == NO_ORIGINAL


def test_a_page_that_takes_too_long_is_given_up_and_not_tried_again(
    store: DocumentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "DRAW_SECONDS", 0.0)
    document = store.add("a.pdf", pdf([["The answer is 42."]]), "upload")
    viewer = PageViewer(store)
    view = viewer.view(document.id, 1, 0, 3)
    assert view is not None
    assert "too much memory or time" in view.note
    monkeypatch.undo()
    assert viewer.view(document.id, 1, 0, 3) is view


def test_the_fewest_recently_seen_are_forgotten(
    store: DocumentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_view, "KEPT", 1)
    document = store.add("a.pdf", pdf([["The answer is 42."]]), "upload")
    viewer = PageViewer(store)
    first = viewer.view(document.id, 1, 0, 3)
    viewer.view(document.id, 1, 0, 4)
    assert viewer.view(document.id, 1, 0, 3) is not first
