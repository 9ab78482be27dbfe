"""What comes in becomes documents: a file is one, a ZIP archive as many as it holds files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from core.errors import DocumentError
from rag.access import EVERYBODY, Access
from rag.archives import members
from rag.documents import Document, DocumentStore
from rag.filetypes import kind_of
from rag.reader import Reader
from rag.words import display_name


@dataclass(frozen=True)
class Taken:
    """What became of one file: its document, or the reason why it was refused."""

    name: str
    document: Document | None
    error: DocumentError | None = None


def take(
    store: DocumentStore, name: str, data: bytes, origin: str, reader: Reader, access: Access = EVERYBODY
) -> Iterator[Taken]:
    """Add a file, or each file of an archive, and say what became of it; nothing is raised for bad content.

    An archive in an archive is refused, and so is a whole archive that is not safe to open.
    """
    shown = display_name(name)
    try:
        store.check_size(len(data))
        if kind_of(shown, data) == "zip":
            yield from _take_members(store, data, origin, reader, access)
        else:
            yield Taken(shown, store.add(shown, data, origin, reader, access))
    except DocumentError as error:
        yield Taken(shown, None, error)


def take_file(store: DocumentStore, path: Path, origin: str, reader: Reader) -> Iterator[Taken]:
    """`take` for a file on disk."""
    try:
        data = store.read_file(path)
    except DocumentError as error:
        yield Taken(display_name(path.name), None, error)
        return
    yield from take(store, path.name, data, origin, reader)


def _take_members(
    store: DocumentStore, data: bytes, origin: str, reader: Reader, access: Access
) -> Iterator[Taken]:
    for member in members(data):
        shown = display_name(member.name)
        if shown.lower().endswith(".zip"):
            yield Taken(shown, None, DocumentError("An archive in an archive is not opened.", "Unpack it."))
            continue
        try:
            yield Taken(shown, store.add(shown, member.data, origin, reader, access))
        except DocumentError as error:
            yield Taken(shown, None, error)


def kept_access(store: DocumentStore, before: Iterable[str]) -> Access:
    """Who may find a file's new version: who keeps one of the documents it was from others keeps it.

    Of several that were kept, such as those of an archive, it is given to the groups that all were given to.
    Where a reviewer rejected all that the file was, what it is now is rejected until he approves it.
    """
    found = [store.find(document_id) for document_id in before]
    documents = [one for one in found if one is not None]
    rejected = bool(documents) and all(one.approval == "rejected" for one in documents)
    kept = [set(one.access.groups) for one in documents if one.visibility == "owner"]
    return Access(
        visibility="owner" if kept else "everybody",
        approval="rejected" if rejected else "approved",
        groups=tuple(sorted(set.intersection(*kept))) if kept else (),
    )
