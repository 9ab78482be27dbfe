"""`understudy groups`: who is in which group of accounts, and which documents a group may find."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict

from core.db import Database
from core.errors import NotFoundError
from core.jobs import Jobs
from core.settings import Settings, load_settings
from rag.access import OPERATOR
from rag.approval import Approval
from rag.documents import Document, DocumentStore
from rag.groups import Groups


def main(argv: Sequence[str] | None = None) -> int:
    """List, make and remove groups, change their members, and give documents to them."""
    options = _parser().parse_args(argv)
    settings = load_settings()
    database = Database(settings.database)
    groups = Groups(database)
    try:
        if options.action == "list":
            show(groups, as_json=options.json)
        elif options.action == "create":
            print(f"Made the group {groups.create(options.group)}.")
        elif options.action == "remove":
            groups.remove(options.group)
            print(f"Removed {options.group}. What was given to it alone is its owner's alone again.")
        elif options.action == "join":
            groups.change(options.group, join=options.accounts)
        elif options.action == "leave":
            groups.change(options.group, leave=options.accounts)
        else:
            give(database, settings, options.document, options.groups)
    finally:
        database.close()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="understudy groups",
        description="Groups of accounts: what is given to one is found by its members and its owner alone."
        " Accounts are local (the pages and `understudy ask`), api:NAME (users of the API), and api (those"
        " who give no name). Changes count from the next question on.",
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="every group with its members")
    listing.add_argument("--json", action="store_true", help="machine-readable output")
    for name, summary in (("create", "make an empty group"), ("remove", "remove a group")):
        actions.add_parser(name, help=summary).add_argument("group", help="its name")
    for name, summary in (("join", "put accounts into a group"), ("leave", "take accounts out of a group")):
        action = actions.add_parser(name, help=summary)
        action.add_argument("group", help="its name")
        action.add_argument("accounts", nargs="+", metavar="ACCOUNT", help="local, api:NAME or api")
    giving = actions.add_parser("give", help="choose the groups that find a document; none: you alone")
    giving.add_argument("document", help="its id, or its name where only one of yours has it")
    giving.add_argument("groups", nargs="*", metavar="GROUP", help="a group's name")
    return parser


def show(groups: Groups, *, as_json: bool) -> None:
    """Print every group with its members and how many documents are given to it."""
    found = groups.all()
    if as_json:
        print(json.dumps([asdict(group) for group in found], indent=2, ensure_ascii=False))
        return
    for group in found:
        members = ", ".join(group.members) or "nobody"
        print(f"{group.name}: {members} ({group.documents} document{'s' if group.documents != 1 else ''})")
    if not found:
        print("No groups yet. Make one with `understudy groups create NAME`.")


def give(database: Database, settings: Settings, document: str, groups: Sequence[str]) -> None:
    """Let the members of `groups` find a document of the operator's, and nobody else but him."""
    found = _document(DocumentStore(database, settings), document)
    Approval(database).show_to(found.id, "owner", OPERATOR, groups)
    Jobs(database).submit("ingest", once=True)  # the index follows
    print(f"{found.name} is found by {', '.join(sorted(groups)) or 'nobody'} and you.")


def _document(store: DocumentStore, wanted: str) -> Document:
    own = [one for one in store.list(OPERATOR) if one.owner == OPERATOR and wanted in (one.id, one.name)]
    if len(own) != 1:
        ids = ", ".join(one.id for one in own)
        raise NotFoundError(
            f"{len(own) or 'None'} of your documents {'are' if own else 'is'} called {wanted!r}.",
            f"Name one by its id: {ids}." if own else "The Documents page lists them.",
        )
    return own[0]
