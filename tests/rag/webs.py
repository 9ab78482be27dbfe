"""Web servers for tests: one on loopback that answers from a table, and networks that only note who calls."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpcore

from rag.addresses import Rules
from rag.web import Fetcher

PUBLIC = "93.184.216.34"
Headers = dict[str, str]


@dataclass
class Reply:
    """What the table says of a path."""

    body: bytes = b""
    status: int = 200
    headers: Headers = field(default_factory=dict)


def page(title: str, body: str = "", *links: str, head: str = "") -> Reply:
    """An HTML page with links."""
    anchors = " ".join(f'<a href="{link}">to {link}</a>' for link in links)
    text = f"<html><head><title>{title}</title>{head}</head><body><h1>{title}</h1><p>{body}</p>"
    return Reply(f"{text}<nav>{anchors}</nav></body></html>".encode(), headers={"Content-Type": "text/html"})


class Web:
    """A server on loopback; `asked` lists the paths that were requested, `seen` their headers."""

    def __init__(self) -> None:
        self.table: dict[str, Reply | Callable[[BaseHTTPRequestHandler], None]] = {}
        self.asked: list[str] = []
        self.seen: list[Headers] = []
        self.hook: Callable[[str], None] = lambda path: None
        web = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                web.asked.append(self.path)
                web.seen.append({name.lower(): value for name, value in self.headers.items()})
                web.hook(self.path)
                web.answer(self)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        self.address = f"http://127.0.0.1:{self.port}"
        self.rules = Rules(frozenset({f"127.0.0.1:{self.port}"}))
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        reply = self.table.get(request.path, Reply(b"no such page", 404))
        if not isinstance(reply, Reply):
            reply(request)
            return
        body, headers = reply.body, dict(reply.headers)
        etag = headers.get("ETag")
        if etag and request.headers.get("If-None-Match") == etag:
            request.send_response(304)
            request.end_headers()
            return
        if headers.get("Content-Encoding") == "gzip":
            body = gzip.compress(body)
        request.send_response(reply.status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            request.send_header(name, value)
        request.end_headers()
        with suppress(OSError):  # whoever asked has left
            request.wfile.write(body)

    def fetcher(self, seconds: float = 20.0) -> Fetcher:
        """A fetcher that may ask this server."""
        return Fetcher(self.rules, seconds=seconds)

    def pages(self) -> list[str]:
        """The paths asked for since the last time, without robots.txt and sitemaps."""
        asked = [path for path in self.asked if path not in ("/robots.txt", "/sitemap.xml")]
        self.asked.clear()
        return asked


@contextmanager
def serving() -> Iterator[Web]:
    """A server for the time of a test."""
    web = Web()
    try:
        yield web
    finally:
        web.server.shutdown()
        web.server.server_close()


class Noted(httpcore.NetworkBackend):
    """A network that notes who was called; each connection answers with the next of `replies`."""

    def __init__(self, *replies: bytes) -> None:
        self.called: list[tuple[str, int]] = []
        self._replies = list(replies)

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        self.called.append((host, port))
        if not self._replies:
            raise httpcore.ConnectError("nobody there")
        return httpcore.MockStream([self._replies.pop(0), b""])


def redirect(location: str, status: int = 302) -> bytes:
    """A redirect as bytes on the wire."""
    return f"HTTP/1.1 {status} Moved\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode()
