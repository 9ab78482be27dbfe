"""ZIP archives: checked before anything unpacks them, and opened member by member.

Sizes are counted while unpacking, because what an archive's directory says can lie. The limits are those of
the known bombs: 42.zip (layers), overlapping entries (Fifield 2019, "A better zip bomb") and endless lists.
"""

from __future__ import annotations

import io
import re
import stat
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

from core.errors import DocumentError, first_line

ZIP_TOTAL = 200 << 20
ZIP_RATIO = 100
ZIP_ENTRIES = 10_000
_DIRECTORY = 300 * ZIP_ENTRIES  # bytes; beyond that zipfile itself would take long to list the entries
_BROKEN = (zipfile.BadZipFile, NotImplementedError, RuntimeError, OSError, EOFError, ValueError)
_NOISE = re.compile(r"(?:^|/)(?:__MACOSX(?:/|$)|\.|Thumbs\.db$)")


@dataclass(frozen=True)
class Member:
    """A file in an archive; `name` is its path there, for display only."""

    name: str
    data: bytes


def check_package(data: bytes, part: str, what: str) -> None:
    """Refuse an Office, OpenDocument or EPUB file that is a bomb, lacks `part`, or defines XML entities.

    Raises DocumentError with the reason. `what` names the format in it.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(_sized(data))) as archive:
            entries = _entries(archive, len(data))
            if part not in archive.namelist():
                raise DocumentError(f"The file is called .{what.lower()} but is another kind of ZIP archive.")
            for entry, content in _contents(archive, entries):
                name = entry.filename.lower()
                if name.endswith((".xml", ".rels", ".opf", ".ncx")) and _defines_entities(content, what):
                    raise DocumentError(f"The file defines XML entities, which no {what} program writes.")
    except _BROKEN as error:
        raise DocumentError(f"The {what} file is broken: {first_line(error)}.", "Save it again.") from error


def members(data: bytes) -> Iterator[Member]:
    """The files of an uploaded ZIP archive, in their order; folders and system files are left out.

    Raises DocumentError, before the first member, for bombs, encrypted members, links and paths that lead
    out of the archive; nothing of such an archive is used.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(_sized(data))) as archive:
            entries = _entries(archive, len(data))
            for entry in entries:
                _check_entry(entry)
            for _ in _contents(archive, entries):
                pass  # all is counted before any of it is used
            files = [entry for entry in entries if not entry.is_dir() and not _NOISE.search(entry.filename)]
            if not files:
                raise DocumentError("The ZIP archive holds no files.")
            for entry, content in _contents(archive, files):
                yield Member(entry.filename, content)
    except _BROKEN as error:
        raise DocumentError(f"The ZIP archive is broken: {first_line(error)}.", "Pack it again.") from error


def _bomb() -> DocumentError:
    return DocumentError("The file unpacks to far more than it holds (a ZIP bomb).", "Save it again.")


def _sized(data: bytes) -> bytes:
    """The data, after a look at the end record: zipfile lists every entry before anybody can count them."""
    at = data.rfind(b"PK\x05\x06", max(0, len(data) - 65_557))
    if at < 0 or len(data) < at + 22:
        raise zipfile.BadZipFile("its directory is missing")
    count, size, offset = struct.unpack("<HII", data[at + 10 : at + 20])
    if count == 0xFFFF or 0xFFFFFFFF in (size, offset) or size > _DIRECTORY:
        raise DocumentError(f"The archive lists more than {ZIP_ENTRIES:,} entries.", "Split it.")
    return data


def _entries(archive: zipfile.ZipFile, size: int) -> list[zipfile.ZipInfo]:
    entries = archive.infolist()
    declared = sum(entry.file_size for entry in entries)
    if len(entries) > ZIP_ENTRIES or declared > min(ZIP_TOTAL, max(size * ZIP_RATIO, 1 << 20)):
        raise _bomb()
    end = 0
    for entry in sorted(entries, key=lambda entry: entry.header_offset):
        if entry.header_offset < end:
            raise DocumentError("The archive's entries overlap (a ZIP bomb).", "Pack it again.")
        end = entry.header_offset + 30 + entry.compress_size
    return entries


def _contents(
    archive: zipfile.ZipFile, entries: list[zipfile.ZipInfo]
) -> Iterator[tuple[zipfile.ZipInfo, bytes]]:
    total = 0
    for entry in entries:
        with archive.open(entry) as part:
            content = part.read(min(entry.file_size, ZIP_TOTAL) + 1)
        total += len(content)
        if len(content) > entry.file_size or total > ZIP_TOTAL:
            raise _bomb()
        yield entry, content


def _check_entry(entry: zipfile.ZipInfo) -> None:
    if entry.flag_bits & 1:
        raise DocumentError("The archive holds encrypted files.", "Pack them without a password.")
    # zipfile itself turns the system's separator into "/" and cuts the name at a NUL
    name = entry.orig_filename.replace("\\", "/")
    parts = PurePosixPath(name).parts
    if name.startswith("/") or ".." in parts or "\0" in name or re.match(r"[A-Za-z]:", name):
        raise DocumentError("The archive holds a path that leads out of it.", "Pack it again.")
    mode = entry.external_attr >> 16
    if mode and not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_IFMT(mode) == 0):
        raise DocumentError("The archive holds a link or a device.", "Pack plain files only.")


def _defines_entities(content: bytes, what: str) -> bool:
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        content = content.decode("utf-16", "replace").encode()
    # Office files never name a document type; EPUB and old OpenDocument files do, without an inner subset
    strict = what in ("DOCX", "PPTX", "XLSX")
    return (
        re.search(rb"<!(?:ENTITY|DOCTYPE)" if strict else rb"<!ENTITY|<!DOCTYPE[^>]*\[", content) is not None
    )
