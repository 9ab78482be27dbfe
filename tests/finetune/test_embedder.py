"""Votes train the embedder in a process of its own; the judge decides, and the way back is one call."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from core.catalog import BUILTIN
from core.db import Database
from core.errors import Cancelled, NotFoundError, TrainingError
from core.files import write_json
from core.jobs import Jobs
from core.settings import Settings, load_settings
from core.types import Answer, Citation, Passage
from evaluation import bench, search_exam
from evaluation.search_exam import Question, judge, packaged
from feedback.store import FeedbackStore
from feedback.triples import FEWEST, lessons
from finetune import embedder
from finetune.embedder import retrain, roll_back, status, taught, to_triples
from rag import prompt
from rag.embed import EMBEDDING, Embedder
from rag.embedders import Embedders
from rag.index import Index
from rag.ingest import Ingestor
from rag.retrieve import Retriever

THINGS = ["kayak", "canoe", "raft", "sail", "anchor", "oar", "rope", "tent", "stove", "lamp", "flag", "buoy"]
THINGS += ["pump", "hook", "net", "crate"]
ASKS = ("What does one pay for", "Who looks after")
QUESTIONS = [f"{ask} the {thing}?" for thing in THINGS for ask in ASKS]
TEXT = "# Boat house\n\n" + "\n\n".join(
    f"## {thing.title()}\n\nThe hire of the {thing} costs {price} EUR.\n\nMs. Oduya keeps the {thing} safe."
    for price, thing in enumerate(THINGS, 11)
)


class Boathouse:
    """An installation whose readers liked an answer to every question."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.database = Database(settings.database)
        self.index = Index(settings, self.database)
        self.embedder = Embedder()
        ingestor = Ingestor(settings, self.database, self.index, self.embedder)
        paper = settings.data_dir / "boats.md"
        paper.write_text(TEXT, "utf-8")
        ingestor.ingest([paper], lambda line: None)
        self.store = FeedbackStore(self.database)
        retriever = Retriever(settings, self.database, self.index, self.embedder)
        for question in QUESTIONS:
            self.like(question, retriever.search(question, 3))

    def like(self, question: str, found: list[Passage]) -> None:
        built = prompt.build(question, found, BUILTIN)
        shown = built.passages[0]
        unit = shown.units[0]
        cited = Citation(
            1, unit.number, shown.document_id, shown.document, "", None, unit.start, unit.end, unit.text
        )
        answer = Answer(
            unit.text, f"[1] {unit.text}", "answer", (cited,), built.passages, built.messages, "builtin",
            None, built.version, True, "stop", {}, {},
        )  # fmt: skip
        exchange = self.store.record(self.store.start_conversation("ann", question), "ann", question, answer)
        self.store.vote(exchange, "ann", 1)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Boathouse]:
    settings = load_settings({}, data_dir=str(tmp_path_factory.mktemp("house")), cross_encoder=False)
    made = Boathouse(settings)
    yield made
    made.index.close()
    made.database.close()


def tell(_done: float, _what: str) -> None:
    """Somebody listens."""


def test_votes_become_triples(house: Boathouse) -> None:
    train, held = taught(house.settings, house.database)
    assert len(train) + len(held) == len(QUESTIONS)
    assert len(train) >= FEWEST
    triples = to_triples(train, 7)
    for question, right, wrong in triples:
        assert question in QUESTIONS
        assert right.startswith("Boat house > ")
        assert right != wrong
    assert triples == to_triples(train, 7)
    assert f"{len(train)} questions to learn from" in status(house.settings, house.database)


def test_a_blamed_source_is_a_wrong_passage(tmp_path: Path) -> None:
    from tests.feedback.made import House, cite

    home = House(tmp_path)
    exchange = home.ask("What is the notice period?")
    home.store.vote(exchange, "ann", -1, "wrong source")
    assert lessons(home.database, cite) == ([], [])  # no right passage is known
    home.store.vote(exchange, "ann", 1)
    train, held = lessons(home.database, cite)
    assert [one.question for one in train + held] == ["What is the notice period?"]


def test_too_few_votes_are_said_to_be_so(tmp_path: Path) -> None:
    settings = load_settings({}, data_dir=str(tmp_path))
    with pytest.raises(TrainingError, match=f"{FEWEST} are needed"):
        retrain(settings, Database(settings.database), tell)
    with pytest.raises(TrainingError, match="switched off"):
        retrain(replace(settings, vote_embedder=False), Database(settings.database), tell)
    with pytest.raises(NotFoundError, match="No other embedder"):
        roll_back(settings, Database(settings.database), tell)


def test_the_gate_wants_enough_questions_and_a_sure_gain() -> None:
    few = [Question("q", places=(("d", 0),))] * 5
    assert "at least 20" in judge(few, [0.0] * 5, [1.0] * 5).reason
    asked = [Question("q", places=(("d", 0),))] * 20 + [Question("g", documents=("d",))] * 10
    assert judge(asked, [0.5] * 30, [0.6] * 30).passed
    assert not judge(asked, [0.5] * 30, [0.5] * 30).passed
    lost = judge(asked, [0.5] * 30, [0.9] * 20 + [0.4] * 10)
    assert not lost.passed
    assert "Gold sets lose 0.100" in lost.reason


def test_a_gold_set_that_was_measured_is_asked_too(house: Boathouse) -> None:
    folder = house.settings.data_dir / "bench"
    bench.keep_gold(folder, b"question,document\nWho keeps the oar?,boats.md\nWho sings?,gone.md\n")
    asked = search_exam.questions(house.settings, house.database, [("held", [("d", 3)]), ("none", [])])
    assert [one.text for one in asked] == ["held", "Who keeps the oar?"]
    (folder / bench.GOLD).unlink()


def test_an_embedder_that_is_not_better_is_refused_and_its_weights_go(
    house: Boathouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    def copied(settings: Settings, train: object, folder: Path, *_: object) -> None:
        shutil.copytree(packaged().folder, folder, dirs_exist_ok=True)
        card = {"id": folder.name, "sha256": packaged().sha256, "dimensions": 384, "triples": 9}
        write_json(folder / "card.json", card | {"created_at": 1})

    monkeypatch.setattr(embedder, "train_candidate", copied)
    embedders = Embedders(house.settings, house.database)
    refused = retrain(house.settings, house.database, tell)
    assert not refused["passed"]
    assert "needed to judge" in refused["reason"]  # a quarter of the questions, too few
    assert embedders.in_service().id == EMBEDDING
    assert embedders.cards()[0]["triples"] == 9
    assert not (embedders.folder / refused["embedder"] / "model.safetensors").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_embedder_is_trained_judged_put_into_service_and_taken_back(
    house: Boathouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedders = Embedders(house.settings, house.database)
    better = search_exam.Verdict(True, "Better.", 30, 0.5, 0.6, 0.1)
    monkeypatch.setattr(search_exam, "judge", lambda *_: better)
    said: list[str] = []
    passed = retrain(house.settings, house.database, lambda _, what: said.append(what), steps=2)
    assert embedders.in_service().id == passed["embedder"]
    assert embedders.in_service().sha256 != packaged().sha256
    assert any(what.startswith("Training 1-embedder, step") for what in said)
    assert "Asking the candidate" in said
    search = Retriever(house.settings, house.database, house.index, house.embedder)
    assert search.search("Who looks after the oar?", 3)
    assert search.index.status().usable
    assert EMBEDDING in roll_back(house.settings, house.database, tell)
    assert embedders.in_service().id == EMBEDDING
    assert passed["embedder"] in roll_back(house.settings, house.database, tell)
    roll_back(house.settings, house.database, tell)


def test_a_cancelled_training_leaves_nothing(house: Boathouse) -> None:
    before = set((house.settings.data_dir / "embedders").iterdir())

    def stop(_done: float, _what: str) -> None:
        raise Cancelled("Stop.")

    with pytest.raises(Cancelled):
        retrain(house.settings, house.database, stop, steps=2)
    assert set((house.settings.data_dir / "embedders").iterdir()) == before


def test_a_job_reports_its_end(house: Boathouse, monkeypatch: pytest.MonkeyPatch) -> None:
    result = {"embedder": "x", "passed": False, "reason": "No."}
    monkeypatch.setattr(embedder, "retrain", lambda *_: result)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    jobs = Jobs(house.database)
    jobs.submit("embedder")
    job = jobs.lease(("embedder",))
    assert job is not None
    assert embedder._run_job(house.settings, house.database, job.id, job.token) == 0
    assert jobs.get(job.id).message == "No. The old one serves on."
