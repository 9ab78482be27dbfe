"""The gatekeeper: hosts, origins, the password, closed paths, headers (rows W01, W05, W06)."""

from __future__ import annotations

from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket, WebSocketDisconnect

from app.guard import API_BODY_BYTES, Guard
from app.login import COOKIE, SESSION_S, TRIES, TRIES_OF_ALL, Login, Throttle
from core.errors import SettingsError
from core.settings import Settings, load_settings

PASSWORD = "a long password"


def client(tmp_path: Path, password: str = "", host: str = "127.0.0.1:8400") -> TestClient:
    settings = Settings(data_dir=tmp_path, password=password)
    login = Login(settings)

    async def echo(request: Request) -> PlainTextResponse:
        return PlainTextResponse(f"{request.url.path} {len(await request.body())}")

    async def socket(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text("in")
        await websocket.close()

    inner = Starlette(
        routes=[
            *login.routes(),
            WebSocketRoute("/_stcore/stream", socket),
            Route("/{path:path}", echo, methods=["GET", "POST", "PUT"]),
        ]
    )
    return TestClient(Guard(inner, settings, login), base_url=f"http://{host}", follow_redirects=False)


@pytest.mark.parametrize("host", ["127.0.0.1:8400", "localhost:8400", "[::1]:8400"])
def test_loopback_names_are_served(tmp_path: Path, host: str) -> None:
    assert client(tmp_path, host=host).get("/").status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8400", "127.0.0.1.evil.example", "10.0.0.1"])
def test_a_rebound_name_is_not_served(tmp_path: Path, host: str) -> None:
    assert client(tmp_path, host=host).get("/").status_code == 421


def test_with_a_password_any_host_name_may_be_used(tmp_path: Path) -> None:
    assert client(tmp_path, PASSWORD, host="understudy.example").get("/health").status_code == 200


FOREIGN = [
    "http://evil.example", "https://127.0.0.1:9999", "http://localhost:8400", "null", "file://",
    "http://127.0.0.1:8400.evil.example", "http://evil.example:8400", "http://127.0.0.1", "https://x@127.0.0.1:8400",
]  # fmt: skip


@pytest.mark.parametrize("origin", FOREIGN)
def test_other_origins_are_refused(tmp_path: Path, origin: str) -> None:
    web = client(tmp_path)
    assert web.post("/v1/chat/completions", headers={"origin": origin}).status_code == 403
    assert web.put("/_stcore/upload_file/a/b", headers={"origin": origin}).status_code == 403
    with (
        pytest.raises(WebSocketDisconnect),
        web.websocket_connect("/_stcore/stream", headers={"origin": origin}),
    ):
        pass


def test_the_own_origin_and_programs_are_served(tmp_path: Path) -> None:
    web = client(tmp_path)
    own = {"origin": "http://127.0.0.1:8400", "host": "127.0.0.1:8400"}
    assert web.post("/v1/chat/completions", headers=own).status_code == 200
    assert web.post("/v1/chat/completions").status_code == 200
    with web.websocket_connect("/_stcore/stream", headers=own) as socket:
        assert socket.receive_text() == "in"


@pytest.mark.parametrize(
    "path",
    [
        "/_stcore/metrics",
        "/_stcore/agent/interact",
        "/_stcore/agent/mcp",
        "/_stcore/script-health-check",
        "/component/x/y",
    ],
)
def test_closed_paths(tmp_path: Path, path: str) -> None:
    assert client(tmp_path).get(path).status_code == 404


def test_every_answer_carries_the_headers(tmp_path: Path) -> None:
    for web in (client(tmp_path), client(tmp_path, PASSWORD)):
        for path in ("/", "/login", "/_stcore/metrics", "/v1/models"):
            headers = web.get(path).headers
            policy = headers["content-security-policy"]
            assert "img-src 'self' data: blob:;" in policy
            assert "script-src 'self' 'unsafe-eval' 'sha256-" in policy
            assert "connect-src 'self' ws://127.0.0.1:8400 wss://127.0.0.1:8400" in policy
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["x-frame-options"] == "DENY"


@pytest.mark.parametrize("chunked", [False, True])
def test_a_large_api_body_is_refused(tmp_path: Path, chunked: bool) -> None:
    body = b"x" * (API_BODY_BYTES + 1)
    web = client(tmp_path)
    if chunked:  # no length to refuse by: the reading stops at the limit
        with pytest.raises(Exception, match=r"^$"):
            web.post("/v1/chat/completions", content=iter([body]))
    else:
        assert web.post("/v1/chat/completions", content=body).status_code == 413
    assert web.put("/_stcore/upload_file/a/b", content=body).status_code == 200


def test_nothing_is_reached_without_the_password(tmp_path: Path) -> None:
    web = client(tmp_path, PASSWORD)
    assert web.get("/").headers["location"] == "/login"
    assert web.get("/static/js/index.js").status_code == 401
    assert web.put("/_stcore/upload_file/a/b").status_code == 401
    assert web.get("/v1/models").status_code == 401
    assert web.get("/v1/models").json()["error"]["type"] == "authentication_error"
    assert web.get("/v1/models", headers={"authorization": "Bearer wrong"}).status_code == 401
    with pytest.raises(WebSocketDisconnect), web.websocket_connect("/_stcore/stream"):
        pass


def test_the_password_opens_pages_and_api(tmp_path: Path) -> None:
    web = client(tmp_path, PASSWORD)
    assert web.get("/v1/models", headers={"authorization": f"Bearer {PASSWORD}"}).status_code == 200
    assert "Password" in web.get("/login").text
    entered = web.post("/login", data={"password": PASSWORD})
    assert entered.status_code == 303
    cookie = entered.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert web.get("/").status_code == 200
    with web.websocket_connect("/_stcore/stream", headers={"cookie": cookie.split(";")[0]}) as socket:
        assert socket.receive_text() == "in"
    web.get("/logout")
    assert web.get("/").status_code == 303


def test_a_cookie_cannot_be_forged_and_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    settings = Settings(data_dir=tmp_path, password=PASSWORD)
    good = Login(settings).token()
    expires, _, signature = good.partition(".")
    bad = [
        "",
        "x",
        ".",
        f"{int(expires) + 9}.{signature}",
        f"{expires}.{'0' * 64}",
        f"٣.{signature}",
        f"-1.{signature}",
    ]
    for token in bad:
        web = client(tmp_path, PASSWORD)
        assert web.get("/", headers={b"cookie": f"{COOKIE}={token}".encode()}).status_code == 303, token
    assert client(tmp_path, PASSWORD).get("/", headers={"cookie": f"{COOKIE}={good}"}).status_code == 200
    assert (
        client(tmp_path, "another password").get("/", headers={"cookie": f"{COOKIE}={good}"}).status_code
        == 303
    )
    later = time.time() + SESSION_S + 1
    monkeypatch.setattr(time, "time", lambda: later)
    assert client(tmp_path, PASSWORD).get("/", headers={"cookie": f"{COOKIE}={good}"}).status_code == 303


def test_wrong_tries_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    web = client(tmp_path, PASSWORD)
    statuses = [web.post("/login", data={"password": f"guess {n}"}).status_code for n in range(TRIES + 2)]
    assert statuses[: TRIES - 1] == [401] * (TRIES - 1)
    assert statuses[-2:] == [429, 429]
    assert web.post("/login", data={"password": PASSWORD}).status_code == 429
    assert web.get("/v1/models", headers={"authorization": f"Bearer {PASSWORD}"}).status_code == 401


def test_a_thousand_tries_from_many_addresses_compare_at_most_twenty() -> None:
    throttle, compared = Throttle(), 0
    for number in range(1000):
        if throttle.allows(f"10.0.0.{number}"):
            compared += 1
            throttle.wrong(f"10.0.0.{number}")
    assert compared == TRIES_OF_ALL


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "understudy.example"])
@pytest.mark.parametrize("password", ["", "short"])
def test_other_machines_are_not_served_without_a_password(tmp_path: Path, host: str, password: str) -> None:
    with pytest.raises(SettingsError, match="password"):
        load_settings({}, host=host, password=password, data_dir=tmp_path)
    assert load_settings({}, host=host, password="long enough, this one", data_dir=tmp_path).host == host
