"""The loop with a real (tiny) model, trainer, engine and gate: done, killed anywhere, raced and refused."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import finetune.plan
import finetune.retrain as retrain
from core.adapters import AdapterRegistry
from core.catalog import resolve
from core.db import Database
from core.errors import Cancelled, ConflictError, TrainingError
from core.files import owner_lock, read_json
from core.jobs import Jobs
from core.runs import Run, Runs
from core.settings import PROJECT, Settings, child_environment
from evaluation.gate import Rules, judge
from evaluation.run import load_results
from finetune.orders import Tell, open_run, run_here
from finetune.telling import Heartbeat, Terminal
from finetune.training import how_far
from rag.prompt import REFUSAL
from tests.finetune.loop import give_feedback, settings_for
from tests.tiny import TinyModel, register_adapter

SILENT: Callable[[float, str], None] = lambda progress, sentence: None  # noqa: E731


@pytest.fixture
def settings(tmp_path: Path, tiny_model: TinyModel) -> Settings:
    return settings_for(tmp_path, tiny_model)


@pytest.fixture
def database(settings: Settings) -> Database:
    return Database(settings.database)


def loop(settings: Settings, database: Database, run: Run, tell: Any = SILENT) -> retrain.Retraining:
    return retrain.Retraining(settings, database, run, *resolve(settings), tell)


class Killed(BaseException):
    """Stands in for SIGKILL inside this process."""


def test_from_votes_to_the_stage_with_two_kills_on_the_way(
    settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few steps teach the tiny model to answer as its users asked; better, so it takes the stage."""
    give_feedback(database, 50)
    quick = {"learning_rate": 5e-3, "batch": 8, "accumulation": 1, "max_steps": 10}
    monkeypatch.setattr(retrain, "choose_plan", lambda *each: finetune.plan.choose_plan(*each).on(**quick))
    lenient = Rules(fewest_cases=5, shortest_ratio=0.0)  # random text is longer than any refusal
    monkeypatch.setattr(retrain, "judge", lambda before, after: judge(before, after, lenient))
    registry = AdapterRegistry(database, settings.data_dir / "adapters")
    heard: list[float] = []

    def order() -> Run:
        def go(run: Run, tell: Tell) -> Run:
            return loop(settings, database, run, tell).go()

        options = {"methods": ["sft"], "four_bit": False}
        return run_here(settings, database, go, options, lambda progress, sentence: heard.append(progress))

    with monkeypatch.context() as patch:
        patch.setattr(retrain, "export", _die)  # after training
        with pytest.raises(Killed):
            order()
    [run] = Runs(database).list("running")
    folder = settings.data_dir / "runs" / run.id
    trained = read_json(folder / "01-sft" / "card.json")
    assert trained["metrics"]["loss_last"] < 0.1 * trained["metrics"]["loss_first"]
    assert registry.all() == []

    with monkeypatch.context() as patch:
        promote = AdapterRegistry.promote

        def promote_and_die(*each: Any, **named: Any) -> None:
            promote(*each, **named)
            raise Killed

        patch.setattr(AdapterRegistry, "promote", promote_and_die)  # between promotion and the run's row
        with pytest.raises(Killed):
            order()
    assert Runs(database).get(run.id).status == "running"

    done = order()
    assert (done.id, done.status, done.error) == (run.id, "promoted", "")
    assert read_json(folder / "01-sft" / "card.json") == trained
    [adapter] = registry.all()
    assert (adapter.id, adapter.verdict, adapter.run_id) == (done.adapter_id, "passed", run.id)
    [promotion] = registry.history(adapter.base)
    assert promotion.adapter_id == adapter.id
    assert done.report["before"]["score"] < 0.2 < 0.8 < done.report["after"]["score"]
    assert done.report["passed"]
    assert (registry.folder / adapter.id / "taught.npy").exists()
    before = load_results(folder / "before")
    assert {result.reply for result in before} == {REFUSAL}  # what users see of random words
    assert REFUSAL not in {result.raw for result in before}
    assert adapter.metrics == done.report
    assert done.dataset_version == adapter.dataset_version
    assert (folder / "report.md").read_text().startswith("# Passed")
    assert [path.name for path in registry.folder.iterdir()] == [adapter.id]
    assert 0 < heard[0] < heard[-1] < 1
    # a finished run is not taken up again
    assert open_run(database, run.options).id != run.id


def _die(*_: object) -> None:
    raise Killed


def test_a_refused_candidate_stays_off_the_stage(settings: Settings, database: Database) -> None:
    run = Runs(database).start({"methods": ["sft"]})
    refused = loop(settings, database, run).take_the_stage(False, "Worse.", "any", 0)
    assert refused.status == "refused"
    assert AdapterRegistry(database, settings.data_dir / "adapters").on_stage("tiny-256") is None


def test_a_race_for_the_stage_is_lost_openly(
    settings: Settings, database: Database, tiny_model: TinyModel
) -> None:
    """Somebody promoted another adapter while the candidate was trained."""
    registry = AdapterRegistry(database, settings.data_dir / "adapters")
    ours, theirs = (register_adapter(registry, tiny_model, adapter_id=name) for name in ("ours", "theirs"))
    run = Runs(database).start({"methods": ["sft"]})
    at_start = loop(settings, database, run).begin()
    registry.promote(theirs.id, "ann", "by hand")
    lost = loop(settings, database, run).take_the_stage(True, "Better.", ours.id, at_start["seq"])
    assert lost.status == "refused"
    assert "Another adapter was promoted meanwhile" in lost.error
    stage = registry.on_stage(tiny_model.id)
    assert stage is not None
    assert stage.adapter_id == theirs.id


def test_two_runs_never_work_at_once(settings: Settings, database: Database) -> None:
    with owner_lock(settings.data_dir / "retrain.lock", "test"), pytest.raises(ConflictError, match="in use"):
        run_here(settings, database, lambda run, tell: run, {"methods": []}, SILENT)
    assert Runs(database).list() == []


def test_a_failed_or_cancelled_run_says_why(settings: Settings, database: Database) -> None:
    for error, status in ((TrainingError("No rows."), "failed"), (Cancelled("Stopped."), "cancelled")):

        def go(run: Run, tell: Tell, error: Exception = error) -> Run:
            raise error

        with pytest.raises(type(error)):
            run_here(settings, database, go, {"methods": []}, SILENT)
        assert (Runs(database).list()[0].status, Runs(database).list()[0].error) == (status, str(error))


def test_dead_runs_resume_with_their_job_or_are_closed(database: Database) -> None:
    runs, jobs = Runs(database), Jobs(database)
    by_hand = {"methods": ["sft"], "four_bit": False, "votes": 3}
    mine = runs.start(by_hand)
    assert open_run(database, by_hand).id == mine.id
    newer = open_run(database, by_hand | {"votes": 9})  # newer votes: a new run
    assert newer.id != mine.id
    assert runs.get(mine.id).status == "failed"
    job = jobs.submit("retrain", {})
    waiting = runs.start({"methods": ["sft"], "job": job.id})
    open_run(database, by_hand | {"votes": 10})
    assert runs.get(waiting.id).status == "running"  # its job will be leased again
    assert open_run(database, {"methods": ["dpo"], "job": job.id}).id == waiting.id


def test_too_few_rows_are_a_sentence(settings: Settings, database: Database) -> None:
    run = Runs(database).start({"methods": ["sft"], "four_bit": False})
    with pytest.raises(TrainingError, match="0 rows to train on"):
        loop(settings, database, run).go()


def test_a_run_keeps_to_its_model(settings: Settings, database: Database) -> None:
    give_feedback(database, 20)
    run = Runs(database).start({"methods": ["sft"], "four_bit": False})
    begun = loop(settings, database, run)
    begun.step("begin", lambda: begun.begin() | {"base": "another"})
    with pytest.raises(TrainingError, match="began with the model another"):
        begun.go()


def test_dry_run_shows_and_changes_nothing(
    settings: Settings, database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    retrain.dry_run(settings, database, ["sft", "dpo"])
    assert "A run needs 8 answers" in capsys.readouterr().out
    give_feedback(database, 20)
    retrain.dry_run(settings, database, ["sft", "dpo"])
    printed = capsys.readouterr().out
    assert "GB and" in printed
    assert Runs(database).list() == []
    assert not (settings.data_dir / "datasets").exists()
    # the figures are those of the dataset that a run would freeze
    loop(settings, database, Runs(database).start({"methods": ["sft"], "four_bit": False})).freeze()
    [folder] = (settings.data_dir / "datasets").iterdir()
    counts = read_json(folder / "card.json")["counts"]
    assert counts["sft"] + counts["heldout"] == 20
    assert f"{counts['sft']} answers to imitate, {counts['preference']} pairs" in printed
    assert f"{counts['heldout']} questions kept for the exam" in printed
    assert f"sft: {4 * -(-counts['sft'] // 4)} steps of 4 rows" in printed


def test_progress_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    progress = tmp_path / "progress.jsonl"
    assert how_far(progress, 2) == (0.0, "Training, loading the model")
    progress.write_text('{"stage": "02-dpo", "step": 5, "steps": 10, "loss": 0.5, "eta": 7.0}\n{"stage": "0')
    share, sentence = how_far(progress, 2)
    assert (share, sentence[:36]) == (0.75, "Training 02-dpo, step 5 of 10, loss ")
    tell = Terminal(every=60)
    for step in range(3):
        tell(0.1 * step, f"Training 02-dpo, step {step}")
    tell(0.9, "Judging")
    assert capsys.readouterr().out == "  0%  Training 02-dpo, step 0\n 90%  Judging\n"


def test_a_heartbeat_hears_of_cancelling_and_of_a_takeover(database: Database) -> None:
    jobs = Jobs(database)
    jobs.submit("retrain")
    job = jobs.lease(("retrain",))
    assert job is not None
    tell = Heartbeat(jobs, job, every=0.01)
    tell(0.5, "Halfway")
    _until(lambda: jobs.get(job.id).message == "Halfway")
    assert jobs.get(job.id).progress == 0.5
    jobs.cancel(job.id)
    _until(lambda: tell.cancelled)
    with pytest.raises(Cancelled):
        tell(0.6, "More")
    tell.close()
    jobs.submit("retrain")
    other = jobs.lease(("retrain",))
    assert other is not None
    late = Heartbeat(jobs, replace(other, token=other.token - 1), every=0.01)
    _until(lambda: late.lost)
    with pytest.raises(ConflictError):
        late(0.1, "Still here")


def _until(condition: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize("stages", [("train", "export"), ("evaluate", "gate")])
def test_a_worker_killed_in_any_stage_ends_with_one_adapter(
    settings: Settings, database: Database, tiny_model: TinyModel, stages: tuple[str, ...]
) -> None:
    """SIGKILL for the worker, and so its children, in each stage; the next worker goes on to a verdict."""
    give_feedback(database, 40)
    jobs, runs = Jobs(database), Runs(database)
    job = jobs.submit("retrain", {"methods": ["sft", "dpo"], "four_bit": False})
    command = [sys.executable, "-m", "finetune.worker"]
    for stage in stages:
        worker = subprocess.Popen(command, cwd=PROJECT, env=child_environment(settings))
        _until(lambda stage=stage: any(run.stage == stage for run in runs.list()), 400)  # type: ignore[misc]
        worker.kill()
        worker.wait()
        assert jobs.get(job.id).status in ("running", "done")
    worker = subprocess.Popen(command, cwd=PROJECT, env=child_environment(settings))
    _until(lambda: not jobs.get(job.id).open, 400)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(60) == 0
    done = jobs.get(job.id)
    assert (done.status, done.result["status"]) == ("done", "refused"), done.message
    [run] = runs.list()
    [adapter] = AdapterRegistry(database, settings.data_dir / "adapters").all()
    assert run.adapter_id == adapter.id == done.result["adapter"]
    assert [path.name for path in (settings.data_dir / "adapters").iterdir()] == [adapter.id]


@pytest.mark.slow
def test_a_killed_trainer_is_a_failed_job_and_a_cancelled_one_keeps_its_stages(
    settings: Settings, database: Database
) -> None:
    give_feedback(database, 40)
    jobs, runs = Jobs(database), Runs(database)
    worker = subprocess.Popen(
        [sys.executable, "-m", "finetune.worker"], cwd=PROJECT, env=child_environment(settings)
    )
    job = jobs.submit("retrain", {"methods": ["sft"], "four_bit": False})
    _until(lambda: "step" in jobs.get(job.id).message, 400)
    _kill("finetune.train", settings)
    _until(lambda: not jobs.get(job.id).open, 60)
    assert jobs.get(job.id).status == "failed"
    assert "killed (signal 9)" in jobs.get(job.id).message
    assert runs.list()[0].status == "failed"
    again = jobs.submit("retrain", {"methods": ["sft"], "four_bit": False})
    _until(lambda: "step" in jobs.get(again.id).message, 400)
    jobs.cancel(again.id)
    _until(lambda: not jobs.get(again.id).open, 60)
    assert jobs.get(again.id).status == "cancelled"
    assert runs.list()[0].status == "cancelled"
    assert list((settings.data_dir / "runs" / runs.list()[0].id).glob("dataset/card.json"))
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(60) == 0


def _kill(module: str, settings: Settings) -> None:
    """SIGKILL the process of `module` that works in this test's data folder."""
    import os

    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().decode().split("\0")
        except OSError:
            continue
        if module in words and any(str(settings.data_dir) in word for word in words):
            os.kill(int(entry.parent.name), signal.SIGKILL)
