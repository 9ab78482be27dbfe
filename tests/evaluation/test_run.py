"""Evaluating through a real engine process that replays a script."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from core.errors import Cancelled, ConflictError, EngineError, ModelError, StorageError
from core.settings import load_settings
from evaluation import run
from evaluation.cases import Case
from evaluation.run import Result, Show, asked_of_both, evaluate, load_results, mean, quote_replies
from rag.model import ModelClient, PromptTooLong, Reply, engine_client
from rag.prompt import REFUSAL
from tests.evaluation.made import case

CASES = [
    case("What is the notice period?"),
    case("Who gets the letter?", ("HR",)),
    case("Who founded it?", (), (), answerable=False),
]
SCRIPT = [
    {"match": "notice period?", "reply": "[1] The notice period is 30 days."},
    {"match": "gets the letter?", "reply": "Send the letter to HR."},
    {"match": "founded it?", "reply": REFUSAL},
]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelClient]:
    folder = tmp_path_factory.mktemp("engine")
    script = folder / "script.json"
    script.write_text(json.dumps(SCRIPT))
    with engine_client(load_settings({}, data_dir=folder), scripted=script) as running:
        yield running


def test_every_case_is_asked_and_scored(client: ModelClient, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    results = evaluate(
        client, CASES, "base", folder=tmp_path, progress=lambda done, total: seen.append((done, total))
    )
    assert [result.score for result in results] == [1.0, 0.5, 1.0]
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert results[0].fingerprint.endswith("@base")
    assert results[0].adapter is None
    assert results[0].completion_tokens > 0
    assert results[0].ms > 0
    assert load_results(tmp_path) == results
    assert mean(results) == pytest.approx(2.5 / 3)
    assert evaluate(client, CASES, "base") != []  # without a folder nothing is kept


def test_a_stopped_evaluation_goes_on_where_it_was(client: ModelClient, tmp_path: Path) -> None:
    answers = iter([False, False, True])
    with pytest.raises(Cancelled):
        evaluate(client, CASES, "base", folder=tmp_path, should_stop=lambda: next(answers))
    with pytest.raises(StorageError):
        load_results(tmp_path)
    kept = (tmp_path / "results.jsonl").read_text("utf-8")
    assert kept.count("\n") == 2
    with (tmp_path / "results.jsonl").open("a") as file:
        file.write('{"case_id": "cut sho')  # what a kill leaves
    seen: list[int] = []
    results = evaluate(client, CASES, "base", folder=tmp_path, progress=lambda done, total: seen.append(done))
    assert seen == [3]
    assert (tmp_path / "results.jsonl").read_text("utf-8").startswith(kept)
    assert load_results(tmp_path) == results


def test_a_finished_evaluation_is_not_asked_again(client: ModelClient, tmp_path: Path) -> None:
    first = evaluate(client, CASES, "base", folder=tmp_path)
    again = evaluate(client, CASES, "base", folder=tmp_path, should_stop=lambda: True)
    assert again == first


def test_other_cases_or_sampling_start_afresh(client: ModelClient, tmp_path: Path) -> None:
    evaluate(client, CASES, "base", folder=tmp_path)
    results = evaluate(client, CASES[:1], "base", folder=tmp_path)
    assert len(load_results(tmp_path)) == len(results) == 1
    shorter = evaluate(client, CASES[:1], "base", folder=tmp_path, sampling={"max_tokens": 2})
    assert shorter[0].reply.strip() == "[1] The"


def test_what_is_shown_is_judged_and_the_models_words_are_kept(client: ModelClient, tmp_path: Path) -> None:
    written = evaluate(client, CASES, "base", folder=tmp_path)
    asked: list[tuple[str, str | None]] = []

    def show(case: Case, reply: str, adapter: str | None) -> str:
        asked.append((reply, adapter))
        return REFUSAL

    shown = evaluate(client, CASES, "base", folder=tmp_path, show=Show("shown", show))  # asked anew
    assert asked == [(result.reply, None) for result in written]
    assert [result.raw for result in shown] == [result.reply for result in written]
    assert {result.reply for result in shown} == {REFUSAL}
    assert [result.score for result in shown] == [0.0, 0.0, 1.0]
    assert load_results(tmp_path) == shown


def test_a_changed_results_file_is_noticed(client: ModelClient, tmp_path: Path) -> None:
    evaluate(client, CASES[:1], "base", folder=tmp_path)
    path = tmp_path / "results.jsonl"
    path.write_text(path.read_text("utf-8").replace("30 days", "31 days"), "utf-8")
    with pytest.raises(StorageError, match="not what was evaluated"):
        load_results(tmp_path)


def test_an_adapter_that_does_not_exist_is_no_base_model(client: ModelClient) -> None:
    with pytest.raises(ModelError, match="no-such-adapter"):
        evaluate(client, CASES[:1], "no-such-adapter")


class Swapped:
    """The same client, whose engine changes adapter between two requests."""

    def __init__(self, client: ModelClient, adapters: list[str | None]) -> None:
        self.client = client
        self.adapters = iter(adapters)

    def generate(self, messages: object, model: str = "live", **options: object) -> Reply:
        reply = self.client.generate(messages, "base", **options)  # type: ignore[arg-type]
        return replace(reply, adapter=next(self.adapters))


def test_a_promotion_in_between_does_not_mix_two_models(client: ModelClient) -> None:
    with pytest.raises(ConflictError, match="came on stage"):
        evaluate(Swapped(client, ["a1", "a2"]), CASES, "live")
    with pytest.raises(EngineError, match="a1 was asked"):
        evaluate(Swapped(client, [None]), CASES, "a1")
    assert len(evaluate(Swapped(client, ["a1", "a1", "a1"]), CASES, "a1")) == 3


class Narrow:
    """The same client, whose context is too small for the questions that hold `word`."""

    def __init__(self, client: ModelClient, word: str) -> None:
        self.client = client
        self.word = word

    def generate(self, messages: list[dict[str, str]], model: str = "live", **options: object) -> Reply:
        if self.word in messages[-1]["content"]:
            raise PromptTooLong("The prompt has 2,000 tokens and this model holds 1,024.")
        return self.client.generate(messages, model, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("word", ["notice period?", "gets the letter?", "founded it?"])
def test_a_prompt_that_the_context_does_not_hold_is_left_out(
    client: ModelClient, tmp_path: Path, word: str
) -> None:
    results = evaluate(Narrow(client, word), CASES, "base", folder=tmp_path)  # type: ignore[arg-type]
    assert [result.asked for result in results] == [word not in case.question for case in CASES]
    assert load_results(tmp_path) == results
    asked = [result for result in results if result.asked]
    assert mean(results) == pytest.approx(sum(result.score for result in asked) / 2)
    whole = evaluate(client, CASES, "base")
    assert asked_of_both(whole, results)[1] == asked
    assert [result.case_id for result in asked_of_both(whole, results)[0]] == [r.case_id for r in asked]


def test_an_engine_that_stays_away_ends_the_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "WAITS", (0.01, 0.01))
    nobody = ModelClient("http://127.0.0.1:9", "key")
    with pytest.raises(EngineError):
        evaluate(nobody, CASES, "base", folder=tmp_path)
    assert not (tmp_path / "card.json").exists()


def test_quoting_alone_is_a_baseline() -> None:
    results = quote_replies(CASES)
    assert results[0].reply == "[1] The notice period is 30 days."
    assert results[0].score == 1.0
    assert results[2].reply == REFUSAL
    assert isinstance(results[0], Result)
    assert {result.adapter for result in results} == {None}
