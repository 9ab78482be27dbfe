"""Decisions on documents: approve, reject, and who may find it; each one is audited.

The index holds what everybody may find, so after a decision it is brought up to date by the next ingest job.
Until then the words find the document, and what was taken back is found by nobody: queries ask the rows.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from core.db import Database, audit
from core.errors import ConflictError, NotFoundError
from rag.access import OFFERED, OPERATOR, VISIBILITIES, Access
from rag.documents import Document
from rag.groups import give
from rag.passages import bump_version

CHOSEN_AGAIN = "in the collection already; who may find it was changed as you chose."


class Approval:
    """Reads and writes the `document_access` table."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def approve(self, document_id: str, reviewer: str) -> None:
        """Let those find a document to whom its owner wants to give it (raises as `_decide`)."""
        self._decide(document_id, "approved", reviewer)

    def reject(self, document_id: str, reviewer: str) -> None:
        """Let nobody find it, nor its owner (raises as `_decide`)."""
        self._decide(document_id, "rejected", reviewer)

    def _decide(self, document_id: str, approval: str, reviewer: str) -> None:
        """Raises ConflictError when `reviewer` is none, NotFoundError when there is nothing to review."""
        _require_reviewer(reviewer)
        with self.database.write() as connection:
            changed = connection.execute(
                "UPDATE document_access AS access SET approval = ? WHERE document_id = ?"
                f" AND {OFFERED} AND approval != ?",
                (approval, document_id, approval),
            ).rowcount
            if changed:
                bump_version(connection)
                audit(connection, reviewer, f"document.{approval}", document_id)
        if not changed:
            raise NotFoundError("That document waits for no decision (any more).", "Look at the list.")

    def decide_all(self, document_ids: Collection[str], before: str, after: str, reviewer: str) -> list[str]:
        """Decide at once about those of the documents whose approval is `before`; returns which they were.

        Back to `waiting` undoes it. Raises ConflictError when `reviewer` is none.
        """
        _require_reviewer(reviewer)
        with self.database.write() as connection:
            rows = connection.execute(
                "UPDATE document_access AS access SET approval = ? WHERE approval = ?"
                f" AND document_id IN (SELECT value FROM json_each(?)) AND {OFFERED} RETURNING document_id",
                (after, before, json.dumps(list(document_ids))),
            ).fetchall()
            if rows:
                bump_version(connection)
            for row in rows:
                audit(connection, reviewer, f"document.{after}", row["document_id"])
        return [str(row["document_id"]) for row in rows]

    def show_to(self, document_id: str, visibility: str, actor: str, groups: Collection[str] = ()) -> None:
        """Let its owner choose who may find it; what others see of it still needs its approval.

        With visibility `owner` also the members of `groups` find it. Raises NotFoundError when it is not the
        actor's own, or a group is gone or, unless the operator asks, not one of the actor's.
        """
        if visibility not in VISIBILITIES:
            raise ConflictError(f"{visibility!r} is no visibility.", f"Choose of {', '.join(VISIBILITIES)}.")
        if groups and visibility != "owner":
            raise ConflictError("Everybody includes every group.", "Choose one of the two.")
        with self.database.write() as connection:
            given = _show(connection, document_id, visibility, actor, groups)
            if given is None:
                raise NotFoundError(
                    "That document does not exist (any more).", "Look at the list of documents."
                )
            if given < len(set(groups)):
                raise NotFoundError("There is no such group of yours (any more).", "Look at the groups.")

    def choose_again(self, document: Document, access: Access) -> bool:
        """Give a file that came again to those chosen for it now; whether that changed anything.

        Nothing changes for somebody else's. Everybody is what forms begin with, so it widens nothing: that is
        done in the list of documents. Groups that are gone are left out, as of a new document.
        """
        now = document.access
        if now.owner != access.owner or access.visibility == "everybody":
            return False
        if (now.visibility, set(now.groups)) == (access.visibility, set(access.groups)):
            return False
        with self.database.write() as connection:
            given = _show(connection, document.id, access.visibility, access.owner, access.groups)
        return given is not None


def _require_reviewer(reviewer: str) -> None:
    if reviewer != OPERATOR:
        raise ConflictError("Only a reviewer decides about documents.", "Ask the operator.")


def _show(
    connection: Any, document_id: str, visibility: str, actor: str, groups: Collection[str]
) -> int | None:
    """How many of the groups the actor's document is given to now; None when there is no such document."""
    changed = connection.execute(
        "UPDATE document_access SET visibility = ? WHERE document_id = ? AND owner = ?",
        (visibility, document_id, actor),
    ).rowcount
    if not changed:
        return None
    given = give(connection, document_id, actor, groups)
    bump_version(connection)
    shown = f"{document_id} {json.dumps(sorted(groups))}" if groups else document_id
    audit(connection, actor, f"document.{visibility}", shown)
    return given
