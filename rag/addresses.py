"""Which hosts and IP addresses may be fetched from: public ones, and intranet hosts that the settings name.

The networks are listed here and not taken from `ipaddress.is_global`, whose answers changed between Python
versions (CVE-2024-4032) and which calls multicast global. Source: IANA's special-purpose registries, and the
virtual addresses under which clouds serve credentials to their machines.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from core.errors import DocumentError
from core.settings import Settings
from rag.urls import PORTS, Url

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_REFUSED_V4 = tuple(
    ipaddress.IPv4Network(text)
    for text in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "168.63.129.16/32", "169.254.0.0/16",
        "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16",
        "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
    )
)  # fmt: skip
# global unicast, without Teredo and relatives, documentation, 6to4 and segment routing. What embeds an IPv4
# address elsewhere (mapped, compatible, NAT64) lies outside of 2000::/3.
_UNICAST_V6 = ipaddress.IPv6Network("2000::/3")
_REFUSED_V6 = tuple(
    ipaddress.IPv6Network(text)
    for text in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20", "5f00::/16")
)
# what a host named in crawl_hosts may have besides: never link-local, never a cloud's credentials
_INTRANET_V4 = tuple(
    ipaddress.IPv4Network(text)
    for text in ("10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")
)
_INTRANET_V6 = tuple(ipaddress.IPv6Network(text) for text in ("::1/128", "fc00::/7"))
_CREDENTIALS = tuple(ipaddress.ip_address(text) for text in ("100.100.100.200", "fd00:ec2::254"))


def is_public(address: Address) -> bool:
    """Whether the address is one of the public internet."""
    if isinstance(address, ipaddress.IPv4Address):
        return not any(address in network for network in _REFUSED_V4)
    return address in _UNICAST_V6 and not any(address in network for network in _REFUSED_V6)


def is_intranet(address: Address) -> bool:
    """Whether a host of the intranet may have this address."""
    if address in _CREDENTIALS:
        return False
    if isinstance(address, ipaddress.IPv4Address):
        return any(address in network for network in _INTRANET_V4)
    return any(address in network for network in _INTRANET_V6)


@dataclass(frozen=True)
class Rules:
    """What may be fetched. `intranet`: hosts, as `name` or `name:port`, that may have private addresses."""

    intranet: frozenset[str] = frozenset()

    @classmethod
    def of(cls, settings: Settings) -> Rules:
        """The rules that the settings give."""
        return cls(frozenset(settings.crawl_host_list))

    def names(self, url: Url) -> bool:
        """Whether the settings name this host with this port."""
        host = f"[{url.host}]" if ":" in url.host else url.host
        return f"{host}:{url.port}" in self.intranet or (
            host in self.intranet and url.port == PORTS[url.scheme]
        )

    def check_port(self, url: Url) -> None:
        """Raises DocumentError for a port that is not the scheme's own, unless the settings name it."""
        if url.port != PORTS[url.scheme] and not self.names(url):
            raise DocumentError(
                f"{url.netloc} is not fetched from: port {url.port} is not the usual one.",
                f"For a host of your own, add {url.host}:{url.port} to the setting crawl_hosts.",
            )

    def check_address(self, url: Url, text: str) -> str:
        """The address to connect to, as numbers.

        Raises DocumentError unless it is public, or private and the settings name the host.
        """
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            address = None
        scoped = isinstance(address, ipaddress.IPv6Address) and address.scope_id
        if address is None or scoped or not (is_public(address) or self._named(url, address)):
            raise DocumentError(
                f"{url.netloc} is not fetched from: its address {text[:60]} is not a public one.",
                f"For a host of your own, add {url.netloc} to the setting crawl_hosts.",
            )
        return str(address)

    def _named(self, url: Url, address: Address) -> bool:
        return self.names(url) and is_intranet(address)
