"""The pages, driven by Streamlit's AppTest in this process, on the running installation's data and engine."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

import feedback.dataset
from app import resources as shared
from app.chat_page import numbered
from app.queue_view import at_work
from app.resources import USER, Resources, resources
from core.adapters import Adapter
from core.catalog import BUILTIN
from core.db import now_ms
from core.errors import EngineBusy, EngineUnavailable
from core.files import sha256_of, write_bytes, write_json
from core.jobs import Jobs
from core.runs import Runs
from core.settings import PROJECT, Settings
from core.types import Unit
from feedback.dataset import freeze
from rag.ingest import Ingestor
from rag.prompt import cite
from tests.app.site import Site, until

MAIN = str(PROJECT / "app" / "main.py")


@pytest.fixture(scope="module")
def parts(running: Site) -> Iterator[Resources]:
    """What the pages share, with the embedding model loaded once."""
    settings = running.settings
    with pytest.MonkeyPatch.context() as patch:
        for field in fields(Settings):
            patch.setenv(f"UNDERSTUDY_{field.name.upper()}", str(getattr(settings, field.name)))
        made = resources()
        made.assistant.warm()
        made.warm = True
        yield made
        made.database.close()
        shared._made.clear()


def open_page(name: str = "") -> AppTest:
    at = AppTest.from_file(MAIN, default_timeout=60).run()
    if name:
        at.switch_page(str(PROJECT / "app" / f"{name}_page.py")).run()
    assert not at.exception
    return at


def shown(at: AppTest) -> str:
    """Every text on the page."""
    kinds = ("markdown", "caption", "title", "subheader", "info", "warning", "error", "success")
    return "\n".join(str(getattr(element, "value", "")) for kind in kinds for element in at.get(kind))


def click(at: AppTest, label: str) -> AppTest:
    next(element for element in at.button if element.label.split("![")[0] == label).click()
    at.run()
    assert not at.exception
    return at


def ask(at: AppTest, question: str) -> AppTest:
    at.chat_input[0].set_value(question).run()
    assert not at.exception
    return at


def test_a_question_is_answered_recorded_and_captioned(parts: Resources) -> None:
    at = ask(open_page(), "What is the notice period?")
    assert "The notice period is 30 days\\. \\[1\\]" in shown(at) or "30 days" in shown(at)
    assert "builtin · no adapter" in shown(at)
    assert any(
        element.label.startswith("\\[1\\]") or element.label.startswith("[1]") for element in at.button
    )
    conversation = parts.feedback.conversations(USER)[0]
    assert parts.feedback.exchanges(conversation.id, USER)[0].status == "complete"
    assert "What is the notice period?" in [element.label for element in at.button]  # in the sidebar


def test_a_vote_and_a_correction_reach_the_store(parts: Resources) -> None:
    at = ask(open_page(), "What does the basic plan cost me?")
    exchange = parts.feedback.exchanges(parts.feedback.conversations(USER)[0].id, USER)[0]
    at.feedback[0].set_value(1).run()
    vote = parts.feedback.vote_of(exchange.id, USER)
    assert vote is not None
    assert vote.value == 1
    at.feedback[0].set_value(0).run()
    vote = parts.feedback.vote_of(exchange.id, USER)
    assert vote is not None
    assert vote.value == -1
    at.text_area[0].set_value("The basic plan costs 10 EUR a month.")
    click(at, "Save correction")
    correction = parts.feedback.correction_of(exchange.id, USER)
    assert correction is not None
    assert correction.status == "pending"
    assert "after review everybody does" in shown(at)


def test_a_known_correction_is_shown_at_once_and_marked(parts: Resources) -> None:
    at = ask(open_page(), "How many seats has the large plan?")
    exchange = parts.feedback.exchanges(parts.feedback.conversations(USER)[0].id, USER)[0]
    correction = parts.feedback.correct(exchange.id, USER, "The large plan has 40 seats.")
    at = ask(open_page(), "how many seats has the large plan")
    assert "40 seats" in shown(at)
    assert "Corrected by a reader, awaiting review" in shown(at)
    parts.review.approve(correction, "reviewer")
    at = ask(open_page(), "How many seats has the large plan?")
    assert "Reviewed correction" in shown(at)
    assert "From a reader's correction, not from the model" in shown(at)


def test_a_reload_keeps_votes(parts: Resources) -> None:
    at = ask(open_page(), "How many days of holiday are there?")
    at.feedback[0].set_value(1).run()
    conversation = parts.feedback.conversations(USER)[0].id
    again = AppTest.from_file(MAIN, default_timeout=60)
    again.query_params["c"] = conversation
    again.run()
    assert again.feedback[0].value == 1


def test_another_users_conversation_does_not_open(parts: Resources) -> None:
    foreign = parts.feedback.start_conversation("mallory", "secret plans")
    at = AppTest.from_file(MAIN, default_timeout=60)
    at.query_params["c"] = foreign
    at.run()
    assert "secret plans" not in shown(at)
    assert at.session_state["conversation"] is None


def test_an_engine_that_is_down_keeps_the_question(parts: Resources, monkeypatch: pytest.MonkeyPatch) -> None:
    real = parts.assistant.stream

    def down(*_: object, **__: object) -> Iterator[str]:
        raise EngineUnavailable("The engine at http://127.0.0.1:1 does not answer.", "Wait.")

    monkeypatch.setattr(parts.assistant, "stream", down)
    at = ask(open_page(), "What is the notice period for cleaners?")
    assert "The model is restarting" in shown(at)
    assert "127.0.0.1" not in shown(at)
    monkeypatch.setattr(parts.assistant, "stream", real)
    click(at, "Ask again")
    assert "The model is restarting" not in shown(at)
    assert "notice period for cleaners" in shown(at)


def test_expected_errors_are_sentences(parts: Resources, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(*_: object, **__: object) -> Iterator[str]:
        raise EngineBusy("The engine's queue is full.", "Wait some seconds and ask again.")

    monkeypatch.setattr(parts.assistant, "stream", busy)
    assert "queue is full" in shown(ask(open_page(), "Who is there?"))


SECRET = "/srv/secret/path SELECT * FROM votes UNDERSTUDY_PASSWORD=hunter2"
PROVOKED = [
    ("documents", "listing", "page"), ("training", "feedback", "counts"), ("training", "review", "pending"),
    ("adapters", "registry", "all"), ("adapters", "registry", "history"), ("", "feedback", "conversations"),
    ("", "documents", "list"), ("documents", "jobs", "list"), ("adapters", "registry", "on_stage"),
]  # fmt: skip


@pytest.mark.parametrize(("page", "part", "method"), PROVOKED)
def test_a_fault_shows_an_id_and_the_log_has_the_rest(
    parts: Resources, monkeypatch: pytest.MonkeyPatch, page: str, part: str, method: str
) -> None:
    """Row W07. The handler is what the web process gives to Streamlit; AppTest runs pages without it."""
    from app.web import report_page_error

    def fault(*_: object, **__: object) -> None:
        raise RuntimeError(SECRET)

    at = AppTest.from_file(MAIN, default_timeout=60)
    if page:
        at.run()
        at.switch_page(str(PROJECT / "app" / f"{page}_page.py"))
    monkeypatch.setattr(getattr(parts, part), method, fault)
    at.run()
    assert len(at.exception) == 1  # the fault reaches the handler
    page_of_handler = AppTest.from_function(_handle)
    page_of_handler.session_state["error"] = RuntimeError(SECRET)
    page_of_handler.run()
    text = shown(page_of_handler)
    assert "Something went wrong on this page (error " in text
    for inside in ("srv", "SELECT", "hunter2", "Traceback", "RuntimeError"):
        assert inside not in text
    assert report_page_error is not None


def _handle() -> None:
    import streamlit as st

    from app.web import report_page_error

    report_page_error(st.session_state["error"])


def test_documents_lists_reads_and_deletes(parts: Resources) -> None:
    document = parts.documents.add(
        "odd *name* [x](http://evil.example).md", b"# Odd\n\nA line about odd names.", "upload"
    )
    searching = parts.assistant.retriever
    Ingestor(parts.settings, parts.database, searching.index, searching.embedder).process_pending()
    chunks = {chunk for chunk, _ in parts.documents.chunk_texts(document.id)}
    assert chunks <= searching.index.ids()
    at = open_page("documents")
    assert "handbook\\.md" in shown(at) or "handbook.md" in shown(at)
    assert "[x](http" not in shown(at)
    next(element for element in at.button if element.key == f"read-{document.id}").click()
    at.run()
    assert "odd names" in shown(at)
    next(element for element in at.button if element.key == f"delete-{document.id}").click()
    at.run()
    click(at, "Delete")
    assert parts.documents.find(document.id) is None
    until(lambda: not chunks & searching.index.ids(), "the index forgets it")


def test_conversations_of_one_title_are_told_apart() -> None:
    assert numbered(["Who?", "When?", "Who?", "Who?"]) == ["Who? (3)", "When?", "Who? (2)", "Who?"]


def test_uploads_say_what_became_of_each(parts: Resources) -> None:
    at = open_page("documents")
    at.file_uploader[0].set_value(
        [("garden.txt", b"The garden opens at eight.", "text/plain"), ("empty.txt", b"", "text/plain")]
    ).run()
    click(at, "Add 2 files")
    assert "**garden" in shown(at)
    assert "was added to the queue" in shown(at)
    assert "was not added: The file is empty" in shown(at)
    until(lambda: not at_work(parts), "the worker reads the file")
    at.run()
    assert "The queue is empty" in shown(at)
    assert "was not added" in shown(at)
    at.file_uploader[0].set_value([("again.txt", b"The garden opens at eight.", "text/plain")]).run()
    click(at, "Add 1 file")
    assert "in the collection already" in shown(at)


def test_review_approves_and_rejects(parts: Resources) -> None:
    for question, text in (
        ("Is the office open at noon?", "Yes, at noon."),
        ("Is parking free?", "No, 2 EUR."),
    ):
        ask(open_page(), question)
        exchange = parts.feedback.exchanges(parts.feedback.conversations(USER)[0].id, USER)[0]
        parts.feedback.correct(exchange.id, USER, text)
    waiting = {pending.correction.text: pending.correction.id for pending in parts.review.pending()}
    at = open_page("training")
    assert "Yes, at noon" in shown(at)
    next(e for e in at.button if e.key == f"approve-{waiting['Yes, at noon.']}").click()
    at.run()
    next(e for e in at.button if e.key == f"reject-{waiting['No, 2 EUR.']}").click()
    at.run()
    assert parts.review.get(waiting["Yes, at noon."]).status == "approved"
    assert parts.review.get(waiting["No, 2 EUR."]).status == "rejected"
    assert "A run that starts now imitates" in shown(at)


def test_a_run_is_submitted_watched_and_cancelled(parts: Resources, monkeypatch: pytest.MonkeyPatch) -> None:
    submitted: list[dict[str, object]] = []
    real = Jobs.submit

    def submit(jobs: Jobs, kind: str, payload: dict[str, object] | None = None, **options: bool) -> object:
        submitted.append({"kind": kind, "payload": payload})
        return real(jobs, "held-back", payload, **options)  # a kind that no worker takes

    monkeypatch.setattr(Jobs, "submit", submit)
    at = open_page("training")
    assert "A run needs 8 answers to imitate" in shown(at)
    assert next(button for button in at.button if button.label == "Start training").disabled
    monkeypatch.setattr(feedback.dataset, "FEWEST", 0)
    at = open_page("training")
    click(at, "Start training")
    assert submitted == [{"kind": "retrain", "payload": {"methods": ["sft", "dpo"], "four_bit": False}}]
    monkeypatch.undo()


def test_a_run_at_work_shows_its_curve_and_a_finished_one_its_report(parts: Resources) -> None:
    from app.run_view import read_progress

    runs = Runs(parts.database)
    run = runs.start({"methods": ["sft"]})
    folder = parts.settings.data_dir / "runs" / run.id
    first = {"stage": "sft", "step": 1, "steps": 2, "loss": 2.0, "eta": 3}
    lines = [json.dumps(first), json.dumps(first | {"step": 2, "loss": 1.5}), '{"sta']
    write_bytes(folder / "progress.jsonl", "\n".join(lines).encode())
    assert [row["loss"] for row in read_progress(folder / "progress.jsonl")] == [2.0, 1.5]
    report = {
        "before": {"score": 0.4, "fact": 0.5},
        "after": {"score": 0.7, "fact": 0.8},
        "cases": 60,
        "passed": True,
        "reason": "All 7 checks passed.",
        "checks": [{"name": "better", "passed": True, "sentence": "It is better."}],
    }
    write_bytes(folder / "report.md", b"# Passed\n")
    runs.record(run.id, status="promoted", report=report, dataset_version="d1", adapter_id="a1")
    at = open_page("training")
    assert "All 7 checks passed" in shown(at)
    assert "It is better" in shown(at)
    assert "Adapter: a1" in shown(at)


def test_adapters_are_promoted_and_rolled_back_with_a_reason(parts: Resources) -> None:
    adapter = make_adapter(parts, "reader-a", "passed")
    make_adapter(parts, "reader-b", "refused")
    at = open_page("adapters")
    assert "The gate refused it" in shown(at)
    assert "0.500 before, 0.700 after, on 60 cases" in shown(at)
    assert not any(element.key == "promote-reader-b" for element in at.button)
    next(e for e in at.button if e.key == "promote-reader-a").click()
    at.run()
    next(e for e in at.text_input if e.label == "Why").set_value("better on the golden questions")
    next(e for e in at.button if e.label == "Put on stage" and "reason_form" in str(e.form_id)).click()
    at.run()
    stage = parts.registry.on_stage("builtin")
    assert stage is not None
    assert (stage.adapter_id, stage.reason) == (adapter.id, "better on the golden questions")
    at = open_page("adapters")
    click(at, "Roll back")
    next(e for e in at.text_input if e.label == "Why").set_value("too wordy")
    next(e for e in at.button if e.label == "Roll back" and "reason_form" in str(e.form_id)).click()
    at.run()
    stage = parts.registry.on_stage("builtin")
    assert stage is not None
    assert stage.adapter_id is None


def test_the_adapter_on_stage_is_named_under_the_next_answer(parts: Resources, running: Site) -> None:
    engine = running.part("engine")["pid"]
    make_adapter(parts, "reader-c", "passed")
    parts.registry.promote("reader-c", USER, "a test")
    assert parts.client.sync_adapters()["adapter"] == "reader-c"
    assert "builtin · reader\\-c" in shown(ask(open_page(), "What is the notice period for bakers?"))
    parts.registry.rollback("builtin", USER, "a test")
    parts.client.sync_adapters()
    assert "builtin · no adapter" in shown(ask(open_page(), "What is the notice period for tailors?"))
    assert running.part("engine")["pid"] == engine


def make_adapter(parts: Resources, name: str, verdict: str, dataset: str = "data1") -> Adapter:
    folder = parts.registry.folder / name
    write_bytes(folder / "adapter.gguf", b"GGUF" + name.encode())
    sha = sha256_of(folder / "adapter.gguf")
    write_json(folder / "card.json", {"sha256": sha})
    figures = {"before": {"score": 0.5}, "after": {"score": 0.7}, "low": 0.1, "high": 0.3, "cases": 60}
    adapter = Adapter(
        name, "builtin", "0" * 64, sha, "run1", dataset, None, "sft+dpo", verdict, figures, now_ms()
    )
    parts.registry.register(adapter)
    return adapter


def test_a_correction_says_what_became_of_it(parts: Resources) -> None:
    """Row C15 of the features: the person who corrected sees when the model has learned it."""
    from app.lessons import fate

    ask(open_page(), "What is the notice period for cooks?")
    exchange = parts.feedback.exchanges(parts.feedback.conversations(USER)[0].id, USER)[0]
    identity = parts.feedback.correct(exchange.id, USER, "The notice period is 30 days.")
    assert "after review everybody does" in fate(parts, parts.review.get(identity))
    parts.review.approve(identity, "reviewer")
    assert fate(parts, parts.review.get(identity)).startswith("Approved.")
    frozen = freeze(
        parts.database, parts.settings.data_dir / "datasets", cite=_cite, minimum=0, heldout_share=0
    )
    make_adapter(parts, "learner", "passed", frozen.version)
    parts.registry.promote("learner", USER, "a test")
    assert "learner, was trained on this correction" in fate(parts, parts.review.get(identity))
    parts.registry.rollback("builtin", USER, "a test")
    assert fate(parts, parts.review.get(identity)).startswith("Approved.")


def _cite(text: str, units: Sequence[Unit]) -> str:
    return cite(text, units, BUILTIN)


def test_no_page_uses_raw_html() -> None:
    """Row S12: nothing in `app/` hands HTML to the browser."""
    for path in (PROJECT / "app").glob("*.py"):
        source = Path(path).read_text("utf-8")
        for forbidden in ("unsafe_allow_html", "st.html(", "components.v1", "components.html", "st.iframe"):
            assert forbidden not in source, f"{path.name} uses {forbidden}"
