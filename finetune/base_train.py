"""Train the built-in reader on shards of exercises, and measure it on held-out ones.

A shard is an `.npz` of token ids with, for each exercise, where its answer starts and where each unit
ends. Loss is taken on the answer only, plus a training-only listwise loss over the unit ends (which one
holds the answer, or none), so every unit gives a signal and not just one label in twenty.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as fn

from finetune.base_circuits import embeddings, wire
from finetune.base_model import Reader, Shape
from finetune.base_shelf import LABELS, Exercise

HELD_OUT = Path("dev") / "held-out.npz"


@dataclass(frozen=True)
class Item:
    """One encoded exercise: ids, where the answer begins, unit ends, and the answering units (from 0)."""

    ids: np.ndarray
    start: int
    ends: np.ndarray
    gold: tuple[int, ...]


class Encoder:
    """Exercises to token ids with the chat frame."""

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer

        self.tok = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.newline = int(self.tok.token_to_id("Ċ") or 0)
        self.labels = [int(self.tok.token_to_id(f"[{n}]") or 0) for n in range(1, LABELS + 1)]

    def frame(self, prompt: str) -> str:
        """The chat frame around one user message, up to where the assistant starts."""
        return f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of framed texts."""
        return [e.ids for e in self.tok.encode_batch(list(texts), add_special_tokens=False)]

    def items(self, exercises: Sequence[Exercise]) -> Iterator[Item]:
        """Encode many at once."""
        heads = self.encode([self.frame(e.prompt) for e in exercises])
        tails = self.encode([e.reply + "<|im_end|>" for e in exercises])
        for e, head, tail in zip(exercises, heads, tails, strict=True):
            ids, ends = np.array(head + tail, np.uint16), []
            for label in self.labels[: len(e.shown)]:
                at = head.index(label)
                ends.append(next(i for i in range(at, len(head)) if head[i] == self.newline))
            yield Item(ids, len(head), np.array(ends, np.int32), tuple(n - 1 for n in e.labels))


def save(path: Path, items: Sequence[Item]) -> None:
    """Write a shard."""
    np.savez(
        path,
        ids=np.concatenate([i.ids for i in items]),
        size=[len(i.ids) for i in items],
        start=[i.start for i in items],
        ends=np.concatenate([i.ends for i in items] or [np.zeros(0)]),
        units=[len(i.ends) for i in items],
        gold=[(*i.gold, -1, -1)[:2] for i in items],
    )


def load(path: Path) -> list[Item]:
    """Read a shard."""
    with np.load(path) as archive:  # an NpzFile reads a member anew at every access: 20 GB for 6,000 items
        z = {name: archive[name] for name in archive.files}
    at, ends = np.cumsum([0, *z["size"]]), np.cumsum([0, *z["units"]])
    return [
        Item(
            z["ids"][at[i] : at[i + 1]],
            int(z["start"][i]),
            z["ends"][ends[i] : ends[i + 1]],
            tuple(int(g) for g in z["gold"][i] if g >= 0),
        )
        for i in range(len(z["size"]))
    ]


def batches(items: Sequence[Item], tokens: int, rng: np.random.Generator) -> Iterator[list[Item]]:
    """Items of like length, `tokens` a batch, in random order."""
    order = sorted(range(len(items)), key=lambda i: len(items[i].ids) + rng.uniform(0, 24))
    groups: list[list[Item]] = [[]]
    for i in order:
        if (len(groups[-1]) + 1) * len(items[i].ids) > tokens and groups[-1]:
            groups.append([])
        groups[-1].append(items[i])
    for g in rng.permutation(len(groups)):
        yield groups[g]


def padded(rows: Sequence[np.ndarray]) -> torch.Tensor:
    """Token ids as one tensor (rows, longest), zeros behind the shorter ones."""
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    for at, row in enumerate(rows):
        ids[at, : len(row)] = torch.from_numpy(row.astype(np.int64))
    return ids


def losses(
    model: Reader, batch: Sequence[Item], dtype: torch.dtype = torch.bfloat16
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Answer loss, unit loss, and the share of items whose first answer token is right."""
    ids = padded([item.ids for item in batch])
    hidden, middle = model(ids, dtype)
    rows = torch.cat([torch.full((len(i.ids) - i.start,), r) for r, i in enumerate(batch)])
    cols = torch.cat([torch.arange(i.start, len(i.ids)) for i in batch])
    logits = model.logits(hidden[rows, cols - 1])
    each = fn.cross_entropy(logits, ids[rows, cols], reduction="none")
    first = torch.tensor(np.cumsum([0] + [len(i.ids) - i.start for i in batch[:-1]]))
    weight = torch.ones_like(each)
    weight[first] = 4.0
    right = float((logits[first].argmax(-1) == ids[rows[first], cols[first]]).float().mean())
    return (each * weight).sum() / weight.sum(), unit_loss(model, middle, batch), right


def unit_loss(model: Reader, middle: torch.Tensor, batch: Sequence[Item]) -> torch.Tensor:
    """Listwise: softmax over the unit ends and a rest position of score 0 that stands for `none`."""
    x = middle.float()
    x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)
    total, n = x.new_zeros(()), 0
    for row, item in enumerate(batch):
        if len(item.ends):
            s = model.scorer(x[row, torch.from_numpy(item.ends.astype(np.int64))])[:, 0]
            logp = fn.log_softmax(torch.cat([s, s.new_zeros(1)]), 0)
            total = total - (torch.logsumexp(logp[list(item.gold)], 0) if item.gold else logp[-1])
            n += 1
    return total / max(n, 1)


def new_model(folder: Path, shape: Shape, seed: int) -> Reader:
    """A wired, untrained reader for the tokenizer in `folder`."""
    z, pieces = np.load(folder / "vectors.npz"), json.loads((folder / "pieces.json").read_text("utf-8"))
    model = Reader(shape)
    with torch.no_grad():
        model.embed_tokens.weight.copy_(
            embeddings(pieces, z["counts"], z["meaning"].astype(np.float32), shape, seed)
        )
    encoder = Encoder(folder)
    wire(model, encoder.newline, encoder.encode(["assistant"])[0][-1], seed)
    return model


@dataclass
class Schedule:
    """How long and how fast to train."""

    steps: int = 6000
    tokens: int = 3072
    rate: float = 3e-4
    warmup: int = 100
    decay: float = 0.3

    def rate_at(self, step: int) -> float:
        """Warm up, hold, then fall linearly to a twentieth (Hu et al. 2024, WSD)."""
        fall = max(1, int(self.steps * self.decay))
        return self.rate * min(1.0, (step + 1) / self.warmup, max(0.05, (self.steps - step) / fall))


def train(folder: Path, shape: Shape, plan: Schedule, seed: int = 0) -> list[float]:
    """Train on `folder/shards`, newest shards included as they appear; returns the logged losses.

    Writes `state.pt` every 200 steps and resumes from it. Progress goes to `train.log`.
    """
    torch.manual_seed(seed)
    state = folder / "state.pt"
    model = Reader(shape) if state.exists() else new_model(folder, shape, seed)
    wide = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n and "scorer" not in n]
    rest = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n or "scorer" in n]
    opt = torch.optim.AdamW(
        [
            {"params": wide, "weight_decay": 0.01, "scale": 1.0},
            {"params": rest, "weight_decay": 0.0, "scale": 0.1},
        ],
        lr=plan.rate,
        betas=(0.9, 0.98),
        fused=True,
    )
    step, used = 0, dict[str, int]()
    if state.exists():
        saved = torch.load(state, weights_only=True)
        model.load_state_dict(saved["model"])
        if "opt" in saved:  # weights to start from have none
            opt.load_state_dict(saved["opt"])
        step, used = int(saved["step"]), saved.get("used", used)
    log, history, seen, began = [], [], 0, time.time()
    for batch in _endless(folder, plan.tokens, seed + step, used):
        if step >= plan.steps:
            break
        for group in opt.param_groups:
            group["lr"] = plan.rate_at(step) * group["scale"]  # codes and their likeness must survive
        answer, unit, right = losses(model, batch)
        torch.autograd.backward(answer + 0.5 * unit)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        opt.zero_grad(set_to_none=True)
        step, seen = step + 1, seen + sum(len(i.ids) for i in batch)
        log.append((float(answer.detach()), float(unit.detach()), right))
        if step % 25 == 0 or step == plan.steps:
            a, u, r = np.mean(log, 0)
            history.append(float(a))
            with (folder / "train.log").open("a") as f:
                f.write(
                    f"step {step} answer {a:.3f} unit {u:.3f} label {r:.3f} lr {plan.rate_at(step):.1e} "
                    f"tokens/s {seen / (time.time() - began):.0f} {time.strftime('%H:%M:%S')}\n"
                )
            log = []
        if step % 200 == 0 or step == plan.steps:
            saved = {"model": model.state_dict(), "opt": opt.state_dict(), "step": step, "used": used}
            torch.save(saved, state)
    return history


def _endless(folder: Path, tokens: int, seed: int, used: dict[str, int]) -> Iterator[list[Item]]:
    """Batches from the shards; the least used shard first, in the order of names. Counts them in `used`."""
    rng = np.random.default_rng(seed)
    while True:
        paths = sorted((folder / "shards").glob("*.npz"), key=lambda p: (used.get(p.name, 0), p.name))
        if not paths:
            raise SystemExit("No shards yet. Run the data stage first.")
        used[paths[0].name] = used.get(paths[0].name, 0) + 1
        yield from batches(load(paths[0]), tokens, rng)


def restore(folder: Path) -> Reader:
    """The reader of the last checkpoint."""
    saved = torch.load(folder / "state.pt", weights_only=True)["model"]
    model = Reader(Shape(vocab_size=saved["embed_tokens.weight"].shape[0]))
    model.load_state_dict(saved)
    return model


def put_back(folder: Path, model: Reader, kept: str) -> None:
    """Make `model` the checkpoint of `folder`; the one that was there is kept under the name `kept`."""
    state = folder / "state.pt"
    step = int(torch.load(state, weights_only=True)["step"])
    state.rename(folder / kept)
    torch.save({"model": model.state_dict(), "step": step}, state)


def measure(model: Reader, items: Sequence[Item], refusal: int) -> dict[str, dict[str, float]]:
    """Greedy behaviour by number of units, from one forward pass: when every argmax is the wanted token,
    greedy decoding gives exactly this answer. `refusal`: the first token of the refusal.

    Rows `all`, `1-8`, `9-16`, `17-`; columns: n, label (right first unit), copy (whole answer exact, of the
    right labels), wrong_refusal (of answerable), refused (of unanswerable).
    """
    seen: dict[str, list[tuple[bool, bool, bool, bool]]] = {}
    with torch.no_grad():
        for batch in batches([i for i in items if len(i.ends)], 4096, np.random.default_rng(0)):
            ids = padded([item.ids for item in batch])
            hidden, _ = model(ids, torch.float32)
            for row, item in enumerate(batch):
                said = model.logits(hidden[row, item.start - 1 : len(item.ids) - 1]).argmax(-1)
                want = ids[row, item.start : len(item.ids)]
                n = len(item.ends)
                result = (
                    bool(item.gold),
                    bool(said[0] == want[0]),
                    bool((said == want).all()),
                    int(said[0]) == refusal,
                )
                for key in ("all", "1-8" if n < 9 else "9-16" if n < 17 else "17-"):
                    seen.setdefault(key, []).append(result)
    return {key: _shares(rows) for key, rows in sorted(seen.items())}


def calibrate(model: Reader, items: Sequence[Item], refusal: int, most: float = 0.15) -> float:
    """Scale the refusal token's embedding so that at most the share `most` of answerable items is refused.

    The eagerness to refuse swings by tens of points between checkpoints while the order of the labels stays,
    so it is set after training, on held-out items. Changes `model`; returns the factor (0.5 to 1.2).
    """
    limits = []
    with torch.no_grad():
        for item in items:
            if item.gold:
                hidden, _ = model(
                    torch.from_numpy(item.ids[: item.start].astype(np.int64))[None], torch.float32
                )
                logits = model.logits(hidden[0, -1:])[0]
                wish = float(logits[refusal])
                logits[refusal] = -1e9
                limits.append(float(logits.max()) / wish if wish > 0 else 9.0)
        factor = float(np.clip(np.quantile(limits, most), 0.5, 1.2)) if limits else 1.0
        model.embed_tokens.weight[refusal] *= factor
    return factor


def _shares(rows: Sequence[tuple[bool, bool, bool, bool]]) -> dict[str, float]:
    held, none = [r for r in rows if r[0]], [r for r in rows if not r[0]]
    right = [r for r in held if r[1]]

    def share(part: Sequence[Any], of: Sequence[Any]) -> float:
        return round(len(part) / len(of), 3) if of else 0.0

    return {
        "n": len(rows),
        "label": share(right, held),
        "copy": share([r for r in right if r[2]], right),
        "wrong_refusal": share([r for r in held if r[3]], held),
        "refused": share([r for r in none if r[3]], none),
    }
