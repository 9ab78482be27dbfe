"""Documents made for tests: good ones in every format, and forty ways to be bad."""

from __future__ import annotations

import io
import zipfile
import zlib


def pdf(pages: list[list[str]], password: str = "") -> bytes:
    """A PDF with one large first line per page and normal lines below it."""
    from reportlab.lib.pdfencrypt import StandardEncryption
    from reportlab.pdfgen.canvas import Canvas

    target = io.BytesIO()
    canvas = Canvas(target, encrypt=StandardEncryption(password) if password else None)
    for lines in pages:
        for number, line in enumerate(lines):
            canvas.setFont("Helvetica", 18 if number == 0 else 10)
            canvas.drawString(60, 780 - 14 * number - (10 if number else 0), line)
        canvas.showPage()
    canvas.save()
    return target.getvalue()


def empty_pdf() -> bytes:
    """A PDF with a drawing and no text, like a scan."""
    from reportlab.pdfgen.canvas import Canvas

    target = io.BytesIO()
    canvas = Canvas(target)
    canvas.rect(50, 50, 100, 100)
    canvas.save()
    return target.getvalue()


def bomb_pdf(size: int = 1_500_000_000) -> bytes:
    """A small PDF whose page content unpacks to `size` bytes of text operators."""
    packer = zlib.compressobj(9)
    step = b"(a) Tj " * 150_000
    packed = b"".join(packer.compress(step) for _ in range(size // len(step))) + packer.flush()
    return _one_page("0 0 600 800", packed)


def sized_pdf(box: str) -> bytes:
    """A PDF of one empty page that claims this size."""
    return _one_page(box, zlib.compress(b"0 0 m 9 9 l S"))


def _one_page(box: str, packed: bytes) -> bytes:
    parts = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [%b] /Contents 4 0 R >>" % box.encode(),
        b"<< /Filter /FlateDecode /Length %d >>\nstream\n" % len(packed) + packed + b"\nendstream",
    ]
    out = b"%PDF-1.4\n"
    offsets = []
    for number, body in enumerate(parts, 1):
        offsets.append(len(out))
        out += b"%d 0 obj\n" % number + body + b"\nendobj\n"
    start = len(out)
    out += b"xref\n0 5\n0000000000 65535 f \n" + b"".join(b"%010d 00000 n \n" % at for at in offsets)
    return out + b"trailer << /Size 5 /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF" % start


def docx() -> bytes:
    """A Word document with headings, a list and a table."""
    import docx as library

    document = library.Document()
    document.add_heading("Fleet rules", 1)
    document.add_paragraph("These rules bind all drivers.")
    document.add_heading("Fuel", 2)
    document.add_paragraph("Use the card.", style="List Bullet")
    document.add_paragraph("First step.", style="List Number")
    document.add_paragraph("Second step.", style="List Number")
    table = document.add_table(2, 2)
    for cell, text in zip(table._cells, ["Car", "Limit", "Van", "120 km"], strict=True):
        cell.text = text
    target = io.BytesIO()
    document.save(target)
    return target.getvalue()


def archive(files: dict[str, bytes]) -> bytes:
    """A ZIP archive."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, data in files.items():
            packed.writestr(name, data)
    return target.getvalue()


def docx_with(part: str, data: bytes) -> bytes:
    """The good Word document with one part replaced or added."""
    with zipfile.ZipFile(io.BytesIO(docx())) as good:
        files = {name: good.read(name) for name in good.namelist()}
    return archive(files | {part: data})


def lying_docx() -> bytes:
    """A bomb whose directory claims that the big part is small."""
    data = bytearray(docx_with("word/media/image1.xml", b"\0" * 60_000_000))
    needle = (60_000_000).to_bytes(4, "little")
    while (at := data.find(needle)) >= 0:
        data[at : at + 4] = (1_000).to_bytes(4, "little")
    return bytes(data)


def turned_pdf(rotation: int) -> bytes:
    """A page of two lines and a table that is turned by `rotation` degrees and reads upright."""
    from reportlab.pdfgen.canvas import Canvas

    target = io.BytesIO()
    canvas = Canvas(target, pagesize=(800, 800))
    canvas.setPageRotation(rotation)
    canvas.translate(400, 400)
    canvas.rotate(rotation)
    canvas.translate(-400, -400)
    canvas.setFont("Helvetica", 10)
    canvas.drawString(60, 700, "The notice period is 30 days.")
    canvas.drawString(60, 686, "Send the letter to HR.")
    for number, (bike, price) in enumerate((("Bike", "Price"), ("Heron", "12 EUR"), ("Otter", "19 EUR"))):
        canvas.drawString(60, 640 - 14 * number, bike)
        canvas.drawString(260, 640 - 14 * number, price)
    canvas.showPage()
    canvas.save()
    return target.getvalue()
