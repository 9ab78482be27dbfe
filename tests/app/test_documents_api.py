"""Documents over the API: added, approved, listed and deleted, and nothing of others' is told (A8, S13)."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from app.api import create_api
from app.guard import API_BODY_BYTES, FORM_BYTES, Guard
from app.login import Login
from app.resources import USER, Resources
from core.errors import StorageError
from core.settings import Settings
from rag.access import Access
from rag.approval import Approval
from rag.groups import Groups
from tests.app.site import Site, ask, until
from tests.app.test_pages import parts

__all__ = ["parts"]

PASSWORD = "a long test password"
QUESTION = "What is the notice period of the quince department?"


@pytest.fixture
def client(running: Site) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"{running.url}/v1", timeout=60, trust_env=False) as made:
        yield made


def note(days: int) -> bytes:
    return f"# Quinces\n\nThe notice period of the quince department is {days} days.\n".encode()


def send(client: httpx.Client, data: bytes, name: str = "quinces.md", **fields: Any) -> dict[str, Any]:
    """Upload a file as a form, and wait until it was read."""
    response = client.post("/documents", files={"file": (name, data)}, data=fields)
    assert response.status_code == 202, response.text
    upload = dict(response.json())
    assert upload["object"] == "document.upload"
    assert upload["status"] in ("waiting", "reading")

    def read() -> dict[str, Any] | None:
        now = dict(client.get(f"/documents/{upload['id']}", params={"user": fields.get("user", "")}).json())
        return now if now["status"] in ("ready", "failed") else None

    return until(read, "the upload is read") or {}


def found_by(running: Site, user: str, days: int) -> bool:
    return f"{days} days" in str(ask(running, QUESTION, user=user)["understudy"])


def listed(client: httpx.Client, user: str) -> dict[str, dict[str, Any]]:
    body = client.get("/documents", params={"user": user}).json()
    assert body["object"] == "list"
    return {row["id"]: row for row in body["data"]}


def test_what_is_for_everybody_is_found_once_it_is_approved(
    client: httpx.Client, running: Site, parts: Resources
) -> None:
    """Row S13: an ordinary user plants a document and nobody else finds it."""
    upload = send(client, note(711), user="mallory")
    assert (upload["status"], upload["reason"], upload["visibility"]) == ("ready", "", "everybody")
    [document] = upload["documents"]
    assert (document["approval"], document["mine"], document["name"]) == ("waiting", True, "quinces.md")
    assert found_by(running, "mallory", 711)
    for user in ("", "ben", "Mallory"):
        assert not found_by(running, user, 711)
        assert document["id"] not in listed(client, user)
        assert client.get(f"/documents/{document['id']}", params={"user": user}).status_code == 404
    Approval(parts.database).approve(document["id"], USER)
    assert found_by(running, "ben", 711)
    seen = listed(client, "ben")[document["id"]]
    assert (seen["approval"], seen["mine"], seen["groups"]) == ("approved", False, [])
    refused = client.delete(f"/documents/{document['id']}", params={"user": "ben"})
    assert refused.status_code == 403
    assert "not yours" in refused.json()["error"]["message"]
    assert client.delete(f"/documents/{document['id']}", params={"user": "mallory"}).json()["deleted"]
    assert not found_by(running, "mallory", 711)


def test_a_private_one_is_its_owners_alone(client: httpx.Client, running: Site) -> None:
    upload = send(client, note(722), user="anna", visibility="owner")
    [document] = upload["documents"]
    assert (document["visibility"], document["approval"]) == ("owner", None)  # nobody has to decide
    assert found_by(running, "anna", 722)
    assert document["id"] in listed(client, "anna")
    for user in ("", "ben", "local", "api:anna"):
        assert not found_by(running, user, 722)
        for path in (document["id"], upload["id"]):
            for method in ("GET", "DELETE"):  # 404, not 403: it might not be there
                answer = client.request(method, f"/documents/{path}", params={"user": user})
                assert answer.status_code == 404, answer.text
                assert "quinces" not in answer.text
    assert client.delete(f"/documents/{upload['id']}", params={"user": "anna"}).status_code == 200
    assert not found_by(running, "anna", 722)
    assert document["id"] not in listed(client, "anna")
    assert client.get(f"/documents/{upload['id']}", params={"user": "anna"}).status_code == 404


def test_a_newer_version_replaces_the_older_one_when_its_owner_asks(
    client: httpx.Client, running: Site
) -> None:
    [older], [newer] = (
        send(client, note(days), user="anna", visibility="owner")["documents"] for days in (733, 744)
    )
    assert (older["older"], newer["older"]) == (None, older["id"])
    path = f"/documents/{newer['id']}/replace-older"
    assert client.post(path, params={"user": "ben"}).status_code == 404
    assert listed(client, "anna")[newer["id"]]["older"] == older["id"]
    replaced = client.post(path, params={"user": "anna"})
    assert (replaced.status_code, replaced.json()["older"]) == (200, None)
    assert older["id"] not in listed(client, "anna")
    assert found_by(running, "anna", 744)
    assert not found_by(running, "anna", 733)
    again = client.post(path, params={"user": "anna"})
    assert again.status_code == 404
    assert "no older version" in again.json()["error"]["message"]
    client.delete(f"/documents/{newer['id']}", params={"user": "anna"})


def test_a_group_finds_what_is_given_to_it_once_approved(
    client: httpx.Client, running: Site, parts: Resources
) -> None:
    groups = Groups(parts.database)
    groups.create("cellar")
    groups.change("cellar", ["api:anna", "api:dora"])
    outsider = client.post(
        "/documents", params={"name": "quinces.md", "user": "ben", "group": "cellar"}, content=note(733)
    )
    assert outsider.status_code == 404
    assert "no such group of yours" in outsider.json()["error"]["message"]
    upload = send(client, note(733), user="anna", group="cellar")
    [document] = upload["documents"]
    assert (document["visibility"], document["groups"], document["approval"]) == (
        "owner",
        ["cellar"],
        "waiting",
    )
    assert not found_by(running, "dora", 733)
    Approval(parts.database).approve(document["id"], USER)
    assert found_by(running, "dora", 733)
    assert not found_by(running, "ben", 733)
    client.delete(f"/documents/{document['id']}", params={"user": "anna"})
    groups.remove("cellar")


def test_raw_bytes_archives_and_what_cannot_be_read(client: httpx.Client) -> None:
    raw = client.post("/documents", params={"name": "raw.txt", "user": "eve"}, content=b"Raw bytes are read.")
    assert raw.status_code == 202
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("a.md", "# Apples\n\nApples are red.")
        archive.writestr("b.exe", "MZ")
    upload = send(client, packed.getvalue(), "two.zip", user="eve")
    assert [document["name"] for document in upload["documents"]] == ["a.md"]
    assert "b.exe was not added" in upload["reason"]
    bad = send(client, b"%PDF-1.4 nonsense", "bad.pdf", user="eve")
    assert bad["status"] == "failed"
    assert bad["reason"]
    uploads = client.get("/documents", params={"user": "eve"}).json()["uploads"]
    assert {one["name"] for one in uploads} == {"two.zip", "bad.pdf"}
    assert client.get("/documents", params={"user": "ben"}).json()["uploads"] == []
    for one in (raw.json(), upload, bad):
        assert client.delete(f"/documents/{one['id']}", params={"user": "eve"}).status_code == 200
    gone = client.get("/documents", params={"user": "eve"}).json()
    assert gone["uploads"] == []
    assert not any(row["mine"] for row in gone["data"])


def test_pages_of_the_list(client: httpx.Client, parts: Resources) -> None:
    ids = {
        parts.documents.add(f"p{n}.md", b"# P%d\n\nPage." % n, "upload", access=Access("api:pia", "owner")).id
        for n in range(3)
    }
    seen: list[str] = []
    after = ""
    while True:
        body = client.get("/documents", params={"user": "pia", "limit": 2, "after": after}).json()
        seen += [row["id"] for row in body["data"]]
        if not body["has_more"]:
            break
        after = seen[-1]
    assert len(seen) == len(set(seen))
    assert ids < set(seen)
    pending = next(row for row in client.get("/documents", params={"user": "pia"}).json()["data"])
    assert pending["status"] in ("embedding", "ready")
    for one in ids:
        parts.documents.delete(one)
    assert client.get("/documents", params={"user": "pia", "after": seen[0]}).status_code in (200, 404)
    assert client.get("/documents", params={"after": "nothing"}).status_code == 404


BAD: list[tuple[dict[str, Any], dict[str, Any], int, str]] = [
    ({}, {"content": b"x"}, 400, "no name"),
    ({"name": "a.md"}, {"content": b""}, 400, "empty"),
    ({"name": "a.md", "visibility": "nobody"}, {"content": b"x"}, 400, "no visibility"),
    ({"name": "a.md", "visibility": "everybody", "group": "x"}, {"content": b"x"}, 409, "every group"),
    ({"name": "a.md", "group": "x"}, {"content": b"x"}, 404, "no such group"),
    ({"name": "a.md", "user": "u" * 101}, {"content": b"x"}, 400, "too long"),
    ({}, {"files": {"other": ("a.md", b"x")}}, 400, "no file"),
    ({}, {"files": [("file", ("a.md", b"x")), ("more", ("b.md", b"x"))]}, 400, "Too many files"),
    ({}, {"files": {"file": ("a.md", b"x")}, "data": {"name": "n" * 5000}}, 400, "maximum size"),
    ({}, {"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 400, "boundary"),
]


@pytest.mark.parametrize("number", range(len(BAD)))
def test_what_is_not_taken_is_said_in_the_openai_shape(client: httpx.Client, number: int) -> None:
    params, sent, status, words = BAD[number]
    response = client.post("/documents", params=params, **sent)
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert words in error["message"]


@pytest.fixture
def small(tmp_path: Path) -> Iterator[tuple[TestClient, Resources]]:
    """The API behind its gatekeeper, with a password, small limits, and no worker."""
    settings = Settings(data_dir=tmp_path, password=PASSWORD, upload_mb=1, waiting_files=2)
    parts = Resources(settings)
    outer = FastAPI()
    outer.mount("/v1", create_api(parts))
    guarded = Guard(outer, settings, Login(settings))
    yield TestClient(guarded, headers={"authorization": f"Bearer {PASSWORD}"}), parts
    parts.database.close()


def test_a_password_is_asked_for(small: tuple[TestClient, Resources]) -> None:
    client, parts = small
    for method, path in (("POST", "?name=a.md"), ("GET", ""), ("GET", "/x"), ("DELETE", "/x")):
        answer = client.request(method, f"/v1/documents{path}", headers={"authorization": "Bearer wrong"})
        assert answer.status_code == 401
    assert parts.queue.active() == 0


def test_large_bodies_are_refused_before_they_are_read(small: tuple[TestClient, Resources]) -> None:
    client, parts = small
    largest = 1 << 20
    assert largest > API_BODY_BYTES  # other routes keep their own limit
    assert client.post("/v1/documents?name=a.md", content=b"x" * largest).status_code == 202
    assert client.post("/v1/feedback", content=b"x" * largest).status_code == 413
    read = 0

    def chunks() -> Iterator[bytes]:  # without a length to refuse by
        nonlocal read
        for _ in range(40):
            read += 1 << 17
            yield b"x" * (1 << 17)

    assert client.post("/v1/documents?name=b.md", content=chunks()).status_code == 413
    for size in (largest + 1, largest + FORM_BYTES + 1):
        answer = client.post("/v1/documents?name=c.md", content=b"x" * size)
        assert answer.status_code == 413
        assert answer.json()["error"]["type"] == "invalid_request_error"
    form = client.post("/v1/documents", files={"file": ("d.md", b"y" * largest)})
    assert form.status_code == 202
    assert client.post("/v1/documents", files={"file": ("d.md", b"y" * (largest + 1))}).status_code == 413
    assert [entry.name for entry in parts.queue.list()] == ["a.md", "d.md"]


def test_each_user_has_a_quota(small: tuple[TestClient, Resources]) -> None:
    client, parts = small
    for number in range(2):
        answer = client.post(f"/v1/documents?name={number}.md&user=anna", content=b"%d" % number)
        assert answer.status_code == 202
    again = client.post("/v1/documents?name=1.md&user=anna", content=b"1")  # the same bytes wait already
    assert again.json()["id"] == answer.json()["id"]
    full = client.post("/v1/documents?name=2.md&user=anna", content=b"2")
    assert full.status_code == 429
    assert "2 of your files wait already" in full.json()["error"]["message"]
    assert client.post("/v1/documents?name=2.md&user=ben", content=b"2").status_code == 202
    assert client.delete(f"/v1/documents/{again.json()['id']}?user=ben").status_code == 404
    assert client.delete(f"/v1/documents/{again.json()['id']}?user=anna").status_code == 200
    assert client.post("/v1/documents?name=2.md&user=anna", content=b"2").status_code == 202
    assert len(list(parts.queue.folder.glob("*"))) == 3  # nothing is left of what was cancelled


def test_no_place_on_the_disk_tells_no_folder(
    small: tuple[TestClient, Resources], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, _ = small

    def full(folder: Path, needed: int) -> None:
        raise StorageError(f"Not enough disk space under {folder}: {needed:,} bytes are needed.")

    monkeypatch.setattr("rag.queue.require_space", full)
    answer = client.post("/v1/documents?name=a.md", content=b"x")
    assert answer.status_code == 507
    assert "/" not in answer.json()["error"]["message"]


def test_without_approval_everybody_finds_it_at_once(tmp_path: Path) -> None:
    parts = Resources(replace(Settings(data_dir=tmp_path), approve_documents=False))
    client = TestClient(create_api(parts))
    assert client.post("/documents?name=a.md&user=anna", content=b"x").json()["visibility"] == "everybody"
    assert parts.queue.list(actor="api:anna")[0].owner == "api:anna"
    parts.database.close()
