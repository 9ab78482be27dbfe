"""Whose a document is, who may find it, and whether it was approved; as SQL, so that every query asks.

    owner       the account that loaded it: "local" for pages and command line, "api:NAME" for API users
    visibility  everybody, or its owner; the latter also the members of the groups that it is given to, so
                that a document whose groups are gone is its owner's alone
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

# `access` is the row of document_access; each ? is the viewer. Members and groups are asked for each row, so
# that a change counts from the next query on.
SHARED = "access.visibility = 'everybody' AND access.approval = 'approved'"
UNSHARED = "(access.visibility != 'everybody' OR access.approval != 'approved')"
OFFERED = (  # its owner wants to give it to others
    "(access.visibility = 'everybody'"
    " OR EXISTS (SELECT 1 FROM document_groups WHERE document_id = access.document_id))"
)
_GIVEN = (  # to a group that the viewer `{}` is in
    "(access.approval = 'approved' AND EXISTS"
    " (SELECT 1 FROM document_groups AS given JOIN group_members AS member"
    " ON member.account = {} AND member.group_name = given.group_name"
    " WHERE given.document_id = access.document_id))"
)
FINDABLE = (  # for answers; the inner SELECT gives the one ? a name
    f"({SHARED} OR EXISTS (SELECT 1 FROM (SELECT ? AS name) AS viewer WHERE"
    f" access.owner = viewer.name AND access.approval != 'rejected' OR {_GIVEN.format('viewer.name')}))"
)
READABLE = (  # for reading and reviewing: the operator also reads what others want to give away
    f"(access.owner = ?1 OR {SHARED} OR {_GIVEN.format('?1')} OR ?1 = '{OPERATOR}' AND {OFFERED})"
)
OWN = (  # all that the viewer could find beside what everybody may: few rows, to ask FINDABLE of
    f"{UNSHARED} AND access.document_id IN (WITH viewer(name) AS (SELECT ?)"
    " SELECT mine.document_id FROM viewer JOIN document_access AS mine ON mine.owner = viewer.name"
    f" AND {UNSHARED.replace('access.', 'mine.')}"
    " UNION ALL SELECT given.document_id FROM viewer JOIN group_members AS member"
    " ON member.account = viewer.name JOIN document_groups AS given USING (group_name))"
)
AUDIENCE = (  # as text: alike for documents of one owner that are given to the same groups
    "(access.owner || char(10) || (SELECT json_group_array(group_name) FROM"
    " (SELECT group_name FROM document_groups WHERE document_id = access.document_id ORDER BY group_name)))"
)


def api_account(name: str) -> str:
    """The account of an API user with this name, which may be empty."""
    return f"api:{name}" if name else "api"


@dataclass(frozen=True)
class Access:
    """All together; the default is that of samples and of everything the operator loads.

    `groups` are those whose members may find it too, where its visibility is `owner`.
    """

    owner: str = OPERATOR
    visibility: str = "everybody"
    approval: str = "approved"
    groups: tuple[str, ...] = ()

    @property
    def offered(self) -> bool:
        """Whether its owner wants others to find it."""
        return self.visibility == "everybody" or bool(self.groups)

    @property
    def shared(self) -> bool:
        """Whether everybody finds it."""
        return self.visibility == "everybody" and self.approval == "approved"

    def reaches(self, viewer: str) -> bool:
        """Whether it is shared or the viewer's own."""
        return self.shared or self.owner == viewer


EVERYBODY = Access()


def new_access(
    settings: Settings, owner: str, visibility: str = "everybody", groups: tuple[str, ...] = ()
) -> Access:
    """The access of a document that `owner` loads now; raises DocumentError for an unknown visibility."""
    if visibility not in VISIBILITIES:
        raise DocumentError(f"{visibility!r} is no visibility.", f"Choose one of {', '.join(VISIBILITIES)}.")
    waits = settings.approve_documents and owner != OPERATOR
    return Access(owner, visibility, "waiting" if waits else "approved", groups)
