from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import DocumentError
from rag.urls import join, parse_url


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("http://Example.ORG", "http://example.org/"),
        ("https://example.org:443/a#part", "https://example.org/a"),
        ("http://example.org:8080/", "http://example.org:8080/"),
        ("http://example.org./x", "http://example.org/x"),
        ("http://example.org/a/./b/../c", "http://example.org/a/c"),
        ("http://example.org/a/%2e%2E/c", "http://example.org/c"),
        ("http://example.org/../../x", "http://example.org/x"),
        ("http://example.org/a/..", "http://example.org/"),
        ("http://example.org/%7euser/%c3%a4", "http://example.org/~user/%C3%A4"),
        ("http://example.org/ä b?ö=1", "http://example.org/%C3%A4%20b?%C3%B6=1"),
        ("http://example.org/100%", "http://example.org/100%25"),
        ("http://example.org/?utm_source=a&page=2&fbclid=x", "http://example.org/?page=2"),
        ("http://example.org/?utm_source=a", "http://example.org/"),
        ("http://example.org/a;jsessionid=123?b", "http://example.org/a?b"),
        ("http://bücher.example/", "http://xn--bcher-kva.example/"),
        ("http://[2001:DB8:0::1]/", "http://[2001:db8::1]/"),
        ("  http://example.org/  ", "http://example.org/"),
    ],
)
def test_addresses_have_one_form(text: str, canonical: str) -> None:
    assert str(parse_url(text)) == canonical
    assert str(parse_url(canonical)) == canonical


def test_parts_of_an_address() -> None:
    url = parse_url("https://example.org:8443/docs/a%20b.pdf?x=/y")
    assert (url.origin, url.path, url.folder) == ("https://example.org:8443", "/docs/a%20b.pdf", "/docs/")
    assert url.filename == "a b.pdf"


def test_links_are_joined_to_their_page() -> None:
    base = parse_url("https://example.org/docs/page?x")
    assert str(join(base, "../other#top")) == "https://example.org/other"
    assert str(join(base, "//elsewhere.example/x")) == "https://elsewhere.example/x"
    assert str(join(base, "?y")) == "https://example.org/docs/page?y"
    for link in ("javascript:alert(1)", "mailto:a@b.example", "data:text/html,x", "http://[::1", "tel:1"):
        with pytest.raises(DocumentError):
            join(base, link)


@given(st.text(max_size=60))
def test_any_path_settles_at_once_and_is_ascii(path: str) -> None:
    try:
        once = parse_url(f"http://example.org/{path}")
    except DocumentError:
        return
    assert str(once).isascii()
    assert once.host == "example.org"
    assert parse_url(str(once)) == once
    assert not {".", ".."} & set(once.path.split("/"))


@given(st.text(max_size=30))
def test_any_host_is_refused_or_plain(host: str) -> None:
    try:
        url = parse_url(f"http://{host}")
    except DocumentError:
        return
    assert url.host.isascii()
    assert url.host == url.host.lower()
    assert not set(url.host) & set("@/\\?#% \t\r\n")
