from __future__ import annotations

import ipaddress

import pytest

from core.errors import DocumentError, SettingsError
from core.settings import load_settings
from rag.addresses import Rules, is_public
from rag.urls import parse_url

TABLE = """
0.0.0.0 0.1.2.3 10.0.0.1 10.255.255.255 100.64.0.1 100.100.100.200 100.127.255.255 127.0.0.1 127.255.255.254
168.63.129.16
169.254.0.1 169.254.169.254 172.16.0.1 172.31.255.255 192.0.0.1 192.0.0.192 192.0.2.1 192.88.99.1
192.168.0.1 198.18.0.1 198.19.255.255 198.51.100.1 203.0.113.9 224.0.0.1 239.255.255.250 240.0.0.1
255.255.255.255 :: ::1 ::127.0.0.1 ::ffff:127.0.0.1 ::ffff:93.184.216.34 ::ffff:0:127.0.0.1 64:ff9b::7f00:1
64:ff9b::5db8:d822 64:ff9b:1::1 100::1 2001::1 2001:0:5ef5:79fd::1 2001:10::1 2001:db8::1 2002:7f00:1::
2002:a9fe:a9fe::1 3fff::1 5f00::1 fc00::1 fd00:ec2::254 fe80::1 fec0::1 ff02::1 ff0e::1
"""
NOT_PUBLIC = TABLE.split()
PUBLIC_TABLE = "1.1.1.1 8.8.8.8 93.184.216.34 172.32.0.1 2606:4700:4700::1111 2a00:1450:4001::200e"
PUBLIC = PUBLIC_TABLE.split()


@pytest.mark.parametrize("text", NOT_PUBLIC)
def test_what_is_not_public_is_refused(text: str) -> None:
    assert not is_public(ipaddress.ip_address(text))
    with pytest.raises(DocumentError, match="not a public one"):
        Rules().check_address(parse_url("http://example.org/"), text)


@pytest.mark.parametrize("text", PUBLIC)
def test_what_is_public_is_allowed(text: str) -> None:
    assert is_public(ipaddress.ip_address(text))


@pytest.mark.parametrize("text", ["fe80::1%eth0", "2606:4700::1%1", "nonsense", "", "127.1", "0x7f000001"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(DocumentError):
        Rules(frozenset({"example.org"})).check_address(parse_url("http://example.org/"), text)


@pytest.mark.parametrize(
    ("named", "url", "address", "allowed"),
    [
        ("wiki.local", "http://wiki.local/", "10.0.0.7", True),
        ("wiki.local", "https://wiki.local/", "fd00::7", True),
        ("wiki.local", "http://wiki.local:8080/", "10.0.0.7", False),
        ("wiki.local:8080", "http://wiki.local:8080/", "10.0.0.7", True),
        ("wiki.local:8080", "http://wiki.local/", "10.0.0.7", False),
        ("wiki.local", "http://a.wiki.local/", "10.0.0.7", False),
        ("wiki.local", "http://wiki.local.evil.example/", "10.0.0.7", False),
        ("wiki.local", "http://wiki.local/", "169.254.169.254", False),
        ("wiki.local", "http://wiki.local/", "100.100.100.200", False),
        ("wiki.local", "http://wiki.local/", "fd00:ec2::254", False),
        ("wiki.local", "http://wiki.local/", "::ffff:10.0.0.7", False),
        ("wiki.local", "http://wiki.local/", "0.0.0.0", False),
        ("wiki.local", "http://wiki.local/", "224.0.0.1", False),
        ("[fd00::5]:81", "http://[fd00::5]:81/", "fd00::5", True),
        ("127.0.0.1", "http://127.0.0.1/", "127.0.0.1", True),
        ("127.0.0.1", "http://localhost/", "127.0.0.1", False),
    ],
)
def test_only_named_hosts_may_be_private(named: str, url: str, address: str, *, allowed: bool) -> None:
    rules = Rules.of(load_settings({}, crawl_hosts=f"other.example, {named}"))
    place = parse_url(url)
    if allowed:
        rules.check_port(place)
        assert rules.check_address(place, address)
    else:
        with pytest.raises(DocumentError):
            rules.check_address(place, address)


@pytest.mark.parametrize(
    "named", ["*", "*.local", "10.0.0.0/8", "http://wiki.local", "a b", "wiki.local:x", "."]
)
def test_a_host_is_named_in_full(named: str) -> None:
    with pytest.raises(SettingsError, match="crawl_hosts"):
        load_settings({}, crawl_hosts=named)
