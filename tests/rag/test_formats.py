"""Every format beside Markdown, HTML, PDF and CSV: files made by the libraries, or written by hand."""

from __future__ import annotations

import io
from email.message import EmailMessage
from pathlib import Path

import pytest

from core.errors import DocumentError
from rag.loaders import extract
from rag.outline import Extracted
from tests.rag.files import archive, docx, docx_with

W = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'


def lines(done: Extracted) -> list[str]:
    return [line for line in done.text.split("\n") if line]


def pptx() -> bytes:
    from pptx import Presentation
    from pptx.util import Inches

    deck = Presentation()
    first = deck.slides.add_slide(deck.slide_layouts[1])
    first.shapes.title.text = "Harvest plan"
    first.placeholders[1].text = "Pick apples in October."
    first.notes_slide.notes_text_frame.text = "Say thank you."
    second = deck.slides.add_slide(deck.slide_layouts[5])
    second.shapes.title.text = "Prices"
    table = second.shapes.add_table(2, 2, Inches(1), Inches(2), Inches(4), Inches(1)).table
    for cell, text in zip(table.iter_cells(), ["Fruit", "Price", "Pear", "3 EUR"], strict=True):
        cell.text = text
    deck.slides.add_slide(deck.slide_layouts[6])
    target = io.BytesIO()
    deck.save(target)
    return target.getvalue()


def test_pptx() -> None:
    done = extract("plan.pptx", pptx())
    assert done.title == "Harvest plan"
    assert lines(done) == [
        "Harvest plan",
        "- Pick apples in October.",
        "Say thank you.",
        "Prices",
        "Fruit: Pear; Price: 3 EUR.",
    ]
    assert [(section.heading, section.page) for section in done.sections] == [("", 1), ("Prices", 2)]
    assert (done.quality["pages"], done.quality["empty_pages"]) == (3, 1)


def workbook(far: bool = False) -> bytes:
    import openpyxl

    book = openpyxl.Workbook()
    sheet = book.active
    sheet.title = "Stock"
    for cells in (["Counted in May"], ["Part", "Left", "Share"], ["Bolt", 12, 0.5], ["Nut", 7.25, 0.25]):
        sheet.append(cells)
    for row in (3, 4):
        sheet.cell(row, 3).number_format = "0%"
    sheet["A7"], sheet["B7"], sheet["A8"], sheet["B8"] = "Depot", "City", "North", "Bergen"
    if far:
        sheet["XFD1048576"] = "corner"
    target = io.BytesIO()
    book.save(target)
    return target.getvalue()


def test_xlsx() -> None:
    done = extract("stock.xlsx", workbook())
    assert lines(done) == [
        "Stock",
        "Counted in May",
        "Part: Bolt; Left: 12; Share: 50%.",
        "Part: Nut; Left: 7.25; Share: 25%.",
        "Depot: North; City: Bergen.",
    ]


def test_xlsx_merged_cells_are_repeated_downwards_and_comments_kept() -> None:
    import openpyxl
    from openpyxl.comments import Comment

    book = openpyxl.Workbook()
    for cells in (["Line", "Stop"], ["7", "Harbour"], [None, "Market"]):
        book.active.append(cells)
    book.active.merge_cells("A2:A3")
    book.active["B2"].comment = Comment("Closed in winter.", "Ann")
    target = io.BytesIO()
    book.save(target)
    assert lines(extract("s.xlsx", target.getvalue()))[1:] == [
        "Line: 7; Stop: Harbour.",
        "Line: 7; Stop: Market.",
        "Comment on B2 by Ann: Closed in winter.",
    ]


def test_xlsx_merged_headers_are_repeated_to_the_right_and_captions_are_not() -> None:
    import openpyxl

    book = openpyxl.Workbook()
    sheet = book.active
    for cells in (
        ["Boats of 2024", None, None],
        ["Pier", "Length", None],
        ["East", 9, 12],
        ["All", None, "7 m"],
        [None, None, None, None, "Plan", "Price"],
        ["West", 8, None, None, "Basic", 10],
    ):
        sheet.append(cells)
    for area in ("A1:C1", "B2:C2", "A4:B4", "E1:F4"):
        sheet.merge_cells(area)
    target = io.BytesIO()
    book.save(target)
    assert lines(extract("s.xlsx", target.getvalue()))[1:] == [
        "Boats of 2024",
        "Pier: East; Length: 9; Length: 12.",
        "Pier: All; Length: 7 m.",
        "Pier: West; Length: 8.",
        "Plan: Basic; Price: 10.",
    ]


def test_xlsx_charts_and_comments_of_newer_versions() -> None:
    import openpyxl
    from openpyxl.chart import BarChart, Reference
    from openpyxl.comments import Comment

    book = openpyxl.Workbook()
    for cells in (["Year", "Ducks"], ["2023", 7], ["2024", 9.5]):
        book.active.append(cells)
    chart = BarChart()
    chart.title, chart.x_axis.title, chart.y_axis.title = "Ducks by year", "Year", "Thousands"
    chart.add_data(Reference(book.active, min_col=2, min_row=1, max_row=3), titles_from_data=True)
    chart.set_categories(Reference(book.active, min_col=1, min_row=2, max_row=3))
    book.create_chartsheet("Chart").add_chart(chart)
    newer = "[Threaded comment]\n\nYour version of Excel …\n\nComment:\n    Counted twice.\nReply:\n    Once."
    book.active["B2"].comment = Comment(newer, "tc={0123}")
    target = io.BytesIO()
    book.save(target)
    assert lines(extract("s.xlsx", target.getvalue()))[1:] == [
        "Year: 2023; Ducks: 7.",
        "Year: 2024; Ducks: 9.5.",
        "Comment on B2: Counted twice. Reply: Once.",
        "Chart",
        "Ducks by year, Thousands",
        "Year: 2023; Ducks: 7.",
        "Year: 2024; Ducks: 9.5.",
    ]


def test_xlsx_a_chart_of_whole_columns_keeps_its_title() -> None:
    import openpyxl
    from openpyxl.chart import LineChart, Reference

    book = openpyxl.Workbook()
    for cells in (["Year", "Ducks"], ["2023", 7]):
        book.active.append(cells)
    chart = LineChart()
    chart.title = "Ducks"
    chart.add_data(Reference(book.active, min_col=2, min_row=1, max_row=2), titles_from_data=True)
    chart.series[0].val.numRef.f = "Sheet!$B:$B"
    book.active.add_chart(chart)
    target = io.BytesIO()
    book.save(target)
    assert lines(extract("s.xlsx", target.getvalue()))[1:] == ["Year: 2023; Ducks: 7.", "Ducks"]


def test_a_sheet_as_large_as_excel_allows_is_read_by_its_real_cells() -> None:
    assert lines(extract("stock.xlsx", workbook(far=True)))[-1] == "corner"


def test_docx_keeps_what_python_docx_leaves_out() -> None:
    body = f"""<w:document {W}><w:body>
    <w:sdt><w:sdtContent><w:p><w:r><w:t>In a control.</w:t></w:r></w:p></w:sdtContent></w:sdt>
    <w:p><w:ins><w:r><w:t>Put in.</w:t></w:r></w:ins>
    <w:del><w:r><w:delText>Taken out.</w:delText></w:r></w:del>
    <w:r><w:rPr><w:vanish/></w:rPr><w:t>secret order</w:t></w:r></w:p>
    <w:p><w:r><w:t>Beside.</w:t></w:r><w:r><w:pict><w:txbxContent><w:p><w:r><w:t>In a box.</w:t></w:r></w:p>
    </w:txbxContent></w:pict></w:r></w:p></w:body></w:document>"""
    done = extract("a.docx", docx_with("word/document.xml", body.encode()))
    assert lines(done) == ["A", "In a control.", "Put in.", "Beside.", "In a box."]
    assert done.quality["hidden"] == len("secret order")


def test_docx_merged_cells_are_repeated_downwards() -> None:
    import docx as library

    document = library.Document()
    table = document.add_table(3, 2)
    for cell, text in zip(table._cells, ["Line", "Stop", "7", "Harbour", "", "Market"], strict=True):
        cell.text = text
    table.cell(1, 0).merge(table.cell(2, 0))
    target = io.BytesIO()
    document.save(target)
    assert lines(extract("a.docx", target.getvalue()))[1:] == [
        "Line: 7; Stop: Harbour.",
        "Line: 7; Stop: Market.",
    ]


def test_strict_open_xml_is_read() -> None:
    files = {}
    import zipfile

    with zipfile.ZipFile(io.BytesIO(docx())) as good:
        for name in good.namelist():
            files[name] = (
                good.read(name)
                .replace(
                    b"http://schemas.openxmlformats.org/officeDocument/2006/",
                    b"http://purl.oclc.org/ooxml/officeDocument/",
                )
                .replace(
                    b"http://schemas.openxmlformats.org/wordprocessingml/2006/main",
                    b"http://purl.oclc.org/ooxml/wordprocessingml/main",
                )
            )
    assert "These rules bind all drivers." in lines(extract("s.docx", archive(files)))


def test_rst() -> None:
    source = b"""
Guide
=====

Read :ref:`this first <intro>`.

Setup
-----

.. note:: Keep it dry.

.. versionadded:: 2.1
   New pump.

#. Open it.
#. Close it.

.. include:: /etc/hostname

.. raw:: html

   <script>steal()</script>

=====  =====
Part   Price
=====  =====
Pump   9 EUR
=====  =====

.. code-block:: python

   a = 1
"""
    done = extract("guide.rst", source)
    text = lines(done)
    assert done.title == "Guide"
    assert "Read this first." in text
    assert "Keep it dry." in text
    assert "2.1 New pump." in text
    assert text[text.index("1. Open it.") + 1] == "2. Close it."
    assert "Part: Pump; Price: 9 EUR." in text
    assert "a = 1" in text
    assert "steal" not in done.text
    assert Path("/etc/hostname").read_text().strip() not in done.text
    assert "Setup" in [section.heading for section in done.sections]


def test_rtf() -> None:
    source = rb"""{\rtf1\ansi Rules for the \b hall\b0 , caf\'e9 included.\par Second part.\par
\trowd\cellx1000\cellx2000 Day\cell Hours\cell\row\trowd\cellx1000\cellx2000 Monday\cell 9 to 5\cell\row}"""
    text = lines(extract("rules.rtf", source))
    assert text[1:3] == ["Rules for the hall, café included.", "Second part."]
    assert "Day: Monday; Hours: 9 to 5." in text


ODF = (
    '<office:document-content xmlns:office="urn:oasis:names:tc:opendocument:xmlns:office:1.0"'
    ' xmlns:text="urn:oasis:names:tc:opendocument:xmlns:text:1.0"'
    ' xmlns:table="urn:oasis:names:tc:opendocument:xmlns:table:1.0"><office:body>{}</office:body>'
    "</office:document-content>"
)


def odf(body: str, manifest: bytes = b"<manifest/>") -> bytes:
    return archive({"content.xml": ODF.format(body).encode(), "META-INF/manifest.xml": manifest})


def test_odt() -> None:
    body = """<office:text><text:h text:outline-level="1">Ferry</text:h><text:p>Sails<text:s/>daily.</text:p>
    <text:list><text:list-item><text:p>Bring a coat.</text:p></text:list-item></text:list>
    <table:table><table:table-row><table:table-cell><text:p>Port</text:p></table:table-cell>
    <table:table-cell><text:p>Fare</text:p></table:table-cell></table:table-row>
    <table:table-row><table:table-cell><text:p>Oban</text:p></table:table-cell>
    <table:table-cell table:number-columns-repeated="16000"/></table:table-row></table:table></office:text>"""
    assert lines(extract("ferry.odt", odf(body))) == [
        "Ferry",
        "Sails daily.",
        "- Bring a coat.",
        "Port: Oban.",
    ]


def test_an_encrypted_odt_is_refused() -> None:
    data = odf("<office:text/>", b"<manifest:manifest><manifest:encryption-data/></manifest:manifest>")
    with pytest.raises(DocumentError, match="password"):
        extract("a.odt", data)


def test_epub_follows_the_spine() -> None:
    container = b"""<container><rootfiles><rootfile full-path="in/book.opf"/></rootfiles></container>"""
    package = b"""<package><manifest><item id="a" href="a%20b.xhtml" media-type="application/xhtml+xml"/>
    <item id="b" href="b.xhtml" media-type="application/xhtml+xml"/></manifest>
    <spine><itemref idref="b"/><itemref idref="a"/></spine></package>"""
    data = archive(
        {
            "META-INF/container.xml": container,
            "in/book.opf": package,
            "in/a b.xhtml": b"<html><body><h1>Two</h1><p>Later.</p></body></html>",
            "in/b.xhtml": b"<html><body><h1>One</h1><p>Sooner.</p></body></html>",
        }
    )
    assert lines(extract("book.epub", data)) == ["One", "Sooner.", "Two", "Later."]


def mail(**headers: str) -> EmailMessage:
    message = EmailMessage()
    for name, value in headers.items():
        message[name] = value
    return message


def test_eml_names_attachments_and_writes_none() -> None:
    message = mail(Subject="Grüße", From="Ann <ann@example.org>", To="bo@example.org")
    message.set_content("Dear Bo,\nall is well.\n\n> You wrote.\n")
    message.add_alternative("<p>Dear Bo</p><img src='http://evil.example/x'>", subtype="html")
    message.add_attachment(b"x", maintype="a", subtype="b", filename="../../../etc/cron.d/x")
    assert lines(extract("m.eml", message.as_bytes())) == [
        "Grüße",
        "From: Ann <ann@example.org>",
        "To: bo@example.org",
        "Dear Bo, all is well.",
        "You wrote.",
        "Attachment: x",
    ]


def test_what_is_no_mail_is_refused() -> None:
    with pytest.raises(DocumentError, match="no mail"):
        extract("m.eml", b"Just words, no header.")
    with pytest.raises(DocumentError, match="MSG file is broken"):
        extract("m.msg", b"\xd0\xcf\x11\xe0" + bytes(600))


def test_json_and_jsonl() -> None:
    done = extract(
        "shop.json", b'{"name": "Hut", "open": true, "staff": [{"n": "Al", "age": 4}, {"n": "Bea"}]}'
    )
    assert lines(done) == ["Shop", "name: Hut; open: yes.", "staff", "n: Al; age: 4.", "n: Bea."]
    assert lines(extract("log.jsonl", b'{"a": 1}\n\n{"a": 2, "b": "x"}\n'))[1:] == ["a: 1.", "a: 2; b: x."]


@pytest.mark.parametrize("data", [b"{", b"[" * 100_000, b'{"a": 1}{'])
def test_broken_json_is_refused(data: bytes) -> None:
    with pytest.raises(DocumentError, match="not valid JSON"):
        extract("a.json", data)


@pytest.mark.parametrize("kind", ["docx", "pptx", "xlsx", "odt", "epub", "zip"])
def test_other_archives_and_cut_ones_are_refused(kind: str) -> None:
    for data in (archive({"x": b"y"}), docx()[:2000]):
        with pytest.raises(DocumentError):
            extract(f"a.{kind}", data)


EXTERNAL = b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/hostname">]><a>&x;</a>'


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("a.xlsx", {"xl/workbook.xml": EXTERNAL}),
        ("a.pptx", {"ppt/presentation.xml": EXTERNAL}),
        ("a.odt", {"content.xml": EXTERNAL, "META-INF/manifest.xml": b""}),
        ("a.epub", {"META-INF/container.xml": EXTERNAL}),
        ("a.docx", {"word/document.xml": EXTERNAL.decode().encode("utf-16")}),
    ],
)
def test_entities_are_refused_in_every_package(name: str, parts: dict[str, bytes]) -> None:
    with pytest.raises(DocumentError, match="XML entities"):
        extract(name, archive(parts))
