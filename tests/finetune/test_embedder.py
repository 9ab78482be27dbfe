"""Votes train the embedder in a process of its own; the judge decides, and the way back is one call."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.catalog import BUILTIN
from core.db import Database
from core.errors import Cancelled, NotFoundError, TrainingError
from core.files import read_json, write_json
from core.jobs import Jobs
from core.settings import Settings, load_settings
from core.types import Answer, Citation, Passage
from evaluation import search_exam
from evaluation.gold import GOLD, keep_gold, read_gold
from evaluation.search_exam import Fold, Outcome, Question, Score, headed, judge, packaged
from feedback.store import FeedbackStore
from feedback.triples import FEWEST, lessons
from finetune import embedder
from finetune.embedder import learnt, retrain, roll_back, status, taught, to_triples
from rag import prompt
from rag.embed import EMBEDDING, Embedder
from rag.embedders import Embedders
from rag.index import Index
from rag.ingest import Ingestor
from rag.retrieve import Retriever
from rag.vectors import StagedVectors

THINGS = ["kayak", "canoe", "raft", "sail", "anchor", "oar", "rope", "tent", "stove", "lamp", "flag", "buoy"]
THINGS += ["pump", "hook", "net", "crate"]
BETTER = search_exam.Verdict(True, "Better.", 30, 0.5, 0.6, 0.1)
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
    known = taught(house.settings, house.database)
    assert [one.question for one in known] == QUESTIONS
    triples = to_triples(known, 7)
    for question, right, wrong in triples:
        assert question in QUESTIONS
        assert right.startswith("Boat house > ")
        assert right != wrong
    assert triples == to_triples(known, 7)
    assert f"{len(QUESTIONS)} questions to learn from" in status(house.settings, house.database)


def test_a_blamed_source_is_a_wrong_passage(tmp_path: Path) -> None:
    from tests.feedback.made import House, cite

    home = House(tmp_path)
    exchange = home.ask("What is the notice period?")
    home.store.vote(exchange, "ann", -1, "wrong source")
    assert lessons(home.database, cite) == []  # no right passage is known
    home.store.vote(exchange, "ann", 1)
    assert [one.question for one in lessons(home.database, cite)] == ["What is the notice period?"]


def test_too_few_votes_are_said_to_be_so(tmp_path: Path) -> None:
    settings = load_settings({}, data_dir=str(tmp_path))
    with pytest.raises(TrainingError, match=f"{FEWEST} are needed"):
        retrain(settings, Database(settings.database), tell)
    with pytest.raises(TrainingError, match="switched off"):
        retrain(replace(settings, vote_embedder=False), Database(settings.database), tell)
    with pytest.raises(NotFoundError, match="No other embedder"):
        roll_back(settings, Database(settings.database), tell)


def outcomes(
    count: int, gain: float, *, shown: float = 0.0, facts: int = 40, gold: bool = False
) -> list[Outcome]:
    """Questions of which every second finds more by twice `gain` and every other by nothing."""
    return [
        Outcome(
            Question("q", documents=("d",), group=-1 - at) if gold else Question("q", group=at % facts),
            Score(0.5, 0.9),
            Score(0.5 + (at % 2) * 2 * gain, 0.9 + (at % 2) * 2 * shown),
        )
        for at in range(count)
    ]


def test_the_gate_wants_enough_questions_about_enough_facts() -> None:
    assert "at least 20" in judge(outcomes(19, 0.1), []).reason
    assert "about 10 are needed" in judge(outcomes(30, 0.1, facts=9), []).reason
    verdict = judge(outcomes(40, 0.05), [])
    assert verdict.passed
    assert "Judged on 40 questions about 40 facts" in verdict.reason
    assert (verdict.cases, verdict.before, round(verdict.after, 3)) == (40, 0.5, 0.55)


def test_the_gate_wants_a_sure_gain_in_the_searchs_own_order_alone() -> None:
    assert not judge(outcomes(40, 0.0, shown=0.05), []).passed
    assert not judge([*outcomes(40, 0.05), *outcomes(40, -0.05)], []).passed
    assert judge(outcomes(40, 0.05, shown=-0.01), []).passed  # about which it may lose a little
    lost = judge(outcomes(40, 0.05, shown=-0.02), [])
    assert not lost.passed
    assert "of the order shown from 0.900 to 0.880" in lost.reason


def test_questions_about_one_fact_are_no_independent_evidence() -> None:
    lucky = [
        Outcome(Question("q", group=at % 10), Score(0.5, 0.5), Score(0.5 + gain, 0.5))
        for at in range(100)
        for gain in [0.3 if at % 10 == 0 else -0.02]
    ]
    alone = [Outcome(Question("q", group=at), one.before, one.after) for at, one in enumerate(lucky)]
    assert judge(alone, []).low > judge(lucky, []).low
    assert not judge(lucky, []).passed


def test_the_gate_refuses_what_gold_sets_or_its_own_lessons_speak_against() -> None:
    gold = judge([*outcomes(60, 0.1), *outcomes(10, -0.03, gold=True)], [])
    assert not gold.passed
    assert "Gold sets lose 0.030; 0.02 is tolerated." in gold.reason
    assert "10 of the questions are gold" in gold.reason
    assert judge([*outcomes(60, 0.1), *outcomes(10, -0.01, gold=True)], []).passed
    astray = judge(outcomes(60, 0.1), outcomes(60, -0.01))
    assert not astray.passed
    assert "even of what it learnt" in astray.reason


def test_the_gold_set_is_asked_and_not_learnt_from(house: Boathouse) -> None:
    folder = house.settings.data_dir / "bench"
    gold = b"question,document\nWho looks after the oar?,boats.md\nWho sings?,gone.md\n"
    keep_gold(folder, read_gold(gold))
    asked = search_exam.written(house.settings, house.database)
    assert [one.text for one in asked] == ["Who looks after the oar?"]
    assert "Who looks after the oar?" not in [one.question for one in taught(house.settings, house.database)]
    (folder / GOLD).unlink()


def copied(plan: Path, folder: Path, *_: object, **__: object) -> None:
    """Stands for a training that changes nothing."""
    for stage in read_json(plan)["stages"]:
        into = folder / stage["into"]
        shutil.copytree(packaged().folder, into, dirs_exist_ok=True)
        card = {"id": into.name, "sha256": packaged().sha256, "dimensions": 384, "triples": 9}
        write_json(into / "card.json", card | {"created_at": 1, "learnt": stage["learnt"]})


def test_an_embedder_that_is_not_better_is_refused_and_its_weights_go(
    house: Boathouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedder, "run_training", copied)
    embedders = Embedders(house.settings, house.database)
    refused = retrain(house.settings, house.database, tell)
    assert not refused["passed"]
    assert refused["cases"] == len(QUESTIONS)  # all of them judge
    assert refused["low"] == 0
    assert embedders.in_service().id == EMBEDDING
    assert embedders.cards()[0]["triples"] == 9
    left = embedders.folder / refused["embedder"]
    assert not [*left.rglob("model.safetensors"), *left.glob("judges")]
    with house.database.read() as connection:
        assert connection.execute("SELECT count(*) FROM vectors").fetchone()[0] == 0


def test_no_embedder_is_asked_what_it_learnt_and_the_one_to_serve_learns_all(
    house: Boathouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Fold] = []
    plans: list[dict[str, Any]] = []

    def kept(plan: Path, folder: Path, *_: object, **__: object) -> None:
        plans.append(read_json(plan))
        copied(plan, folder)

    def look(
        _settings: Settings, _database: Database, _candidate: object, folds: list[Fold], _tell: object
    ) -> None:
        asked.extend(folds)
        raise Cancelled("Seen enough.")

    left = StagedVectors(house.database, "judge 0 of a killed training")
    left.save([next(iter(left.ready_ids()))], np.ones((1, 384), np.float32))
    monkeypatch.setattr(embedder, "run_training", kept)
    monkeypatch.setattr(embedder, "try_out", look)
    with pytest.raises(Cancelled):
        retrain(house.settings, house.database, tell)
    assert not left.ready_vectors(sorted(left.ready_ids()))[0]
    *judging, whole = plans[0]["stages"]
    assert sorted(one.text for fold in asked for one in fold.questions) == sorted(QUESTIONS)
    rights = {one.question: {headed(p) for p in one.right} for one in taught(house.settings, house.database)}
    for stage, fold in zip(judging, asked, strict=True):
        assert fold.questions
        for one in fold.questions:
            assert one.text not in {row[0] for row in stage["triples"]}
            assert not rights[one.text] & {row[1] for row in stage["triples"]}
    assert {row[0] for row in whole["triples"]} == set(QUESTIONS)


def test_what_the_one_in_service_learnt_from_cannot_judge(
    house: Boathouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedder, "run_training", copied)
    embedders = Embedders(house.settings, house.database)
    with monkeypatch.context() as generous:
        generous.setattr(search_exam, "judge", lambda *_: BETTER)
        serving = retrain(house.settings, house.database, tell)["embedder"]
    assert embedders.in_service().id == serving
    assert "0 questions about 0 facts can be asked" in retrain(house.settings, house.database, tell)["reason"]
    path = embedders.folder / serving / "card.json"
    write_json(path, {key: value for key, value in read_json(path).items() if key != "learnt"})
    seen = learnt(embedders, house.settings.seed)  # a card of before: all but the held-out share
    assert 0 < sum(map(seen, QUESTIONS)) < len(QUESTIONS)
    roll_back(house.settings, house.database, tell)
    assert not any(map(learnt(embedders, house.settings.seed), QUESTIONS))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_embedder_is_trained_judged_put_into_service_and_taken_back(
    house: Boathouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedders = Embedders(house.settings, house.database)
    monkeypatch.setattr(search_exam, "judge", lambda *_: BETTER)
    said: list[str] = []
    passed = retrain(house.settings, house.database, lambda _, what: said.append(what), steps=2)
    assert embedders.in_service().id == passed["embedder"]
    assert embedders.in_service().sha256 != packaged().sha256
    assert any(what.startswith("Training 4-the embedder, step") for what in said)
    assert "Asking both ways, embedder 4 of 4" in said
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
