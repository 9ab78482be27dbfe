"""Web addresses: one strict parser and one canonical form.

Nothing downstream parses an address again; the connection gets the very host and port that were checked. Two
parsers that disagree about the host are how forged requests got through elsewhere (CVE-2026-45400).
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import quote, unquote, urljoin

from core.errors import DocumentError

LONGEST = 2_000  # characters
PORTS = {"http": 80, "https": 443}

_SHAPE = re.compile(r"(https?)://([^/?#]*)([^?#]*)(?:\?([^#]*))?(?:#.*)?", re.IGNORECASE | re.DOTALL)
_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\s:\[\]@%\\]+)(?::([0-9]{1,5}))?")
_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")
# a host whose last label is a number is an IPv4 address to some resolvers, in decimal, octal or hex
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_FORBIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\\\\]")
_TRIPLET = re.compile("%([0-9A-Fa-f]{2})")
_UNRESERVED = re.compile(r"[A-Za-z0-9._~-]")
# parameters that name the visit, not the page
_TRACKING = re.compile(
    r"utm_\w+|fbclid|gclid|dclid|msclkid|yclid|igshid|mc_[ce]id|_g[al]|phpsessid|jsessionid", re.IGNORECASE
)
_SESSION = re.compile(r";jsessionid=[^/;]*", re.IGNORECASE)


@dataclass(frozen=True)
class Url:
    """A checked address in its canonical form: ASCII, without user, fragment and tracking parameters.

    `host` is a name or an address without brackets, lower case; `target` is what the request line says.
    """

    scheme: str
    host: str
    port: int
    target: str

    @property
    def netloc(self) -> str:
        """Host as the Host header says it: with brackets, and with the port where it is not the usual one."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def origin(self) -> str:
        """Scheme, host and port."""
        return f"{self.scheme}://{self.netloc}"

    @property
    def path(self) -> str:
        """The path without the query."""
        return self.target.partition("?")[0]

    @property
    def folder(self) -> str:
        """The path up to its last slash."""
        return self.path[: self.path.rindex("/") + 1]

    @property
    def filename(self) -> str:
        """The last part of the path, decoded; "" when the path ends with a slash."""
        return unquote(self.path.rpartition("/")[2], errors="replace")

    def __str__(self) -> str:
        return self.origin + self.target


def parse_url(text: str) -> Url:
    """The address in its canonical form (raises DocumentError unless it is plain http or https)."""
    text = text.strip()
    shape = _SHAPE.fullmatch(text)
    if len(text) > LONGEST or shape is None or _FORBIDDEN.search(text):
        raise _refusal(text, "it is not a plain http or https address")
    scheme, authority, path, query = shape.groups()
    if "@" in authority:
        raise _refusal(authority.rpartition("@")[2], "it holds a user name")
    place = _AUTHORITY.fullmatch(authority)
    port = int(place.group(2) or PORTS[scheme.lower()]) if place else 0
    if place is None or not 0 < port < 65_536:
        raise _refusal(text, "its host or port is malformed")
    target = _path(path) + _query(query or "")
    return Url(scheme.lower(), _host(place.group(1)), port, target)


def join(base: Url, link: str) -> Url:
    """The address that `link` means on the page `base` (raises DocumentError as `parse_url`)."""
    try:
        return parse_url(urljoin(str(base), link.strip()))
    except ValueError as error:
        raise _refusal(link, "it is malformed") from error


def _refusal(text: str, why: str) -> DocumentError:
    shown = ascii(text[:100])[1:-1]
    return DocumentError(f"{shown} cannot be fetched: {why}.", "Give an address like https://example.org/.")


def _host(text: str) -> str:
    if text.startswith("["):
        try:
            return ipaddress.IPv6Address(text[1:-1]).compressed
        except ValueError as error:
            raise _refusal(text, "its host is malformed") from error
    host = _ascii(text.lower()).removesuffix(".")
    labels = host.split(".")
    if len(host) > 253 or not all(map(_LABEL.fullmatch, labels)):
        raise _refusal(text, "its host is malformed")
    if _NUMBER.fullmatch(labels[-1]):
        try:
            return str(ipaddress.IPv4Address(host))  # four decimal numbers, no leading zeros
        except ValueError as error:
            raise _refusal(text, "its host is a number") from error
    return host


def _ascii(host: str) -> str:
    """An international name as DNS knows it (IDNA 2008, which has no full-width or circled digits)."""
    if host.isascii():
        return host
    import idna

    try:
        return idna.encode(host).decode("ascii")
    except (idna.IDNAError, UnicodeError) as error:
        raise _refusal(host, "its host is malformed") from error


def _path(path: str) -> str:
    """Percent-encoded alike, without dot segments (RFC 3986, 5.2.4 and 6.2.2)."""
    kept: list[str] = []
    for part in _SESSION.sub("", encoded(path)).split("/")[1:]:
        if part == "..":
            kept[-1:] = []
        elif part != ".":
            kept.append(part)
    ends_open = path.endswith(("/", "/.", "/..")) and kept[-1:] != [""]
    return "/" + "/".join([*kept, ""] if ends_open and kept else kept)


def _query(query: str) -> str:
    parts = [part for part in encoded(query).split("&") if part]
    kept = [part for part in parts if not _TRACKING.fullmatch(part.partition("=")[0])]
    return f"?{'&'.join(kept)}" if kept else ""


def encoded(text: str) -> str:
    """Percent-encoded where it must be, and nowhere else."""
    text = re.sub("%(?![0-9A-Fa-f]{2})", "%25", text)
    text = quote(text.encode("utf-8", "replace"), safe="/%:@!$&'()*+,;=~?-._")
    return _TRIPLET.sub(_plain_or_upper, text)


def _plain_or_upper(match: re.Match[str]) -> str:
    char = chr(int(match.group(1), 16))
    return char if _UNRESERVED.fullmatch(char) else match.group().upper()
