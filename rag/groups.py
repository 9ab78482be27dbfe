"""Groups of accounts, kept by the operator: a document given to one is found by its members (`rag.access`).

Every query asks the tables, so a change counts from the next one on. Removing a group takes its documents
back to their owners.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from core.db import Database, audit, now_ms
from core.errors import ConflictError, NotFoundError
from rag.access import OPERATOR
from rag.passages import bump_version
from rag.words import one_line

LONGEST = 60
_ACCOUNT = re.compile(r"local|api|api:.{1,100}")


@dataclass(frozen=True)
class Group:
    """A named group: its members' accounts, in order, and how many documents are given to it."""

    name: str
    members: tuple[str, ...]
    documents: int


GroupList = list[Group]


class Groups:
    """Reads and writes groups and their members; whoever is not the operator gets a ConflictError."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def all(self) -> GroupList:
        """Every group, by name."""
        with self.database.read() as connection:
            rows = connection.execute(
                "SELECT name, (SELECT json_group_array(account) FROM (SELECT account FROM group_members"
                " WHERE group_name = name ORDER BY account)) AS members,"
                " (SELECT COUNT(*) FROM document_groups WHERE group_name = name) AS documents"
                " FROM account_groups ORDER BY name"
            ).fetchall()
        return [Group(row["name"], tuple(json.loads(row["members"])), row["documents"]) for row in rows]

    def require_member(self, account: str, names: Collection[str]) -> None:
        """Raises NotFoundError when one of the groups is not there, or the account is not in it."""
        mine = {group.name for group in self.all() if account in group.members}
        if not mine.issuperset(names):
            raise NotFoundError("There is no such group of yours (any more).", "Ask the operator.")

    def create(self, name: str, actor: str = OPERATOR) -> str:
        """Make an empty group and return its name as it is kept (raises ConflictError when it is there)."""
        _require_operator(actor)
        name = one_line(name)
        if not name or len(name) > LONGEST:
            raise ConflictError(f"A group's name has 1 to {LONGEST} characters.", "Choose another one.")
        with self.database.write() as connection:
            made = connection.execute(
                "INSERT INTO account_groups VALUES (?, ?) ON CONFLICT DO NOTHING", (name, now_ms())
            ).rowcount
            if made:
                audit(connection, actor, "group.create", name)
        if not made:
            raise ConflictError(f"There is a group {name!r} already.", "Choose another name.")
        return name

    def remove(self, name: str, actor: str = OPERATOR) -> None:
        """Remove a group; what was given to it alone is its owner's alone (raises NotFoundError)."""
        _require_operator(actor)
        with self.database.write() as connection:
            if not connection.execute("DELETE FROM account_groups WHERE name = ?", (name,)).rowcount:
                raise _missing(name)
            bump_version(connection)
            audit(connection, actor, "group.remove", name)

    def change(
        self, name: str, join: Collection[str] = (), leave: Collection[str] = (), actor: str = OPERATOR
    ) -> None:
        """Let accounts join and leave a group; who is in or out already stays so.

        Raises NotFoundError for an unknown group and ConflictError for what cannot be an account.
        """
        _require_operator(actor)
        for account in join:
            if not _ACCOUNT.fullmatch(account):
                raise ConflictError(
                    f"{account!r} is no account.", "Accounts are local (these pages), api:NAME, and api."
                )
        with self.database.write() as connection:
            if connection.execute("SELECT 1 FROM account_groups WHERE name = ?", (name,)).fetchone() is None:
                raise _missing(name)
            connection.executemany(
                "INSERT INTO group_members (account, group_name) VALUES (?, ?) ON CONFLICT DO NOTHING",
                [(account, name) for account in join],
            )
            connection.executemany(
                "DELETE FROM group_members WHERE account = ? AND group_name = ?",
                [(account, name) for account in leave],
            )
            bump_version(connection)
            audit(connection, actor, "group.members", f"{name}: +{sorted(join)} -{sorted(leave)}")


def give(connection: Any, document_id: str, owner: str, groups: Iterable[str]) -> int:
    """Inside the caller's transaction, give a document to these groups and no others; returns to how many.

    Groups that do not exist are left out, and for owners other than the operator those they are not in.
    """
    connection.execute("DELETE FROM document_groups WHERE document_id = ?", (document_id,))
    given: int = connection.execute(
        "INSERT INTO document_groups SELECT ?1, name FROM account_groups"
        f" WHERE name IN (SELECT value FROM json_each(?2)) AND (?3 = '{OPERATOR}' OR EXISTS"
        " (SELECT 1 FROM group_members WHERE account = ?3 AND group_name = name))",
        (document_id, json.dumps(list(groups)), owner),
    ).rowcount
    return given


def _require_operator(actor: str) -> None:
    if actor != OPERATOR:
        raise ConflictError("Only the operator keeps groups.", "Ask the operator.")


def _missing(name: str) -> NotFoundError:
    return NotFoundError(f"There is no group {name!r} (any more).", "Look at the list of groups.")
