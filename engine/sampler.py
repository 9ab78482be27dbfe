"""How the next token is chosen: llama.cpp's sampler chain, one for each reply."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engine.requests import Sampling

if TYPE_CHECKING:
    from engine.context import NativeContext

PENALTY_WINDOW = 256  # tokens


class Sampler:
    """llama.cpp's sampler chain for one reply; it remembers that reply's tokens and random state alone.

    A `constraint` is a sampler that rules tokens out before all others; the chain frees it.
    """

    def __init__(
        self, library: Any, vocabulary: int, sampling: Sampling, constraint: Any | None = None
    ) -> None:
        self._lib = library
        self._plain = constraint is None and not _penalised(sampling) and sampling.temperature == 0
        self._chain = library.llama_sampler_chain_init(library.llama_sampler_chain_default_params())
        if constraint is not None:
            library.llama_sampler_chain_add(self._chain, constraint)
        for sampler in self._samplers(vocabulary, sampling):
            library.llama_sampler_chain_add(self._chain, sampler)

    def _samplers(self, vocabulary: int, sampling: Sampling) -> list[Any]:
        lib = self._lib
        chosen = []
        if _penalised(sampling):
            penalties = (sampling.repeat_penalty, sampling.frequency_penalty, sampling.presence_penalty)
            chosen.append(lib.llama_sampler_init_penalties(vocabulary, PENALTY_WINDOW, *penalties))
        if sampling.temperature == 0:
            return [*chosen, lib.llama_sampler_init_greedy()]
        if sampling.top_k:
            chosen.append(lib.llama_sampler_init_top_k(sampling.top_k))
        if sampling.top_p < 1:
            chosen.append(lib.llama_sampler_init_top_p(sampling.top_p, 1))
        if sampling.min_p > 0:
            chosen.append(lib.llama_sampler_init_min_p(sampling.min_p, 1))
        chosen.append(lib.llama_sampler_init_temp(sampling.temperature))
        return [*chosen, lib.llama_sampler_init_dist(sampling.seed)]

    def next(self, context: NativeContext, row: int) -> int:
        """Choose and accept the token that follows a row of the context's last batch."""
        if self._plain:  # the chain would copy the whole vocabulary first, 0.4 ms for 150,000 tokens
            return int(context.logits(row).argmax())
        return int(self._lib.llama_sampler_sample(self._chain, context.pointer, row))

    def close(self) -> None:
        """Free the chain; harmless when done before."""
        if self._chain is not None:
            self._lib.llama_sampler_free(self._chain)
            self._chain = None


def _penalised(sampling: Sampling) -> bool:
    return (sampling.repeat_penalty, sampling.frequency_penalty, sampling.presence_penalty) != (1.0, 0.0, 0.0)
