"""Whose a document is, who may find it, and whether it was approved; as SQL, so that every query asks.

    owner       the account that loaded it: "local" for pages and command line, "api:NAME" for API users
    visibility  everybody, or its owner alone
    approval    approved; waiting: only its owner finds it; rejected: nobody does

Pages have one operator until accounts exist, who is also the reviewer; his documents need no approval. API
users name themselves: this keeps honest users' documents apart, but whoever knows the password can take any
API name.
"""

from __future__ import annotations

from dataclasses import dataclass

from core.errors import DocumentError
from core.settings import Settings

OPERATOR = "local"
NOBODY = ""  # no account: sees what everybody may see; the default wherever a viewer is asked for
VISIBILITIES = ("everybody", "owner")

# `access` is the row of document_access; each ? is the viewer
SHARED = "access.visibility = 'everybody' AND access.approval = 'approved'"
UNSHARED = "(access.visibility != 'everybody' OR access.approval != 'approved')"
FINDABLE = f"({SHARED} OR (access.owner = ? AND access.approval != 'rejected'))"  # for answers
READABLE = (  # for reading and reviewing: the operator also reads what others want to give to everybody
    "(access.owner = ?1 OR access.visibility = 'everybody'"
    f" AND (access.approval = 'approved' OR ?1 = '{OPERATOR}'))"
)


@dataclass(frozen=True)
class Access:
    """The three together; the default is that of samples and of everything the operator loads."""

    owner: str = OPERATOR
    visibility: str = "everybody"
    approval: str = "approved"

    @property
    def shared(self) -> bool:
        """Whether everybody finds it."""
        return self.visibility == "everybody" and self.approval == "approved"

    def reaches(self, viewer: str) -> bool:
        """Whether it is shared or the viewer's own."""
        return self.shared or self.owner == viewer


EVERYBODY = Access()


def new_access(settings: Settings, owner: str, visibility: str = "everybody") -> Access:
    """The access of a document that `owner` loads now; raises DocumentError for an unknown visibility."""
    if visibility not in VISIBILITIES:
        raise DocumentError(f"{visibility!r} is no visibility.", f"Choose one of {', '.join(VISIBILITIES)}.")
    waits = settings.approve_documents and owner != OPERATOR
    return Access(owner, visibility, "waiting" if waits else "approved")
