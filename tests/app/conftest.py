"""One running installation that the tests of pages, API and browser share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.app.site import HANDBOOK, PRICES, Site, add_documents, site


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """`understudy serve` with a scripted model and two documents."""
    with site(tmp_path_factory.mktemp("site")) as started:
        add_documents(started, {"handbook.md": HANDBOOK, "prices.md": PRICES})
        yield started
