"""Answers that lie, never end or come drop by drop: none costs more than its limits; each is one sentence."""

from __future__ import annotations

import gzip
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler

import pytest

from core.errors import DocumentError
from rag.addresses import Rules
from rag.urls import parse_url
from rag.web import Fetcher, UnreachableError, Version, look_up
from tests.rag.webs import PUBLIC, Noted, Reply, Web

LIMIT = 100_000


@pytest.mark.parametrize("encoding", ["", "gzip"])
def test_a_body_is_read_to_the_limit_and_no_further(web: Web, encoding: str) -> None:
    headers = {"Content-Encoding": encoding} if encoding else {}
    web.table["/fits"] = Reply(b"x" * LIMIT, headers=headers)
    web.table["/more"] = Reply(b"x" * (LIMIT + 1), headers=headers)
    assert len(web.fetcher().fetch(parse_url(f"{web.address}/fits"), LIMIT).data) == LIMIT
    with pytest.raises(DocumentError, match="more than"):
        web.fetcher().fetch(parse_url(f"{web.address}/more"), LIMIT)


def test_a_gzip_bomb_costs_no_more_than_the_limit(web: Web) -> None:
    import tracemalloc

    bomb = gzip.compress(bytes(200 << 20))
    assert len(bomb) < 300_000
    web.table["/"] = lambda request: raw(request, b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n" + bomb)
    tracemalloc.start()
    with pytest.raises(DocumentError, match="more than"):
        web.fetcher().fetch(parse_url(f"{web.address}/"), 1 << 20)
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


def raw(request: BaseHTTPRequestHandler, *pieces: bytes, pause: float = 0.0) -> None:
    """Bytes on the wire, then the end of the connection."""
    try:
        for piece in pieces:
            request.wfile.write(piece)
            request.wfile.flush()
            time.sleep(pause)
    except OSError:
        pass
    request.close_connection = True


OK = b"HTTP/1.1 200 OK\r\n"
BROKEN = {
    "nothing": [],
    "no http": [b"SSH-2.0-OpenSSH_9.2\r\n"],
    "half a head": [OK + b"Content-Length: 5\r\n"],
    "promises more": [OK + b"Content-Length: 50000\r\n\r\nshort"],
    "negative length": [OK + b"Content-Length: -5\r\n\r\nshort"],
    "two lengths": [OK + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nshort"],
    "no number": [OK + b"Content-Length: five\r\n\r\nshort"],
    "half a chunk": [OK + b"Transfer-Encoding: chunked\r\n\r\n10\r\nabc"],
    "broken chunk": [OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nabc"],
    "endless head": [OK, *[b"X-A: " + b"a" * 1000 + b"\r\n"] * 500],
    "broken gzip": [OK + b"Content-Encoding: gzip\r\nContent-Length: 5\r\n\r\nshort"],
    "half a gzip": [OK + b"Content-Encoding: gzip\r\n\r\n" + gzip.compress(b"x" * 5000)[:20]],
    "unasked encoding": [OK + b"Content-Encoding: br\r\nContent-Length: 5\r\n\r\nshort"],
    "encoded twice": [OK + b"Content-Encoding: gzip, gzip\r\nContent-Length: 5\r\n\r\nshort"],
    "empty redirect to nowhere": [b"HTTP/1.1 302 Found\r\nLocation: http://[\r\n\r\n"],
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_answer_is_one_sentence(web: Web, name: str) -> None:
    web.table["/"] = lambda request: raw(request, *BROKEN[name])
    with pytest.raises(DocumentError) as caught:
        web.fetcher().fetch(parse_url(f"{web.address}/"), LIMIT)
    assert "\n" not in str(caught.value)


def test_more_than_the_length_says_is_not_read(web: Web) -> None:
    web.table["/"] = lambda request: raw(request, OK + b"Content-Length: 5\r\n\r\nshort and more")
    assert web.fetcher().fetch(parse_url(f"{web.address}/"), LIMIT).data == b"short"


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (OK + b"\r\n", b"x" * 10_000),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n" * 1000),
        (OK + b"Content-Length: 100\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n" * 1000),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100),
    ],
)
def test_a_body_without_end_is_left(web: Web, head: bytes, piece: bytes) -> None:
    web.table["/"] = lambda request: raw(request, head, *[piece] * 5000)
    began = time.monotonic()
    with pytest.raises(DocumentError):
        web.fetcher(5.0).fetch(parse_url(f"{web.address}/"), LIMIT)
    assert time.monotonic() - began < 8


@pytest.mark.parametrize(
    ("head", "piece"), [(OK + b"\r\n", b"x"), (OK, b"X-A: b\r\n"), (b"", b"H"), (b"", b"")]
)
def test_a_slow_server_is_left(web: Web, head: bytes, piece: bytes) -> None:
    """A byte now and then keeps every single read short; the whole is what counts."""
    web.table["/"] = lambda request: raw(request, head, *[piece] * 100, pause=0.1)
    began = time.monotonic()
    with pytest.raises(DocumentError):
        web.fetcher(1.0).fetch(parse_url(f"{web.address}/"), LIMIT)
    assert time.monotonic() - began < 3


def test_slow_redirects_share_one_time(web: Web) -> None:
    web.table |= {f"/{n}": Reply(b"", 302, {"Location": f"/{n + 1}"}) for n in range(9)}
    web.hook = lambda path: time.sleep(0.4)
    with pytest.raises(UnreachableError):
        web.fetcher(1.0).fetch(parse_url(f"{web.address}/0"), LIMIT)


def test_a_slow_lookup_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: released.wait(10))
    began = time.monotonic()
    with pytest.raises(OSError, match="not found in time"):
        look_up("example.org", 80, 0.2)
    assert time.monotonic() - began < 2
    released.set()


def test_unwanted_types_and_errors_are_not_read(web: Web) -> None:
    web.table["/film"] = Reply(b"x" * 5000, headers={"Content-Type": "video/mp4"})
    web.table["/gone"] = Reply(b"x" * 5000, 404, {"Content-Type": "text/html"})
    for path, status in (("/film", 200), ("/gone", 404)):
        answer = web.fetcher().fetch(parse_url(web.address + path), LIMIT, media=["text/html"])
        assert (answer.status, answer.data) == (status, b"")


def test_an_unchanged_page_is_not_sent_again(web: Web) -> None:
    web.table["/"] = Reply(
        b"text", headers={"ETag": '"one"', "Last-Modified": "Mon, 02 Jan 2023 03:04:05 GMT"}
    )
    first = web.fetcher().fetch(parse_url(f"{web.address}/"), LIMIT)
    assert first.version == Version('"one"', "Mon, 02 Jan 2023 03:04:05 GMT")
    again = web.fetcher().fetch(parse_url(f"{web.address}/"), LIMIT, known=first.version)
    assert (again.status, again.data) == (304, b"")
    assert web.seen[-1]["if-modified-since"] == "Mon, 02 Jan 2023 03:04:05 GMT"


def test_a_version_cannot_smuggle_headers(web: Web) -> None:
    web.table["/"] = lambda request: raw(request, OK + b"ETag: a\xff\x01b\r\nContent-Length: 0\r\n\r\n")
    assert web.fetcher().fetch(parse_url(f"{web.address}/"), LIMIT).version == Version()


def test_nobody_at_home() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    fetcher = Fetcher(Rules(frozenset({f"127.0.0.1:{port}"})))
    with pytest.raises(UnreachableError, match="could not be reached"):
        fetcher.fetch(parse_url(f"http://127.0.0.1:{port}/"), LIMIT)


def test_the_next_address_is_tried() -> None:
    network = Noted()
    with pytest.raises(UnreachableError):
        Fetcher(Rules(), lambda *_: [PUBLIC, "1.1.1.1"], network).fetch(parse_url("http://a.example/"), LIMIT)
    assert network.called == [(PUBLIC, 80), ("1.1.1.1", 80)]
