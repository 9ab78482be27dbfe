"""What a file is, checked before anything parses it: its type by name and first bytes, its encoding."""

from __future__ import annotations

import io
import re
import zipfile
from contextlib import suppress
from pathlib import PurePath

from core.errors import DocumentError

KINDS = {
    ".md": "markdown",
    ".markdown": "markdown",
    ".html": "html",
    ".htm": "html",
    ".pdf": "pdf",
    ".docx": "docx",
    ".pptx": "pptx",
    ".xlsx": "xlsx",
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "text",
    ".rst": "rst",
    ".rtf": "rtf",
    ".odt": "odt",
    ".ods": "ods",
    ".odp": "odp",
    ".epub": "epub",
    ".eml": "eml",
    ".msg": "msg",
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".zip": "zip",
}
"""File endings and the kind that each stands for."""

_ZIP = b"PK\x03\x04"
_OLE = b"\xd0\xcf\x11\xe0"
_STARTS = {
    "pdf": b"%PDF-",
    "rtf": b"{\\rtf",
    "msg": _OLE,
    **dict.fromkeys(("docx", "pptx", "xlsx", "odt", "ods", "odp", "epub", "zip"), _ZIP),
}
_MAGIC = {
    b"%PDF-": "a PDF",
    _ZIP: "a ZIP or Office file",
    b"PK\x05\x06": "an empty ZIP archive",
    b"{\\rtf": "an RTF document",
    _OLE: "an old or password-protected Office file",
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"GIF8": "a GIF image",
    b"\x7fELF": "a program",
    b"MZ\x90": "a program",
    b"\x1f\x8b": "a gzip archive",
    b"SQLite format 3": "a SQLite database",
    b"GGUF": "a model file",
}

_MARKS = (
    (b"\xff\xfe\0\0", "utf-32"),
    (b"\0\0\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
SAMPLE = 65_536
_ENCODINGS = (
    "cp1252",
    "cp1250",
    "cp1251",
    "cp1253",
    "cp1255",
    "cp1256",
    "cp932",
    "euc_jp",
    "gb18030",
    "big5",
    "cp949",
)


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
    wanted = _STARTS.get(kind)
    found = next((what for magic, what in _MAGIC.items() if data.startswith(magic)), "something else")
    if (wanted and not data.startswith(wanted)) or (not wanted and found != "something else"):
        raise DocumentError(f"The file is called {suffix} but is {found}.", "Give it its right ending.")
    if kind == "pdf" and zipfile.is_zipfile(io.BytesIO(data)):
        raise DocumentError("The file is a PDF and a ZIP archive at once.", "Save it again as a plain PDF.")
    return kind


def decode(data: bytes) -> str:
    """`decoded` without the count."""
    return decoded(data)[0]


def decoded(data: bytes) -> tuple[str, int]:
    """Bytes to text, and how many bytes had to be repaired or dropped.

    UTF-8, UTF-16 and UTF-32 with their mark, UTF-16 without it where half of the bytes are NUL, else the
    encoding that charset-normalizer finds in longer texts, else Windows-1252.
    Raises DocumentError for NUL bytes, surrogates and bytes that are no known text.
    """
    for mark, name in _MARKS:
        if data.startswith(mark):
            try:
                return data.decode(name), 0
            except UnicodeDecodeError:
                label = name.upper()
                raise DocumentError(f"The file is broken {label} text.", "Save it again as UTF-8.") from None
    if b"\0" in data:
        name = _unmarked(data[:SAMPLE])
        if name:
            with suppress(UnicodeDecodeError):
                return data.decode(name), 0
        raise DocumentError("The file holds NUL bytes, so it is not a text file.", "Save it as UTF-8 text.")
    try:
        return data.decode("utf-8-sig"), 0
    except UnicodeDecodeError:
        pass
    if re.search(rb"\xed[\xa0-\xbf][\x80-\xbf]", data):
        raise DocumentError("The file holds lone surrogates, which no text has.", "Save it again as UTF-8.")
    damaged = data.decode("utf-8", "replace")
    lost = damaged.count("\ufffd")
    if sum(char > "\x7f" and char != "\ufffd" for char in damaged) > lost:
        return damaged.replace("\ufffd", ""), lost
    for name in (_guess(data), "cp1252"):
        try:
            if name:
                return data.decode(name), 0
        except (UnicodeDecodeError, LookupError):
            continue
    raise DocumentError("The file's encoding is unknown.", "Save it again as UTF-8.")


def _unmarked(data: bytes) -> str:
    """UTF-16 without its mark shows: in European text every other byte is NUL. "" for anything else."""
    first, second = data[0::2].count(0), data[1::2].count(0)
    if b"\0\0" in data or max(first, second) < 0.7 * len(data) / 2 or min(first, second) > 0:
        return ""
    return "utf-16-be" if first > second else "utf-16-le"


def _guess(data: bytes) -> str:
    """An encoding of a script that is not Latin; "" where there is too little to judge by."""
    from charset_normalizer import from_bytes

    if sum(byte > 127 for byte in data[:SAMPLE]) < 24:
        return ""
    found = from_bytes(data[:SAMPLE], cp_isolation=list(_ENCODINGS)).best()
    return found.encoding if found else ""
