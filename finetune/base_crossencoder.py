"""Make the cross-encoder that comes with Understudy: MiniLM, trained to tell which line answers a question.

Its exercises are those of the built-in reader (`finetune.base_library`): a question, and the lines that the
product would choose among for it. Trained listwise: the logits of the lines, and a zero for "none of these",
go through one softmax, so the probability of a line alone is calibrated, too. Stages, each a subcommand:

    data      questions with their lines, as JSON lines
    train     from MiniLM's weights; one pass, about an hour on two cores
    measure   right line and refusals on held-out documents, organisations and templates
    export    half precision weights, tokenizer and card
    all       everything in order
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune import base
from finetune.base_export import hashes, write
from finetune.base_library import Library, Step, Texts, shelved
from finetune.base_papers import HELD_OUT, Domain, domains
from finetune.base_shelf import Exercise, View
from rag.crossencoder import FOLDER, TOKENS
from rag.embed import EMBEDDING, Embedder, weights
from rag.prompt import question_line

if TYPE_CHECKING:
    import torch

LINES = 6  # of an exercise; the product lets it read twice as many
WITHOUT = 0.08  # share of the answerable questions whose answer is taken away
OFFICE, RULES = 3000, 1200  # exercises on invented facts, and on sentences turned into questions by rule
EASY = 0.5  # of those, share kept of the answers that stand first and of the refusals
BATCH, MICRO = 16, 32  # exercises a step, pairs a forward pass
RATE, WARMUP = 7e-5, 0.06  # of all steps
WRONG = 0.1  # wrong refusals at which right ones are counted


@dataclass(frozen=True)
class Choice:
    """A question, the lines to choose among, and the indices of those that answer it (none: no line does)."""

    question: str
    lines: tuple[str, ...]
    gold: tuple[int, ...]
    kind: str


def choice(shown: Exercise) -> Choice:
    """An exercise of the reader as one of the cross-encoder."""
    return Choice(shown.question, shown.lines, tuple(n - 1 for n in shown.labels), shown.kind)


def fewer(whole: Choice, most: int) -> Choice:
    """With at most `most` lines: those that answer and the first of the others, in their order."""
    others = [n for n in range(len(whole.lines)) if n not in whole.gold]
    kept = sorted([*whole.gold, *others][:most])
    gold = tuple(kept.index(n) for n in whole.gold if n in kept)
    return replace(whole, lines=tuple(whole.lines[n] for n in kept), gold=gold)


def asked_on(
    texts: Texts, library: Library, kind: str, without: float, rng: random.Random
) -> Iterator[Choice]:
    """Every written question (or question of the public sets) on a shelf of text."""
    pool = [replace(asked, question=question_line(asked.question)) for asked in texts.asked[kind]]
    library.vectors.add(asked.question for asked in pool)
    for asked in pool:
        assert texts.shelf
        shown = texts.shelf.show(asked, rng, View(LINES + 2, False, rng.random() < without))
        if shown:
            yield choice(shown)


def asked_of(domain: Domain, embedder: Embedder, without: float, rng: random.Random) -> Iterator[Choice]:
    """Every question to an organisation, on its own papers."""
    shelf, pool = shelved(domain, embedder)
    for asked in pool:
        shown = shelf.show(asked, rng, View(LINES + 2, False, rng.random() < without))
        if shown:
            yield choice(shown)


def make_data(library: Library, out: Path, seed: int, scale: float = 1.0) -> None:
    """Write `train.jsonl` and `held-out.jsonl`; `scale` shrinks what is made by rule."""
    rng = random.Random(seed)  # noqa: S311
    plain = Step(0, (LINES + 2, LINES + 2), 0.0, 0.8)
    for name, held in (("held-out", True), ("train", False)):
        texts = library.held if held else library.train
        without = 0.0 if held else WITHOUT
        made: list[Choice] = []
        for domain in domains():
            if (domain.name in HELD_OUT) == held and scale == 1.0:
                made += asked_of(domain, library.vectors.embedder, without, rng)
        for kind in ("written", "sets"):
            made += asked_on(texts, library, kind, without, rng)
        office, rules = int(scale * OFFICE) // (10 if held else 1), 0 if held else int(scale * RULES)
        step = replace(plain, easy=1.0 if held else EASY)
        made += map(choice, library.office(office, step, rng, held))
        made += map(choice, library.by_rule(texts, rules, step, rng))
        rng.shuffle(made)
        out.mkdir(parents=True, exist_ok=True)
        lines = (json.dumps(asdict(one), ensure_ascii=False) for one in made)
        (out / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines), "utf-8")
        print(f"{name}: {dict(sorted(Counter(one.kind for one in made).items()))}", flush=True)


def read(path: Path) -> list[Choice]:
    """The choices of a file."""
    rows = map(json.loads, path.read_text("utf-8").splitlines())
    return [Choice(r["question"], tuple(r["lines"]), tuple(r["gold"]), r["kind"]) for r in rows]


class Scorer:
    """The model in training: logits of question and line."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.model: Any = AutoModelForSequenceClassification.from_pretrained(
            folder, num_labels=1, attention_probs_dropout_prob=0.0
        )

    def logits(self, choices: Sequence[Choice]) -> list[torch.Tensor]:
        """For each choice the logits of its lines, float32, shape (lines,)."""
        import torch

        sizes = [len(one.lines) for one in choices]
        asked = [one.question for one in choices for _ in one.lines]
        lines = [line for one in choices for line in one.lines]
        tokens = self.tokenizer(asked, lines, truncation="only_second", max_length=TOKENS)
        order = sorted(range(len(lines)), key=lambda i: len(tokens["input_ids"][i]))
        parts = []
        for at in range(0, len(order), MICRO):  # alike in length, so that little is padding
            batch = [{name: tokens[name][i] for name in tokens} for i in order[at : at + MICRO]]
            with torch.autocast("cpu", torch.bfloat16):
                padded = self.tokenizer.pad(batch, return_tensors="pt")
                parts.append(self.model(**padded).logits[:, 0].float())
        flat = torch.cat(parts)[torch.tensor(order).argsort()]
        return list(torch.split(flat, sizes))

    def loss(self, choices: Sequence[Choice]) -> torch.Tensor:
        """Negative log-likelihood of the answering lines, "none of these" being a logit of 0."""
        import torch

        losses = []
        for one, logits in zip(choices, self.logits(choices), strict=True):
            likely = torch.cat([logits.new_zeros(1), logits]).log_softmax(0)
            losses.append(-likely[[n + 1 for n in one.gold] or [0]].logsumexp(0))
        return torch.stack(losses).mean()

    def save(self, folder: Path) -> None:
        """Weights and tokenizer."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def train(out: Path, seed: int, steps: int | None = None) -> list[float]:
    """One pass over the training choices (or `steps` steps of it) into `out/model`; returns the losses."""
    import torch

    torch.manual_seed(seed)
    scorer, rng = Scorer(weights()), random.Random(seed)  # noqa: S311
    choices = [fewer(one, LINES) for one in read(out / "train.jsonl")]
    rng.shuffle(choices)
    steps = min(steps or len(choices), len(choices) // BATCH)
    optimiser = torch.optim.AdamW(scorer.model.parameters(), lr=RATE, weight_decay=0.01)
    scorer.model.train()
    losses, began = [], time.monotonic()
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / (WARMUP * steps)) * (1 - step / steps)
        loss = scorer.loss(choices[step * BATCH : (step + 1) * BATCH])
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(scorer.model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        losses.append(float(loss))
        if step % 20 == 19:
            recent = sum(losses[-20:]) / 20
            print(
                f"step {step + 1} of {steps}, loss {recent:.3f}, {time.monotonic() - began:.0f} s", flush=True
            )
    scorer.save(out / "model")
    return losses


def measure(out: Path, most: int = 1000) -> dict[str, dict[str, float]]:
    """Of each kind of held-out choices: how often the likeliest line, and the first line, is right.

    `refused` is the share refused of what has no answer where WRONG of the others are, `even` and `wrong` the
    shares refused of both at a probability of one half.
    """
    import numpy as np
    import torch

    scorer = Scorer(out / "model")
    scorer.model.eval()
    kinds: dict[str, list[Choice]] = {}
    for one in read(out / "held-out.jsonl"):
        kinds.setdefault(one.kind.removesuffix("-none"), []).append(one)
    shown = {}
    for kind, choices in sorted(kinds.items()):
        right, first, held, none = 0, 0, list[float](), list[float]()
        for at in range(0, min(len(choices), most), BATCH):
            part = choices[at : at + BATCH]
            with torch.no_grad():
                scores = scorer.logits(part)
            for one, logits in zip(part, scores, strict=True):
                (held if one.gold else none).append(float(logits.max()))
                right += int(logits.argmax()) in one.gold
                first += 0 in one.gold
        cut = np.quantile(held, WRONG)
        shown[kind] = {
            "answerable": len(held), "right": right / len(held), "first": first / len(held),
            "unanswerable": len(none), "refused": float(np.mean(np.array(none) < cut)) if none else 0.0,
            "even": float(np.mean(np.array(none) < 0)) if none else 0.0,
            "wrong": float(np.mean(np.array(held) < 0)),
        }  # fmt: skip
    return {kind: {k: round(v, 3) for k, v in row.items()} for kind, row in shown.items()}


def export(out: Path, target: Path) -> None:
    """Half precision weights, tokenizer, and `card.json` with the hash of each file."""
    import torch

    scorer = Scorer(out / "model")
    target.mkdir(parents=True, exist_ok=True)
    scorer.model.to(torch.float16)
    scorer.save(target)
    card = {"name": "Understudy cross-encoder", "from": EMBEDDING, "licence": "Apache-2.0"}
    write(target / "card.json", card | {"files": hashes(target)})


def main(argv: Sequence[str] | None = None) -> None:
    """Command line of the recipe."""
    parser = argparse.ArgumentParser(
        "python -m finetune.base_crossencoder",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("stage", choices=["data", "train", "measure", "export", "all"])
    parser.add_argument("--source", type=Path, help="folder of .txt files, as of `finetune.base`")
    parser.add_argument("--sets", type=Path, help="folder of public question sets (default: without)")
    parser.add_argument("--out", type=Path, default=Path("data/runs/crossencoder"), help="[%(default)s]")
    parser.add_argument("--target", type=Path, default=FOLDER, help="where export writes [%(default)s]")
    parser.add_argument("--seed", type=int, default=5, help="[%(default)s]")
    parser.add_argument("--steps", type=int, help="stop earlier than after one pass")
    parser.add_argument(
        "--quick", action="store_true", help="smoke path with text of its own, about a minute"
    )
    options = parser.parse_args(argv)
    everything = options.stage == "all"
    if options.stage == "data" or everything:
        if options.source is None and not options.quick:
            parser.error("--source DIR is needed: a folder of .txt files, or use --quick")
        source = options.source or base.own_text(options.out / "source")
        library = Library(source, options.sets, options.out / "texts.npz")
        make_data(library, options.out, options.seed, 0.02 if options.quick else 1.0)
    if options.stage == "train" or everything:
        train(options.out, options.seed, 3 if options.quick else options.steps)
    if options.stage == "measure" or everything:
        print(json.dumps(measure(options.out), indent=1))
    if options.stage == "export" or everything:
        export(options.out, options.target)


if __name__ == "__main__":
    main()
