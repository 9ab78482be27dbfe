from __future__ import annotations

from pathlib import Path

import pytest

from core.db import Database
from core.errors import NotFoundError
from core.runs import Runs


def test_a_run_is_recorded_and_listed(tmp_path: Path) -> None:
    runs = Runs(Database(tmp_path / "db"))
    first, second = runs.start({"methods": ["sft"]}), runs.start({})
    assert [run.id for run in runs.list()] == [second.id, first.id]
    runs.record(first.id, stage="train", dataset_version="v1")
    done = runs.record(first.id, status="refused", report={"golden": {"before": 1}}, error="It got worse.")
    assert (done.stage, done.dataset_version, done.report) == ("train", "v1", {"golden": {"before": 1}})
    assert [run.id for run in runs.list("running")] == [second.id]
    with pytest.raises(NotFoundError, match="nothing"):
        runs.get("nothing")
