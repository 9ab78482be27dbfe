from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import DocumentError
from rag.archives import check_package
from rag.filetypes import decode, kind_of
from tests.rag.files import archive, docx, docx_with, lying_docx, pdf

PNG = b"\x89PNG\r\n\x1a\n" + bytes(50)
OTHERS = {
    "png": PNG,
    "jpeg": b"\xff\xd8\xff\xe0" + bytes(50),
    "gif": b"GIF89a" + bytes(50),
    "elf": b"\x7fELF" + bytes(50),
    "exe": b"MZ\x90\0" + bytes(50),
    "gzip": b"\x1f\x8b\x08" + bytes(50),
    "ole": b"\xd0\xcf\x11\xe0" + bytes(50),
    "sqlite": b"SQLite format 3\0" + bytes(50),
    "gguf": b"GGUF" + bytes(50),
    "zip": archive({"a": b"b"}),
    "pdf": pdf([["Hello"]]),
    "rtf": b"{\\rtf1 words}",
    "text": b"Just some words.",
}
ENDINGS = {
    **dict.fromkeys(("md", "html", "csv", "txt", "rst", "eml", "json", "jsonl"), "text"),
    **dict.fromkeys(("docx", "pptx", "xlsx", "odt", "epub", "zip"), "zip"),
    **{"pdf": "pdf", "rtf": "rtf", "msg": "ole"},
}
MISMATCHES = [(ending, other) for ending, own in ENDINGS.items() for other in OTHERS if other != own]


@pytest.mark.parametrize(("ending", "other"), MISMATCHES)
def test_content_of_another_type_is_refused(ending: str, other: str) -> None:
    with pytest.raises(DocumentError, match="is called"):
        kind_of(f"file.{ending}", OTHERS[other])


@pytest.mark.parametrize("name", ["x.exe", "x", "x.md.gz", "x.xls", ".md", "x.", "x.pkl"])
def test_unknown_types_are_refused(name: str) -> None:
    with pytest.raises(DocumentError, match="cannot be read"):
        kind_of(name, b"words")


@pytest.mark.parametrize("data", [b"", b"   \n\t ", b"\n"])
def test_empty_files_are_refused(data: bytes) -> None:
    with pytest.raises(DocumentError, match="empty"):
        kind_of("a.txt", data)


def test_known_types() -> None:
    assert kind_of("A.MD", b"# x") == "markdown"
    assert kind_of("a.htm", b"<p>") == "html"
    assert kind_of("a.pdf", pdf([["Hello"]])) == "pdf"
    assert kind_of("a.docx", docx()) == "docx"


def test_a_pdf_that_is_also_an_archive_is_refused() -> None:
    with pytest.raises(DocumentError, match="at once"):
        kind_of("a.pdf", pdf([["Hello"]]) + archive({"a.html": b"<script>"}))


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ("Grüße".encode(), "Grüße"),
        ("Grüße".encode("utf-8-sig"), "Grüße"),
        ("Grüße".encode("utf-16"), "Grüße"),
        ("Grüße".encode("utf-16-le"), "Grüße"),
        ("Grüße".encode("utf-16-be"), "Grüße"),
        ("Grüße".encode("utf-32"), "Grüße"),
        ("名前は佐藤太郎です。住所は東京です。".encode("cp932"), "名前は佐藤太郎です。住所は東京です。"),
        ("Grüße".encode("cp1252"), "Grüße"),
        ("Grüße, Straße und Öl für alle.".encode() + b"\xff", "Grüße, Straße und Öl für alle."),
    ],
)
def test_encodings(data: bytes, text: str) -> None:
    assert decode(data) == text


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"a\0b", "NUL"),
        ("\ud800".encode("utf-8", "surrogatepass"), "surrogates"),
        (b"\xff\xfea", "UTF-16"),
        (b"\x81\x8d", "encoding"),
    ],
)
def test_what_is_no_text_is_refused_with_its_reason(data: bytes, reason: str) -> None:
    with pytest.raises(DocumentError, match=reason):
        decode(data)


@given(st.binary(max_size=200))
def test_any_bytes_are_text_or_refused(data: bytes) -> None:
    with suppress(DocumentError):
        decode(data).encode("utf-8")


ENTITY = b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/hostname">]><a>&x;</a>'


@pytest.mark.parametrize(
    "data",
    [
        archive({"word/document.xml": b"\0" * 50_000_000}),
        lying_docx(),
        archive({f"{n}": b"" for n in range(10_001)} | {"word/document.xml": b""}),
        archive({"other.txt": b"x"}),
        docx_with("word/document.xml", ENTITY),
        docx_with("word/_rels/document.xml.rels", ENTITY),
        docx()[: len(docx()) // 2],
        b"PK\x03\x04" + bytes(100),
    ],
    ids=["bomb", "lying", "entries", "other", "entity", "entity-rels", "cut", "broken"],
)
def test_bad_archives_are_refused(data: bytes) -> None:
    with pytest.raises(DocumentError):
        check_package(data, "word/document.xml", "DOCX")


def test_a_good_archive_passes() -> None:
    check_package(docx(), "word/document.xml", "DOCX")
