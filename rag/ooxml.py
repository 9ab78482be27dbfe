"""What Office files have in common: how broken ones fail, and "Strict Open XML" under the usual names.

Source of the names: ISO/IEC 29500, part 4.
"""

from __future__ import annotations

import io
import zipfile

# what the libraries raise for files that are not what they say
BROKEN = (KeyError, ValueError, AttributeError, IndexError, TypeError, SyntaxError, zipfile.BadZipFile)
_STRICT = b"http://purl.oclc.org/ooxml/"
_NAMES = (
    (
        b"http://purl.oclc.org/ooxml/officeDocument/",
        b"http://schemas.openxmlformats.org/officeDocument/2006/",
    ),
    (
        b"http://purl.oclc.org/ooxml/wordprocessingml/main",
        b"http://schemas.openxmlformats.org/wordprocessingml/2006/main",
    ),
    (
        b"http://purl.oclc.org/ooxml/spreadsheetml/main",
        b"http://schemas.openxmlformats.org/spreadsheetml/2006/main",
    ),
    (
        b"http://purl.oclc.org/ooxml/presentationml/main",
        b"http://schemas.openxmlformats.org/presentationml/2006/main",
    ),
    (b"http://purl.oclc.org/ooxml/drawingml/", b"http://schemas.openxmlformats.org/drawingml/2006/"),
)


def transitional(data: bytes) -> bytes:
    """The package with strict namespaces renamed; other packages come back as they are."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if _STRICT not in archive.read("_rels/.rels"):
            return data
        target = io.BytesIO()
        with zipfile.ZipFile(target, "w") as copy:
            for entry in archive.infolist():
                content = archive.read(entry)
                if entry.filename.endswith((".xml", ".rels")):
                    for strict, usual in _NAMES:
                        content = content.replace(strict, usual)
                copy.writestr(entry.filename, content)
        return target.getvalue()
