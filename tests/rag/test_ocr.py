"""OCR with a stand-in for Tesseract that answers in its TSV format, and with the real one if there is one."""

from __future__ import annotations

import io
import shutil
import stat
from pathlib import Path

import pytest

from core.errors import DocumentError
from core.settings import load_settings
from rag.loaders import extract
from rag.reader import Reader
from rag.sync import reader_version

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


def tesseract(folder: Path, monkeypatch: pytest.MonkeyPatch, table: str, *languages: str) -> Path:
    """A stand-in that answers with the table; returns the file that will hold its arguments."""
    program, said = folder / "tesseract", folder / "arguments"
    listed = "\n".join(["List of available languages:", *languages])
    program.write_text(
        f"#!/bin/sh\nif [ $1 = --list-langs ]; then /bin/cat <<'END'\n{listed}\nEND\nexit; fi\n"
        f"echo \"$@\" > {said}\n/bin/cat > {folder}/page.pgm\n/bin/cat <<'END'\n{table}\nEND\n"
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(folder))
    return said


def test_scanned_pages_are_read_when_tesseract_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = tesseract(tmp_path, monkeypatch, "\n".join((HEAD, *WORDS)), "eng", "deu")
    done = extract("scan.pdf", scan(), "eng+deu")
    assert "Signed in Oslo." in done.text
    assert done.quality["ocr_pages"] == 1
    assert "-l eng+deu " in said.read_text()
    assert (tmp_path / "page.pgm").read_bytes().startswith(b"P5 ")


def test_without_tesseract_the_refusal_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DocumentError, match=r"Tesseract is not installed.*tesseract-ocr"):
        extract("scan.pdf", scan())


def test_a_language_without_data_is_named_and_tried_again_once_it_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "before").mkdir()
    tesseract(tmp_path / "before", monkeypatch, HEAD, "eng", "osd")
    with pytest.raises(DocumentError, match=r"no data for chi_sim.*apt install .*tesseract-ocr-chi-sim\)"):
        extract("scan.pdf", scan(), "eng+chi_sim")
    before = reader_version("eng+chi_sim")
    assert before == reader_version("eng")
    (tmp_path / "after").mkdir()
    tesseract(tmp_path / "after", monkeypatch, HEAD, "chi_sim", "eng", "osd")
    assert reader_version("eng+chi_sim") != before
    with pytest.raises(DocumentError, match="No text was found on the scanned pages"):
        extract("scan.pdf", scan(), "eng+chi_sim")


@pytest.mark.skipif(shutil.which("tesseract") is None, reason="Tesseract is not installed")
def test_the_real_tesseract_reads_a_scan_in_the_jail(tmp_path: Path) -> None:
    from PIL import Image, ImageDraw, ImageFont

    picture = Image.new("L", (1654, 600), 255)
    draw = ImageDraw.Draw(picture)
    draw.text((100, 200), "The notice period is 30 days.", fill=0, font=ImageFont.load_default(size=64))
    target = io.BytesIO()
    picture.save(target, "PDF", resolution=200)
    settings = load_settings({}, data_dir=str(tmp_path))
    with Reader(settings) as reader:
        done = reader.read("scan.pdf", target.getvalue())
    assert "The notice period is 30 days." in done.text
    assert done.quality["ocr_pages"] == 1
