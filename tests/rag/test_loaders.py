from __future__ import annotations

from pathlib import Path

import pytest

from core.errors import DocumentError
from rag.chunks import units
from rag.loaders import extract
from rag.outline import Extracted
from tests.rag.conftest import HANDBOOK
from tests.rag.files import docx, empty_pdf, pdf, turned_pdf

SAMPLES = Path("data/samples/documents")


def lines(extracted: Extracted) -> list[str]:
    return [line for line in extracted.text.split("\n") if line]


def test_markdown() -> None:
    done = extract("guide.md", HANDBOOK)
    assert done.title == "Staff guide"
    assert "Plan: Basic; Price per month: 10 EUR; Seats: 5." in lines(done)
    assert "- Lunch is free on Fridays." in lines(done)
    assert [section.heading for section in done.sections] == ["", "Leaving", "Prices"]


def test_markdown_markup_leaves_no_trace() -> None:
    source = b"""---
title: x
---
# A *big* [link](http://evil.example/x)

Text with ![image](http://evil.example/i.png), <b>bold</b> and `code`.
Second line.

1. one
2. two

```
a = 1
b = 2
```

<div><script>steal()</script><p>Inside</p></div>
"""
    done = extract("x.md", source)
    assert done.title == "A big link"
    assert "evil" not in done.text
    assert "steal" not in done.text
    assert lines(done)[1:] == [
        "Text with image, bold and code. Second line.",
        "1. one",
        "2. two",
        "a = 1",
        "b = 2",
        "Inside",
    ]


def test_html_keeps_what_a_reader_sees() -> None:
    source = """<html><head><title>t</title><style>p{}</style><meta http-equiv=refresh content="0"></head>
    <body><nav>Home</nav><header><p>Logo</p></header><h1>Shop</h1><p>Open <b>daily</b>.<br>Ring twice.</p>
    <div>Loose text <a href="javascript:x()">link</a></div><h2>Prices</h2>
    <table><tr><th>Plan</th><th>Price</th></tr><tr><td>A</td><td>5&nbsp;EUR</td></tr></table>
    <table><tr><th>Weight</th><td>4 kg</td></tr><tr><th>Colour</th><td>red</td></tr></table>
    <ul><li>One</li><li><p>Two</p><p>parts</p></li></ul><ol><li>First</li><li>Second</li></ol>
    <p hidden>secret</p><p style="display: none">secret</p><svg onload=x()><text>secret</text></svg>
    <!-- secret --><footer>Imprint</footer></body></html>"""
    done = extract("x.html", source.encode())
    assert done.title == "Shop"
    assert lines(done) == [
        "Shop",
        "Open daily. Ring twice.",
        "Loose text link",
        "Prices",
        "Plan: A; Price: 5 EUR.",
        "Weight: 4 kg.",
        "Colour: red.",
        "- One",
        "- Two parts",
        "1. First",
        "2. Second",
    ]
    assert done.quality["hidden"] == 2 * len("secret")


def test_html_counts_what_is_hidden_once_and_what_is_repaired() -> None:
    source = '<p>Zürich, Köln, Tromsø.</p><div hidden>no <b style="visibility: hidden">one</b></div>'.encode()
    done = extract("x.html", source.replace(b"K", b"K\xff"))
    assert lines(done)[-1] == "Zürich, Köln, Tromsø."
    assert (done.quality["hidden"], done.quality["repaired"]) == (len("noone"), 1)


def test_deeply_nested_html_is_refused() -> None:
    with pytest.raises(DocumentError, match="nests"):
        extract("x.html", b"<div>" * 50_000 + b"deep" + b"</div>" * 50_000)


def test_docx() -> None:
    done = extract("rules.docx", docx())
    assert done.title == "Fleet rules"
    assert lines(done) == [
        "Fleet rules",
        "These rules bind all drivers.",
        "Fuel",
        "- Use the card.",
        "1. First step.",
        "2. Second step.",
        "Car: Van; Limit: 120 km.",
    ]


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_csv(separator: str) -> None:
    rows = [["Name", "Phone"], ["Ann", "0550 1"], ["Bo", "0550 2"]]
    done = extract("phone-list.csv", "\n".join(separator.join(row) for row in rows).encode())
    assert lines(done) == ["Phone list", "Name: Ann; Phone: 0550 1.", "Name: Bo; Phone: 0550 2."]


def test_csv_with_quotes_and_line_breaks() -> None:
    done = extract("a.csv", b'Q,A\n"Why, then?","Be\ncause"\n')
    assert lines(done)[1] == "Q: Why, then?; A: Be cause."


def test_text() -> None:
    done = extract("notes.txt", b"First line\nof a paragraph.\n\n- one\n- two\n")
    assert lines(done) == ["Notes", "First line of a paragraph.", "- one", "- two"]


def test_pdf_pages_and_headings() -> None:
    pages = [["Manual", "Charge it daily.", "Then rest."], ["Care", "Keep it dry."]]
    done = extract("manual.pdf", pdf(pages))
    assert done.title == "Manual"
    assert [(section.heading, section.page) for section in done.sections] == [("", 1), ("Care", 2)]
    assert "Charge it daily. Then rest." in lines(done)


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_a_turned_page_reads_like_an_upright_one(rotation: int) -> None:
    upright = lines(extract("bikes.pdf", turned_pdf(0)))
    assert "The notice period is 30 days. Send the letter to HR." in upright
    assert any("Heron" in line and "12 EUR" in line for line in upright)
    assert lines(extract("bikes.pdf", turned_pdf(rotation))) == upright


def test_pdf_without_text_is_refused() -> None:
    with pytest.raises(DocumentError, match="OCR"):
        extract("scan.pdf", empty_pdf())


def test_encrypted_pdf_is_refused() -> None:
    with pytest.raises(DocumentError, match="password"):
        extract("secret.pdf", pdf([["Hello"]], password="x"))


def test_broken_pdf_is_refused() -> None:
    whole = pdf([["Hello"], ["World"]])
    for data in (b"%PDF-1.4\nnonsense", whole[: len(whole) // 2], whole[:200]):
        with pytest.raises(DocumentError):
            extract("broken.pdf", data)


@pytest.mark.parametrize("path", sorted(SAMPLES.iterdir()), ids=lambda path: path.name)
def test_every_sample_gives_units_with_headings(path: Path) -> None:
    done = extract(path.name, path.read_bytes())
    assert done.text.startswith(done.title + "\n")
    assert len(units(done.text)) > 10
    assert all(0 < len(section.heading) <= 120 for section in done.sections[1:])
    assert not any("•" in section.heading or "|" in done.text for section in done.sections)


def test_sample_evidence_stands_in_the_extracted_text() -> None:
    """Every fact that the evaluation asks for survives extraction, word for word."""
    import json

    texts = {path.name: extract(path.name, path.read_bytes()).text for path in SAMPLES.iterdir()}
    lost = []
    for line in Path("data/eval/golden.jsonl").read_text("utf-8").splitlines():
        row = json.loads(line)
        if row["answerable"] and not any(row["evidence"] in texts[source] for source in row["sources"]):
            lost.append(row["id"])
    assert lost == []
