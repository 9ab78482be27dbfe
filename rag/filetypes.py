"""What a file is, checked before anything parses it: type by name and first bytes, encoding, bombs."""

from __future__ import annotations

import io
import re
import zipfile
from pathlib import PurePath

from core.errors import DocumentError, first_line

ZIP_TOTAL = 200 << 20
ZIP_RATIO = 100
ZIP_ENTRIES = 10_000

KINDS = {
    ".md": "markdown",
    ".markdown": "markdown",
    ".html": "html",
    ".htm": "html",
    ".pdf": "pdf",
    ".docx": "docx",
    ".csv": "csv",
    ".txt": "text",
}
_MAGIC = {
    b"%PDF-": "a PDF",
    b"PK\x03\x04": "a ZIP or Office file",
    b"\xd0\xcf\x11\xe0": "an old or password-protected Office file",
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"GIF8": "a GIF image",
    b"\x7fELF": "a program",
    b"MZ\x90": "a program",
    b"\x1f\x8b": "a gzip archive",
    b"SQLite format 3": "a SQLite database",
    b"GGUF": "a model file",
}


def kind_of(name: str, data: bytes) -> str:
    """The document's kind from its name, checked against its first bytes.

    Raises DocumentError for an unknown type, an empty file or a content that is something else.
    """
    suffix = PurePath(name.lower()).suffix
    if suffix not in KINDS:
        raise DocumentError(
            f"Files of type {suffix or 'without an ending'!r} cannot be read.",
            f"Known types: {', '.join(sorted(KINDS))}.",
        )
    if not data.strip():
        raise DocumentError("The file is empty.")
    kind = KINDS[suffix]
    wanted = {"pdf": b"%PDF-", "docx": b"PK\x03\x04"}.get(kind)
    found = next((what for magic, what in _MAGIC.items() if data.startswith(magic)), "something else")
    if (wanted and not data.startswith(wanted)) or (not wanted and found != "something else"):
        raise DocumentError(f"The file is called {suffix} but is {found}.", "Give it its right ending.")
    if kind == "pdf" and zipfile.is_zipfile(io.BytesIO(data)):
        raise DocumentError("The file is a PDF and a ZIP archive at once.", "Save it again as a plain PDF.")
    return kind


def decode(data: bytes) -> str:
    """Bytes to text: UTF-8, UTF-16 with its mark, else Windows-1252.

    Raises DocumentError for NUL bytes, surrogates and bytes that are no known text.
    """
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        try:
            return data.decode("utf-16")
        except UnicodeDecodeError:
            raise DocumentError("The file is broken UTF-16 text.", "Save it again as UTF-8.") from None
    if b"\0" in data:
        raise DocumentError("The file holds NUL bytes, so it is not a text file.", "Save it as UTF-8 text.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        pass
    if re.search(rb"\xed[\xa0-\xbf][\x80-\xbf]", data):
        raise DocumentError("The file holds lone surrogates, which no text has.", "Save it again as UTF-8.")
    damaged = data.decode("utf-8", "replace")
    if sum(char > "\x7f" and char != "\ufffd" for char in damaged) > damaged.count("\ufffd"):
        return damaged.replace("\ufffd", "")
    try:
        return data.decode("cp1252")
    except UnicodeDecodeError:
        raise DocumentError("The file's encoding is unknown.", "Save it again as UTF-8.") from None


def check_archive(data: bytes) -> None:
    """Refuse archives that unpack to far more than they are, and XML with entities or a DTD.

    Sizes are counted while unpacking: what the directory says can lie.
    """
    bomb = DocumentError("The file unpacks to far more than it holds (a ZIP bomb).", "Save it again.")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            declared = sum(entry.file_size for entry in entries)
            if len(entries) > ZIP_ENTRIES or declared > min(ZIP_TOTAL, max(len(data) * ZIP_RATIO, 1 << 20)):
                raise bomb
            if "word/document.xml" not in archive.namelist():
                raise DocumentError("The file is called .docx but is another kind of ZIP archive.")
            total = 0
            for entry in entries:
                with archive.open(entry) as part:
                    head = part.read(min(entry.file_size, ZIP_TOTAL) + 1)
                total += len(head)
                if len(head) > entry.file_size or total > ZIP_TOTAL:
                    raise bomb
                if entry.filename.endswith((".xml", ".rels")) and re.search(rb"<!(?:DOCTYPE|ENTITY)", head):
                    raise DocumentError("The file defines XML entities, which no Office program writes.")
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, OSError, EOFError) as error:
        raise DocumentError(f"The DOCX file is broken: {first_line(error)}.", "Save it again.") from error
