"""Plans travel as JSON, know their steps, and refuse what cannot fit before anything starts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

import finetune.plan
from core.catalog import BUILTIN, CATALOG, CatalogModel, local_model
from core.errors import ModelError, TrainingError
from core.settings import Settings
from finetune.plan import (
    TrainingPlan,
    check_memory,
    choose_plan,
    memory_needed,
    parameters,
    seconds_needed,
    trainable_folder,
)
from tests.tiny import TinyModel


@pytest.fixture
def settings(tmp_path: Path, tiny_model: TinyModel) -> Settings:
    hf = tmp_path / "models" / tiny_model.id / "hf"
    hf.parent.mkdir(parents=True)
    hf.symlink_to(tiny_model.folder)
    return Settings(data_dir=tmp_path, model=str(tiny_model.gguf))


@pytest.fixture
def plan(settings: Settings, tiny_model: TinyModel, tmp_path: Path) -> TrainingPlan:
    return choose_plan(settings, local_model(tiny_model.gguf), "sft", tmp_path / "sft.jsonl", 60)


def test_json_round_trip(plan: TrainingPlan) -> None:
    assert TrainingPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"method": "ppo"}, "ppo"),
        ({"rank": 0}, "rank"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"batch": -1}, "batch"),
        ({"method": "grpo", "generations": 1}, "generations"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_plan_no_trainer_could_run_is_refused(
    plan: TrainingPlan, change: dict[str, object], named: str
) -> None:
    with pytest.raises(TrainingError, match=named):
        TrainingPlan.from_json(plan.to_json() | change)


def test_an_incomplete_plan_is_refused() -> None:
    with pytest.raises(TrainingError, match="base_folder"):
        TrainingPlan.from_json({"method": "sft", "base": "tiny"})


def test_steps(plan: TrainingPlan) -> None:
    plan = plan.on(batch=4, accumulation=2, epochs=2.0)
    assert plan.steps(60) == 16
    assert plan.on(max_steps=5).steps(60) == 5
    assert plan.on(method="grpo", batch=8, accumulation=1, epochs=1.0, generations=8).steps(60) == 60


def test_the_catalog_decides_template_and_targets(settings: Settings, tmp_path: Path) -> None:
    model = replace(CATALOG["qwen3-0.6b"], id="tiny-256")
    plan = choose_plan(settings, model, "dpo", tmp_path / "rows", 500)
    assert (plan.template, plan.stop, plan.targets) == (model.template, model.stop[0], model.lora_targets)
    assert plan.four_bit is False
    assert choose_plan(replace(settings, four_bit=True), model, "dpo", tmp_path / "rows", 500).four_bit


def test_more_rows_get_fewer_epochs(settings: Settings, tiny_model: TinyModel, tmp_path: Path) -> None:
    model = local_model(tiny_model.gguf)
    epochs = [choose_plan(settings, model, "sft", tmp_path, count).epochs for count in (60, 1000, 5000)]
    assert epochs == sorted(epochs, reverse=True)
    assert epochs[0] > epochs[-1]


def test_without_weights_it_says_where_to_get_them(tmp_path: Path, tiny_model: TinyModel) -> None:
    settings = Settings(data_dir=tmp_path)
    with pytest.raises(ModelError, match=r"understudy models pull qwen3-0.6b --trainable"):
        trainable_folder(settings, CATALOG["qwen3-0.6b"])
    with pytest.raises(ModelError, match=r"holds no trainable weights.*models list"):
        trainable_folder(settings, local_model(tiny_model.gguf))


def test_the_built_in_model_trains_from_the_repository(tmp_path: Path) -> None:
    try:
        folder = trainable_folder(Settings(data_dir=tmp_path), BUILTIN)
    except ModelError:
        pytest.skip("the built-in model is not there")
    assert folder.name == "builtin"
    assert parameters(folder) <= 10_000_000


@pytest.mark.parametrize(
    ("billions", "four_bit", "sixteen_bit"), [(3, 3.5, 8), (8, 6, 22), (32, 26, 76), (405, 237, 950)]
)
def test_gpu_memory_meets_the_published_points(
    plan: TrainingPlan, monkeypatch: pytest.MonkeyPatch, billions: int, four_bit: float, sixteen_bit: float
) -> None:
    monkeypatch.setattr(finetune.plan, "parameters", lambda folder: billions * 10**9)
    gpu = plan.on(device="cuda")
    assert memory_needed(gpu.on(four_bit=True)) / 1e9 == pytest.approx(four_bit)
    assert memory_needed(gpu) / 1e9 == pytest.approx(sixteen_bit)


def test_gpu_memory_grows_between_and_beyond(plan: TrainingPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [0.1, 1.7, 4, 12, 20, 60, 500]
    needs = []
    for billions in sizes:
        monkeypatch.setattr(finetune.plan, "parameters", lambda folder, b=billions: int(b * 1e9))
        needs.append(memory_needed(plan.on(device="cuda", four_bit=True)))
    assert needs == sorted(needs)


def test_too_little_memory_is_refused_before_the_start(
    plan: TrainingPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert check_memory(plan) > 0
    monkeypatch.setattr(finetune.plan, "memory_free", lambda device: 10**8)
    with pytest.raises(TrainingError, match=r"needs .* GB of RAM, and 0\.1 GB are free.*smaller model"):
        check_memory(plan)
    monkeypatch.setattr(finetune.plan, "memory_free", lambda device: 10**9)
    with pytest.raises(TrainingError, match=r"GPU memory.*--four-bit"):
        check_memory(plan.on(device="cuda"))
    exact = memory_needed(plan.on(device="cuda"))
    monkeypatch.setattr(finetune.plan, "memory_free", lambda device: int(1.1 * exact))
    with pytest.raises(TrainingError, match="GPU memory"):  # the engine may need a share of it
        check_memory(plan.on(device="cuda"))


def test_unknown_free_memory_lets_it_start(plan: TrainingPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finetune.plan, "memory_free", lambda device: None)
    assert check_memory(plan) == memory_needed(plan)


def test_time_grows_with_rows(plan: TrainingPlan) -> None:
    assert 0 < seconds_needed(plan, 20) < seconds_needed(plan, 2000)


def test_a_model_without_a_stop_token(settings: Settings, tmp_path: Path) -> None:
    model = CatalogModel("tiny-256", "t", 0.1, "MIT", 512, "", ())
    plan = choose_plan(settings, model, "sft", tmp_path, 10)
    assert (plan.stop, plan.max_length) == ("", 512)
