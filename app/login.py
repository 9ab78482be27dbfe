"""The password: a login form, a signed cookie, the API's bearer key, and a limit on wrong tries.

It stands in front of everything else (see `app.guard`): before it is given, neither a page nor a socket nor
an upload is reached. The cookie holds an expiry time and its HMAC-SHA256 under a key made of the
installation's secret and the password, so changing the password ends every session.
"""

from __future__ import annotations

import hashlib
import hmac
import html
import threading
import time
from collections import deque

from starlette.concurrency import run_in_threadpool
from starlette.requests import HTTPConnection, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from core.settings import Settings, engine_key

COOKIE = "understudy_session"
SESSION_S = 12 * 3600
WINDOW_S = 15 * 60
TRIES = 5  # of one address in the window
TRIES_OF_ALL = 20
LONGEST = 1024  # of a password; a form of megabytes is not read


class Throttle:
    """Counts wrong tries in a sliding window, for each address and for all together."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wrong: deque[tuple[float, str]] = deque()

    def allows(self, address: str) -> bool:
        """Whether this address may try now."""
        with self._lock:
            since = time.monotonic() - WINDOW_S
            while self._wrong and self._wrong[0][0] < since:
                self._wrong.popleft()
            mine = sum(1 for _, other in self._wrong if other == address)
            return mine < TRIES and len(self._wrong) < TRIES_OF_ALL

    def wrong(self, address: str) -> None:
        """Note a wrong try."""
        with self._lock:
            self._wrong.append((time.monotonic(), address))


class Login:
    """Checks and grants access. Without a password everybody who reaches the loopback address is in."""

    def __init__(self, settings: Settings) -> None:
        self.required = bool(settings.password)
        self._password = settings.password.encode()
        self._key = hashlib.sha256(f"{engine_key(settings)}\0{settings.password}".encode()).digest()
        self.throttle = Throttle()

    def knows(self, connection: HTTPConnection) -> bool:
        """Whether the connection carries a valid cookie, or a bearer key that is the password."""
        if not self.required or self._valid(connection.cookies.get(COOKIE, "")):
            return True
        scheme, _, key = connection.headers.get("authorization", "").partition(" ")
        return scheme.lower() == "bearer" and self.check(key, address_of(connection))

    def check(self, password: str, address: str) -> bool:
        """Compare in constant time; a blocked address is refused without comparing."""
        if not self.throttle.allows(address):
            return False
        if hmac.compare_digest(password.strip().encode(), self._password):
            return True
        self.throttle.wrong(address)
        return False

    def token(self) -> str:
        """A fresh cookie value."""
        expires = str(int(time.time()) + SESSION_S)
        return f"{expires}.{self._signature(expires)}"

    def _valid(self, token: str) -> bool:
        expires, _, signature = token.partition(".")
        if not expires.isascii() or not expires.isdigit():
            return False
        known = hmac.compare_digest(signature.encode(), self._signature(expires).encode())
        return known and int(expires) > time.time()

    def _signature(self, expires: str) -> str:
        return hmac.new(self._key, expires.encode(), hashlib.sha256).hexdigest()

    def routes(self) -> list[Route]:
        """`/login` (form and its answer) and `/logout`."""
        return [
            Route("/login", self._form, methods=["GET"]),
            Route("/login", self._enter, methods=["POST"]),
            Route("/logout", self._leave, methods=["GET", "POST"]),
        ]

    async def _form(self, request: Request) -> Response:
        return HTMLResponse(page()) if self.required else RedirectResponse("/")

    async def _enter(self, request: Request) -> Response:
        async with request.form(max_files=0, max_fields=2, max_part_size=LONGEST) as form:
            password = str(form.get("password", ""))[:LONGEST]
        address = address_of(request)
        if await run_in_threadpool(self.check, password, address):
            response = RedirectResponse("/", status_code=303)
            response.set_cookie(
                COOKIE,
                self.token(),
                max_age=SESSION_S,
                httponly=True,
                samesite="strict",
                secure=request.url.scheme == "https",
            )
            return response
        if self.throttle.allows(address):
            return HTMLResponse(page("That is not the password."), status_code=401)
        return HTMLResponse(page("Too many wrong tries. Wait 15 minutes, then try again."), status_code=429)

    async def _leave(self, request: Request) -> Response:
        response = RedirectResponse("/login" if self.required else "/", status_code=303)
        response.delete_cookie(COOKIE)
        return response


def address_of(connection: HTTPConnection) -> str:
    """The peer's address."""
    return connection.client.host if connection.client else "unknown"


def page(message: str = "") -> str:
    """The login form, with a message."""
    note = f'<p role="alert">{html.escape(message)}</p>' if message else ""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Understudy</title><style>
body{{font:16px/1.5 system-ui,sans-serif;background:#f7f5f2;color:#22201d;display:grid;place-items:center;
min-height:100vh;margin:0}}
main{{background:#fff;border:1px solid #e2ddd6;border-radius:12px;padding:2rem;width:min(22rem,86vw)}}
h1{{font-size:1.3rem;margin:0 0 1rem}}label{{display:block;margin-bottom:.3rem}}
input,button{{font:inherit;width:100%;box-sizing:border-box;padding:.6rem;border-radius:8px;
border:1px solid #8a8378}}
button{{margin-top:1rem;background:#2f5d50;border-color:#2f5d50;color:#fff;cursor:pointer}}
p{{color:#9b2c1f;margin:0 0 1rem}}
</style></head><body><main><h1>Understudy</h1>{note}
<form method="post" action="/login"><label for="password">Password</label>
<input id="password" name="password" type="password" autocomplete="current-password" autofocus required>
<button type="submit">Log in</button></form></main></body></html>"""
