"""One reply in work: its place in the prompt, its sampler, and the text it has made."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engine.backend import Begun, Finished, FinishReason, Part, Piece, TokenLogprob, Work
from engine.context import NativeContext, Variant
from engine.lookup import Lookup
from engine.native import NativeModel
from engine.sampler import Sampler
from engine.schemas import constraint
from engine.slots import Slot
from engine.text import TextStream

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Ends:
    """What ends a reply besides its limits: the tokens of the catalog's stops, and stops without a token."""

    tokens: frozenset[int] = frozenset()
    strings: tuple[str, ...] = ()


class Running:
    """A reply in work in one context. The prompt is evaluated first, then a token at a time."""

    def __init__(self, work: Work, variant: Variant, model: NativeModel, ends: Ends, context: int) -> None:
        sampling = work.request.sampling
        self.work = work
        self.asked = time.monotonic()
        self.variant = variant
        self.tokens = work.prompt.tokens
        self.slot: Slot | None = None
        self.done = 0  # tokens of the prompt whose cache is there
        self.cached = 0
        self.made = 0
        self.token = -1  # sampled, and not yet evaluated
        self._lookup: Lookup | None = None
        self.limit = min(sampling.max_tokens, context - len(self.tokens))
        self._model = model
        self._ends = ends
        self._text = TextStream(sampling.stop + ends.strings)
        schema = work.request.schema
        rules = constraint(model, schema) if schema else None
        self._sampler = Sampler(model.library, model.vocabulary, sampling, rules)
        self._logprobs: list[TokenLogprob] = []

    @property
    def prefilled(self) -> bool:
        """Whether the whole prompt was evaluated."""
        return self.done == len(self.tokens)

    @property
    def scored(self) -> bool:
        """Whether log probabilities of the prompt's own tokens are wanted."""
        return self.work.request.echo and self.work.request.logprobs is not None

    @property
    def position(self) -> int:
        """Where the sampled token goes."""
        return len(self.tokens) + self.made - 1

    def begun(self) -> Begun:
        """The event for the client when the prompt has its slot."""
        return Begun(len(self.tokens), self.cached)

    def score(self, index: int, logits: np.ndarray[tuple[int, ...], np.dtype[np.float32]] | None) -> None:
        """Note how probable the prompt's token `index` was; `logits` are those of the token before it."""
        self._logprobs.append(self._logprob(self.tokens[index], logits))

    def echoed(self) -> list[Part]:
        """The prompt's own text, when it was asked for, with what `score` noted."""
        if not self.work.request.echo:
            return []
        noted, self._logprobs = tuple(self._logprobs), []
        return [Piece(self.work.request.prompt, noted)]

    def sample(self, context: NativeContext, row: int) -> list[Part]:
        """Choose the next token from a row of the last batch; what the client gets, at the end a Finished."""
        if self.limit <= 0:
            return [self.finished("length")]
        self.token = self._sampler.next(context, row)
        if self.token in self._ends.tokens or self._model.is_end(self.token):
            return [*self._piece(b"", final=True), self.finished("stop")]
        self.made += 1
        if self._lookup is not None:
            self._lookup.add(self.token)
        if self.work.request.logprobs is not None:
            self._logprobs.append(self._logprob(self.token, context.logits(row)))
        parts = self._piece(self._model.piece(self.token))
        if self._text.stopped:
            return [*parts, self.finished("stop")]
        if self.made >= self.limit:
            return [*parts, *self._piece(b"", final=True), self.finished("length")]
        return parts

    def guess(self, most: int) -> list[int]:
        """The next tokens if the reply goes on as it or its prompt did before; of greedy replies only.

        None where log probabilities are wanted: the rows of a longer call differ in the third digit.
        """
        request = self.work.request
        if request.sampling.temperature > 0 or request.logprobs is not None:
            return []
        if self._lookup is None:
            self._lookup = Lookup(self.tokens)
            self._lookup.add(self.token)
        # the last token that may be made needs no evaluating
        return self._lookup.guess(min(most, self.limit - self.made - 1))

    def finished(self, reason: FinishReason) -> Finished:
        """The end, with the counts so far."""
        return Finished(reason, len(self.tokens), self.made, self.cached)

    def close(self) -> None:
        """Free the sampler."""
        self._sampler.close()

    def _piece(self, data: bytes, *, final: bool = False) -> list[Part]:
        text = self._text.push(data, final=final)
        if not text and not (final and self._logprobs):
            return []
        noted, self._logprobs = tuple(self._logprobs), []
        return [Piece(text, noted)]

    def _logprob(
        self, token: int, logits: np.ndarray[tuple[int, ...], np.dtype[np.float32]] | None
    ) -> TokenLogprob:
        if logits is None:
            return self._token(token, None)
        import numpy as np

        scores = logits.astype(np.float64)
        scores -= scores.max()
        scores -= np.log(np.exp(scores).sum())
        count = self.work.request.logprobs or 0
        best: Any = np.argpartition(-scores, count)[:count] if count else []
        ranked = sorted(best, key=lambda t: -scores[t])
        top = tuple(self._token(int(t), float(scores[t])) for t in ranked)
        return self._token(token, float(scores[token]), top)

    def _token(self, token: int, logprob: float | None, top: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
        """A part of a character is spelt as OpenAI spells it, so that no two tokens read the same."""
        data = self._model.piece(token)
        try:
            text = data.decode() or self._model.token_text(token)
        except UnicodeDecodeError:
            text = "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
        return TokenLogprob(text, logprob, top, data)
