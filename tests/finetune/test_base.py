"""The recipe of the built-in model: exercises are sound, the tokenizer round-trips, a short run learns."""

from __future__ import annotations

import gzip
import json
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from core.settings import PROJECT
from finetune import base, base_business, base_data, base_export, base_qa
from finetune.base_library import Library, Step, blurred
from finetune.base_papers import HELD_OUT, domains
from finetune.base_shelf import Asked, Exercise, Shelf, View, passage
from rag.prompt import REFUSAL

pytest.importorskip("torch")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    """The recipe's sources: a little text of its own, no public sets."""
    folder = tmp_path_factory.mktemp("library")
    return Library(base.own_text(folder / "source"), None, folder / "texts.npz")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, library: Library) -> Path:
    """A work folder with a small tokenizer, made from text of the recipe's own."""
    out = tmp_path_factory.mktemp("reader")
    source = base.own_text(out / "source")
    base.make_tokenizer(source, out, 2048, 0)
    base.make_vectors(source, out, 0, 2000)
    base.make_data(library, out, base.QUICK, 0)
    return out


@pytest.fixture(scope="module")
def exercises(library: Library) -> list[Exercise]:
    return list(library.exercises(Step(100, (3, 7), 0.5, 0.8), random.Random(3), held=False))


def shelf(library: Library) -> Shelf:
    lines = ("The fee is 12 EUR a month.", "The deposit is 80 EUR.", "Dogs stay outside.")
    return Shelf([passage("Rules > Money", lines[:2]), passage("House", lines[2:])], library.vectors)


def ask(library: Library, question: str, gold: tuple[str, ...], view: View) -> Exercise | None:
    made = shelf(library)
    library.vectors.add([question])
    return made.show(Asked(question, 0, gold, "test"), random.Random(0), view)


def test_an_exercise_is_what_the_product_would_show(library: Library) -> None:
    shown = ask(library, "What is the fee?", ("The fee is 12 EUR a month.",), View(3))
    assert shown is not None
    assert shown.prompt.startswith(
        "Question: What is the fee?\n\nRules > Money\n[1] The fee is 12 EUR a month.\n"
    )
    assert shown.prompt.endswith("\n\nHouse\n[3] Dogs stay outside.\n\nQuestion: What is the fee?")
    assert (shown.reply, shown.labels) == ("[1] The fee is 12 EUR a month.", (1,))


def test_without_its_answer_a_question_is_to_be_refused(library: Library) -> None:
    gold = ("The fee is 12 EUR a month.",)
    shown = ask(library, "What is the fee?", gold, View(3, without=True))
    assert shown is not None
    assert (shown.reply, shown.labels) == (REFUSAL, ())
    assert gold[0] not in shown.prompt


def test_an_answer_that_was_not_shown_is_to_be_refused(library: Library) -> None:
    shown = ask(library, "May my dog come in?", ("The fee is 12 EUR a month.",), View(1))
    assert shown is not None
    assert shown.reply == REFUSAL


def test_random_order_keeps_the_answer_under_its_number(library: Library) -> None:
    gold = ("The deposit is 80 EUR.",)
    for seed in range(8):
        library.vectors.add(["How much is the deposit?"])
        asked = Asked("How much is the deposit?", 0, gold, "test")
        shown = shelf(library).show(asked, random.Random(seed), View(3, shuffled=True))
        assert shown is not None
        assert shown.shown[shown.labels[0] - 1] == gold[0]


def test_an_answer_is_a_unit_word_for_word_or_the_refusal(exercises: list[Exercise]) -> None:
    assert {e.kind for e in exercises} >= {"office", "office-none", "papers", "text", "greeting"}
    for e in exercises:
        if e.labels:
            assert e.reply == " ".join(f"[{n}] {e.shown[n - 1]}" for n in e.labels)
            assert all(f"\n[{n}] {text}" in e.prompt for n, text in enumerate(e.shown, 1))
        else:
            assert e.reply in (REFUSAL, base_data.GREETING)


def test_the_cross_encoder_decides_what_stands_first(library: Library) -> None:
    gold = "The deposit is 80 EUR."
    library.vectors.add(["What is the fee?"])
    asked = Asked("What is the fee?", 0, (gold,), "test")

    def sure(question: str, lines: Sequence[str]) -> list[float]:
        return [0.999 if gold in line else 0.001 for line in lines]

    shown = shelf(library).show(asked, random.Random(0), View(2), sure)
    assert shown is not None
    assert (shown.shown[0], shown.labels) == (gold, (1,))


def test_noise_on_an_opinion_moves_it_and_keeps_it_a_probability() -> None:
    def sure(question: str, lines: Sequence[str]) -> list[float]:
        return [1.0, 0.0, 0.5, 0.5]

    lines = ["a", "b", "c", "d"]
    assert blurred(sure, random.Random(0), 0.0)("?", lines) == pytest.approx(sure("?", lines), abs=1e-5)
    moved = [blurred(sure, random.Random(seed), 1.2)("?", lines) for seed in range(50)]
    assert all(0 < value < 1 for values in moved for value in values)
    assert 10 < sum(values[2] > values[3] for values in moved) < 40  # ties are broken either way
    assert all(values[0] > values[1] for values in moved)  # what is certain stays so


def test_papers_of_held_out_organisations_are_never_trained_on(library: Library) -> None:
    barred = {
        line
        for domain in domains()
        if domain.name in HELD_OUT
        for _, lines in domain.sections
        for line in lines
    }
    shared = {
        line
        for domain in domains()
        if domain.name not in HELD_OUT
        for _, lines in domain.sections
        for line in lines
    }
    step = Step(0, (4, 4), 0.0, 0.8, easy=1.0)
    for held in (False, True):
        made = library.papers(20, step, random.Random(1), held)
        assert len(made) == 20
        shown = {text for exercise in made for text in exercise.shown} - (barred & shared)
        assert bool(shown & barred) == held


def test_answers_stand_anywhere_in_random_order(library: Library) -> None:
    made = library.exercises(Step(90, (4, 4), 1.0, 0.8), random.Random(3), held=False)
    where = Counter(e.labels[0] for e in made if len(e.labels) == 1)
    assert min(where[n] for n in (2, 3, 4)) > 0.08 * sum(where.values())


def test_held_out_templates_never_train() -> None:
    keys = {line[0] for *_, lines in base_business.book() for line in lines}
    assert any(base_business.held_out(k) for k in keys)
    rng = random.Random(1)
    for _ in range(200):
        assert not any(
            base_business.held_out(f.key) and f.key in keys for f in base_business.section(rng).facts
        )


def test_written_questions_name_a_paragraph_a_sentence_and_a_question() -> None:
    written = base_data.written()
    assert sum(map(len, written.values())) > 9000
    for key, rows in written.items():
        assert len(key) == 12
        assert all(0 <= number <= 10 and question.strip() == question != "" for number, question in rows)


def grams_of(folder: Path) -> set[tuple[str, ...]]:
    found: set[tuple[str, ...]] = set()
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".md", ".html", ".csv", ".jsonl"):
            found |= base_qa.grams(path.read_text("utf-8"))
    return found


def test_nothing_trained_on_shares_thirteen_words_with_what_is_measured() -> None:
    ours = base_qa.grams(Path(base_data.__file__).with_name("base_facts.txt").read_text("utf-8"))
    for rows in base_data.written().values():
        for _, question in rows:
            ours |= base_qa.grams(question)
    assert len(ours) > 10_000
    assert not ours & (grams_of(PROJECT / "data" / "eval") | grams_of(PROJECT / "data" / "samples"))


def test_the_overlap_check_finds_what_it_looks_for() -> None:
    text = "Members can leave the cooperative with 90 days' notice to the end of the calendar year only."
    assert base_qa.grams(text) & base_qa.grams("It says: members CAN leave " + text[18:])


def squad(folder: Path) -> None:
    def article(n: int) -> dict[str, object]:
        context = f"Town {n} lies at a lake. It has {n} mills."
        answer = {"text": f"{n}", "answer_start": context.index(f"{n} mills")}
        asked = {"question": f"How many mills has town {n}?", "answers": [answer]}
        return {"title": f"Town_{n}", "paragraphs": [{"context": context, "qas": [asked]}]}

    with gzip.open(folder / "xquad-en.dev.json.gz", "wt", encoding="utf-8") as file:
        json.dump({"data": [article(n) for n in range(4)]}, file)


def test_half_of_the_articles_of_a_public_set_are_held_out(tmp_path: Path) -> None:
    squad(tmp_path)
    train, heldout = base_qa.xquad(tmp_path, "train"), base_qa.xquad(tmp_path, "heldout")
    assert [q.text for q in heldout.questions] == ["How many mills has town 0?", "How many mills has town 2?"]
    assert [(q.gold, q.facts) for q in train.questions] == [
        (("It has 1 mills.",), ("1",)),
        (("It has 3 mills.",), ("3",)),
    ]
    assert base_qa.clapnq(tmp_path, "train").questions == ()


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


def test_made_pairs_differ_as_they_say(folder: Path) -> None:
    from finetune.base_dpo import made
    from finetune.base_train import Encoder, load

    encoder = Encoder(folder)

    def text(ids: object) -> str:
        return str(encoder.tok.decode(list(ids), skip_special_tokens=False))  # type: ignore[call-overload]

    kinds = Counter[str]()
    for _ in range(5):
        for pair in made(load(next((folder / "shards").glob("*.npz"))), encoder, random.Random(len(kinds))):
            kinds[pair.kind] += 1
            chosen, rejected = text(pair.chosen), text(pair.rejected)
            assert chosen != rejected
            assert chosen.endswith("<|im_end|>")
            assert rejected.endswith("<|im_end|>")
            if pair.kind == "invented":
                assert REFUSAL in chosen
                assert rejected.startswith("[1]")
            elif pair.kind == "refused":
                assert REFUSAL in rejected
            elif pair.kind == "no number":
                assert chosen.endswith(rejected)
            elif pair.kind == "wrong number":
                assert chosen.partition("]")[2] == rejected.partition("]")[2]
            else:
                assert f"\n{rejected.removesuffix('<|im_end|>')}\n" in text(pair.prompt)
    assert set(kinds) == {"invented", "refused", "no number", "wrong number", "other"}


def test_dpo_widens_the_margin(folder: Path) -> None:
    from finetune import base_dpo
    from finetune.base_train import restore

    base.run_training(folder, 0, quick=True, steps=30)  # nothing is left of it when it ran before
    before = {name: weight.clone() for name, weight in restore(folder).state_dict().items()}
    losses = base_dpo.train(folder, 0, most=60)
    assert losses[0] == pytest.approx(0.693, abs=0.01)  # both models are the same at first
    assert min(losses[len(losses) // 2 :]) < losses[0]
    after = restore(folder).state_dict()
    assert any(not after[name].equal(weight) for name, weight in before.items())
    assert (folder / "state-sft.pt").exists()


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
        for weight in reader.parameters():  # the folder holds half precision
            weight.copy_(weight.half())
        ours = reader.logits(reader(ids, torch.float32)[0][0])
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)(ids).logits[0]
    assert float((ours - theirs).abs().max()) < 0.001
