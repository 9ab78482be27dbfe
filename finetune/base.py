"""Make the built-in model: a reader of at most ten million parameters, trained from scratch on a CPU.

Its one skill is reading: given numbered units and a question it answers with the number and the words
of the unit that holds the answer, or `Not in the documents.` The stages, each a subcommand:

    tokenizer   byte-level BPE on the source text, and word vectors from co-occurrence
    start       instead of it: tokenizer and weights of an exported reader, to train on from there
    data        reading exercises, as shards of token ids (repeat it for more, with another --seed)
    train       wire the start circuits and train; resumes from its last checkpoint
    dpo         then prefer right replies to made wrong ones; minutes, at the end once
    measure     label accuracy, exact copies and refusals on held-out documents and templates
    export      Hugging Face folder, GGUF, card
    all         everything in order
"""

from __future__ import annotations

import argparse
import json
import random
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from core.settings import load_settings
from finetune.base_data import WORDS
from finetune.base_export import SPECIAL
from finetune.base_library import Library, Step
from finetune.base_shelf import LABELS
from finetune.converter import LLAMA3_SPLIT
from rag.crossencoder import CrossEncoder


def sources(source: Path) -> list[Path]:
    """The text files of the corpus."""
    files = sorted(source.glob("*.txt"))
    if not files:
        raise SystemExit(
            f"No .txt files in {source}. Give the folder of the unpacked text corpus with --source."
        )
    return files


def sample_lines(source: Path, per_file: int, seed: int) -> list[str]:
    """Random non-empty lines of every source file."""
    rng = random.Random(seed)  # noqa: S311
    out: list[str] = []
    for path in sources(source):
        lines = [x for x in re.split(r"[\n\f]+", path.read_text("utf-8")) if x.strip()]
        out += rng.sample(lines, min(len(lines), per_file))
    return out


def make_tokenizer(source: Path, out: Path, vocab: int, seed: int) -> None:
    """Train the BPE on single lines with a leading space: no merge then spans a line break."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tok.decoder = decoders.ByteLevel()
    # Words of an organisation's papers must be one token, however rare they are in the source text.
    words = [f" {w}" for w in WORDS["office"]]
    lines = [" " + x.strip() for x in sample_lines(source, 4000, seed)]
    facts = Path(__file__).with_name("base_facts.txt")
    known = [" " + x for x in facts.read_text("utf-8").splitlines()] * 15 if facts.exists() else []
    trainer = trainers.BpeTrainer(
        vocab_size=vocab - LABELS - len(SPECIAL),
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tok.train_from_iterator([*lines, *words * 400, *known, *["user", "assistant"] * 900], trainer)
    tok.add_special_tokens(SPECIAL)
    tok.add_tokens([AddedToken(f"[{n}]", normalized=False) for n in range(1, LABELS + 1)])
    out.mkdir(parents=True, exist_ok=True)
    tok.save(str(out / "tokenizer.json"))


def make_vectors(source: Path, out: Path, seed: int, per_file: int = 60000) -> None:
    """Count the text and factorise its co-occurrence; writes `vectors.npz`."""
    import numpy as np
    from tokenizers import Tokenizer

    from finetune.base_circuits import meanings
    from rag.words import stem

    tok = Tokenizer.from_file(str(out / "tokenizer.json"))
    lines = [" " + x.strip() for x in sample_lines(source, per_file, seed + 1)]
    random.Random(seed).shuffle(lines)  # noqa: S311
    ids = np.concatenate(
        [
            np.array(e.ids + [0] * 5, np.int32)
            for b in range(0, len(lines), 2000)
            for e in tok.encode_batch(lines[b : b + 2000], add_special_tokens=False)
        ]
    )
    pieces = [tok.decode([i], skip_special_tokens=False) for i in range(tok.get_vocab_size())]
    keys = [stem(p.strip()) or p for p in pieces]
    names = {k: i for i, k in enumerate(dict.fromkeys(keys))}
    groups = np.array([names[k] for k in keys])
    vectors = meanings(ids, groups)[groups]
    np.savez(
        out / "vectors.npz",
        counts=np.bincount(ids, minlength=len(pieces)),
        meaning=vectors.astype(np.float16),
    )
    (out / "pieces.json").write_text(json.dumps(pieces), "utf-8")


# Half in random order, where only reading helps; then in the product's, where the best guess stands first.
CURRICULUM = (
    *[Step(6000, (4, 7), 0.5, 0.6)] * 5,
    *[Step(6000, (5, 7), 0.1, 0.8)] * 2,
    Step(6000, (6, 6), 0.0, 0.8, easy=1.0),
)
QUICK = (Step(60, (3, 4), 0.5, 1.0),)
MEASURED = Step(900, (6, 6), 0.0, 1.0)


def make_data(library: Library, out: Path, steps: Sequence[Step], seed: int) -> None:
    """Write one shard a step of the curriculum, and the held-out one; those that are there are kept."""
    from finetune.base_train import HELD_OUT, Encoder, save

    encoder, longest = Encoder(out), 1000  # tokens; the context is 1,024
    plan = [(out / HELD_OUT, MEASURED if steps is not QUICK else replace(steps[0], count=20), True)]
    plan += [(out / "shards" / f"{100 * seed + n:06d}.npz", step, False) for n, step in enumerate(steps, 1)]
    for number, (path, step, held) in enumerate(plan):
        if not path.exists():
            made = list(library.exercises(step, random.Random(1000 * seed + number), held))  # noqa: S311
            path.parent.mkdir(parents=True, exist_ok=True)
            save(path, [i for i in encoder.items(made) if len(i.ids) < longest])
            kinds = dict(sorted(Counter(e.kind for e in made).items()))
            first = sum(e.labels[:1] == (1,) for e in made) / max(1, sum(bool(e.labels) for e in made))
            print(f"{path}: {kinds}, {first:.0%} answered by the first unit", flush=True)


def start_from(reader: Path, out: Path) -> None:
    """Tokenizer and weights of an exported reader as the first checkpoint of `out`."""
    import torch
    from safetensors.torch import load_file

    from finetune.base_model import Reader, Shape

    out.mkdir(parents=True, exist_ok=True)
    if (out / "state.pt").exists():
        raise SystemExit(f"{out} has a checkpoint already. Choose another --out.")
    shutil.copyfile(reader / "tokenizer.json", out / "tokenizer.json")
    weights = {
        k.removeprefix("model."): v.float() for k, v in load_file(reader / "model.safetensors").items()
    }
    model = Reader(Shape(vocab_size=len(weights["embed_tokens.weight"])))
    model.load_state_dict(weights, strict=False)  # the scorer of unit ends is not exported
    torch.save({"model": model.state_dict(), "step": 0}, out / "state.pt")


def run_training(out: Path, seed: int, quick: bool, steps: int) -> list[float]:
    """Train on the shards of `out`; returns the logged losses."""
    from finetune.base_model import Shape
    from finetune.base_train import Encoder, Schedule, train

    vocab = Encoder(out).tok.get_vocab_size()
    if quick:
        return train(out, Shape(vocab_size=vocab), Schedule(30, 1024, 1e-3, 5), seed)
    return train(out, Shape(vocab_size=vocab), Schedule(steps=steps), seed)


def run_measure(out: Path) -> dict[str, dict[str, float]]:
    """Figures on the held-out shard."""
    from finetune.base_train import HELD_OUT, Encoder, load, measure, restore

    refusal = Encoder(out).encode(["Not"])[0][0]
    return measure(restore(out), load(out / HELD_OUT), refusal)


def own_text(folder: Path, seed: int = 0) -> Path:
    """A little invented source text, so the quick path needs no data."""
    from finetune import base_business

    rng = random.Random(seed)  # noqa: S311
    docs = [
        "\n\n".join(
            f"# {s.heading}\n\n" + " ".join(f.unit for f in s.facts)
            for s in (base_business.section(rng) for _ in range(3))
        )
        for _ in range(200)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "own.txt").write_text("\f".join(docs), "utf-8")
    return folder


def main(argv: list[str] | None = None) -> None:
    """Command line of the recipe."""
    parser = argparse.ArgumentParser(
        "python -m finetune.base", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "stage", choices=["tokenizer", "start", "data", "train", "dpo", "measure", "export", "all"]
    )
    parser.add_argument(
        "--source",
        type=Path,
        help="folder of .txt files (documents end with a form feed, headings are `# ...`)",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("data/runs/reader"), help="work folder, resumable [%(default)s]"
    )
    parser.add_argument(
        "--target",
        type=Path,
        default=Path("data/models/builtin"),
        help="where start reads and export writes [%(default)s]",
    )
    parser.add_argument(
        "--sets",
        type=Path,
        help="folder of public question sets (default: only the own questions)",
    )
    parser.add_argument("--seed", type=int, default=0, help="[%(default)s]")
    parser.add_argument(
        "--last",
        type=int,
        metavar="N",
        help="data: only the N last steps of the curriculum, to train a finished reader on from `start`",
    )
    parser.add_argument(
        "--steps", type=int, default=12000, help="training steps of 3,072 tokens [%(default)s]"
    )
    parser.add_argument(
        "--quick", action="store_true", help="smoke path: tiny vocabulary and text of its own, about a minute"
    )
    a = parser.parse_args(argv)
    source = own_text(a.out / "source") if a.quick and a.source is None else a.source
    if source is None and a.stage in ("tokenizer", "data", "all"):
        parser.error("--source DIR is needed: a folder of .txt files, or use --quick")
    everything = a.stage == "all"
    if a.stage == "tokenizer" or everything:
        make_tokenizer(source, a.out, 2048 if a.quick else 16384, a.seed)
        make_vectors(source, a.out, a.seed, 2000 if a.quick else 60000)
    if a.stage == "start":
        start_from(a.target, a.out)
    if a.stage == "data" or everything:
        answers = None if a.quick else CrossEncoder().opinion(load_settings())
        library = Library(source, a.sets, a.out / "texts.npz", answers)
        make_data(library, a.out, QUICK if a.quick else CURRICULUM[-(a.last or 0) :], a.seed)
    if a.stage == "train" or everything:
        print(json.dumps(run_training(a.out, a.seed, a.quick, a.steps)))
    if a.stage == "dpo" or everything:
        from finetune.base_dpo import train as train_dpo

        train_dpo(a.out, a.seed)
    if a.stage == "measure" or everything:
        print(json.dumps(run_measure(a.out), indent=1))
    if a.stage == "export" or everything:
        from finetune.base_export import export

        export(a.out, a.target)


if __name__ == "__main__":
    main()
