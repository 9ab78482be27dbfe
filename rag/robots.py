"""robots.txt as RFC 9309 reads it: which addresses a site lets us fetch.

Not by `urllib.robotparser`: it takes the first rule that fits instead of the longest, and knows no `*` and
`$`, so it allows what a site forbids (`Disallow: /*.pdf$`, or `Allow: /` above `Disallow: /private`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from core.errors import DocumentError
from rag.urls import Url, encoded, parse_url
from rag.web import Fetcher, UnreachableError

AGENT = "understudy"
LARGEST = 512 << 10  # bytes; RFC 9309 asks for at least 500 KiB
MAX_RULES = 2_000
LONGEST_DELAY = 30.0  # seconds


@dataclass(frozen=True)
class Robots:
    """The rules of one site: (allow, pattern) pairs, the pause it asks for, and the sitemaps it names."""

    rules: tuple[tuple[bool, str], ...] = ()
    delay: float = 0.0
    sitemaps: tuple[str, ...] = ()

    def allows(self, url: Url) -> bool:
        """The longest pattern that fits decides; of two equally long ones the allowing one."""
        fitting = [(len(pattern), allow) for allow, pattern in self.rules if _fits(pattern, url.target)]
        return max(fitting, default=(0, True))[1]


class RobotsOf:
    """The robots.txt of each site, fetched once."""

    def __init__(self, fetcher: Fetcher) -> None:
        self._fetcher = fetcher
        self._known: dict[str, Robots] = {}

    def __call__(self, url: Url) -> Robots:
        """The rules for this address's site.

        Raises UnreachableError when they cannot be had: nobody knows then what the site forbids.
        """
        if url.origin not in self._known:
            self._known[url.origin] = self._fetch(parse_url(f"{url.origin}/robots.txt"))
        return self._known[url.origin]

    def allows(self, url: Url) -> bool:
        """Whether the address's site lets it be fetched."""
        return self(url).allows(url)

    def _fetch(self, place: Url) -> Robots:
        answer = self._fetcher.fetch(place, LARGEST)
        if answer.status >= 500 or answer.status == 429:
            raise UnreachableError(
                f"{place} answers with status {answer.status}, so nothing of the site is fetched.",
                "Try again later.",
            )
        if answer.status in (401, 403):
            raise DocumentError(f"{place} is closed to us, and with it the site.", "Ask who runs the site.")
        return parse_robots(answer.data) if answer.status == 200 else Robots()


def parse_robots(data: bytes) -> Robots:
    """The rules for us: those of every group that names us, else those of the groups for everybody."""
    groups: dict[str, list[tuple[bool, str]]] = {}
    delays: dict[str, float] = {}
    sitemaps: list[str] = []
    agents: list[str] = []
    naming = False  # whether the line before named an agent too
    for line in data[:LARGEST].decode("utf-8-sig", "replace").splitlines():
        key, _, value = line.partition("#")[0].partition(":")
        key, value = key.strip().lower(), value.strip()
        if key == "user-agent":
            agents = [*agents, _agent(value)] if naming else [_agent(value)]
            groups.setdefault(agents[-1], [])
        elif key in ("allow", "disallow") and value:
            for agent in agents:
                groups[agent].append((key == "allow", encoded(value)))
        elif key == "crawl-delay" and re.fullmatch(r"\d{1,6}(\.\d*)?", value, re.ASCII):
            delays |= dict.fromkeys(agents, min(float(value), LONGEST_DELAY))
        elif key == "sitemap":
            sitemaps.append(value)
        naming = key == "user-agent" or (naming and not key)
    ours = AGENT if AGENT in groups else "*"
    return Robots(tuple(groups.get(ours, ())[:MAX_RULES]), delays.get(ours, 0.0), tuple(sitemaps[:10]))


def _agent(value: str) -> str:
    """A product token without its version."""
    return "*" if value.startswith("*") else re.split(r"[/\s]", value.lower())[0]


def _fits(pattern: str, target: str) -> bool:
    """Whether the pattern fits the target's beginning, or all of it when it ends with `$`.

    Greedy from left to right, so that a pattern of many stars costs no more than its length.
    """
    whole = pattern.endswith("$")
    first, *rest = pattern.removesuffix("$").split("*")
    if not target.startswith(first):
        return False
    at = len(first)
    for number, part in enumerate(rest):
        if whole and number == len(rest) - 1:
            return len(target) - len(part) >= at and target.endswith(part)
        found = target.find(part, at)
        if found < 0:
            return False
        at = found + len(part)
    return not whole or at == len(target)
