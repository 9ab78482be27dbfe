"""The recipe of the built-in model: exercises are sound, the tokenizer round-trips, a short run learns."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from finetune import base, base_business, base_data, base_export
from finetune.base_data import REFUSAL, Exercise, Passage

pytest.importorskip("torch")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work folder with a small tokenizer, made from text of the recipe's own."""
    out = tmp_path_factory.mktemp("reader")
    source = base.own_text(out / "source")
    base.make_tokenizer(source, out, 2048, 0)
    base.make_vectors(source, out, 0, 2000)
    base.make_data(source, out, 0, quick=True)
    return out


def office(count: int, seed: int = 0) -> list[Exercise]:
    rng = random.Random(seed)
    return [base_business.exercise(rng, rng.randint(4, 20)) for _ in range(count)]


def test_the_prompt_has_the_question_first_and_last() -> None:
    e = Exercise("Why?", (Passage("A > B", ("One.", "Two.")), Passage("", ("Three.",))), (3,), "text")
    assert e.prompt() == "Question: Why?\n\nA > B\n[1] One.\n[2] Two.\n\n[3] Three.\n\nQuestion: Why?"
    assert e.answer() == "[3] Three."


def test_an_answer_is_a_unit_word_for_word_or_the_refusal() -> None:
    for e in office(300):
        assert all(1 <= n <= len(e.units) for n in e.answers)
        assert len(e.units) <= base_data.LABELS
        if e.answers:
            assert e.answer().startswith(f"[{e.answers[0]}] {e.units[e.answers[0] - 1]}")
        else:
            assert e.answer() == REFUSAL


def test_a_refusal_lacks_the_answer_of_its_question() -> None:
    rng = random.Random(4)
    for _ in range(200):
        s = base_business.section(rng)
        fact = rng.choice(s.facts)
        e = base_business._assemble([s], fact.questions[0], [fact], True, 9, rng)
        assert not e.answers
        assert fact.unit not in e.units


def test_answers_stand_anywhere() -> None:
    where = Counter(int(4 * (e.answers[0] - 1) / len(e.units)) for e in office(1500) if e.answers)
    assert min(where.values()) > 0.15 * sum(where.values())


def test_held_out_templates_never_train() -> None:
    keys = {line[0] for *_, lines in base_business.book() for line in lines}
    assert any(base_business.held_out(k) for k in keys)
    rng = random.Random(1)
    for _ in range(200):
        assert not any(
            base_business.held_out(f.key) and f.key in keys for f in base_business.section(rng).facts
        )


def test_a_question_from_text_rests_on_its_sentence(folder: Path) -> None:
    rng = random.Random(2)
    docs = base_data.documents(folder / "source" / "own.txt", 50, rng)
    rarity = base_data.Rarity([u for d in docs for p in d for u in p.units])
    made = [e for _ in range(400) if (e := base_data.exercise(docs, rarity, rng, 6))]
    assert len(made) > 20
    for e in made:
        assert not e.answers or e.units[e.answers[0] - 1] in e.prompt()


def test_the_tokenizer_round_trips_and_labels_are_one_token(folder: Path) -> None:
    from finetune.base_train import Encoder

    encoder = Encoder(folder)
    for text in ("[1] The fee is 1.234,50 EUR.\n[40] Grüße – naïve 🙂\n\nQuestion: x?", "  a\tb\r\n"):
        assert encoder.tok.decode(encoder.encode([text])[0], skip_special_tokens=False) == text
    assert all(len(encoder.encode([f"[{n}]"])[0]) == 1 for n in range(1, 41))
    assert encoder.encode([".\n"])[0][-1] == encoder.newline


def test_a_short_run_lowers_the_loss_and_resumes(folder: Path) -> None:
    losses = base.run_training(folder, 0, quick=True, steps=30)
    assert losses[-1] < losses[0]
    assert base.run_training(folder, 0, quick=True, steps=30) == []
    assert set(base.run_measure(folder)["all"]) == {"n", "label", "copy", "wrong_refusal", "refused"}


def test_the_reader_is_the_llama_of_transformers(folder: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from finetune.base_train import Encoder, restore

    factor = base_export.save_folder(folder, tmp_path)
    refusal = Encoder(folder).encode(["Not"])[0][0]
    ids = torch.arange(5, 45)[None]
    with torch.no_grad():
        reader = restore(folder)
        reader.embed_tokens.weight[refusal] *= factor
        ours = reader.logits(reader(ids, torch.float32)[0][0])
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)(ids).logits[0]
    assert float((ours - theirs).abs().max()) < 0.05
