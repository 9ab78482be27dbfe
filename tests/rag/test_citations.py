from __future__ import annotations

import re
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from core.types import Passage
from rag.citations import quote, resolve, safe_markdown, sentences, so_far, support
from rag.prompt import REFUSAL, number_units

TEXT = "The notice period is 30 days. Send the letter to HR.\nPlan: Basic; Price per month: 10 EUR; Seats: 5."
PASSAGES = (number_units(Passage(7, "d1", "Employee handbook", "Leaving", 2, 50, 150, TEXT), 1),)

FIRST = "[1] The notice period is 30 days. [3] Basic costs 10 EUR per month."
LAST = "The notice period is 30 days [1]. Basic costs 10 EUR per month [3]."
SHOWN = "The notice period is 30 days. [1] Basic costs 10 EUR per month. [2]"


@pytest.mark.parametrize("raw", [FIRST, LAST, LAST.replace("days [1].", "days. [1]")])
def test_both_styles_show_the_same(raw: str) -> None:
    done = resolve(raw, PASSAGES)
    assert done.text == SHOWN
    assert [(c.number, c.unit, c.start, c.end, c.page) for c in done.citations] == [
        (1, 1, 50, 79, 2),
        (2, 3, 103, 150, 2),
    ]
    assert done.citations[0].quote == "The notice period is 30 days."
    assert done.citations[0].document == "Employee handbook"
    assert [unit.number for unit in done.units] == [1, 3]


@pytest.mark.parametrize(
    ("raw", "text", "units"),
    [
        ("[99] Invented.", "Invented.", []),
        ("[0] Invented. [2] Send it to HR.", "Invented. Send it to HR. [1]", [2]),
        ("Both hold [1][2].", "Both hold. [1][2]", [1, 2]),
        ("Both hold [1, 2].", "Both hold. [1][2]", [1, 2]),
        ("All hold [1-3].", "All hold. [1][2][3]", [1, 2, 3]),
        ("[2] A. [2] B.", "A. [1] B. [1]", [2]),
        ("[3] A. [1] B. [3] C.", "A. [1] B. [2] C. [1]", [3, 1]),
        ("No mark at all.", "No mark at all.", []),
        ("[1]", "", []),
        ("", "", []),
        ("[1] Half a sent", "Half a sent [1]", [1]),
        ("[1] Cut mark [", "Cut mark [1]", [1]),
        ("[99999999999999999999] x", "[99999999999999999999] x", []),
    ],
)
def test_resolve(raw: str, text: str, units: list[int]) -> None:
    done = resolve(raw, PASSAGES)
    assert done.text == text
    assert [unit.number for unit in done.units] == units


@given(st.text(alphabet="[]0123, .-ab\n!", max_size=80))
def test_resolve_never_fails_and_cites_only_what_exists(raw: str) -> None:
    done = resolve(raw, PASSAGES)
    assert {citation.unit for citation in done.citations} <= {1, 2, 3}
    assert [citation.number for citation in done.citations] == list(range(1, len(done.citations) + 1))
    assert 0.0 <= support(raw, PASSAGES) <= 1.0
    so_far(raw, PASSAGES)


def test_a_refusal_is_shown_as_such() -> None:
    assert resolve("Not in the documents", PASSAGES).text == REFUSAL
    assert resolve("[1] not in the documents.", PASSAGES).refused


@pytest.mark.parametrize("raw", [FIRST, LAST, "Plain words. And more."])
def test_what_streams_only_grows(raw: str) -> None:
    shown = ""
    for end in range(1, len(raw) + 1):
        text = so_far(raw[:end], PASSAGES)
        assert "[" not in text or re.search(r"\[\d\]", text)
        if text.startswith(shown):
            shown = text
    assert resolve(raw, PASSAGES).text.startswith(shown)
    assert len(shown) >= len(resolve(raw, PASSAGES).text) - 5


def test_a_reply_that_forgot_its_marks_is_cited() -> None:
    done = resolve("Basic costs 10 EUR per month. The notice period is 30 days.", PASSAGES)
    assert done.text == "Basic costs 10 EUR per month. [1] The notice period is 30 days. [2]"
    assert [citation.unit for citation in done.citations] == [3, 1]
    assert resolve("Basic costs 12 EUR per month.", PASSAGES).citations == ()
    assert (
        resolve("The notice period is 30 days. [9]", PASSAGES).citations == ()
    )  # a wrong mark is not mended


def test_streaming_shows_no_mark_before_its_sentence() -> None:
    assert so_far("[3] Basic costs", PASSAGES) == "Basic costs"
    assert so_far("[3", PASSAGES) == ""
    assert so_far("[3] Basic costs 10 EUR. [1] The", PASSAGES) == "Basic costs 10 EUR. [1] The"


@pytest.mark.parametrize(
    ("raw", "least", "most"),
    [
        ("[1] The notice period is 30 days.", 1.0, 1.0),
        ("[1] Notice periods: 30 day.", 0.9, 1.0),
        ("[1] The notice period is 31 days.", 0.0, 0.0),
        ("[2] The notice period is 30 days.", 0.0, 0.0),
        ("[1] The notice period in the handbook is 30 days.", 0.9, 1.0),
        ("[1] Bananas grow on tall green trees.", 0.0, 0.1),
        ("[1] The notice period is 30 days. Nobody said this.", 0.0, 0.6),
        ("The notice period is 30 days.", 1.0, 1.0),  # forgot the mark
        ("The notice period is 31 days.", 0.0, 0.0),
        ("The notice period is 30 days. Nobody said this.", 0.0, 0.0),
        ("[1] The notice period is 30 days. [9] It costs 10 EUR.", 0.0, 0.0),
        (REFUSAL, 1.0, 1.0),
        ("", 0.0, 0.0),
    ],
)
def test_support(raw: str, least: float, most: float) -> None:
    assert least <= support(raw, PASSAGES) <= most


def test_quotes_find_the_unit() -> None:
    done = quote("How long is the notice period?", PASSAGES)
    assert done is not None
    assert done.text == "“The notice period is 30 days.” [1]"
    assert done.citations[0].unit == 1


def test_quotes_use_similarity_when_words_differ() -> None:
    def similar(question: str, texts: Sequence[str]) -> list[float]:
        return [0.9 if "letter" in text else 0.1 for text in texts]

    question = "Where does my resignation go?"
    assert quote(question, PASSAGES) is None
    done = quote(question, PASSAGES, similar)
    assert done is not None
    assert "letter" in done.text


def test_nothing_is_quoted_when_nothing_fits() -> None:
    assert quote("Which bananas are ripe?", PASSAGES) is None
    assert quote("?", PASSAGES) is None
    assert quote("notice", ()) is None


def test_sentences_of_several_styles() -> None:
    assert [(s.text, s.cites) for s in sentences("A one. B two [2]. C", PASSAGES)] == [
        ("A one. B two.", (2,)),
        ("C", ()),
    ]


URL = "http://evil.example/x"
TARGETS = [
    URL,
    "https://evil.example/x.png?d=secret",
    "//evil.example/x",
    "data:image/svg+xml;base64,PHN2Zz4=",
    "javascript:alert(1)",
    "ftp://evil.example",
    "mailto:a@evil.example",
    "file:///etc/passwd",
]
SHAPES = [
    "![x]({})",
    "[x]({})",
    "[![x]({})]({})",
    "![x][r]\n\n[r]: {}",
    "[r]: {}\n\n[r]",
    "<{}>",
    "<img src={}>",
    '<img src="{}" onerror=alert(1)>',
    '<a href="{}">x</a>',
    "<svg onload=fetch('{}')>",
    "see {} now",
    "**{}**",
    "`{}`",
    "> {}",
    "- {}",
    "    {}",
    "| a |\n|---|\n| {} |",
    "# {}",
]
ODD = [
    "www.evil.example",
    "WWW.EVIL.EXAMPLE/path",
    "someone@evil.example",
    ":material/delete: :red[text] :smile:",
    "$\\href{http://evil.example}{x}$",
    "$$\\includegraphics{http://evil.example}$$",
    "&lt;img src=x&gt; &#60;script&#62;",
    "<!-- comment --><script>alert(1)</script>",
    "```html\n<img src=x>\n```",
    "~~~\nx\n~~~",
    "<details><summary>x</summary></details>",
    "[^1]\n\n[^1]: note",
    "1. one\n2. two",
    "1) one",
    "---",
    "a\n===",
    "a\n---",
    "\\[x](http://evil.example)",
    "![x]\\(http://evil.example)",
    "[x](<http://evil.example>)",
    "[x](http://evil.example 'title')",
    "hTtPs://evil.example",
    "http\t://evil.example",
    "<iframe src=//evil.example></iframe>",
    "<style>@import '//evil.example'</style>",
    "<base href=//evil.example>",
    "\x00<img src=x>",
    "\u202e<img src=x>",
]
VARIANTS = [shape.replace("{}", target) for shape in SHAPES for target in TARGETS] + ODD


@pytest.mark.parametrize("variant", VARIANTS)
def test_nothing_a_model_writes_becomes_markup(variant: str) -> None:
    for text in (variant, f"Before {variant} after", f"First.\n\n{variant}\n\nLast."):
        safe = safe_markdown(text)
        tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(safe)
        kinds = {token.type for token in tokens} | {c.type for token in tokens for c in token.children or ()}
        assert kinds <= {
            "paragraph_open",
            "paragraph_close",
            "inline",
            "text",
            "text_special",
            "hardbreak",
            "softbreak",
        }
        assert not re.search(r"(?i)\b(?:https?|ftp|file|mailto|javascript|data)\\?:", safe)
        assert not re.search(r"(?i)\bwww\.", safe)


def test_safe_text_reads_as_it_was() -> None:
    text = "The fee is 5.90 EUR (10 % off) & more: see <A> *now* [1][2]."
    tokens = MarkdownIt("commonmark").parse(safe_markdown(text))
    shown = "".join(child.content for token in tokens for child in token.children or ())
    assert shown == text


def test_lines_stay_lines() -> None:
    html = MarkdownIt("commonmark").render(safe_markdown("one\ntwo\n\n    three"))
    assert html == "<p>one<br />\ntwo</p>\n<p>three</p>\n"
