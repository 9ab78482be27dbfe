"""Documents: checked, stored under their content's hash, and turned into chunks.

A document is `pending` (text and chunks stored, vectors missing), then `ready` in one commit, or `failed`.
Only chunks of ready documents are found, and only by those who may (`rag.access`). The same bytes are the
same document, however often they come; those that not everybody may find are one document for each owner, so
that nobody learns what others keep.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.db import Database, audit, now_ms
from core.errors import DocumentError, NotFoundError
from core.files import inside, require_space, write_bytes
from core.settings import Settings
from rag.access import EVERYBODY, FINDABLE, NOBODY, OFFERED, OPERATOR, READABLE, Access
from rag.embed import Vectors
from rag.files import read_regular
from rag.filetypes import kind_of
from rag.groups import give
from rag.passages import bump_version
from rag.reader import Reader
from rag.words import display_name

_TITLE = "substr(text, 1, instr(text || char(10), char(10)) - 1)"
TWIN = f"""documents AS other JOIN document_access AS theirs ON theirs.document_id = other.id
    AND (theirs.visibility = 'everybody' AND theirs.approval = 'approved'
    OR theirs.owner = access.owner AND NOT {OFFERED}) WHERE other.text_hash = documents.text_hash
    AND documents.text_hash != '' AND (other.created_at, other.id) < (documents.created_at, documents.id)"""
_COLUMNS = f"""id, name, kind, bytes, origin, status, error, created_at, updated_at,
    {_TITLE} AS title,
    (SELECT COUNT(*) FROM chunks WHERE document_id = documents.id) AS chunks, quality,
    (SELECT json_group_array(group_name) FROM document_groups WHERE document_id = documents.id) AS groups,
    COALESCE((SELECT other.name FROM {TWIN} ORDER BY other.created_at, other.id LIMIT 1), '') AS same_as,
    owner, visibility, approval"""
SELECT = (
    f"SELECT {_COLUMNS} FROM documents JOIN document_access AS access ON access.document_id = documents.id"
)

SYNCED = "sync"  # the origin of documents that live and die with a folder's files
ChunkTexts = list[tuple[int, str]]
Ids = list[int]
Within = Callable[[Any, Sequence[str]], None]  # in a transaction: its connection, and ids of documents


@dataclass(frozen=True)
class Document:
    """A stored document. `name` and `title` are display text, never paths; times are UTC milliseconds.

    `quality` is JSON (see `rag.quality`), `same_as` names an older document with the same text, if any.
    """

    id: str
    name: str
    kind: str
    bytes: int
    origin: str
    status: str
    error: str
    created_at: int
    updated_at: int
    title: str
    chunks: int
    quality: str = "{}"
    same_as: str = ""
    owner: str = OPERATOR
    visibility: str = "everybody"
    approval: str = "approved"
    groups: str = "[]"  # JSON

    @property
    def access(self) -> Access:
        """Whose it is and who may find it."""
        return Access(self.owner, self.visibility, self.approval, tuple(json.loads(self.groups)))


Documents = list[Document]


class DocumentStore:
    """Reads and writes documents and their chunks."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self.database = database
        self.settings = settings
        self.folder = settings.data_dir / "documents"

    def add(
        self,
        name: str,
        data: bytes,
        origin: str,
        reader: Reader | None = None,
        access: Access = EVERYBODY,
    ) -> Document:
        """Check, read and store a document; it is `pending` until its vectors are saved.

        Content that its owner finds already is returned as it is. `reader` may be shared between many calls.
        Raises DocumentError with the reason when the document is refused; nothing is stored then.
        """
        self.check_size(len(data))
        shown = display_name(name)
        if kind_of(shown, data) == "zip":
            raise DocumentError("An archive is no document.", "Its files are added one by one.")
        known = self.known(data, access)
        if known is not None:
            self._came_again(known, origin, access.owner)
            return known
        document_id = self._new_id(data, access)
        if reader is None:
            with Reader(self.settings) as own:
                extracted, pieces = own.read_chunks(shown, data, self.settings.chunk_tokens)
        else:
            extracted, pieces = reader.read_chunks(shown, data, self.settings.chunk_tokens)
        require_space(self.folder, 2 * len(data) + (1 << 20))
        now = now_ms()
        with self.database.write() as connection:
            # the bytes inside the transaction: `sweep` then never sees a file whose row is still to come
            write_bytes(inside(self.folder, document_id), data)
            remove(connection, document_id)
            connection.execute("DELETE FROM replaced WHERE document_id = ?", (document_id,))  # it is back
            connection.execute(
                "INSERT INTO documents (id, name, kind, bytes, origin, status, error, text, created_at,"
                " updated_at, quality, text_hash) VALUES (?,?,?,?,?,'pending','',?,?,?,?,?)",
                (
                    *(document_id, shown, extracted.kind, len(data), origin, extracted.text, now, now),
                    *(json.dumps(extracted.quality), _text_hash(extracted.text)),
                ),
            )
            connection.execute(
                "INSERT OR REPLACE INTO document_access VALUES (?,?,?,?)",
                (document_id, access.owner, access.visibility, access.approval),
            )
            give(connection, document_id, access.owner, access.groups)
            connection.executemany(
                'INSERT INTO chunks (document_id, ordinal, heading, page, start, "end", text, vector)'
                " VALUES (?,?,?,?,?,?,?,x'')",
                [
                    (document_id, i, piece.heading, piece.page, piece.start, piece.end, piece.text)
                    for i, piece in enumerate(pieces)
                ],
            )
        return self.get(document_id)

    def known(self, data: bytes, access: Access = EVERYBODY) -> Document | None:
        """The document with these bytes that everybody or the owner named finds, unless reading it failed."""
        for document_id in (_id_of(data), _id_of(data, access.owner)):
            known = self.find(document_id)
            if known is not None and known.status != "failed" and known.access.reaches(access.owner):
                return known
        return None

    def _new_id(self, data: bytes, access: Access) -> str:
        """The plain hash, unless not everybody may find it or somebody keeps a document under that."""
        taken = self.find(_id_of(data))
        if access.shared and (taken is None or taken.owner == access.owner):
            return _id_of(data)
        return _id_of(data, access.owner)

    def add_file(self, path: Path, origin: str, reader: Reader | None = None) -> Document:
        """`add` a regular file; links, pipes, devices and files that change meanwhile are refused."""
        return self.add(path.name, self.read_file(path), origin, reader)

    def read_file(self, path: Path) -> bytes:
        """A regular file's bytes.

        Raises as `rag.files.read_regular`, and DocumentError for large and empty files.
        """
        return read_regular(path, self.check_size)

    def check_size(self, size: int) -> None:
        """Raises DocumentError for an empty file and one above the setting upload_mb."""
        if size == 0:
            raise DocumentError("The file is empty.")
        if size > self.settings.upload_mb << 20:
            raise DocumentError(
                f"The file has {size / (1 << 20):.1f} MB; at most {self.settings.upload_mb} MB are read.",
                "Split it, or raise the setting upload_mb.",
            )

    def list(self, viewer: str | None = None) -> Documents:
        """Every document, newest first; with a viewer those that it may read."""
        condition = READABLE if viewer is not None else "?1 IS NULL"
        with self.database.read() as connection:
            rows = connection.execute(
                f"{SELECT} WHERE {condition} ORDER BY created_at DESC, name, id", (viewer,)
            ).fetchall()
        return [Document(**dict(row)) for row in rows]

    def find(self, document_id: str) -> Document | None:
        """The document with this id, or None."""
        with self.database.read() as connection:
            row = connection.execute(f"{SELECT} WHERE id = ?", (document_id,)).fetchone()
        return Document(**dict(row)) if row is not None else None

    def get(self, document_id: str) -> Document:
        """The document with this id (raises NotFoundError)."""
        document = self.find(document_id)
        if document is None:
            raise NotFoundError("That document does not exist (any more).", "Look at the list of documents.")
        return document

    def pending(self) -> Documents:
        """Documents that wait for their vectors, oldest first."""
        with self.database.read() as connection:
            rows = connection.execute(
                f"{SELECT} WHERE status = 'pending' ORDER BY created_at, name DESC, id DESC"
            ).fetchall()
        return [Document(**dict(row)) for row in rows]

    def text(self, document_id: str, viewer: str = NOBODY) -> str:
        """The extracted text that chunk and citation offsets point into.

        Raises NotFoundError when there is no such document that the viewer may read.
        """
        with self.database.read() as connection:
            row = connection.execute(
                "SELECT text FROM documents JOIN document_access AS access ON document_id = id"
                f" WHERE {READABLE} AND id = ?2",
                (viewer, document_id),
            ).fetchone()
        if row is None:
            raise NotFoundError("That document does not exist (any more).", "Look at the list of documents.")
        return str(row["text"])

    def hidden(self, document_ids: Iterable[str], viewer: str) -> set[str]:
        """Those of the documents, deleted ones too, that the viewer may not find."""
        with self.database.read() as connection:
            rows = connection.execute(
                f"SELECT document_id FROM document_access AS access WHERE NOT {FINDABLE}"
                " AND document_id IN (SELECT value FROM json_each(?))",
                (viewer, json.dumps(list(document_ids))),
            )
            return {str(row["document_id"]) for row in rows}

    def original(self, document_id: str, viewer: str = NOBODY) -> bytes:
        """The bytes as they came (raises NotFoundError as `text`)."""
        self.text(document_id, viewer)
        return inside(self.folder, document_id).read_bytes()

    def chunk_texts(self, document_id: str) -> ChunkTexts:
        """Id and text to embed (title and heading first) of each chunk, in order."""
        with self.database.read() as connection:
            rows = connection.execute(
                "SELECT id, heading, text FROM chunks WHERE document_id = ? ORDER BY ordinal", (document_id,)
            ).fetchall()
            title = connection.execute(
                f"SELECT {_TITLE} FROM documents WHERE id = ?", (document_id,)
            ).fetchone()
        if title is None:
            raise NotFoundError("That document does not exist (any more).", "Look at the list of documents.")
        return [(row["id"], f"{headline(title[0], row['heading'])}\n{row['text']}") for row in rows]

    def save_documents(
        self,
        embedded: Iterable[tuple[str, Ids, Vectors]],
        before: Within = lambda connection, ids: None,
        after: Within = lambda connection, ids: None,
    ) -> int:
        """Store the vectors of documents' chunks and make the documents ready, in one commit.

        Each comes with the ids of its chunks and vectors of shape (len(ids), 384). Returns how many are
        ready; one that changed meanwhile, or whose chunks did, stays as it is and is taken up again. In the
        same commit `before` is called with the ids of all, and `after` with the ids of those now ready.
        """
        given = list(embedded)
        with self.database.write() as connection:
            before(connection, [document_id for document_id, _, _ in given])
            ready = [one[0] for one in given if _save(connection, *one)]
            if ready:
                after(connection, ready)
                bump_version(connection)
        return len(ready)

    def fail(self, document_id: str, reason: str) -> None:
        """Mark a pending document as failed, with the reason shown to users."""
        with self.database.write() as connection:
            connection.execute(
                "UPDATE documents SET status = 'failed', error = ?, updated_at = ?"
                " WHERE id = ? AND status = 'pending'",
                (reason, now_ms(), document_id),
            )

    def _came_again(self, known: Document, origin: str, owner: str) -> None:
        """What comes once more stays when a folder loses it, or the upload that brought it is cancelled."""
        by_hand = known.origin == SYNCED and origin != SYNCED and known.owner == owner
        of_upload = "status = 'embedding' AND EXISTS (SELECT 1 FROM json_each(added) WHERE value = ?1)"
        again = "FROM replaced WHERE document_id = ? AND root = '' AND ? != 'sync'"  # wanted after all
        with self.database.read() as connection:
            claimed = connection.execute(f"SELECT 1 FROM intake WHERE {of_upload}", (known.id,)).fetchone()
            wanted = connection.execute(f"SELECT 1 {again}", (known.id, origin)).fetchone()
        if not (by_hand or claimed or wanted):
            return
        with self.database.write() as connection:
            connection.execute(f"DELETE {again}", (known.id, origin))
            if by_hand:
                connection.execute("UPDATE documents SET origin = ? WHERE id = ?", (origin, known.id))
            connection.execute(
                "UPDATE intake SET added = (SELECT json_group_array(value) FROM json_each(added)"
                f" WHERE value != ?1) WHERE {of_upload}",
                (known.id,),
            )

    def delete(self, document_id: str, actor: str = "local") -> None:
        """Remove a document with its chunks, its search entries and its bytes (raises NotFoundError).

        Its vectors leave the index at the next `Index.sync`; they are not found from now on.
        """
        document = self.get(document_id)
        with self.database.write() as connection:
            remove(connection, document_id)
            connection.execute("DELETE FROM replaced WHERE root = '' AND successor = ?", (document_id,))
            bump_version(connection)
            audit(connection, actor, "document.delete", f"{document_id} {document.name}")
        # only now: killed before the commit, the row would stand without its bytes
        self.unlink([document_id])

    def unlink(self, ids: Iterable[str]) -> None:
        """Remove the bytes of documents that are gone; those that came back meanwhile keep theirs."""
        with self.database.write():
            for document_id in set(ids) - self.ids():
                inside(self.folder, document_id).unlink(missing_ok=True)

    def ids(self) -> set[str]:
        """The id of every document; each names its bytes in `folder`."""
        with self.database.read() as connection:
            return {str(row["id"]) for row in connection.execute("SELECT id FROM documents")}

    def sweep(self) -> int:
        """Remove stored bytes that no row names (a process died while adding); returns how many."""
        removed = 0
        with self.database.write():
            known = self.ids()
            for path in self.folder.glob("*") if self.folder.exists() else ():
                if path.name not in known:
                    path.unlink(missing_ok=True)
                    removed += 1
        return removed


def _id_of(data: bytes, owner: str = "") -> str:
    """The hash of the bytes; with an owner, one that only he has for them."""
    return hashlib.sha256(f"{owner}\0".encode() + data if owner else data).hexdigest()[:32]


def _text_hash(text: str) -> str:
    """A hash of the words after the title, which may come from the file's name."""
    body = text.partition("\n")[2]
    return hashlib.sha256(" ".join(body.split()).encode()).hexdigest()[:32] if body.strip() else ""


def headline(title: str, heading: str) -> str:
    """What a chunk stands under, as its vector and its search entry hold it."""
    return f"{title} > {heading}" if heading else title


def _save(connection: Any, document_id: str, ids: Ids, vectors: Vectors) -> bool:
    row = connection.execute(
        f"SELECT status, {_TITLE} AS title FROM documents WHERE id = ?", (document_id,)
    ).fetchone()
    if row is None or row["status"] != "pending":
        return False
    stored = connection.execute("SELECT id FROM chunks WHERE document_id = ?", (document_id,))
    if {chunk["id"] for chunk in stored} != set(ids):
        return False  # it stays pending and is taken up again
    connection.executemany(
        "UPDATE chunks SET vector = ? WHERE id = ? AND document_id = ?",
        [(vector.astype("<f4").tobytes(), i, document_id) for i, vector in zip(ids, vectors, strict=True)],
    )
    connection.execute(
        "INSERT INTO chunks_fts (rowid, heading, text)"
        " SELECT id, ? || ' > ' || heading, text FROM chunks WHERE document_id = ? AND NOT off",
        (row["title"], document_id),
    )
    connection.execute(
        "UPDATE documents SET status = 'ready', error = '', updated_at = ? WHERE id = ?",
        (now_ms(), document_id),
    )
    return True


def remove(connection: Any, document_id: str) -> None:
    """Remove a document's rows inside the caller's transaction; its bytes go with `sweep`."""
    ids = connection.execute("SELECT id FROM chunks WHERE document_id = ?", (document_id,)).fetchall()
    connection.executemany("DELETE FROM chunks_fts WHERE rowid = ?", [(row["id"],) for row in ids])
    connection.execute("DELETE FROM documents WHERE id = ?", (document_id,))
    connection.execute("DELETE FROM document_groups WHERE document_id = ?", (document_id,))
    connection.execute(  # what not everybody might find stays hidden: answers of the past quote it
        "DELETE FROM document_access WHERE document_id = ? AND visibility = 'everybody'"
        " AND approval = 'approved'",
        (document_id,),
    )
