"""A citation whose document was replaced since: the newer version, and the cited words there, if they are."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from core.errors import NotFoundError
from core.types import Citation
from rag.chunk_edits import Chunks, ChunkStore
from rag.documents import DocumentStore
from rag.versions import later


@dataclass(frozen=True)
class Newer:
    """The text of a newer version; `citation` is the cited words in it, or None where they are not there."""

    text: str
    citation: Citation | None


def newer(store: DocumentStore, citation: Citation, viewer: str) -> Newer | None:
    """The version that has taken the place of a cited document that is gone; None where there is none.

    Nor is there one that the viewer may not read. Words that stand there more than once are those nearest to
    where they stood. A passage edited by hand is found where its edit was passed on.
    """
    document_id = later(store.database, citation.document_id)
    if document_id is None:
        return None
    try:
        text = store.text(document_id, viewer)
    except NotFoundError:
        return None
    chunks = ChunkStore(store.database).all(document_id, viewer)
    found = _edited(chunks, citation) if citation.edited else _stands(text, citation)
    if found is None:
        return Newer(text, None)
    start, end = found
    around = [one for one in chunks if one.start <= start < one.end]
    heading, page = (around[0].heading, around[0].page) if around else ("", None)
    place = replace(citation, document_id=document_id, heading=heading, page=page, start=start, end=end)
    return Newer(text, place)


def _stands(text: str, citation: Citation) -> tuple[int, int] | None:
    """Where the cited words stand as whole words, whatever the white space between them."""
    words = r"\s+".join(map(re.escape, citation.quote.split()))
    spans = [match.span() for match in re.finditer(rf"(?<!\w){words}(?!\w)", text)] if words else []
    return min(spans, key=lambda span: abs(span[0] - citation.start), default=None)


def _edited(chunks: Chunks, citation: Citation) -> tuple[int, int] | None:
    """Where a passage is whose text was edited to hold the cited words."""
    found = (one for one in chunks if one.edited and citation.quote in one.text)
    return next(((one.start, one.end) for one in found), None)
