"""The built-in reader as a module: a small Llama in plain torch, fast enough to train on one CPU core.

Parameter names are those of transformers' Llama, so the weights move by name. A scorer of unit ends helps in
training only and is left out on export.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as fn


@dataclass(frozen=True)
class Shape:
    """Architecture figures; names as in a Hugging Face Llama configuration."""

    vocab_size: int = 16384
    hidden_size: int = 256
    intermediate_size: int = 512
    num_hidden_layers: int = 5
    num_attention_heads: int = 4
    max_position_embeddings: int = 1024
    rope_theta: float = 1e8
    rms_norm_eps: float = 1e-5

    def as_dict(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        return asdict(self)


class Scale(nn.Module):
    """The weight of a root-mean-square norm."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))


class Projections(nn.ModuleDict):
    """Linear maps by name, each (inputs, outputs), without bias."""

    def __init__(self, sizes: dict[str, tuple[int, int]]) -> None:
        super().__init__({n: nn.Linear(i, o, bias=False) for n, (i, o) in sizes.items()})

    def joined(self, *names: str) -> torch.Tensor:
        """The weights of some of them, stacked by rows."""
        weights: list[torch.Tensor] = [self[n].get_parameter("weight") for n in names]
        return weights[0] if len(weights) == 1 else torch.cat(weights)


class Layer(nn.Module):
    """One Llama block; parameter names as in transformers, so weights move by name."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        d, f = s.hidden_size, s.intermediate_size
        self.heads, self.eps = s.num_attention_heads, s.rms_norm_eps
        self.input_layernorm, self.post_attention_layernorm = Scale(d), Scale(d)
        self.self_attn = Projections(dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj"), (d, d)))
        self.mlp = Projections({"gate_proj": (d, f), "up_proj": (d, f), "down_proj": (f, d)})

    def forward(
        self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        """`x` (batch, time, hidden); `cos`, `sin` (time, head); `mask` (time, time), added."""
        b, t, d = x.shape
        h = rms_norm(x, self.input_layernorm.weight, self.eps)
        w = self.self_attn.joined("q_proj", "k_proj", "v_proj").to(x.dtype)
        q, k, v = fn.linear(h, w).view(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        a = torch.softmax(rotate(q, cos, sin) @ rotate(k, cos, sin).transpose(-1, -2) + mask, -1) @ v
        x = x + fn.linear(a.transpose(1, 2).reshape(b, t, d), self.self_attn.joined("o_proj").to(x.dtype))
        h = rms_norm(x, self.post_attention_layernorm.weight, self.eps)
        w = self.mlp.joined("gate_proj", "up_proj").to(x.dtype)
        gate, up = fn.linear(h, w).chunk(2, -1)
        return x + fn.linear(fn.silu(gate) * up, self.mlp.joined("down_proj").to(x.dtype))


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Root-mean-square norm, computed in float32."""
    f = x.float()
    return (f * torch.rsqrt(f.pow(2).mean(-1, keepdim=True) + eps) * weight).to(x.dtype)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding, half-split layout; scaled so that q @ k needs no further factor."""
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat((-b, a), -1) * sin


class Reader(nn.Module):
    """The Llama plus a training-only scorer of unit ends, which is left out on export."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.num_hidden_layers))
        self.norm = Scale(shape.hidden_size)
        self.scorer = nn.Linear(shape.hidden_size, 1)
        half = shape.hidden_size // shape.num_attention_heads // 2
        freq = shape.rope_theta ** (-torch.arange(half).float() / half)
        angle = torch.arange(shape.max_position_embeddings).float()[:, None] * torch.cat((freq, freq))
        self.freq = freq
        scale = (2 * half) ** -0.25
        self.tables = ((angle.cos() * scale), (angle.sin() * scale))
        n = shape.max_position_embeddings
        self.mask = torch.full((n, n), float("-inf")).triu(1)

    def forward(
        self, ids: torch.Tensor, dtype: torch.dtype = torch.bfloat16
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids (batch, time) to the last hidden state, normed, and the state before the last layer."""
        t = ids.shape[1]
        cos, sin = (x[:t].to(dtype) for x in self.tables)
        mask = self.mask[:t, :t].to(dtype)
        x = self.embed_tokens(ids).to(dtype)
        for layer in self.layers[:-1]:
            x = layer(x, cos, sin, mask)
        last = self.layers[-1](x, cos, sin, mask)
        return rms_norm(last, self.norm.weight, self.shape.rms_norm_eps), x

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Next-token logits in float32 for selected states (n, hidden)."""
        return fn.linear(hidden, self.embed_tokens.weight.to(hidden.dtype)).float()
