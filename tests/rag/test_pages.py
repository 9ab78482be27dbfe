from __future__ import annotations

from rag.outline import Outline
from rag.page_lines import Run
from rag.pages import lay_out


def run(text: str, x: float, y: float, size: float = 10, bold: bool = False) -> Run:
    return Run(text, x, y, size, bold)


def laid_out(*pages: list[Run]) -> list[str]:
    outline = Outline("pdf", "x.pdf")
    lay_out(pages, outline)
    return [line for line in outline.finish().text.split("\n") if line]


def test_lines_join_and_broken_words_heal() -> None:
    page = [
        run("The ware-", 60, 700),
        run("house is open", 60, 688),
        run("daily.", 60, 676),
        run("New part.", 60, 640),
    ]
    assert laid_out(page) == ["X", "The warehouse is open daily.", "New part."]


def test_columns_are_a_table() -> None:
    page = [run("Some words before it.", 60, 740)]
    for row, cells in enumerate(
        [("Rider", "Front", "Rear"), ("Light", "2.8", "3.2"), ("Heavy", "3.9", "4.4")]
    ):
        page += [run(cell, 60 + 100 * column, 700 - 18 * row) for column, cell in enumerate(cells)]
    assert laid_out(page)[2:] == [
        "Rider: Light; Front: 2.8; Rear: 3.2.",
        "Rider: Heavy; Front: 3.9; Rear: 4.4.",
    ]


def test_bullets_and_numbers_are_items() -> None:
    page = [run("Steps follow here now.", 60, 740)]
    for number in (1, 2):
        page += [run(str(number), 60, 720 - 20 * number, 12), run(f"Step {number}.", 80, 720 - 20 * number)]
    page += [run("•", 60, 600, 12), run("A bullet.", 80, 600)]
    assert laid_out(page)[2:] == ["1. Step 1.", "2. Step 2.", "- A bullet."]


def test_a_number_at_a_line_start_is_no_item_in_mid_sentence() -> None:
    page = [run("It got a mark of 4.6 out of", 60, 700), run("5. In total, 12 came.", 60, 688)]
    assert laid_out(page)[1] == "It got a mark of 4.6 out of 5. In total, 12 came."


def test_running_headers_and_page_numbers_go() -> None:
    pages = [
        [run("Kestrel", 60, 800, 8), run(f"Page {n}", 500, 20, 8), run(f"Body {word} here.", 60, 700)]
        for n, word in enumerate(("one", "two", "three"), 1)
    ]
    assert laid_out(*pages) == ["X", "Body one here.", "Body two here.", "Body three here."]


def test_sizes_make_levels() -> None:
    page = [
        run("Manual", 60, 780, 18),
        run("Intro text is the longest thing here by far.", 60, 750),
        run("Care", 60, 720, 14),
        run("Keep dry, and read this long sentence.", 60, 700),
    ]
    outline = Outline("pdf", "x.pdf")
    lay_out([page], outline)
    assert [section.heading for section in outline.finish().sections] == ["", "Care"]
