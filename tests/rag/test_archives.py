from __future__ import annotations

import io
import struct
import zipfile

import pytest

from core.errors import DocumentError
from rag.archives import members
from tests.rag.files import archive


def names(data: bytes) -> list[str]:
    return [member.name for member in members(data)]


def test_members_come_in_their_order_without_folders_and_system_files() -> None:
    files = {"b/deep.md": b"1", "a.txt": b"2", "__MACOSX/a.txt": b"3", ".hidden": b"4", "dir/": b""}
    assert [(member.name, member.data) for member in members(archive(files))] == [
        ("b/deep.md", b"1"),
        ("a.txt", b"2"),
    ]


@pytest.mark.parametrize("path", ["../../x.md", "/etc/x.md", "C:\\x.md", "a/../../x.md", "..\\x.md"])
def test_a_path_that_leads_out_spoils_the_archive(path: str) -> None:
    with pytest.raises(DocumentError, match="leads out"):
        names(archive({"good.md": b"# Good", path: b"x"}))


def test_links_are_refused() -> None:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as packed:
        entry = zipfile.ZipInfo("link.md")
        entry.external_attr = 0o120777 << 16
        packed.writestr(entry, "/etc/hostname")
    with pytest.raises(DocumentError, match="link"):
        names(target.getvalue())


def test_encrypted_members_are_refused() -> None:
    data = bytearray(archive({"a.md": b"words"}))
    data[6] |= 1  # the local header's flag
    data[data.index(b"PK\x01\x02") + 8] |= 1
    with pytest.raises(DocumentError, match="encrypted"):
        names(bytes(data))


def overlapping() -> bytes:
    """Two directory entries that share one local entry, as in the "better ZIP bomb"."""
    data = archive({"a.md": b"x" * 5000, "b.md": b"x" * 5000})
    first = data.index(b"PK\x01\x02")
    second = data.index(b"PK\x01\x02", first + 4)
    return data[: second + 42] + struct.pack("<I", 0) + data[second + 46 :]


def lying() -> bytes:
    data = bytearray(archive({"big.md": b"\0" * 30_000_000}))
    needle = (30_000_000).to_bytes(4, "little")
    while (at := data.find(needle)) >= 0:
        data[at : at + 4] = (1_000).to_bytes(4, "little")
    return bytes(data)


def endless() -> bytes:
    """An end record that claims a directory of a million entries."""
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 46_000_000, 0, 0)
    return b"PK\x03\x04" + bytes(100) + end


@pytest.mark.parametrize(
    "data",
    [
        archive({"a.md": b"\0" * 40_000_000}),
        archive({f"{n}.md": b"" for n in range(10_001)}),
        overlapping(),
        lying(),
        endless(),
        b"PK\x03\x04" + bytes(100),
        archive({"a.md": b"words"})[:40],
        archive({".only-hidden": b"x"}),
    ],
    ids=["bomb", "entries", "overlapping", "lying", "endless", "broken", "cut", "nothing"],
)
def test_bad_archives_are_refused_before_the_first_member(data: bytes) -> None:
    with pytest.raises(DocumentError):
        next(members(data))
