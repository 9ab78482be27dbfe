"""OCR with a stand-in for Tesseract that answers in its TSV format, so that none need be installed."""

from __future__ import annotations

import io
import stat
from pathlib import Path

import pytest

from core.errors import DocumentError
from rag.loaders import extract

HEAD = "level\tpage_num\tblock_num\tpar_num\tline_num\tword_num\tleft\ttop\twidth\theight\tconf\ttext"
WORDS = (
    "5\t1\t1\t1\t1\t1\t100\t100\t50\t40\t96\tSigned",
    "5\t1\t1\t1\t1\t2\t160\t100\t50\t40\t96\tin",
    "5\t1\t1\t1\t2\t1\t100\t150\t50\t40\t96\tOslo.",
)


def scan() -> bytes:
    """A PDF whose only content is an image."""
    from reportlab.lib.utils import ImageReader
    from reportlab.pdfgen.canvas import Canvas

    picture = b"P5 64 64 255\n" + bytes(range(64)) * 64
    target = io.BytesIO()
    canvas = Canvas(target)
    canvas.drawImage(ImageReader(io.BytesIO(picture)), 50, 50, 200, 200)
    canvas.save()
    return target.getvalue()


def test_scanned_pages_are_read_when_tesseract_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "tesseract"
    table = "\n".join((HEAD, *WORDS))
    program.write_text(f"#!/bin/sh\n/bin/cat > {tmp_path}/page.pgm\n/bin/cat <<'END'\n{table}\nEND\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path))
    done = extract("scan.pdf", scan())
    assert "Signed in Oslo." in done.text
    assert done.quality["ocr_pages"] == 1
    assert (tmp_path / "page.pgm").read_bytes().startswith(b"P5 ")


def test_without_tesseract_the_refusal_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DocumentError, match=r"Tesseract is not installed.*tesseract-ocr"):
        extract("scan.pdf", scan())
