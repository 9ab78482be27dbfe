"""One running installation that the tests of pages, API and browser share."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from tests.app.site import HANDBOOK, PRICES, Site, add_documents, site


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """`understudy serve` with a scripted model and two documents."""
    with site(tmp_path_factory.mktemp("site")) as started:
        add_documents(started, {"handbook.md": HANDBOOK, "prices.md": PRICES})
        yield started


@pytest.fixture(autouse=True)
def own_main_module() -> Iterator[None]:
    """Streamlit's AppTest leaves its script as `__main__`, which a spawned process would then run."""
    before = sys.modules["__main__"]
    yield
    sys.modules["__main__"] = before
