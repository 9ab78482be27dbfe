"""A file or page that changed becomes documents again; what it was before answers until these are ready.

The last step of a run, `remove_gone`, removes what no file stands for any more.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from core.errors import DocumentError, NotFoundError
from rag.chunk_carry import carry
from rag.documents import SYNCED, Documents, DocumentStore
from rag.intake import Taken, kept_access, take
from rag.reader import Reader, StoppedError
from rag.sources import Source, SourceStore
from rag.versions import Earlier, retire_all, succession, why_kept
from rag.words import display_name

TRIES = 3
AGAIN = ""  # as a row's reader: no reader has refused it for good

Report = Callable[[str], None]
Describe = Callable[[tuple[str, ...], str], Source]  # a row, from ids of documents and why files were refused


@dataclass(frozen=True)
class Renewed:
    """What a file was read as: its row and documents, and why what of it was refused.

    `lost_edits` of its earlier versions find no place in these; `earlier` says what becomes of those.
    """

    source: Source
    documents: Documents
    refused: list[str]
    lost_edits: int
    earlier: list[Earlier]

    @property
    def replaced(self) -> list[str]:
        """Ids of the versions that go when those after them are ready."""
        return [one.version.id for one in self.earlier if not one.error]

    @property
    def remarks(self) -> list[str]:
        """Which versions go on answering as the next cannot be read, and which go as none has their name."""
        found = [
            f"{one.version.name}: the version of {one.version.date} goes on answering"
            for one in self.earlier
            if one.error
        ]
        if self.refused:
            found += [
                f"{one.version.name}: the version of {one.version.date} goes, as no file has its name now"
                for one in self.earlier
                if not one.error and not one.successor
            ]
        return found


def renew(
    store: DocumentStore, sources: SourceStore, reader: Reader, file: tuple[str, str, bytes], row: Describe
) -> Renewed:
    """Read a file's bytes and note what it is now; `file` has its path in `sources`, its name and its bytes.

    What cannot be read leaves its earlier version. Where that was stopped for its time, each run tries again,
    lest the version grow old for a moment in which the machine was busy. Killed anywhere, the earlier
    versions are still what the file is, or go on answering for it. Raises DocumentError when the documents
    are removed meanwhile.
    """
    path, name, data = file
    for _ in range(TRIES):
        before = sources.current(path)
        access = kept_access(store, [version.id for version in before])
        taken = list(take(store, name, data, SYNCED, reader, access))
        documents = [one.document for one in taken if one.document is not None]
        ids = tuple(dict.fromkeys(document.id for document in documents))
        earlier = succession(before, taken, display_name(name))
        lost = carry(store.database, [one.version.id for one in earlier if not one.error], ids)
        refused = _refusals(taken, display_name(name))
        source = row(ids, "\n".join(refused))
        if any(isinstance(one.error, StoppedError) for one in taken) and any(one.error for one in earlier):
            source = dataclasses.replace(source, reader=AGAIN)
        if sources.replace(source, earlier):
            return Renewed(source, documents, refused, lost, earlier)
        # a document that was there already has just been replaced by one that was being embedded
    raise DocumentError("Its documents were removed while it was read.", "The next run reads it again.")


def give_up(sources: SourceStore, source: Source, name: str, *, gone: bool) -> Renewed:
    """Note that what has a file's place was refused unread, as `source` says; what it was goes if `gone`."""
    refusal = Taken(display_name(name), None, DocumentError(source.error))
    earlier = succession(sources.current(source.path), [] if gone else [refusal], display_name(name))
    sources.replace(source, earlier)
    return Renewed(source, [], [source.error], 0, [] if gone else earlier)


def remove_gone(
    store: DocumentStore, sources: SourceStore, replaced: Iterable[str], report: Report, actor: str
) -> int:
    """Remove what no file stands for any more; returns how many went or go with it.

    Those are the versions `replaced` by this run, which answer until their successors are ready.
    """
    replaced = set(replaced)
    gone = set(retire_all(store))
    for document_id in sources.orphans():
        with suppress(NotFoundError):  # somebody else was quicker
            report(f"removed    {store.get(document_id).name}")
            store.delete(document_id, actor)
        gone.add(document_id)
    going = {one for one in replaced if store.find(one) is None} | set(why_kept(store.database, replaced))
    return len(gone | going)


def _refusals(taken: Sequence[Taken], name: str) -> list[str]:
    errors = [one for one in taken if one.error is not None]
    return [str(one.error) if one.name == name else f"{one.name}: {one.error}" for one in errors]
