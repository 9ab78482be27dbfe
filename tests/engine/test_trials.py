"""Adapters that made the engine crash: counted each by itself, cleared when they work, refused after two."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from core.adapters import Adapter, AdapterRegistry
from core.errors import EngineUnavailable, ModelError
from core.files import read_json, write_json
from core.settings import PROJECT
from engine.adapters import Stage
from engine.trials import MAX_CRASHES, MAX_NOTED, NOTE, Trials
from tests.tiny import TinyModel, register_adapter

WAIT = 30.0  # seconds after which a test that hangs fails
CRASH = """
import os, signal, sys
from pathlib import Path
from core.adapters import Adapter
from engine.trials import Trials
with Trials(Path(sys.argv[1])).trial(Adapter(sys.argv[2], "", "", sys.argv[2], *[None] * 7)):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def adapter(digest: str) -> Adapter:
    return Adapter(digest, "base", "", digest, None, None, None, "sft", "passed", {}, 0)


def crash(folder: Path, digest: str) -> None:
    """An engine that dies while an adapter is on trial."""
    died = subprocess.run([sys.executable, "-c", CRASH, str(folder), digest], cwd=PROJECT, check=False)
    assert died.returncode == -signal.SIGKILL


def noted(folder: Path) -> dict[str, int]:
    return dict(read_json(folder / NOTE)) if (folder / NOTE).exists() else {}


def fail(trials: Trials, digest: str) -> None:
    with pytest.raises(ModelError, match="does not fit"), trials.trial(adapter(digest)):
        raise ModelError("It does not fit.")


def test_what_crashed_twice_is_refused_and_told_what_to_do(tmp_path: Path) -> None:
    for _ in range(MAX_CRASHES):
        crash(tmp_path, "bad")
    trials = Trials(tmp_path)
    with pytest.raises(ModelError, match="Adapter bad crashed the engine 2 times") as caught:
        trials._begin(adapter("bad"))
    assert str(tmp_path / NOTE) in caught.value.next_step
    with trials.trial(adapter("other")):
        pass
    assert noted(tmp_path) == {"bad": 2}
    (tmp_path / NOTE).unlink()
    with trials.trial(adapter("bad")):
        pass


def test_a_trial_that_fails_uncounts_itself_alone(tmp_path: Path) -> None:
    crash(tmp_path, "bad")
    trials = Trials(tmp_path)
    for _ in range(3):
        fail(trials, "bad")
        assert noted(tmp_path) == {"bad": 1}
    fail(trials, "other")
    assert noted(tmp_path) == {"bad": 1}


def test_a_trial_that_ends_well_clears_its_adapter_and_leaves_no_note(tmp_path: Path) -> None:
    crash(tmp_path, "bad")
    with Trials(tmp_path).trial(adapter("bad")):
        assert noted(tmp_path) == {"bad": 2}
    assert not (tmp_path / NOTE).exists()


def test_engines_that_share_a_folder_do_not_erase_one_another_s_counts(tmp_path: Path) -> None:
    """One dies of its adapter while others, each with a thread here, try theirs over and over."""
    first = Trials(tmp_path)
    first._begin(adapter("bad"))  # and never ends it

    def others(number: int) -> None:
        trials = Trials(tmp_path)
        for _ in range(10):
            fail(trials, f"other-{number}")
            with trials.trial(adapter(f"good-{number}")):
                pass

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(others, range(4)))
    assert noted(tmp_path) == {"bad": 1}


def test_an_engine_that_is_told_to_stop_blames_nobody(tmp_path: Path) -> None:
    crash(tmp_path, "bad")
    trials = Trials(tmp_path)
    with suppress(ModelError), trials.trial(adapter("bad")):
        trials.abandon()
        assert noted(tmp_path) == {"bad": 1}
        raise ModelError("It does not fit.")
    assert noted(tmp_path) == {"bad": 1}
    with pytest.raises(EngineUnavailable, match="stopping"):
        trials._begin(adapter("bad"))
    assert noted(tmp_path) == {"bad": 1}


def test_the_note_does_not_grow_for_ever(tmp_path: Path) -> None:
    write_json(tmp_path / NOTE, [[f"old-{number}", 1] for number in range(MAX_NOTED + 50)])
    with Trials(tmp_path).trial(adapter("new")):
        kept = noted(tmp_path)
    assert len(kept) == MAX_NOTED
    assert {"new", f"old-{MAX_NOTED + 49}"} < set(kept)


@pytest.mark.parametrize("content", ["", "[1, 2", "7", '{"bad": "often"}', '{"bad": null}', "[[1]]"])
def test_a_damaged_note_counts_nothing(tmp_path: Path, content: str) -> None:
    (tmp_path / NOTE).write_text(content)
    fail(Trials(tmp_path), "bad")
    with Trials(tmp_path).trial(adapter("bad")):
        assert noted(tmp_path) == {"bad": 1}


def test_a_stage_keeps_the_count_of_an_adapter_that_does_not_fit(
    stage: Stage,
    registry: AdapterRegistry,
    tiny_model: TinyModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = register_adapter(registry, tiny_model, 1)
    write_json(tmp_path / NOTE, {made.sha256: 1})

    def unfit(_adapter_id: str, _path: Path) -> None:
        raise ModelError("It does not fit.")

    with monkeypatch.context() as patch:
        patch.setattr(stage._backend, "check_adapter", unfit)
        with pytest.raises(ModelError, match="does not fit"):
            stage.ensure(made.id)
    assert noted(tmp_path) == {made.sha256: 1}
    stage.ensure(made.id)
    assert noted(tmp_path) == {}


def test_a_stage_that_is_closed_during_a_trial_blames_nobody(
    stage: Stage,
    registry: AdapterRegistry,
    tiny_model: TinyModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = register_adapter(registry, tiny_model, 1)
    gate, begun = threading.Event(), threading.Event()

    def wait(_adapter_id: str, _path: Path) -> None:
        begun.set()
        assert gate.wait(WAIT)

    monkeypatch.setattr(stage._backend, "check_adapter", wait)
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(stage.ensure, made.id)
        assert begun.wait(WAIT)
        assert noted(tmp_path) == {made.sha256: 1}
        stage.close()
        assert noted(tmp_path) == {}
        gate.set()
        assert isinstance(loading.exception(WAIT), EngineUnavailable)
    assert noted(tmp_path) == {}
