"""The gatekeeper in front of pages and API: who may come in, from where, and with what headers.

* Host: without a password only loopback names are answered, so a foreign site cannot reach us by rebinding
  its own name to 127.0.0.1.
* Origin: a request or socket that a page of another origin started is refused before Streamlit sees it
  (Streamlit would look up this machine's external address on the internet to judge one).
* Login: see `app.login`.
* Closed paths: Streamlit's metrics, its agent API and third-party components.
* Headers: a content policy under which no image, font, script or connection leaves this origin.
"""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.login import Login
from core.settings import Settings, is_loopback

API_BODY_BYTES = 1_000_000
UPLOADS = "/v1/documents"
FORM_BYTES = 65_536  # what a form may hold beside its file
CLOSED = ("/_stcore/metrics", "/_stcore/agent", "/_stcore/script-health-check", "/component/")
OPEN = ("/login", "/logout", "/health")
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
HOST = re.compile(r"^[A-Za-z0-9.\-\[\]:]{1,255}$")


class Guard:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, settings: Settings, login: Login) -> None:
        self.app = app
        self.login = login
        self._loopback_only = not settings.password
        self._upload_bytes = (settings.upload_mb << 20) + FORM_BYTES

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it with a refusal."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        refusal = self._refuse(scope)
        if scope["type"] == "websocket":
            if refusal is None:
                await self.app(scope, receive, send)
            else:
                await receive()
                await send({"type": "websocket.close", "code": 1008, "reason": "refused"})
            return
        send = _with_headers(send, Headers(scope=scope).get("host", ""), scope["path"])
        if refusal is not None:
            await refusal(scope, receive, send)
        elif scope["path"].startswith("/v1"):
            await self.app(scope, _limited(receive, self._most(scope)), send)
        else:
            await self.app(scope, receive, send)

    def _refuse(self, scope: Scope) -> Response | None:
        connection = HTTPConnection(scope)
        path, host = scope["path"], connection.headers.get("host", "")
        if not HOST.match(host) or (self._loopback_only and not is_loopback(_name(host))):
            return PlainTextResponse("This address is not served here.", 421)
        origin = connection.headers.get("origin")
        sensitive = scope["type"] == "websocket" or scope["method"] not in SAFE_METHODS
        if sensitive and origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            return _error(path, "Requests from other sites are refused.", 403)
        if path.startswith(CLOSED):
            return PlainTextResponse("Not found", 404)
        if path.startswith("/v1") and int(_length(connection)) > self._most(scope):
            return _error(path, f"The request is larger than {self._most(scope):,} bytes.", 413)
        if path not in OPEN and not self.login.knows(connection):
            return self._ask(path)
        return None

    def _most(self, scope: Scope) -> int:
        """The largest body of an API call: only the one that takes documents takes large ones."""
        return self._upload_bytes if scope["path"].rstrip("/") == UPLOADS else API_BODY_BYTES

    def _ask(self, path: str) -> Response:
        if path.startswith("/v1"):
            response = _error(path, "Send the password as `Authorization: Bearer PASSWORD`.", 401)
            response.headers["www-authenticate"] = "Bearer"
            return response
        if path.startswith(("/_stcore", "/media", "/static")):
            return PlainTextResponse("Log in first.", 401)
        return RedirectResponse("/login", 303)


def _name(host: str) -> str:
    """The host name of a Host header, without port and brackets."""
    return urlsplit(f"//{host}").hostname or ""


def _length(connection: HTTPConnection) -> str:
    length = connection.headers.get("content-length", "0")
    return length if length.isascii() and length.isdigit() else "0"


def _error(path: str, message: str, status: int) -> Response:
    if not path.startswith("/v1"):
        return PlainTextResponse(message, status)
    kind = "authentication_error" if status == 401 else "invalid_request_error"
    body = {"message": message, "type": kind, "param": None, "code": None}
    return JSONResponse({"error": body}, status)


class BodyTooLarge(Exception):
    """More bytes came than the API reads (a chunked body has no length to refuse by)."""


def _limited(receive: Receive, most: int) -> Receive:
    seen = 0

    async def limited() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > most:
            raise BodyTooLarge
        return message

    return limited


def _with_headers(send: Send, host: str, path: str) -> Send:
    policy = content_policy(host if HOST.match(host) else "")

    async def wrapped(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers["content-security-policy"] = policy
            headers["x-content-type-options"] = "nosniff"
            headers["x-frame-options"] = "DENY"
            headers["referrer-policy"] = (
                "same-origin"  # no-referrer would make the login form send Origin: null
            )
            headers["cross-origin-opener-policy"] = "same-origin"
            headers["cross-origin-resource-policy"] = "same-origin"
            headers["permissions-policy"] = "camera=(), microphone=(), geolocation=()"
            if not path.startswith("/static"):
                headers["cache-control"] = "no-store"
        await send(message)

    return wrapped


def content_policy(host: str) -> str:
    """The Content-Security-Policy; Streamlit needs inline styles, and evaluation for its charts."""
    sockets = f"ws://{host} wss://{host}" if host else ""
    return "; ".join(
        (
            "default-src 'self'",
            f"script-src 'self' 'unsafe-eval' {_inline_scripts()}",
            "style-src 'self' 'unsafe-inline'",
            "img-src 'self' data: blob:",
            "font-src 'self' data:",
            f"connect-src 'self' {sockets}",
            "media-src 'self' blob:",
            "worker-src 'self' blob:",
            "object-src 'none'",
            "frame-src 'self'",
            "frame-ancestors 'none'",
            "base-uri 'self'",
            "form-action 'self'",
        )
    )


@cache
def _inline_scripts() -> str:
    """The hashes of the scripts that stand in Streamlit's own page, so that no other inline script runs."""
    import streamlit

    page = (Path(streamlit.__file__).parent / "static" / "index.html").read_text("utf-8")
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digests = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    return " ".join(f"'sha256-{digest}'" for digest in digests)
