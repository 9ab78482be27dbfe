from __future__ import annotations

import time

import pytest

from core.errors import DocumentError
from rag.robots import LARGEST, RobotsOf, parse_robots
from rag.urls import parse_url
from rag.web import UnreachableError
from tests.rag.webs import Reply, Web


def allows(text: str, target: str) -> bool:
    return parse_robots(text.encode()).allows(parse_url(f"http://example.org{target}"))


@pytest.mark.parametrize(
    ("rules", "target", "allowed"),
    [
        ("", "/any", True),
        ("Disallow:", "/any", True),
        ("Disallow: /", "/any", False),
        ("Disallow: /private", "/private/x", False),
        ("Disallow: /private", "/privately", False),
        ("Disallow: /private/", "/private", True),
        ("Allow: /\nDisallow: /private", "/private", False),  # urllib.robotparser allows it
        ("Disallow: /\nAllow: /open", "/open/x", True),
        ("Disallow: /page\nAllow: /page", "/page", True),
        ("Disallow: /*.pdf$", "/a/b.pdf", False),  # urllib.robotparser allows it
        ("Disallow: /*.pdf$", "/a/b.pdf?x", True),
        ("Disallow: /*.pdf", "/a/b.pdf?x", False),
        ("Disallow: /*?sort=", "/list?sort=up", False),
        ("Disallow: /*?sort=", "/list?page=2", True),
        ("Disallow: /a*b*c", "/a-b-c", False),
        ("Disallow: /a*b*c", "/a-c-b", True),
        ("Disallow: /a*b$", "/ab", False),
        ("Disallow: /ab*b$", "/ab", True),
        ("Disallow: /exact$", "/exact", False),
        ("Disallow: /exact$", "/exactly", True),
        ("Disallow: /%7euser", "/~user", False),
        ("Disallow: /ä", "/%C3%A4", False),
        ("disallow : /x # because", "/x", False),
        ("Disallow: /x\rDisallow: /y", "/y", False),
    ],
)
def test_rules(rules: str, target: str, *, allowed: bool) -> None:
    assert allows(f"User-agent: *\n{rules}", target) is allowed


def test_the_group_that_names_us_counts_alone() -> None:
    text = "User-agent: *\nDisallow: /\n\nUser-agent: Other\nUser-agent: Understudy/1.0\nDisallow: /no\n"
    assert allows(text, "/yes")
    assert not allows(text, "/no")
    twice = (
        text + "\nUser-agent: understudy\nDisallow: /too\nCrawl-delay: 2.5\nSitemap: http://e.example/s.xml\n"
    )
    assert not allows(twice, "/no")
    assert not allows(twice, "/too")
    robots = parse_robots(twice.encode())
    assert (robots.delay, robots.sitemaps) == (2.5, ("http://e.example/s.xml",))
    assert parse_robots(b"User-agent: *\nCrawl-delay: 99999").delay == 30
    assert parse_robots(b"Disallow: /\nUser-agent: other\nDisallow: /").rules == ()


@pytest.mark.parametrize("data", [b"\xff\xfe\0x", b"\0" * 1000, b":" * 1000, b"<html>User-agent: *</html>"])
def test_rubbish_is_no_rule(data: bytes) -> None:
    assert parse_robots(data).rules == ()


def test_many_stars_cost_little() -> None:
    began = time.monotonic()
    text = "User-agent: *\n" + ("Disallow: /" + "*a" * 900 + "b\n") * 250
    assert allows(text, "/" + "a" * 1900)
    assert time.monotonic() - began < 2


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (Reply(b"", 404), None),
        (Reply(b"", 410), None),
        (Reply(b"", 401), DocumentError),
        (Reply(b"", 403), DocumentError),
        (Reply(b"", 429), UnreachableError),
        (Reply(b"", 500), UnreachableError),
        (Reply(b"", 503), UnreachableError),
        (Reply(b"x" * (LARGEST + 1)), DocumentError),
    ],
)
def test_what_the_status_means(web: Web, reply: Reply, error: type[DocumentError] | None) -> None:
    web.table["/robots.txt"] = reply
    place = parse_url(f"{web.address}/page")
    robots = RobotsOf(web.fetcher())
    if error is None:
        assert robots.allows(place)
        assert robots.allows(place)
        assert web.asked == ["/robots.txt"]
    else:
        with pytest.raises(error):
            robots.allows(place)
