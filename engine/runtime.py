"""llama.cpp as a backend: continuous batching of many replies over one model.

Every step makes two kinds of calls. One evaluates the next token of every running reply under one adapter;
the other a chunk of a prompt, sized so that running replies wait a third of a second at most. Replies join
when their prompt was evaluated and leave when they end; nobody waits for a batch to be full or finished
(iteration-level scheduling: Yu et al., Orca, OSDI 2022; chunked prefill: Agrawal et al., Sarathi, 2023).
An adapter acts on a whole call, so the adapters in work take turns, one a step.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from core.catalog import CatalogModel
from core.errors import ModelError
from core.gguf import GgufInfo, check_adapter_fits, check_gguf, template_digest
from core.settings import Settings
from engine.backend import Failed, Finished, Output, Part, Prompt, Work
from engine.canary import CANARY_TOKENS, canaries, require_words
from engine.context import BATCH, OUTPUTS, NativeContext, Variant
from engine.limits import limits_of
from engine.lookup import LENGTHS, Guesses
from engine.native import NativeModel
from engine.pace import Pace
from engine.prompts import encode, prepare
from engine.requests import Request
from engine.running import Ends, Running
from engine.slots import BLOCK, PREFIX_BYTES, Prefixes, Slots, call_size
from engine.widths import Widths


class LlamaBackend:
    """One GGUF model in llama.cpp, working on up to `slots` replies at once."""

    def __init__(self, settings: Settings, model: CatalogModel, path: Path) -> None:
        self.model = model
        self.path = path
        self.info: GgufInfo | None = None
        self._settings = settings
        self.limits = limits_of(settings, model, None)
        self._native: NativeModel | None = None
        self._context: NativeContext | None = None
        self._ends = Ends()
        self._slots = Slots(0)
        self._prefixes = Prefixes()
        self._pace = Pace()
        self._widths = Widths()
        self.guesses: Guesses | None = Guesses()
        self._running: list[Running] = []
        self._scales: dict[str, float] = {}
        self._retired: set[str] = set()
        self._turn: Variant | None = None
        self._vocabulary = threading.Lock()  # against `close` while another thread tokenizes

    @property
    def slots(self) -> int:
        """How many replies can be in work at once."""
        return self.limits.slots

    @property
    def busy(self) -> bool:
        """Whether any reply is in work."""
        return bool(self._running)

    def load(self) -> None:
        """Check the header, load the model and prove that it generates (raises ModelError)."""
        self.info = check_gguf(self.path)
        self.limits = limits_of(self._settings, self.model, self.info)
        self._native = native = NativeModel(self.path, self.limits.gpu_layers, self.info.quantised)
        self._context = NativeContext(native, self.limits)
        self._slots = Slots(self.limits.slots)
        if not native.rewinds:
            self.guesses = None
        # a stop that is one control token never shows up as text
        ids = {text: native.control_id(text) for text in self.model.stop}
        self._ends = Ends(
            frozenset(token for token in ids.values() if token is not None),
            tuple(text for text, token in ids.items() if token is None),
        )
        self._test_itself()

    def _test_itself(self) -> None:
        native, _ = self._loaded()
        made = 0
        for request in canaries():
            tokens = encode(native, self.model, request).tokens[: self.limits.context - CANARY_TOKENS - 1]
            work = Work(request, Prompt(tokens), None)
            self.begin(work)
            for part in self._to_end():
                if isinstance(part, Failed):
                    raise part.error
                made += part.completion_tokens if isinstance(part, Finished) else 0
        require_words(made)

    def _to_end(self) -> Iterator[Part]:
        while self.busy:
            for _, part in self.step():
                yield part

    # adapters

    def check_adapter(self, adapter_id: str, path: Path) -> None:
        """Check an adapter's header and that it fits this model, on any thread (raises ModelError)."""
        if self.info is None:
            raise ModelError("No model is loaded.", "Wait until /health says ready.")
        check_adapter_fits(check_gguf(path, "adapter"), self.info)

    def load_adapter(self, adapter_id: str, path: Path) -> None:
        """Load an adapter; what was loaded under this id is replaced (raises ModelError)."""
        if any(running.variant[0] == adapter_id for running in self._running):
            raise ModelError(f"Adapter {adapter_id} is answering just now.", "Load it again later.")
        native, context = self._loaded()
        self._forget(adapter_id, context)
        native.load_adapter(adapter_id, path)
        self._retired.discard(adapter_id)

    def scale_adapter(self, adapter_id: str, scale: float) -> None:
        """Set how strongly an adapter acts on replies begun from now on."""
        self._scales[adapter_id] = scale

    def free_adapter(self, adapter_id: str) -> None:
        """Free an adapter once the replies that use it have ended."""
        self._retired.add(adapter_id)
        self._free_retired()

    def _free_retired(self) -> None:
        native, context = self._loaded()
        for adapter_id in self._retired - {running.variant[0] for running in self._running}:
            self._forget(str(adapter_id), context)
            native.free_adapter(str(adapter_id))
            self._scales.pop(str(adapter_id), None)
            self._retired.discard(str(adapter_id))

    def _forget(self, adapter_id: str, context: NativeContext) -> None:
        if context.variant[0] == adapter_id:
            context.use((None, 1.0))
        self._slots.forget(adapter_id)
        self._prefixes.forget(adapter_id)

    def prepare(self, request: Request) -> Prompt:
        """Token ids of a request's prompt, on any thread (raises BadRequest when it does not fit)."""
        with self._vocabulary:
            return prepare(self._loaded()[0], self.model, request, self.limits.context)

    # replies

    def begin(self, work: Work) -> None:
        """Take a reply on; it gets its sequence when its prompt's turn comes."""
        native, _ = self._loaded()
        if work.adapter_id is not None:
            native.adapter(work.adapter_id)
        variant = (work.adapter_id, self._scales.get(work.adapter_id or "", 1.0))
        work.state = Running(work, variant, native, self._ends, self.limits.context)
        self._running.append(work.state)

    def end(self, work: Work) -> Finished:
        """Let a reply go; its slot is free at once."""
        running: Running = work.state
        self._leave(running)
        return running.finished("cancelled")

    def step(self) -> list[Output]:
        """One token for every running reply of the adapter whose turn it is, then a chunk of a prompt."""
        _, context = self._loaded()
        if not self._running:
            return []
        variant = self._turn = self._next_variant()
        group = [running for running in self._running if running.variant == variant]
        outputs: list[Output] = []
        try:
            context.use(variant)
            self._decode(context, [running for running in group if running.prefilled], outputs)
            waiting = [running for running in group if not running.prefilled]
            if waiting:
                self._prefill(context, waiting, outputs)
        except ModelError as error:
            outputs += [(running.work, Failed(error)) for running in group if running in self._running]
            for running in group:
                self._leave(running, intact=False)
        return outputs

    def _next_variant(self) -> Variant:
        """The adapters in work take turns, in the order in which their replies came."""
        variants = list(dict.fromkeys(running.variant for running in self._running))
        if self._turn not in variants:
            return variants[0]
        return variants[(variants.index(self._turn) + 1) % len(variants)]

    def _decode(self, context: NativeContext, group: Sequence[Running], outputs: list[Output]) -> None:
        """A token for each of a group, in one call or, where that is quicker, in several."""
        share = self._widths.share(len(group)) if group and self.guesses else None
        waiting = [running for running in group if not self._guessed(context, running, share, outputs)]
        # llama.cpp batches sequences only in rising order
        waiting.sort(key=lambda running: running.slot.number if running.slot else 0)
        for width in self._widths.split(len(waiting)) if waiting else ():
            part, waiting = waiting[:width], waiting[width:]
            rows = [(r.token, r.position, r.slot.number, True) for r in part if r.slot]
            with self._widths.timed(width):
                if not context.decode(rows):
                    return
            for row, running in enumerate(part):
                outputs += self._sample(context, running, row)

    def _guessed(
        self, context: NativeContext, running: Running, share: float | None, outputs: list[Output]
    ) -> bool:
        """Let a reply take several tokens in one call, if they can be guessed and that should be quicker."""
        guesses, slot = self.guesses, running.slot
        if guesses is None or slot is None:
            return False
        guess = running.guess(LENGTHS[-1])
        guess = guess[: guesses.length(len(guess), share)]
        if not guess:
            return False
        start = running.position
        rows = [(token, start + row, slot.number, True) for row, token in enumerate([running.token, *guess])]
        with guesses.timed(len(guess)):
            if not context.decode(rows):
                return True
        right = 0
        for row in range(len(rows)):
            outputs += self._sample(context, running, row)
            if running not in self._running or row == len(guess) or running.token != guess[row]:
                break
            right += 1
        guesses.learn(len(guess), right)
        if running in self._running:
            context.cut(slot.number, running.position)
        return True

    def _prefill(self, context: NativeContext, waiting: Sequence[Running], outputs: list[Output]) -> None:
        """Chunks of prompts in the order in which they came, as many as running replies can wait for."""
        streaming = any(running.prefilled for running in self._running)
        waited = time.monotonic() - waiting[0].asked
        left = self._pace.chunk(streaming=streaming, waiting=len(waiting), waited=waited)
        for running in waiting:
            if left <= 0:
                break
            if running.slot is None:
                self._seat(context, running)
                outputs.append((running.work, running.begun()))
            chunk = self._chunk(running, left)
            left = (left - chunk) // BLOCK * BLOCK  # where this call ends, the next begins on a whole block
            if not self._evaluate(context, running, chunk):
                break
            if running.prefilled:
                outputs += self._first(context, running, chunk - 1)

    def _seat(self, context: NativeContext, running: Running) -> None:
        """Give a reply a sequence with as much of its prompt as may be reused."""
        work, prompt = running.work, running.work.prompt
        reusable = () if running.scored else prompt.tokens
        slot = running.slot = self._slots.take(running.variant, work.owner, reusable or (0,))
        if not context.cut(slot.number, len(slot.tokens)):
            slot.tokens = ()
        length = prompt.shared // BLOCK * BLOCK
        if reusable and length > len(slot.tokens):
            data = self._prefixes.find(running.variant, prompt.tokens[:length])
            if data is not None:
                context.cut(slot.number, 0)
                slot.tokens = prompt.tokens[:length] if context.restore(slot.number, data) else ()
                if not slot.tokens:
                    context.cut(slot.number, 0)
        running.done = running.cached = len(slot.tokens)

    def _chunk(self, running: Running, left: int) -> int:
        """How many tokens to evaluate next: within `left`, and up to where the system message ends."""
        rest = len(running.tokens) - running.done
        prefix = running.work.prompt.shared // BLOCK * BLOCK - running.done
        if prefix > 0:
            rest = min(rest, prefix)
        return call_size(rest, left, OUTPUTS if running.scored else BATCH)

    def _evaluate(self, context: NativeContext, running: Running, chunk: int) -> bool:
        slot, start = running.slot, running.done
        assert slot is not None
        end = start + chunk
        last = len(running.tokens) - 1
        scored = running.scored
        rows = [(running.tokens[at], at, slot.number, scored or at == last) for at in range(start, end)]
        with self._pace.timed(chunk):
            if not context.decode(rows):
                return False
        running.done = end
        slot.tokens = running.tokens[:end]
        if scored:
            if start == 0:
                running.score(0, None)
            for at in range(start, min(end, last)):
                running.score(at + 1, context.logits(at - start))
        elif (
            end == running.work.prompt.shared // BLOCK * BLOCK
            and context.held_bytes(slot.number) <= PREFIX_BYTES  # else it would be copied for nothing
        ):
            self._prefixes.keep(running.variant, running.tokens[:end], context.save(slot.number))
        return True

    def _first(self, context: NativeContext, running: Running, row: int) -> list[Output]:
        if not context.finite(row):
            self._leave(running, intact=False)
            error = ModelError("The model produced numbers that are not finite.", "Choose another adapter.")
            return [(running.work, Failed(error))]
        echoed = [(running.work, part) for part in running.echoed()]
        return [*echoed, *self._sample(context, running, row)]

    def _sample(self, context: NativeContext, running: Running, row: int) -> list[Output]:
        parts = running.sample(context, row)
        if parts and isinstance(parts[-1], Finished):
            self._leave(running)
        return [(running.work, part) for part in parts]

    def _leave(self, running: Running, *, intact: bool = True) -> None:
        """Free a reply's slot; unless `intact`, what its cache holds is not to be trusted."""
        if running not in self._running:
            return
        self._running.remove(running)
        running.close()
        if running.slot is not None:
            if not intact:
                running.slot.tokens = ()
            self._slots.give_back(running.slot)
        if self._retired:
            self._free_retired()

    def _loaded(self) -> tuple[NativeModel, NativeContext]:
        if self._native is None or self._context is None:
            raise ModelError("No model is loaded.", "Wait until /health says ready.")
        return self._native, self._context

    def interrupt(self) -> None:
        """Stop evaluating, for ever."""
        if self._context is not None:
            self._context.interrupt()

    def facts(self) -> dict[str, Any]:
        """Name, context, slots, cache use, and whether the file's own template is the pinned one."""
        embedded = self.info.template if self.info else ""
        same = template_digest(embedded) == template_digest(self.model.template)
        limits = self.limits
        return {
            "name": self.model.name,
            "file": self.path.name,
            "context": limits.context,
            "slots": limits.slots,
            "threads": limits.threads,
            "cache_tokens": limits.context * limits.slots,
            "cached_tokens": self._slots.cached_tokens,
            "template": "none embedded" if not embedded else "as pinned" if same else "embedded one ignored",
            "backend": "llama.cpp",
        }

    def close(self) -> None:
        """Free the context, then the model."""
        with self._vocabulary:
            for running in self._running:
                running.close()
            self._running = []
            if self._context is not None:
                self._context.close()
            if self._native is not None:
                self._native.close()
            self._context = self._native = None
