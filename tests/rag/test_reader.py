from __future__ import annotations

import resource
import subprocess
import sys

import pytest

from core.errors import DocumentError
from core.settings import Settings
from rag import reader as module
from rag.reader import Reader
from tests.rag.conftest import HANDBOOK
from tests.rag.files import bomb_pdf


def test_reads_what_loaders_read(reader: Reader) -> None:
    done = reader.read("guide.md", HANDBOOK)
    assert done.title == "Staff guide"
    assert done.sections[1].heading == "Leaving"


def test_refusals_come_back_with_their_reason(reader: Reader) -> None:
    with pytest.raises(DocumentError, match="broken"):
        reader.read("x.pdf", b"%PDF-1.4 nonsense")
    assert reader.read("guide.md", HANDBOOK).title == "Staff guide"


def test_a_bomb_kills_only_the_child(reader: Reader) -> None:
    data = bomb_pdf()
    assert len(data) < 10_000_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DocumentError):
        reader.read("bomb.pdf", data)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB
    assert reader.read("guide.md", HANDBOOK).title == "Staff guide"


def test_a_parser_that_hangs_is_stopped(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WALL_SECONDS", 0.0)
    with Reader(settings) as reader, pytest.raises(DocumentError, match="too much memory or time"):
        reader.read("guide.md", HANDBOOK)


def test_the_child_ends_with_its_reader(settings: Settings) -> None:
    with Reader(settings) as reader:
        reader.read("guide.md", HANDBOOK)
        child = reader._child
    assert child is not None
    assert child.poll() is not None


def test_the_child_has_no_network_where_the_kernel_allows_it() -> None:
    code = (
        "import socket\nfrom rag.reader import leave_network\n"
        "server = socket.create_server(('127.0.0.1', 0))\nport = server.getsockname()[1]\n"
        "if not leave_network(): print('refused')\n"
        "else:\n"
        "    try: socket.create_connection(('127.0.0.1', port), 2)\n"
        "    except OSError: print('no way out')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    if done.stdout.strip() == "refused":
        pytest.skip("this kernel does not let users make namespaces")
    assert done.stdout.strip() == "no way out"
