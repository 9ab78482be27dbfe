"""The Search page, on the running installation's documents."""

from __future__ import annotations

import shutil

from app.resources import Resources
from core.files import write_json
from evaluation import bench
from evaluation.gold import names_of, read_gold
from tests.app.test_pages import click, open_page, parts, shown

__all__ = ["parts"]  # a fixture


def test_the_search_page_shows_every_stage_and_measures(parts: Resources) -> None:
    at = open_page("search")
    assert "Type a question" in shown(at)
    at.text_input[0].set_value("What is the notice period?").run()
    assert not at.exception
    text = shown(at)
    for title in ("Words", "Meaning", "Both", "Feedback", "Read again"):
        assert f"**{title}**" in text
    assert "30 days" in text
    assert "Nothing was measured yet" in text
    gold = "question,document\nWhat is the notice period?,handbook.md\nWho sings?,gone.md\n"
    names = names_of(parts.settings, parts.database)
    results = [
        bench.measure(parts.assistant.retriever, read_gold(gold.encode()), names, lambda _: None)
        for _ in range(2)
    ]
    for result in results:
        bench.keep(parts.settings.data_dir / "bench", result)
    at = open_page("search")
    assert "2 questions" in shown(at)
    assert "0 questions better, 0 worse" in shown(at)
    assert "Documents of the gold set that are not here: 1" in shown(at)
    assert any("gone.md" in str(frame.value) for frame in at.dataframe)
    at = click(at, "Measure")  # the golden questions, whose documents are not here
    assert "50 questions" in shown(at)
    assert len(bench.kept(parts.settings.data_dir / "bench")) == 3


def test_the_search_learns_from_votes(parts: Resources) -> None:
    at = open_page("search")
    text = shown(at)
    assert "In service: **all" in text
    assert "questions to learn from" in text
    train = next(button for button in at.button if button.label == "Train on votes")
    assert train.disabled  # there are too few votes
    assert not [button for button in at.button if "Go back" in button.label]
    parts.jobs.submit("reindex", {"embedder": "gone"})
    at = open_page("search")
    assert [button for button in at.button if button.label == "Cancel"] or "gone" in shown(at)


def test_verdicts_are_shown_with_what_was_judged_those_of_the_first_versions_too(parts: Resources) -> None:
    folder = parts.settings.data_dir / "embedders"
    old = {"passed": False, "reason": "No.", "cases": 31, "before": 0.91, "after": 0.92, "low": -0.01}
    new = old | {"passed": True, "cases": 118, "before": 0.8, "after": 0.85}
    new |= {"shown_before": 0.91, "shown_after": 0.9, "shown_low": -0.01}
    for number, verdict in enumerate((new, old, None)):
        name = f"tuned-{number}"
        card = {"id": name, "created_at": 10 - number, "questions": 90}
        write_json(folder / name / "card.json", card)
        if verdict:
            write_json(folder / name / "verdict.json", verdict)
    try:
        rows = next(
            frame.value.astype(object).fillna("").to_dict("records")
            for frame in open_page("search").dataframe
            if "embedder" in frame.value
        )
    finally:
        shutil.rmtree(folder)
    columns = ("judged on", "search before", "search after", "shown before", "shown after", "verdict")
    assert [tuple(row[column] for column in columns) for row in rows] == [
        (118, 0.8, 0.85, 0.91, 0.9, "better"),
        (31, "", "", 0.91, 0.92, "not better"),
        ("", "", "", "", "", "unjudged"),
    ]
