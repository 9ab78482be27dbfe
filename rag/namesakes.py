"""An uploaded document and its older namesake: both answer until their owner has the newer one replace that.

Names say little: two offices may each have a `rules.pdf`. So nothing is replaced unasked, and the offer is
made only where name, owner, visibility, approval and groups are the same. What is replaced goes as an earlier
version of a synchronised file does (`rag.versions`; its root is ''): its edits are handed on, it answers
until the newer one is ready, and its citations lead there. To add its file again brings it back.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from core.db import Database, audit
from core.errors import NotFoundError
from rag.access import AUDIENCE, Access
from rag.chunk_carry import pass_on
from rag.documents import SYNCED, DocumentStore
from rag.versions import Version, retire
from rag.words import display_name

_SAME = (  # `other` and `theirs` are the older document and its access
    "theirs.visibility = access.visibility AND theirs.approval = access.approval"
    f" AND {AUDIENCE.replace('access.', 'theirs.')} = {AUDIENCE}"
)


def older(database: Database, ids: Iterable[str], owner: str) -> dict[str, Version]:
    """Of those of the documents that are the owner's uploads, the newest older namesake, by their ids."""
    with database.read() as connection:
        rows = connection.execute(
            "SELECT mine.id AS newer, other.id AS id, other.name AS name, MAX(other.created_at) AS created_at"
            " FROM documents AS mine JOIN document_access AS access ON access.document_id = mine.id"
            " JOIN documents AS other ON other.name = mine.name"
            " AND (other.created_at, other.id) < (mine.created_at, mine.id)"
            " JOIN document_access AS theirs ON theirs.document_id = other.id"
            " WHERE mine.id IN (SELECT value FROM json_each(?)) AND access.owner = ? AND mine.origin != ?3"
            f" AND other.origin != ?3 AND mine.status = 'ready' AND other.status = 'ready' AND {_SAME}"
            " AND other.id NOT IN (SELECT document_id FROM replaced WHERE root = '') GROUP BY mine.id",
            (json.dumps(list(ids)), owner, SYNCED),
        ).fetchall()
    return {row["newer"]: Version(row["id"], row["name"], row["created_at"]) for row in rows}


def named(database: Database, name: str, access: Access) -> Version | None:
    """The newest document that an upload of this name and access would have for an older namesake."""
    with database.read() as connection:
        row = connection.execute(
            "SELECT id, name, created_at FROM documents JOIN document_access AS access ON document_id = id"
            " WHERE name = ? AND access.visibility = ? AND access.approval = ? AND origin != ?"
            f" AND status = 'ready' AND {AUDIENCE} = ? || char(10) || ? ORDER BY created_at DESC, id LIMIT 1",
            (
                *(display_name(name), access.visibility, access.approval, SYNCED),
                *(access.owner, json.dumps(sorted(access.groups), separators=(",", ":"), ensure_ascii=False)),
            ),
        ).fetchone()
    return Version(**dict(row)) if row is not None else None


def replace_older(store: DocumentStore, document_id: str, actor: str) -> Version:
    """Have a document replace its older namesake, which is returned; their owner alone does that.

    It may wait for vectors then, of passages with edits: an ingest job makes it ready, and brings the index
    up to date. Raises NotFoundError when there is none (any more).
    """
    found = older(store.database, [document_id], actor).get(document_id)
    if found is None:
        raise NotFoundError("There is no older version to replace (any more).", "Look at the documents.")
    with store.database.write() as connection:
        pass_on(connection, found.id, [document_id])
        connection.execute(  # whoever was led to it is led on
            "UPDATE replaced SET successor = ? WHERE root = '' AND successor = ?", (document_id, found.id)
        )
        # its own id for a path: nothing else is a version of it
        connection.execute(
            "INSERT OR REPLACE INTO replaced VALUES (?1, '', ?1, ?2, ?3, '')",
            (found.id, found.name, document_id),
        )
        audit(connection, actor, "document.supersede", f"{found.id} {found.name} by {document_id}")
        gone = retire(connection, [document_id])
    store.unlink(gone)
    return found
