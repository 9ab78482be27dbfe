"""llama.cpp as a backend: load the model, try adapters, generate one reply at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from core.catalog import CatalogModel
from core.errors import ModelError
from core.gguf import GgufInfo, check_adapter_fits, check_gguf, template_digest
from core.settings import Settings
from engine.backend import Begun, Finished, FinishReason, Part, Piece, StopFlag
from engine.native import Limits, NativeModel
from engine.requests import BadRequest, Request, Sampling
from engine.template import render
from engine.text import TextStream

CANARIES = (
    "What is the notice period?",
    "Question: Who may sign?\n\nHandbook > Signing\n[1] The board signs.\n\nQuestion: Who may sign?",
    "Grüße! 1 2 3 — 你好",
)
CANARY_TOKENS = 8
TINY_BILLIONS = 0.05
# no text comes near this many characters a token; more is refused before seconds go into tokenizing it
CHARACTERS_PER_TOKEN = 64


class LlamaBackend:
    """One GGUF model in llama.cpp. Every method runs on the owner thread."""

    def __init__(self, settings: Settings, model: CatalogModel, path: Path) -> None:
        self.model = model
        self.path = path
        self.info: GgufInfo | None = None
        self._limits = Limits(
            settings.context or model.context, settings.threads or _threads(model), settings.gpu_layers
        )
        self._native: NativeModel | None = None
        self._ends: frozenset[int] = frozenset()
        self._stops: tuple[str, ...] = ()

    def load(self) -> None:
        """Check the header, load the model and prove that it generates (raises ModelError)."""
        self.info = check_gguf(self.path)
        native = NativeModel(self.path, self._limits)
        self._native = native
        # a stop that is one control token never shows up as text
        ids = {text: native.control_id(text) for text in self.model.stop}
        self._ends = frozenset(token for token in ids.values() if token is not None)
        self._stops = tuple(text for text, token in ids.items() if token is None)
        self._try()

    def load_adapter(self, adapter_id: str, path: Path) -> None:
        """Check, load and try an adapter; what was loaded under this id is replaced (raises ModelError)."""
        native, info = self._loaded()
        check_adapter_fits(check_gguf(path, "adapter"), info)
        native.load_adapter(adapter_id, path)
        try:
            native.use(adapter_id)
            self._try()
        except BaseException:
            native.free_adapter(adapter_id)
            raise

    def free_adapter(self, adapter_id: str) -> None:
        """Take an adapter out of use and free its memory."""
        self._loaded()[0].free_adapter(adapter_id)

    def generate(self, request: Request, adapter_id: str | None, stop: StopFlag) -> Iterator[Part]:
        """Yield Begun, whole characters as they come, then one Finished.

        Raises BadRequest when the prompt does not fit, ModelError when the numbers went bad.
        """
        native, _ = self._loaded()
        tokens = self._prompt(native, request)
        room = native.context - len(tokens)
        if room < 1:
            raise BadRequest(
                f"The prompt has {len(tokens)} tokens and this model holds {native.context}; "
                "at least one must be left for the answer.",
                "messages" if request.kind == "chat" else "prompt",
                code="context_length_exceeded",
            )
        native.use(adapter_id)
        yield from self._reply(native, tokens, request.sampling, room, stop)

    def _prompt(self, native: NativeModel, request: Request) -> list[int]:
        size = len(request.prompt) + sum(len(message["content"]) for message in request.messages)
        if size > native.context * CHARACTERS_PER_TOKEN:
            raise BadRequest(
                f"The prompt has {size} characters, far more than the {native.context} tokens of this model.",
                code="context_length_exceeded",
            )
        if request.kind == "text":
            tokens = native.tokenize(request.prompt)
            return [native.bos, *tokens] if native.adds_bos else tokens or [max(native.bos, 0)]
        bos = native.token_text(native.bos) if native.bos >= 0 else ""
        return native.encode(render(self.model.template, request.messages, bos))

    def _reply(
        self, native: NativeModel, tokens: list[int], sampling: Sampling, room: int, stop: StopFlag
    ) -> Iterator[Part]:
        limit = min(sampling.max_tokens, room)
        text = TextStream(sampling.stop + self._stops)
        native.watch(stop)
        yield Begun(len(tokens))
        sampler = native.sampler(sampling)
        made = 0
        try:
            if not native.prefill(tokens):
                yield Finished(_why(stop), len(tokens), 0)
                return
            if not native.finite():
                raise ModelError("The model produced numbers that are not finite.", "Choose another adapter.")
            ended = False
            while made < limit and not text.stopped and not stop.is_set:
                token = sampler.next()
                if token in self._ends or native.is_end(token):
                    ended = True
                    break
                made += 1
                if piece := text.push(native.piece(token)):
                    yield Piece(piece)
                if made < limit and not text.stopped and not native.step(token):
                    break
            if piece := text.push(b"", final=True):
                yield Piece(piece)
            yield Finished("stop" if ended or text.stopped else _why(stop), len(tokens), made)
        finally:
            sampler.close()

    def _try(self) -> None:
        """Generate a few tokens from every canary prompt.

        Raises ModelError when a number is not finite or nothing is said to any of them.
        """
        native, _ = self._loaded()
        made = 0
        for prompt in CANARIES:
            tokens = native.encode(render(self.model.template, [{"role": "user", "content": prompt}]))
            tokens = tokens[: native.context - CANARY_TOKENS - 1]
            for part in self._reply(native, tokens, Sampling(), CANARY_TOKENS, StopFlag()):
                made += part.completion_tokens if isinstance(part, Finished) else 0
        if made == 0:
            raise ModelError("It answers every canary prompt with nothing.", "Train it again.")

    def _loaded(self) -> tuple[NativeModel, GgufInfo]:
        if self._native is None or self.info is None:
            raise ModelError("No model is loaded.", "Wait until /health says ready.")
        return self._native, self.info

    def facts(self) -> dict[str, Any]:
        """Name, context, threads, and whether the file's own template is the pinned one."""
        embedded = self.info.template if self.info else ""
        same = template_digest(embedded) == template_digest(self.model.template)
        return {
            "name": self.model.name,
            "file": self.path.name,
            "context": self._native.context if self._native else self._limits.context,
            "threads": self._limits.threads,
            "template": "none embedded" if not embedded else "as pinned" if same else "embedded one ignored",
            "backend": "llama.cpp",
        }

    def close(self) -> None:
        """Free the model."""
        if self._native is not None:
            self._native.close()
            self._native = None


def _why(stop: StopFlag) -> FinishReason:
    return "cancelled" if stop.reason == "cancelled" else "length"


def _threads(model: CatalogModel) -> int:
    """Every core, but one for a tiny model, whose threads would wait for each other more than they work."""
    if model.parameters < TINY_BILLIONS:
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
