"""The reader's last stage: direct preference optimisation on pairs made from its exercises.

Chosen is the wanted reply. Rejected is, by a draw: another unit with its own number, the right words under
another number, the right words without a number, or a refusal; where nothing shown answers, the first unit
instead of the refusal. Source: Rafailov et al., "Direct Preference Optimization", 2023.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as fn

from finetune.base_model import Reader
from finetune.base_train import Encoder, Item, load, padded, put_back, restore

BETA, RATE, TOKENS = 0.1, 2e-5, 3072
# how often each kind of rejected reply is drawn for a question that has its answer
KINDS = (("other", 0.5), ("wrong number", 0.15), ("no number", 0.1), ("refused", 0.25))


@dataclass(frozen=True)
class Pair:
    """Token ids of a prompt and of two replies to it, each with its end mark."""

    prompt: np.ndarray
    chosen: np.ndarray
    rejected: np.ndarray
    kind: str


def made(items: Sequence[Item], encoder: Encoder, rng: random.Random) -> Iterator[Pair]:
    """A pair for each exercise that has one."""
    refusal = np.array(encoder.encode(["Not in the documents.<|im_end|>"])[0], np.uint16)
    for item in items:
        units = [_unit(item, n, encoder) for n in range(len(item.ends))]
        others = [n for n in range(len(units)) if n not in item.gold]
        prompt, chosen = item.ids[: item.start], item.ids[item.start :]
        end = chosen[-1:]
        if not others:
            continue
        if not item.gold:
            yield Pair(prompt, chosen, np.concatenate([units[0], end]), "invented")
            continue
        kind = rng.choices([name for name, _ in KINDS], [share for _, share in KINDS])[0]
        # the first ones look most like an answer
        other = others[0] if rng.random() < 0.6 else rng.choice(others)
        rejected = {
            "other": np.concatenate([units[other], end]),
            "wrong number": np.concatenate([units[other][:1], chosen[1:]]),
            "no number": chosen[1:],
            "refused": refusal,
        }[kind]
        yield Pair(prompt, chosen, rejected, kind)


def _unit(item: Item, number: int, encoder: Encoder) -> np.ndarray:
    """The tokens of a unit from its number to before the line's end."""
    stop = int(item.ends[number])
    starts = np.flatnonzero(item.ids[:stop] == encoder.labels[number])
    return item.ids[starts[-1] : stop]


def log_likelihood(model: Reader, rows: Sequence[tuple[np.ndarray, np.ndarray]]) -> torch.Tensor:
    """Sum of the log probabilities of each reply's tokens after its prompt, shape (rows,)."""
    whole = [np.concatenate(row) for row in rows]
    ids = padded(whole)
    hidden, _ = model(ids)
    sizes = [len(reply) for _, reply in rows]
    row = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor(sizes))
    column = torch.cat([torch.arange(len(prompt), len(prompt) + len(reply)) for prompt, reply in rows])
    each = -fn.cross_entropy(model.logits(hidden[row, column - 1]), ids[row, column], reduction="none")
    return torch.zeros(len(rows)).index_add(0, row, each)


def loss_of(model: Reader, frozen: Reader, batch: Sequence[Pair]) -> tuple[torch.Tensor, float]:
    """The loss, and the share of pairs whose chosen reply gained more on the frozen model."""
    rows = [(pair.prompt, pair.chosen) for pair in batch] + [(pair.prompt, pair.rejected) for pair in batch]
    with torch.no_grad():
        before = log_likelihood(frozen, rows)
    gain = log_likelihood(model, rows) - before
    margin = gain[: len(batch)] - gain[len(batch) :]
    return -fn.logsigmoid(BETA * margin).mean(), float((margin > 0).float().mean())


def train(folder: Path, seed: int, most: int = 6000) -> list[float]:
    """Train the reader of `folder` on pairs from its last shard; returns the losses.

    Nothing is written before the end; `state-sft.pt` then keeps the weights as they were.
    """
    torch.manual_seed(seed)
    rng = random.Random(seed)  # noqa: S311
    model = restore(folder)
    frozen = copy.deepcopy(model)
    last = sorted((folder / "shards").glob("*.npz"))[-1]
    pairs = list(made(load(last)[:most], Encoder(folder), rng))
    groups = _batches(pairs, rng)
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    losses: list[float] = []
    for step, batch in enumerate(groups):
        for group in optimiser.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / 20) * (1 - step / len(groups))
        loss, better = loss_of(model, frozen, batch)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        losses.append(float(loss.detach()))
        if step % 50 == 49:
            print(
                f"step {step + 1} of {len(groups)}, loss {np.mean(losses[-50:]):.3f}, {better:.2f}",
                flush=True,
            )
    put_back(folder, model, "state-sft.pt")
    return losses


def _batches(pairs: Sequence[Pair], rng: random.Random) -> list[list[Pair]]:
    """Pairs of like length, about TOKENS a batch for both replies, in random order."""
    order = sorted(pairs, key=lambda pair: len(pair.prompt))
    groups: list[list[Pair]] = [[]]
    for pair in order:
        long = len(pair.prompt) + max(len(pair.chosen), len(pair.rejected))
        if groups[-1] and 2 * long * (len(groups[-1]) + 1) > TOKENS:
            groups.append([])
        groups[-1].append(pair)
    rng.shuffle(groups)
    return groups
