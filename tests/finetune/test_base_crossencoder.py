"""The recipe of the cross-encoder: sound choices, a loss that knows "none of these", a usable export."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from finetune import base_crossencoder as recipe
from finetune.base_crossencoder import Choice, Scorer, asked_of, fewer, read
from finetune.base_papers import HELD_OUT, domains
from rag.crossencoder import CrossEncoder
from rag.embed import Embedder, weights

torch = pytest.importorskip("torch")


def test_held_out_organisations_are_there() -> None:
    assert set(HELD_OUT) < {domain.name for domain in domains()}


def test_questions_on_papers_know_their_line() -> None:
    domain = domains()[0]
    domain.asked = domain.asked[:20]
    made = list(asked_of(domain, Embedder(half=True), 0.0, random.Random(1)))
    assert len(made) == 20
    answered = [one for one in made if one.gold]
    assert len(answered) > 10
    lines = {asked.question: asked.line for asked in domain.asked}
    for one in answered:
        wanted = lines[one.question]
        assert wanted is not None
        assert all(wanted in one.lines[n] for n in one.gold)
        assert " > " in one.lines[0]


def test_fewer_lines_keep_those_that_answer() -> None:
    whole = Choice("q", tuple("abcdefgh"), (6,), "x")
    assert fewer(whole, 3) == Choice("q", ("a", "b", "g"), (2,), "x")
    assert fewer(whole, 9) == whole
    assert fewer(Choice("q", tuple("abc"), (), "x"), 2).gold == ()


def test_the_loss_prefers_the_answer_and_knows_none() -> None:
    scorer = Scorer(weights())
    scorer.model.eval()
    one = Choice("What is free?", ("Lunch is free.", "Parking costs 3 EUR.", "Dogs."), (0,), "x")
    (logits,) = scorer.logits([one])
    (alone,) = scorer.logits([Choice(one.question, one.lines[1:2], (), "x")])
    assert logits.shape == (3,)
    assert float(alone[0]) == pytest.approx(
        float(logits[1]), abs=0.05
    )  # in bfloat16, whatever stands beside it
    likely = torch.cat([torch.zeros(1), logits]).softmax(0)
    assert float(scorer.loss([one])) == pytest.approx(-float(likely[1].log()), abs=0.02)
    none = Choice(one.question, one.lines, (), "x")
    assert float(scorer.loss([none])) == pytest.approx(-float(likely[0].log()), abs=0.02)


def test_the_recipe_runs_through(tmp_path: Path) -> None:
    recipe.main(["all", "--quick", "--out", str(tmp_path / "work"), "--target", str(tmp_path / "made")])
    choices = read(tmp_path / "work" / "train.jsonl")
    assert len(choices) > 48
    assert all(set(one.gold) <= set(range(len(one.lines))) for one in choices)
    assert any(one.gold for one in choices)
    likely = CrossEncoder(tmp_path / "made").answers("What is free?", ["Lunch is free.", "Dogs."])
    assert all(0 < value < 1 for value in likely)
