"""Row D05: no address, look-up or redirect leads the fetcher to a host inside; nothing holds it."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import DocumentError
from rag.addresses import Rules
from rag.urls import parse_url
from rag.web import Fetcher, UnreachableError
from tests.rag.webs import PUBLIC, Noted, Reply, Web, redirect

LIMIT = 100_000


# addresses that lead inside by what they say; every name resolves to a public address here
HOSTILE_URLS = r"""
http://127.0.0.1/
http://127.0.0.1./
http://127.1.2.3/
http://127.1/
http://127.0.1/
http://2130706433/
http://2130706433./
http://017700000001/
http://0177.0.0.1/
http://0177.0.0.01/
http://0x7f000001/
http://0x7f.0.0.1/
http://0X7F.1/
http://127.0.0.0x1/
http://0/
http://0.0.0.0/
http://00000000.0/
http://4294967295/
http://[::1]/
http://[::]/
http://[0:0:0:0:0:0:0:1]/
http://[::ffff:127.0.0.1]/
http://[::ffff:7f00:1]/
http://[0:0:0:0:0:ffff:127.0.0.1]/
http://[::127.0.0.1]/
http://[64:ff9b::127.0.0.1]/
http://[64:ff9b::a9fe:a9fe]/
http://[2002:7f00:1::]/
http://[2001:0:7f00:1::1]/
http://[fe80::1]/
http://[fe80::1%25eth0]/
http://[fe80::1%eth0]/
http://[fc00::1]/
http://[fd00:ec2::254]/latest/meta-data/
http://[ff02::1]/
http://169.254.169.254/latest/meta-data/
http://169.254.169.254./
http://2852039166/
http://0xa9fea9fe/
http://0251.0376.0251.0376/
http://[::ffff:169.254.169.254]/
http://100.100.100.200/
http://168.63.129.16/
http://192.0.0.192/
http://10.0.0.1/
http://172.16.0.1/
http://192.168.1.1/
http://100.64.0.1/
http://198.18.0.1/
http://224.0.0.1/
http://255.255.255.255/
http://①②⑦.⓪.⓪.①/
http://１２７.０.０.１/
http://127。0。0。1/
http://127．0．0．1/
http://127｡0｡0｡1/
http://１２７．１/
http://١٢٧.0.0.1/
http://example.org@127.0.0.1/
http://user:secret@example.org/
http://127.0.0.1@example.org/
http://example.org:80@127.0.0.1/
http://@127.0.0.1/
http://example.org\@127.0.0.1/
http://127.0.0.1\@example.org/
http://example.org%40127.0.0.1/
http://127.0.0.1%2f.example.org/
http://127.0.0.1%00.example.org/
http://example.org:22/
http://example.org:8401/
http://example.org:443/
https://example.org:80/
http://example.org:0/
http://example.org:65536/
http://example.org:/
http://example.org:８０/
http://example.org:80:80/
http://exam ple.org/
http://exa\tmple.org/
http://exa\rmple.org/
http://exa\nmple.org/
http:/127.0.0.1/
http:///127.0.0.1/
http:127.0.0.1
//127.0.0.1/
http://
http://./
http://..example.org/
http://-x.example.org/
http://[::1/
http://::1/
http://[127.0.0.1]/
http://[v1.fe80]/
file:///etc/passwd
ftp://example.org/
gopher://example.org:70/_x
dict://example.org:11211/
ldap://example.org/
jar:http://example.org/!/
javascript:alert(1)
data:text/html,x
unix:///var/run/docker.sock
httpx://example.org/
http+unix://example.org/
view-source:http://127.0.0.1/
""".strip().splitlines()


def as_a_system_reads(host: str) -> str:
    """Numbers as a system's resolver reads them, decimal and octal too; every name is public."""
    try:
        return socket.inet_ntoa(socket.inet_aton(host))
    except OSError:
        return host if ":" in host else PUBLIC


def refused(fetcher: Fetcher, text: str) -> None:
    with pytest.raises(DocumentError) as caught:
        fetcher.fetch(parse_url(text), LIMIT)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_the_table_is_long_enough() -> None:
    assert len(set(HOSTILE_URLS)) >= 80


@pytest.mark.parametrize("text", HOSTILE_URLS)
def test_a_hostile_address_makes_no_connection(text: str) -> None:
    network = Noted()
    text = text.replace("\\t", "\t").replace("\\r", "\r").replace("\\n", "\n")
    refused(Fetcher(Rules(), lambda host, *_: [as_a_system_reads(host)], network), text)
    assert network.called == []


PIECES = [
    *("http://", "https://", "http:", "//", "/", "\\", "@", ":", "#", "?", ".", "%", "[", "]", " ", "\t"),
    *("127.0.0.1", "127.1", "2130706433", "0x7f", "::1", "[::1]", "::ffff:127.0.0.1", "169.254.169.254"),
    *("localhost", "example.org", "inside.example", "%2e", "%00", "%2f", "%40", "。", "①", "٠", "0"),
    *(":80", ":443", ":22"),
]
INSIDE = {"inside.example": "10.0.0.1", "localhost": "127.0.0.1"}
WATCHED = Noted()
WARY = Fetcher(Rules(), lambda host, *_: [INSIDE.get(host) or as_a_system_reads(host)], WATCHED)


@given(st.lists(st.sampled_from(PIECES), min_size=1, max_size=8).map("".join))
@settings(max_examples=300, deadline=None)
def test_no_mixture_of_hosts_calls_anything_inside(text: str) -> None:
    """Whatever the mixture names, only what the look-up called public is called, and nothing else."""
    with suppress(DocumentError):
        WARY.fetch(parse_url("http://" + text if ":" not in text else text), LIMIT)
    assert {address for address, _ in WATCHED.called} <= {PUBLIC}


@pytest.mark.parametrize("name", ["localhost", "ip6-localhost", "ip6-loopback", socket.gethostname()])
def test_this_machine_s_own_names_are_refused(name: str) -> None:
    network = Noted()
    with pytest.raises(DocumentError):
        Fetcher(Rules(), None, network).fetch(parse_url(f"http://{name}/"), LIMIT)
    assert network.called == []


# what a name's look-up says: one bad address among good ones refuses them all
HOSTILE_LOOKUPS: list[list[str]] = [
    ["127.0.0.1"],
    ["10.1.2.3"],
    ["192.168.0.10"],
    ["172.20.0.5"],
    ["169.254.169.254"],
    ["100.64.3.2"],
    ["0.0.0.0"],
    ["224.0.0.251"],
    ["255.255.255.255"],
    ["::1"],
    ["::"],
    ["::ffff:10.0.0.1"],
    ["::ffff:93.184.216.34"],
    ["fe80::1%eth0"],
    ["fe80::1"],
    ["fd12:3456::1"],
    ["64:ff9b::a00:1"],
    ["2002:a00:1::1"],
    ["2001::a00:1"],
    [PUBLIC, "127.0.0.1"],
    ["127.0.0.1", PUBLIC],
    [PUBLIC, "::1"],
    ["2606:4700::1111", "fd00::1"],
    [PUBLIC] * 5 + ["10.0.0.1"],
    ["0x7f000001"],
    ["127.1"],
    ["example.org"],
    [""],
    [],
]


@pytest.mark.parametrize("addresses", HOSTILE_LOOKUPS, ids=lambda found: ",".join(found) or "none")
def test_a_name_that_resolves_inside_makes_no_connection(addresses: list[str]) -> None:
    network = Noted()
    refused(Fetcher(Rules(), lambda *_: addresses, network), "https://example.org/")
    assert network.called == []


class Rebinding:
    """Answers the first look-up with a public address, every later one with a private one."""

    def __init__(self, *then: str) -> None:
        self.asked = 0
        self.then = then

    def __call__(self, host: str, port: int, seconds: float) -> Sequence[str]:
        self.asked += 1
        return [PUBLIC] if self.asked == 1 else list(self.then)


def test_a_name_is_looked_up_once_and_that_address_is_called() -> None:
    resolve, network = Rebinding("127.0.0.1"), Noted(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
    assert Fetcher(Rules(), resolve, network).fetch(parse_url("http://example.org/"), LIMIT).data == b"hi"
    assert resolve.asked == 1
    assert network.called == [(PUBLIC, 80)]


@pytest.mark.parametrize("address", ["127.0.0.1", "169.254.169.254", "::1", "10.0.0.1"])
def test_a_name_that_changes_its_mind_is_checked_at_every_hop(address: str) -> None:
    network = Noted(redirect("/next"), redirect("/last"))
    refused(Fetcher(Rules(), Rebinding(address), network), "http://example.org/")
    assert network.called == [(PUBLIC, 80)]


REDIRECTS = r"""
http://127.0.0.1/
http://169.254.169.254/latest/meta-data/
http://2130706433/
http://0x7f.1/
http://[::1]/
http://[::ffff:169.254.169.254]/
//127.0.0.1/
//user@127.0.0.1/
http://user:pass@example.org/
http://example.org:8401/
http://inside.example/
https://inside.example/
//inside.example/
file:///etc/passwd
ftp://example.org/
javascript:alert(1)
http://①②⑦.0.0.1/
http:\\127.0.0.1\
http://exa mple.org/
http://127.0.0.1%2f@example.org/
""".strip().splitlines()


@pytest.mark.parametrize("status", [301, 307])
@pytest.mark.parametrize("location", REDIRECTS)
def test_a_redirect_leads_nowhere_inside(location: str, status: int) -> None:
    def resolve(host: str, port: int, seconds: float) -> list[str]:
        return ["10.0.0.1"] if host == "inside.example" else [PUBLIC if host[0].isalpha() else host]

    network = Noted(redirect(location, status))
    refused(Fetcher(Rules(), resolve, network), "http://example.org/")
    assert network.called == [(PUBLIC, 80)]


def test_the_environment_names_no_proxy(monkeypatch: pytest.MonkeyPatch, web: Web) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    web.table["/"] = Reply(b"straight")
    assert web.fetcher().fetch(parse_url(f"{web.address}/"), LIMIT).data == b"straight"


def test_a_request_is_honest_and_carries_nothing(web: Web) -> None:
    web.table["/"] = Reply(b"", 302, {"Location": "/b", "Set-Cookie": "a=b"})
    web.table["/b"] = Reply(b"done", headers={"Content-Type": "text/plain; charset=latin-1"})
    answer = web.fetcher().fetch(parse_url(f"{web.address}/"), LIMIT)
    assert (str(answer.url), answer.media, answer.charset) == (f"{web.address}/b", "text/plain", "latin-1")
    for headers in web.seen:
        assert headers["user-agent"].startswith("Understudy")
        assert headers["host"] == f"127.0.0.1:{web.port}"
        assert not {"cookie", "authorization", "referer"} & set(headers)


def test_redirects_end(web: Web) -> None:
    web.table |= {f"/{n}": Reply(b"", 302, {"Location": f"/{n + 1}"}) for n in range(50)}
    web.table["/round"] = Reply(b"", 302, {"Location": "/about"})
    web.table["/about"] = Reply(b"", 302, {"Location": "/round"})
    web.table["/self"] = Reply(b"", 302, {"Location": "/self"})
    with pytest.raises(DocumentError, match="the end of 5 redirects"):
        web.fetcher().fetch(parse_url(f"{web.address}/0"), LIMIT)
    assert len(web.pages()) == 6
    for path in ("/round", "/self"):
        with pytest.raises(DocumentError, match="in a circle"):
            web.fetcher().fetch(parse_url(web.address + path), LIMIT)
    assert len(web.pages()) == 3


def test_https_does_not_lead_to_http() -> None:
    fetcher = Fetcher(Rules(), lambda *_: [PUBLIC], Noted(redirect("http://example.org/")))
    with pytest.raises(DocumentError, match="from https to http"):
        fetcher.fetch(parse_url("https://example.org/"), LIMIT)


def test_a_redirect_that_is_not_allowed_is_not_followed(web: Web) -> None:
    web.table["/"] = Reply(b"", 301, {"Location": "/private"})
    answer = web.fetcher().fetch(parse_url(f"{web.address}/"), LIMIT, may=lambda url: url.path != "/private")
    assert (answer.status, answer.data, str(answer.target)) == (301, b"", f"{web.address}/private")
    assert web.pages() == ["/"]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and a certificate of its own for wiki.test."""
    file = tmp_path_factory.mktemp("tls") / "both.pem"
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    subprocess.run(
        [
            *(
                "openssl",
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:prime256v1",
                "-nodes",
            ),
            *("-days", "2", "-subj", "/CN=wiki.test", "-addext", "subjectAltName=DNS:wiki.test"),
            *("-keyout", str(file), "-out", f"{file}.crt"),
        ],
        check=True,
        capture_output=True,
    )
    file.write_text(file.read_text() + Path(f"{file}.crt").read_text())
    return file


def test_a_certificate_is_checked_for_the_name_and_not_for_the_address(
    web: Web, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str | None] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    context.sni_callback = lambda _socket, name, _context: asked.append(name)
    web.server.socket = context.wrap_socket(web.server.socket, server_side=True)
    web.table["/"] = Reply(b"secret page")
    rules = Rules(frozenset({f"wiki.test:{web.port}", f"other.test:{web.port}"}))

    def get(host: str) -> bytes:
        fetcher = Fetcher(rules, lambda *_: ["127.0.0.1"])
        return fetcher.fetch(parse_url(f"https://{host}:{web.port}/"), LIMIT).data

    with pytest.raises(UnreachableError, match="certificate"):
        get("wiki.test")  # nobody vouches for it
    monkeypatch.setenv("SSL_CERT_FILE", f"{certificate}.crt")
    assert get("wiki.test") == b"secret page"
    assert web.seen[-1]["host"] == f"wiki.test:{web.port}"
    with pytest.raises(UnreachableError, match="certificate"):
        get("other.test")
    assert asked == ["wiki.test", "wiki.test", "other.test"]
