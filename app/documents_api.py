"""Documents over the API: add one, see what became of it, list what one may read, delete one's own.

An upload goes into the queue like one of the Documents page and has an id at once; the documents that come of
it have their own. What somebody may not read is a 404, as if it were not there.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import ImmutableMultiDict, UploadFile
from starlette.exceptions import HTTPException

from app.resources import Resources
from core.errors import ConflictError, DocumentError, NotFoundError
from rag.access import api_account
from rag.documents import Document, Documents
from rag.groups import LONGEST, Groups
from rag.namesakes import older, replace_older
from rag.queue import Entry

MOST = 1000  # rows of one answer
NAME = 100  # longest name of an API user
FIELD_BYTES = 4096

User = Annotated[str, Query(max_length=NAME)]


def add_document_routes(api: FastAPI, resources: Resources) -> None:
    """The routes below `/v1/documents`."""

    @api.post("/documents", status_code=202)
    async def add(request: Request) -> dict[str, Any]:
        if request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
            async with request.form(max_files=1, max_fields=50, max_part_size=FIELD_BYTES) as form:
                file = form.get("file")
                if not isinstance(file, UploadFile):
                    raise DocumentError("The form holds no file.", "Send it as the field `file`.")
                name = str(form.get("name") or file.filename or "")
                return await _add(resources, name, await file.read(), form)
        return await _add(
            resources, request.query_params.get("name", ""), await request.body(), request.query_params
        )

    @api.get("/documents")
    def documents(
        user: User = "", limit: Annotated[int, Query(ge=1, le=MOST)] = 100, after: str = ""
    ) -> dict[str, Any]:
        account, listing = api_account(user), resources.listing
        if after and listing.readable(account, after) is None:
            raise _missing()
        found = listing.after(account, after, limit + 1) if after else listing.page(account, limit=limit + 1)
        return {
            "object": "list",
            "data": _documents(resources, account, found[:limit]),
            "has_more": len(found) > limit,
            "uploads": [_upload(resources, entry) for entry in resources.queue.list(MOST, account)],
        }

    @api.get("/documents/{document_id}")
    def document(document_id: str, user: User = "") -> dict[str, Any]:
        account = api_account(user)
        if entry := _own_upload(resources, account, document_id):
            return _upload(resources, entry)
        return _documents(resources, account, [_readable(resources, account, document_id)])[0]

    @api.post("/documents/{document_id}/replace-older")
    def replace(document_id: str, user: User = "") -> dict[str, Any]:
        account = api_account(user)
        _readable(resources, account, document_id)
        replace_older(resources.documents, document_id, account)
        resources.jobs.submit("ingest", once=True)
        return _documents(resources, account, [_readable(resources, account, document_id)])[0]

    @api.delete("/documents/{document_id}")
    def delete(document_id: str, user: User = "") -> dict[str, Any]:
        account = api_account(user)
        if entry := _own_upload(resources, account, document_id):
            _delete_upload(resources, account, entry)
        elif _readable(resources, account, document_id).owner == account:
            _delete_documents(resources, account, [document_id])
        else:
            raise HTTPException(403, "That document is not yours; only its owner deletes it.")
        return {"id": document_id, "object": "document", "deleted": True}


async def _add(
    resources: Resources, name: str, data: bytes, fields: ImmutableMultiDict[str, Any]
) -> dict[str, Any]:
    """Queue a file; `fields` of the form or of the address say whose it is and who may find it."""
    user, groups = str(fields.get("user") or ""), [str(group) for group in fields.getlist("group")]
    visibility = str(fields.get("visibility") or ("owner" if groups else "everybody"))
    if not name.strip():
        raise DocumentError("The file has no name.", "Give it with its ending, such as name=handbook.md.")
    if len(user) > NAME or any(len(group) > LONGEST for group in groups):
        raise DocumentError("The name of a user or a group is too long.")
    if groups and visibility != "owner":
        raise ConflictError("Everybody includes every group.", "Choose one of the two.")
    if len(data) > resources.settings.upload_mb << 20:
        raise HTTPException(413, f"The file is larger than {resources.settings.upload_mb} MB.")
    return await run_in_threadpool(_queue, resources, name, data, api_account(user), visibility, groups)


def _queue(
    resources: Resources, name: str, data: bytes, account: str, visibility: str, groups: list[str]
) -> dict[str, Any]:
    Groups(resources.database).require_member(account, groups)
    entry = resources.queue.put(name, data, account, visibility, groups)
    resources.jobs.submit("ingest", once=True)
    return _upload(resources, entry)


def _own_upload(resources: Resources, account: str, entry_id: str) -> Entry | None:
    try:
        return resources.queue.own(entry_id, account)
    except NotFoundError:
        return None


def _readable(resources: Resources, account: str, document_id: str) -> Document:
    document = resources.listing.readable(account, document_id)
    if document is None:
        raise _missing()
    return document


def _missing() -> NotFoundError:
    return NotFoundError("That document does not exist (any more).", "GET /v1/documents lists yours.")


def _delete_upload(resources: Resources, account: str, entry: Entry) -> None:
    """Stop it, or delete what it became, and forget it."""
    if entry.active:
        resources.queue.cancel(entry.id, account)
    found = (resources.listing.readable(account, document_id) for document_id in entry.documents)
    _delete_documents(resources, account, [one.id for one in found if one and one.owner == account])
    resources.queue.clear(account, entry.id)


def _delete_documents(resources: Resources, account: str, ids: list[str]) -> None:
    for document_id in ids:
        resources.documents.delete(document_id, account)
    if ids:
        resources.jobs.submit("ingest", once=True)  # brings the index up to date


def _upload(resources: Resources, entry: Entry) -> dict[str, Any]:
    found = (resources.listing.readable(entry.owner, document_id) for document_id in entry.documents)
    return {
        "id": entry.id,
        "object": "document.upload",
        "name": entry.name,
        "status": entry.status,
        "reason": f"{entry.error} {entry.next_step}".strip(),
        "visibility": entry.visibility,
        "groups": list(entry.group_names),
        "bytes": entry.bytes,
        "created_at": entry.created_at // 1000,
        "documents": _documents(resources, entry.owner, [one for one in found if one is not None]),
    }


def _documents(resources: Resources, account: str, documents: Documents) -> list[dict[str, Any]]:
    namesakes = older(resources.database, [document.id for document in documents], account)
    ids = {newer: version.id for newer, version in namesakes.items()}
    return [_document(account, document) | {"older": ids.get(document.id)} for document in documents]


def _document(account: str, document: Document) -> dict[str, Any]:
    mine = document.owner == account
    undecided = document.approval == "waiting" and not document.access.offered
    return {
        "id": document.id,
        "object": "document",
        "name": document.name,
        "title": document.title,
        "status": "embedding" if document.status == "pending" else document.status,
        "reason": document.error,
        "approval": None if undecided else document.approval,  # for its owner alone it needs none
        "visibility": document.visibility,
        "groups": list(document.access.groups) if mine else [],
        "mine": mine,
        "bytes": document.bytes,
        "created_at": document.created_at // 1000,
    }
