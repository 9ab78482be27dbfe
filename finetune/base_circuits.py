"""How the built-in reader starts: reading circuits wired into the attention, words that know their like.

All weights are made from random numbers and from counts over the training text, and all stay trainable.
Structured initialisation spares a tiny compute budget the long plateau before attention circuits form
(Trockman & Kolter 2023, "Mimetic Initialization of Self-Attention Layers"); the circuits are the known ones
(Olsson et al. 2022, "In-context Learning and Induction Heads"). Before any training the reader names the
right unit of six for half of the questions, where chance is a sixth:

* layer 0: heads for the previous token and the one before it, whose RoPE phases peak at offsets 1 and 2;
* layer 1: a recent-label head writes the number of the unit into every token of it, reset by an empty line;
* layer 2: a word of the last question looks for its like in the units and takes over their label, a vote; a
  word of a unit marks whether it stands in the question. Query and key are one projection of the embedding
  in the slow rotary dimensions, by spelling in one head and by meaning in another;
* layer 3: the answer's start gathers the votes of the question's rare words; a unit's end gathers its marks;
  an induction head, bound to the label and to the last two tokens, copies the cited unit;
* layer 4: at the answer's start, a head that takes the label of the unit with the best score.

Embeddings start as a random code, hashed character trigrams of the stem (Bojanowski et al. 2017) and a
factorised PPMI matrix of co-occurrence (Levy & Goldberg 2014), so spelling variants and words of like meaning
match from the first step. Training must leave them mostly alone: at a rate of 1e-3 for all weights the
circuits dissolved and did not come back in 1,500 steps; at 3e-4, a tenth of it for embeddings, they grow.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from torch.nn import functional as fn

from finetune.base_model import Layer, Reader, Shape
from finetune.base_shelf import LABELS
from rag.words import stem

# How the residual stream is shared out at initialisation (slices of the hidden size of 256).
CODE, CHARS, MEANING, FLAGS = slice(0, 56), slice(56, 104), slice(104, 160), slice(160, 176)
PREVIOUS, LABEL, FREE = slice(176, 208), slice(208, 232), slice(232, 256)
BEFORE = slice(FREE.start + 4, FREE.start + 24)  # the token before the previous one
CONST, IS_LABEL, IS_NEWLINE, IS_FIRST, IS_DIGIT, IS_CAPITAL, RARE, SCORE = range(160, 168)
IN_UNIT, VOTED = 168, 169


def embeddings(
    pieces: Sequence[str], counts: np.ndarray, meaning: np.ndarray, shape: Shape, seed: int
) -> torch.Tensor:
    """Start embeddings, rows of length 1. `pieces`: the text of each token; `meaning` (vocab, 56)."""
    rng = np.random.default_rng(seed)
    e = np.zeros((len(pieces), shape.hidden_size), np.float32)
    keys = [stem(p.strip()) or p for p in pieces]
    totals: dict[str, float] = {}
    for k, c in zip(keys, counts, strict=True):
        totals[k] = totals.get(k, 0.0) + float(c)
    n = sum(totals.values()) + 1.0
    for i, (p, k) in enumerate(zip(pieces, keys, strict=True)):
        word = any(c.isalnum() for c in p)
        rare = float(np.clip((np.log(n / (totals[k] + 1.0)) - 4.5) / 6.0, 0.04, 1.0)) if word else 0.04
        e[i, CHARS] = (0.6 if word else 0.0) * _spelling(k)
        e[i, MEANING] = (0.4 if word else 0.0) * _unit(meaning[i])
        e[i, CONST], e[i, RARE] = 0.3, 0.3 * rare
        e[i, IS_NEWLINE] = 0.3 * (p == "\n")
        e[i, IS_FIRST] = 0.3 * (p == "<|im_start|>")
        e[i, IS_LABEL] = 0.3 * (
            p[:1] == "[" and p[-1:] == "]" and p[1:-1].isdigit() and int(p[1:-1]) <= LABELS
        )
        e[i, IS_DIGIT] = 0.2 * p.strip().isdigit()
        e[i, IS_CAPITAL] = 0.15 * p.strip()[:1].isupper()
        # The rest of the length is the token's own code, so the constant has one size for every token.
        e[i, CODE] = np.sqrt(1.0 - float(e[i] @ e[i])) * _unit(rng.standard_normal(56))
    # label codes live in a subspace of the code; what resets the label has no part in it
    basis = label_basis()
    for i, p in enumerate(pieces):
        inside = basis.T @ (basis @ e[i, CODE])
        length = np.linalg.norm(e[i, CODE])
        if p in ("\n", "<|im_start|>"):
            e[i, CODE] = length * _unit(e[i, CODE] - inside)
        elif p[:1] == "[" and p[-1:] == "]" and p[1:-1].isdigit():
            e[i, CODE] = length * _unit(inside)
    return torch.from_numpy(e / np.linalg.norm(e, axis=1, keepdims=True))


def label_basis() -> np.ndarray:
    """Orthonormal rows (24, 56): where in the code a label is written."""
    return np.linalg.qr(np.random.default_rng(99).standard_normal((56, 24)))[0].T.astype(np.float32)


def _unit(v: np.ndarray) -> np.ndarray:
    return np.asarray(v / (np.linalg.norm(v) + 1e-6), np.float32)


def _spelling(word: str) -> np.ndarray:
    """A direction shared by words with like letters: the stem's own code plus its character trigrams."""
    marked = f"<{word}>"
    grams = [marked[i : i + 3] for i in range(len(marked) - 2)]
    codes = [np.random.default_rng(zlib.crc32(g.encode())).standard_normal(48) for g in (marked * 2, *grams)]
    return _unit(_unit(codes[0]) + 0.6 * _unit(np.sum(codes[1:], axis=0)))


def meanings(
    ids: np.ndarray, groups: np.ndarray, size: int = 56, contexts: int = 4096, seed: int = 0
) -> np.ndarray:
    """Vectors (groups, size) from co-occurrence within five tokens: PPMI, factorised by a randomised SVD."""
    seq = groups[ids].astype(np.int64)
    n_groups = int(groups.max()) + 1
    freq = np.bincount(seq, minlength=n_groups)
    rank = np.full(n_groups, contexts, np.int64)
    rank[np.argsort(-freq)[:contexts]] = np.arange(min(contexts, n_groups))
    ctx = rank[seq]
    counts = np.zeros(n_groups * (contexts + 1), np.float32)
    for d in range(1, 6):
        for a, b in ((seq[:-d], ctx[d:]), (seq[d:], ctx[:-d])):
            counts += np.bincount(a * (contexts + 1) + b, minlength=len(counts)).astype(np.float32)
    m = counts.reshape(n_groups, contexts + 1)[:, :contexts]
    p = np.log(
        np.maximum(m, 1e-9)
        * m.sum()
        / (m.sum(1, keepdims=True) * m.sum(0) ** 0.75 / (m.sum(0) ** 0.75).sum() * m.sum() + 1e-9)
    )
    p = np.maximum(p - 0.7, 0.0) * (m > 1)
    g = np.random.default_rng(seed).standard_normal((contexts, size + 24)).astype(np.float32)
    for _ in range(3):
        g, _ = np.linalg.qr(p.T @ (p @ g))
    u, s, _ = np.linalg.svd(p @ g, full_matrices=False)
    return np.asarray((u * np.sqrt(s))[:, :size], np.float32)


# Strengths found by measuring the untrained reader.
MATCH, REST, REST_MEANING, IN_UNIT_BONUS, VOTE, VOTE_MEANING = 2.6, 9.0, 10.0, 3.0, 0.08, 0.04
NEAR, RARITY, HAS_VOTED, NAME_IT, WANT_LABEL = 0.9, 1.7, 1.0, 0.6, 1.0

Head = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def wire(model: Reader, newline: int, assistant: int, seed: int) -> None:
    """Write the start circuits; `newline` and `assistant` are the ids of these tokens."""
    torch.manual_seed(seed)
    for layer in model.layers:
        for name, p in layer.named_parameters():
            if "proj" in name:
                nn.init.normal_(p, std=0.003 if "o_proj" in name or "down" in name else 0.03)
    nn.init.zeros_(model.scorer.weight)
    nn.init.zeros_(model.scorer.bias)
    with torch.no_grad():
        model.scorer.weight[0, SCORE] = 3.0
        code = model.embed_tokens.weight[:, CODE]
        Circuits(model, code[newline], code[assistant]).write()


class Circuits:
    """Writes one attention head after the other; a head is its rows of q, k, v and its columns of o."""

    def __init__(self, model: Reader, newline: torch.Tensor, assistant: torch.Tensor) -> None:
        self.model, self.newline, self.name = model, newline, fn.normalize(assistant, dim=0)
        self.half = model.shape.hidden_size // model.shape.num_attention_heads // 2
        self.slow = list(range(16, self.half))  # turn by less than a radian in 4,000 tokens
        self.dims = self.slow + [self.half + i for i in self.slow]
        self.previous, self.label = _orthogonal(32, 56), torch.from_numpy(label_basis())
        self.asked = fn.normalize(self.previous @ assistant, dim=0)

    def write(self) -> None:
        """All heads, in reading order."""
        self.previous_tokens()
        self.recent_label()
        self.votes_and_marks()
        self.induction()
        self.gather()
        self.start()

    def head(self, layer: int, h: int) -> Head:
        """A head's weights, made faint first."""
        block = self.model.layers[layer]
        assert isinstance(block, Layer)
        rows = slice(2 * self.half * h, 2 * self.half * (h + 1))
        q, k, v, o = (block.self_attn.joined(f"{n}_proj") for n in "qkvo")
        parts = q[rows], k[rows], v[rows], o[:, rows]
        for p in parts:
            p.mul_(0.1)
        return parts

    def previous_tokens(self) -> None:
        """Layer 0: write the codes of the token before and of the one before that."""
        freq = self.model.freq
        for h, offset, part, size in ((0, 1, PREVIOUS, 32), (3, 2, BEFORE, 20)):
            q, k, v, o = self.head(0, h)
            for i in range(12):
                q[i, CONST] = 1.9
                k[i, CONST] = 1.9 * torch.cos(offset * freq[i])
                k[self.half + i, CONST] = 1.9 * torch.sin(offset * freq[i])
            v[:size, CODE] = self.previous[:size]
            o[part, :size] = 0.075 * torch.eye(size)

    def recent_label(self) -> None:
        """Layer 1: write the latest label; an empty line and the very first token reset it."""
        q, k, v, o = self.head(1, 1)
        for i in range(4, 16):
            q[i, CONST] = k[i, IS_LABEL] = 1.0
            k[i, IS_NEWLINE] = 1.2
            k[i, PREVIOUS] = 0.5 * fn.normalize(self.previous @ self.newline, dim=0)
        for i in self.slow:
            q[i, CONST], k[i, IS_FIRST] = 1.0, 0.35
        v[:24, CODE] = self.label
        o[LABEL, :24] = 0.08 * torch.eye(24)
        v[24, IS_LABEL] = 1.0
        o[IN_UNIT, 24] = 0.08

    def likeness(self, h: int, part: slice, rest: float) -> Head:
        """Layer 2: attend to words of like spelling or meaning, or rest at the first token."""
        q, k, v, o = self.head(2, h)
        dims = self.slow[:-2] + [self.half + i for i in self.slow[:-2]]
        q[dims, part] = k[dims, part] = MATCH * _orthogonal(len(dims), part.stop - part.start)
        for i in self.slow[-2:]:
            q[i, CONST], k[i, IS_FIRST] = 1.0, rest
        return q, k, v, o

    def votes_and_marks(self) -> None:
        """Layer 2: a question's word takes the label of its like; a unit's word marks that it was asked."""
        for h, part, rest, vote in ((0, CHARS, REST, VOTE), (1, MEANING, REST_MEANING, VOTE_MEANING)):
            _, k, v, o = self.likeness(h, part, rest)
            k[self.slow[-2:], IN_UNIT] = IN_UNIT_BONUS
            v[:24, LABEL] = torch.eye(24)
            o[LABEL, :24] = vote * torch.eye(24)
            v[24, IN_UNIT] = 1.0
            o[VOTED, 24] = vote
        for h, part in ((2, CHARS), (3, MEANING)):
            _, _, v, o = self.likeness(h, part, REST)
            v[0, RARE] = 1.0
            o[FREE.start + h - 2, 0] = 0.15

    def same_label(self, q: torch.Tensor, k: torch.Tensor, dims: list[int]) -> None:
        """Attend inside the own unit only."""
        q[dims, LABEL] = k[dims, LABEL] = 1.6 * _orthogonal(len(dims), 24)

    def induction(self) -> None:
        """Layer 3: copy the token that followed this one inside the cited unit."""
        q, k, v, o = self.head(3, 0)
        q[self.dims[:16], CODE] = 1.5 * _orthogonal(16, 32) @ self.previous
        k[self.dims[:16], PREVIOUS] = q[self.dims[:16], CODE] @ self.previous.T
        self.same_label(q, k, self.dims[16:])
        # The token before, in rotary dimensions slow enough for a prompt: without it copying loops on `the`.
        both = [*range(11, 16), *range(self.half + 11, self.half + 16)]
        q[both, PREVIOUS.start : PREVIOUS.start + 20] = k[both, BEFORE] = 2.8 * _orthogonal(10, 20)
        v[:56, CODE] = torch.eye(56)
        o[CODE, :56] = 0.2 * torch.eye(56)

    def gather(self) -> None:
        """Layer 3: the answer's start gathers the votes of near, rare words; a unit's end its marks."""
        q, k, v, o = self.head(3, 1)
        for i in range(6, 12):
            q[i, PREVIOUS], k[i, CONST] = NEAR * self.asked, NEAR
        q[self.slow[0], PREVIOUS], k[self.slow[0], RARE] = RARITY * self.asked, RARITY
        k[self.slow[0], VOTED] = HAS_VOTED
        v[:24, LABEL] = torch.eye(24)
        o[CODE, :24] = NAME_IT * self.label.T
        q, k, v, o = self.head(3, 2)
        self.same_label(q, k, self.dims[:24])
        v[:24, FREE] = torch.eye(24)
        o[FREE, :24] = 0.3 * torch.eye(24)
        o[SCORE, 0] = o[SCORE, 1] = 0.15

    def start(self) -> None:
        """Layers 3 and 4: the answer starts with a label, that of the best score."""
        q, k, v, o = self.head(3, 3)
        for i in self.slow[:8]:
            q[i, PREVIOUS], k[i, CODE] = self.asked, self.name
        for i in self.slow[8:]:
            q[i, CONST], k[i, IS_FIRST] = 1.0, 1.0
        v[0, CODE] = self.name
        o[IS_LABEL, 0] = WANT_LABEL
        q, k, v, o = self.head(len(self.model.layers) - 1, 0)
        for i in self.slow:
            q[i, PREVIOUS] = 0.8 * self.asked
            k[i, SCORE], k[i, IS_NEWLINE] = 1.0, 0.3
        v[:24, LABEL] = torch.eye(24)
        o[CODE, :24] = 0.25 * self.label.T


def _orthogonal(rows: int, cols: int) -> torch.Tensor:
    """Random orthonormal rows (or columns, when there are more rows)."""
    q = torch.linalg.qr(torch.randn(max(rows, cols), min(rows, cols))).Q
    turned: torch.Tensor = q.T if rows < cols else q
    return turned
