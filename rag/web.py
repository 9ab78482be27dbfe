"""Fetching from the web without being led astray: the only file that opens a connection to a foreign host.

Each hop resolves its name once, checks every address of it and connects to exactly the one that was checked
(certificate and SNI stay those of the name), so a name that changes its mind between two look-ups gains
nothing. Redirects are followed by hand through the same checks. No cookies, no credentials, no proxy.
Time and bytes are counted while they come in, whatever the headers promise.
"""

from __future__ import annotations

import re
import socket
import ssl
import threading
import time
import zlib
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import httpcore

from core.errors import DocumentError, first_line
from rag.addresses import Rules
from rag.urls import Url, join

USER_AGENT = "Understudy (self-hosted document search; fetches what its operator names)"
MAX_HOPS = 5
MAX_ADDRESSES = 4  # of one name that are tried in turn
CONNECT_SECONDS, IDLE_SECONDS, TOTAL_SECONDS = 10.0, 20.0, 60.0
OVERHEAD = 256 << 10  # bytes of headers, TLS and chunk marks beside the body
REDIRECTS = (301, 302, 303, 307, 308)

Resolve = Callable[[str, int, float], Sequence[str]]
"""Host, port and seconds to the host's addresses, as numbers (raises OSError)."""
May = Callable[[Url], bool]


class UnreachableError(DocumentError):
    """Nobody answered, or not to the end: it says nothing about whether the page is still there."""


@dataclass(frozen=True)
class Version:
    """What a server calls the version of a page it sent: ETag and Last-Modified, "" where it has none."""

    etag: str = ""
    modified: str = ""

    @property
    def headers(self) -> list[tuple[str, str]]:
        """The headers that ask for the page only if it is another version by now."""
        asked = (("If-None-Match", self.etag), ("If-Modified-Since", self.modified))
        return [(name, value) for name, value in asked if value]


@dataclass(frozen=True)
class Answer:
    """What a server said. `url` is the last one asked; `target` the redirect that `may` did not allow."""

    url: Url
    status: int
    media: str  # media type, lower case
    charset: str
    version: Version
    robots: str  # the X-Robots-Tag header
    data: bytes = b""
    target: Url | None = None


class Budget:
    """What one fetch may still take, counted over all its hops."""

    def __init__(self, seconds: float, size: int) -> None:
        self._until = time.monotonic() + seconds
        self._bytes = size

    def left(self, most: float) -> float:
        """Seconds for the next wait (raises UnreachableError when there are none)."""
        seconds = min(most, self._until - time.monotonic())
        if seconds <= 0:
            raise UnreachableError("The server took too long, so the page was given up.", "Try again later.")
        return seconds

    def spend(self, size: int) -> None:
        """Count bytes that came in (raises DocumentError when they are too many)."""
        self._bytes -= size
        if self._bytes < 0:
            raise DocumentError("The server sent more than a page may have.", "It was not read.")


class Fetcher:
    """Fetches addresses under rules. `resolve` and `network` are the look-up and the connector, for tests."""

    def __init__(
        self,
        rules: Rules,
        resolve: Resolve | None = None,
        network: httpcore.NetworkBackend | None = None,
        seconds: float = TOTAL_SECONDS,
    ) -> None:
        self.rules = rules
        self.received = 0  # bytes of bodies, decoded
        self._resolve = resolve or look_up
        self._network = network or httpcore.SyncBackend()
        self._seconds = seconds

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        # certificates are checked against the system's list, where an intranet's own authority stands too
        return ssl.create_default_context()

    def fetch(
        self,
        url: Url,
        limit: int,
        *,
        media: Collection[str] = (),
        may: May | None = None,
        known: Version | None = None,
    ) -> Answer:
        """The page, at most `limit` bytes of it, after redirects that `may` allows.

        The body of an answer that is no 200, or of none of the types `media` (where any are given), is not
        read. Raises UnreachableError when no whole answer came, DocumentError when the address or the answer
        is one that is not taken.
        """
        budget = Budget(self._seconds, 2 * limit + OVERHEAD)
        seen = {url}
        asked = known or Version()
        for _ in range(MAX_HOPS + 1):
            answer = self._once(url, limit, budget, media, asked)
            if answer.target is None or (may is not None and not may(answer.target)):
                return answer
            url, asked = answer.target, Version()
            if url in seen or answer.url.scheme > url.scheme:
                how = "in a circle" if url in seen else "from https to http"
                raise DocumentError(f"{answer.url} redirects {how}.", "Name the page it should lead to.")
            seen.add(url)
        raise DocumentError(f"{answer.url} is the end of {MAX_HOPS} redirects.", "Name the last one.")

    def _once(self, url: Url, limit: int, budget: Budget, media: Collection[str], known: Version) -> Answer:
        network = _Checked(self._addresses(url, budget), self._network, budget)
        origin = httpcore.Origin(url.scheme.encode(), url.host.encode(), url.port)
        place = httpcore.URL(
            scheme=url.scheme, host=url.host, port=url.port, target=url.target.encode("ascii")
        )
        headers = [
            ("Host", url.netloc),
            ("User-Agent", USER_AGENT),
            ("Accept", "text/html,application/xhtml+xml,application/pdf;q=0.9,*/*;q=0.5"),
            ("Accept-Encoding", "gzip"),
            ("Connection", "close"),
            *known.headers,
        ]
        try:
            tls = self._tls if url.scheme == "https" else None
            with (
                httpcore.HTTPConnection(origin, tls, network_backend=network) as connection,
                connection.stream("GET", place, headers=headers) as response,
            ):
                answer, encoding, length = _read_head(url, response)
                if answer.status != 200 or (media and answer.media not in media):
                    return answer
                if length > limit:
                    raise _too_large(url, limit)
                data = _body(url, response.iter_stream(), encoding, limit)
        except (httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError) as error:
            raise _unreachable(url, error) from error
        self.received += len(data)
        return replace(answer, data=data)

    def _addresses(self, url: Url, budget: Budget) -> list[str]:
        """The addresses of the host; one that is not allowed refuses them all."""
        self.rules.check_port(url)
        try:
            found = self._resolve(url.host, url.port, budget.left(CONNECT_SECONDS))
        except OSError as error:
            raise _unreachable(url, error) from error
        checked = [self.rules.check_address(url, address) for address in dict.fromkeys(found)]
        if not checked:
            raise UnreachableError(f"{url.host} has no address.", "Check its name.")
        return checked[:MAX_ADDRESSES]


def look_up(host: str, port: int, seconds: float) -> list[str]:
    """The host's addresses by the system's resolver, which itself knows no time limit."""
    found: list[Any] = []

    def ask() -> None:
        try:
            found.append(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG))
        except (OSError, UnicodeError) as error:
            found.append(error)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(seconds)
    if not found:
        raise TimeoutError("its name was not found in time")
    if isinstance(found[0], Exception):
        raise OSError(first_line(found[0])) from found[0]
    return [str(entry[4][0]) for entry in found[0]]


class _Checked(httpcore.NetworkBackend):
    """Connects to addresses that were checked, whatever name it is asked for."""

    def __init__(self, addresses: Sequence[str], network: httpcore.NetworkBackend, budget: Budget) -> None:
        self._addresses = addresses
        self._network = network
        self._budget = budget

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        """A metered connection to the first address that answers."""
        for number, address in enumerate(self._addresses, 1):
            try:
                inner = self._network.connect_tcp(address, port, self._budget.left(CONNECT_SECONDS))
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                if number == len(self._addresses):
                    raise
            else:
                return _Metered(inner, self._budget)
        raise AssertionError("a fetch has at least one address")


class _Metered(httpcore.NetworkStream):
    """A stream that counts: a server that sends a byte now and then does not hold us."""

    def __init__(self, inner: httpcore.NetworkStream, budget: Budget) -> None:
        self._inner = inner
        self._budget = budget

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        data = self._inner.read(max_bytes, self._budget.left(IDLE_SECONDS))
        self._budget.spend(len(data))
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._inner.write(buffer, self._budget.left(IDLE_SECONDS))

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        seconds = self._budget.left(CONNECT_SECONDS)
        return _Metered(self._inner.start_tls(ssl_context, server_hostname, seconds), self._budget)

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


def _read_head(url: Url, response: httpcore.Response) -> tuple[Answer, str, int]:
    """The answer without its body, the body's encoding, and the length that the server promises."""
    headers: dict[str, str] = {}
    for name, value in response.headers:
        key, text = name.decode("latin-1").lower(), value.decode("utf-8", "replace").strip()
        if key == "x-robots-tag" and key in headers:
            headers[key] += f",{text}"
        headers.setdefault(key, text)
    kind = headers.get("content-type", "")
    charset = re.search(r"charset\s*=\s*[\"']?([\w.:-]{1,40})", kind, re.IGNORECASE)
    location = headers.get("location", "") if response.status in REDIRECTS else ""
    version = Version(_line(headers.get("etag", "")), _line(headers.get("last-modified", "")))
    answer = Answer(
        url,
        response.status,
        kind.partition(";")[0].strip().lower(),
        charset.group(1).lower() if charset else "",
        version,
        headers.get("x-robots-tag", "").lower()[:500],
        target=join(url, location) if location else None,
    )
    promised = headers.get("content-length", "")
    length = int(promised) if re.fullmatch(r"[0-9]{1,15}", promised) else 0
    return answer, headers.get("content-encoding", "").lower(), length


def _line(value: str) -> str:
    """A header's value that can be sent back; "" for one that is odd."""
    return value if re.fullmatch(r"[\x21-\x7e][\x20-\x7e]{0,199}", value) else ""


def _body(url: Url, pieces: Iterable[bytes], encoding: str, limit: int) -> bytes:
    """The body, decompressed no further than `limit` bytes."""
    if encoding not in ("", "identity", "gzip", "x-gzip"):
        raise DocumentError(f"{url} comes in the encoding {encoding[:20]!a}, which was not asked for.")
    if "gzip" not in encoding:
        plain = bytearray()
        for piece in pieces:
            plain += piece
            if len(plain) > limit:
                raise _too_large(url, limit)
        return bytes(plain)
    data, whole = gunzip(pieces, limit)
    if len(data) > limit:
        raise _too_large(url, limit)
    if not whole:
        raise UnreachableError(f"{url} broke off in the middle.", "Try again later.")
    return data


def gunzip(pieces: Iterable[bytes], limit: int) -> tuple[bytes, bool]:
    """What gzip pieces hold, at most one byte more than `limit`, and whether they end as they should.

    Raises DocumentError for bytes that are not gzip.
    """
    stream = zlib.decompressobj(wbits=31)
    data = bytearray()
    try:
        for piece in pieces:
            data += stream.decompress(piece, limit + 1 - len(data))
            if len(data) > limit:
                break
    except zlib.error as error:
        raise DocumentError(f"The page is broken gzip: {first_line(error)}.", "Try again later.") from error
    return bytes(data), stream.eof


def _too_large(url: Url, limit: int) -> DocumentError:
    return DocumentError(
        f"{url} has more than {limit / (1 << 20):.3g} MB.", "Raise the setting upload_mb if it is wanted."
    )


def _unreachable(url: Url, error: Exception) -> UnreachableError:
    return UnreachableError(
        f"{url.netloc} could not be reached: {first_line(error)}.", "Check the address and the network."
    )
