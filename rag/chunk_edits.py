"""Chunks changed by hand: the text edited, switched off, restored; every change can be undone.

Two phases, as in ingest: the new text is embedded first, then one commit puts a new chunk with a new id, its
vector and its search entry in the old one's place. The vector index knows ids only, so it can never hold the
vector of an earlier text, and a process killed anywhere leaves the old chunk or the new one. The document's
own text stays as it was read, so the original is always there to be restored.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from core.db import Database, audit, now_ms
from core.errors import ConflictError, DocumentError, NotFoundError
from core.files import owner_lock
from rag.access import OPERATOR, READABLE
from rag.chunks import ESTIMATE, units
from rag.documents import headline
from rag.embed import Vectors
from rag.embedders import InService
from rag.index import Index
from rag.passages import bump_version
from rag.words import clean, token_estimate

MOST_TOKENS = 256  # that MiniLM reads
_COLUMNS = """chunks.id AS id, document_id, ordinal, heading, page, start, "end", chunks.text AS text, off,
    edited, substr(documents.text, start + 1, "end" - start) AS source,
    EXISTS (SELECT 1 FROM chunk_history AS h WHERE h.document_id = chunks.document_id
        AND h.ordinal = chunks.ordinal) AS changed"""
_FROM = "FROM chunks JOIN documents ON documents.id = chunks.document_id"


@dataclass(frozen=True)
class StoredChunk:
    """A chunk as it is stored.

    `source` is the document's own text in its place; `changed` says that there is something to undo.
    """

    id: int
    document_id: str
    ordinal: int
    heading: str
    page: int | None
    start: int
    end: int
    text: str
    off: bool
    edited: bool
    source: str
    changed: bool

    @property
    def tokens(self) -> int:
        """About how many tokens of MiniLM the text has."""
        return tokens(self.text)


Chunks = list[StoredChunk]


def tokens(text: str) -> int:
    """About how many tokens of MiniLM a text has."""
    return round(token_estimate(text) / ESTIMATE)


class ChunkStore:
    """Reads chunks, those that are switched off too, and puts changed ones in their place."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def all(self, document_id: str, viewer: str = OPERATOR) -> Chunks:
        """Every chunk of a document, in order; none of one that the viewer may not read."""
        readable = f"SELECT document_id FROM document_access AS access WHERE {READABLE} AND document_id = ?2"
        with self.database.read() as connection:
            return select(connection, f"document_id IN ({readable}) ORDER BY ordinal", viewer, document_id)

    def get(self, chunk_id: int) -> StoredChunk:
        """The chunk with this id (raises NotFoundError when it was changed or its document is gone)."""
        with self.database.read() as connection:
            found = select(connection, "chunks.id = ?", chunk_id)
        if not found:
            raise NotFoundError("This passage was changed or removed meanwhile.", "Look at it again.")
        return found[0]

    def before(self, chunk: StoredChunk) -> tuple[int, str, bool] | None:
        """Number, text and `off` of what the last change replaced, if there was one."""
        with self.database.read() as connection:
            row = connection.execute(
                "SELECT seq, text, off FROM chunk_history WHERE document_id = ? AND ordinal = ?"
                " ORDER BY seq DESC LIMIT 1",
                (chunk.document_id, chunk.ordinal),
            ).fetchone()
        return (row["seq"], row["text"], bool(row["off"])) if row else None

    def title(self, document_id: str) -> str:
        """The document's title, which its chunks are embedded and searched with."""
        with self.database.read() as connection:
            return _title(connection, document_id)

    def put(self, old: StoredChunk, change: Change, vector: Vectors | None) -> int:
        """Commit a change and return the chunk's id, which is new when its text is.

        `vector` is that of the new text, shape (384,). Raises ConflictError when the chunk is not as `old`
        says any more, or its document is not ready.
        """
        with self.database.write() as connection:
            now = select(connection, "chunks.id = ? AND documents.status = 'ready'", old.id)
            if not now or now[0].off != old.off:
                raise ConflictError(
                    "This passage was changed meanwhile; nothing was saved.", "Look at it again."
                )
            if change.undoes:
                connection.execute("DELETE FROM chunk_history WHERE seq = ?", (change.undoes,))
            else:
                remember(connection, old, change.actor)
            chunk_id = replace_chunk(connection, old, change.text, change.off, vector)
            connection.execute("DELETE FROM chunks_fts WHERE rowid IN (?, ?)", (old.id, chunk_id))
            if not change.off:
                connection.execute(
                    "INSERT INTO chunks_fts (rowid, heading, text)"
                    " SELECT id, ? || ' > ' || heading, text FROM chunks WHERE id = ?",
                    (_title(connection, old.document_id), chunk_id),
                )
            bump_version(connection)
            audit(connection, change.actor, f"chunk.{change.action}", f"{old.document_id} {old.ordinal + 1}")
        return chunk_id


@dataclass(frozen=True)
class Change:
    """What a chunk becomes, who does it and what it is called; `undoes` is a row of the history."""

    text: str
    off: bool
    actor: str
    action: str
    undoes: int = 0


class ChunkEditor:
    """Changes chunks and makes the change searchable at once.

    `embedder` is the one in service. Every method returns the chunk's new id and raises NotFoundError or
    ConflictError when somebody else changed it meanwhile. A new text is refused with ConflictError while
    documents are read or the embedder is exchanged: it would come with a vector of the one before.
    """

    def __init__(self, store: ChunkStore, embedder: InService, index: Index) -> None:
        self.store = store
        self.embedder = embedder
        self.index = index

    def edit(self, chunk_id: int, text: str, actor: str) -> int:
        """Give a chunk another text (raises DocumentError for one that cannot be searched)."""
        chunk = self.store.get(chunk_id)
        return self._change(chunk, Change(_checked(text, chunk), chunk.off, actor, "edit"))

    def switch(self, chunk_id: int, on: bool, actor: str) -> int:
        """Leave a chunk out of search, or take it in again."""
        chunk = self.store.get(chunk_id)
        return self._change(chunk, Change(chunk.text, not on, actor, "on" if on else "off"))

    def restore(self, chunk_id: int, actor: str) -> int:
        """Give a chunk the document's own text again, and take it into search."""
        chunk = self.store.get(chunk_id)
        return self._change(chunk, Change(chunk.source, False, actor, "restore"))

    def undo(self, chunk_id: int, actor: str) -> int:
        """Take the last change back; the one before it can be undone next."""
        chunk = self.store.get(chunk_id)
        before = self.store.before(chunk)
        if before is None:
            return chunk.id
        seq, text, off = before
        return self._change(chunk, Change(text, off, actor, "undo", seq))

    def _change(self, chunk: StoredChunk, change: Change) -> int:
        if (chunk.text, chunk.off) == (change.text, change.off):
            return chunk.id
        if change.text == chunk.text:
            chunk_id = self.store.put(chunk, change, None)
        else:
            with self._alone():
                chunk_id = self.store.put(chunk, change, self._embed(chunk, change.text))
        self.index.sync()
        return chunk_id

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep ingest and an exchange of the embedder out; a person is not made to wait for them."""
        with ExitStack() as held:
            try:
                lock = self.index.settings.data_dir / "ingest.lock"
                held.enter_context(owner_lock(lock, "Reading documents"))
            except ConflictError:
                raise ConflictError(
                    "Documents are being read just now; nothing was saved.", "Save again in a moment."
                ) from None
            yield

    def _embed(self, chunk: StoredChunk, text: str) -> Vectors:
        if reason := self.index.embedders.mismatch():
            raise ConflictError(reason, "Change the passage once that is mended.")
        named = headline(self.store.title(chunk.document_id), chunk.heading)
        vector: Vectors = self.embedder.encode([f"{named}\n{text}"])[0]
        return vector


def _checked(text: str, chunk: StoredChunk) -> str:
    text = clean(text.replace("\r\n", "\n")).strip()
    if not units(text):
        raise DocumentError("The passage would hold no words.", "Switch it off instead.")
    size = tokens(text)
    if size > max(MOST_TOKENS, tokens(chunk.source)):
        raise DocumentError(
            f"The passage would have about {size} tokens; search reads {MOST_TOKENS} of them.", "Shorten it."
        )
    return text


def remember(connection: Any, chunk: StoredChunk, actor: str) -> None:
    """Note inside the caller's transaction what a chunk is before it changes."""
    connection.execute(
        "INSERT INTO chunk_history (document_id, ordinal, text, off, actor, created_at) VALUES (?,?,?,?,?,?)",
        (chunk.document_id, chunk.ordinal, chunk.text, int(chunk.off), actor, now_ms()),
    )


def replace_chunk(connection: Any, old: StoredChunk, text: str, off: bool, vector: Vectors | None) -> int:
    """Put a chunk with this text in the old one's place, inside the caller's transaction; returns its id.

    Without a new text it keeps its id and vector.
    """
    if text == old.text:
        connection.execute("UPDATE chunks SET off = ? WHERE id = ?", (int(off), old.id))
        return old.id
    stored = b"" if vector is None else vector.astype("<f4").tobytes()
    connection.execute("DELETE FROM chunks WHERE id = ?", (old.id,))
    row = connection.execute(
        'INSERT INTO chunks (document_id, ordinal, heading, page, start, "end", text, vector, edited, off)'
        " VALUES (?,?,?,?,?,?,?,?,?,?) RETURNING id",
        (
            *(old.document_id, old.ordinal, old.heading, old.page, old.start, old.end),
            *(text, stored, int(text != old.source), int(off)),
        ),
    ).fetchone()
    return int(row["id"])


def select(connection: Any, where: str, *values: object) -> Chunks:
    """The chunks for which `where`, ours, holds."""
    rows: Sequence[Any] = connection.execute(f"SELECT {_COLUMNS} {_FROM} WHERE {where}", values).fetchall()
    return [
        StoredChunk(**(dict(row) | {name: bool(row[name]) for name in ("off", "edited", "changed")}))
        for row in rows
    ]


def _title(connection: Any, document_id: str) -> str:
    row = connection.execute(
        "SELECT substr(text, 1, instr(text || char(10), char(10)) - 1) AS title FROM documents WHERE id = ?",
        (document_id,),
    ).fetchone()
    return str(row["title"]) if row else ""
