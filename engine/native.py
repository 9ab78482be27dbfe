"""The thin layer over llama.cpp's C interface: one model, one context, checked at every call.

The only file that imports llama_cpp. Its high-level class is not used: it reuses the prompt cache across
adapters, which moved the next logits by 1.15 in a measurement, and it cannot be stopped inside a prompt.
Nothing here is safe to call from two threads: two threads on one context crash the process.
"""

from __future__ import annotations

import ctypes
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import ModelError
from engine.backend import StopFlag
from engine.requests import Sampling
from engine.sampler import Sampler
from engine.template import Segment

BATCH = 512
# A prompt is evaluated in blocks of this many tokens and only whole blocks are reused, so a reused prompt
# goes through exactly the same arithmetic as a fresh one and greedy replies do not depend on history.
BLOCK = 128
_CONTROL = 1 << 3  # LLAMA_TOKEN_ATTR_CONTROL
_last_words = ""


@dataclass(frozen=True)
class Limits:
    """How much of the machine a model may take; `gpu_layers` -1 is all."""

    context: int
    threads: int
    gpu_layers: int = -1


class NativeModel:
    """A loaded model with its context. Create, use and close it on one thread."""

    def __init__(self, path: Path, limits: Limits | None = None) -> None:
        """Load the model, or without `limits` its vocabulary only.

        Raises ModelError with llama.cpp's own reason.
        """
        import llama_cpp.llama_cpp as library

        self._lib: Any = library
        self._adapters: dict[str, Any] = {}
        self._active: str | None = None
        self._cached: list[int] = []
        self._stop = StopFlag()
        self._model: Any = None
        self._context: Any = None
        _silence(library)
        library.llama_backend_init()
        self._load(path, limits)
        self._vocab: Any = library.llama_model_get_vocab(self._model)
        self.vocabulary = int(library.llama_vocab_n_tokens(self._vocab))
        self.context = int(library.llama_n_ctx(self._context)) if self._context else 0
        self.bos = int(library.llama_vocab_bos(self._vocab))
        self.adds_bos = bool(library.llama_vocab_get_add_bos(self._vocab)) and self.bos >= 0
        self._controls = self._control_tokens()
        self._split = re.compile("|".join(re.escape(text) for text in sorted(self._controls, key=len)[::-1]))

    def _load(self, path: Path, limits: Limits | None) -> None:
        lib = self._lib
        model_params = lib.llama_model_default_params()
        model_params.vocab_only = limits is None
        model_params.n_gpu_layers = limits.gpu_layers if limits else 0
        self._model = lib.llama_model_load_from_file(str(path).encode(), model_params)
        if not self._model:
            raise ModelError(f"llama.cpp could not load {path.name}: {last_words()}", "Download it again.")
        if limits is not None:
            self._make_context(limits)

    def _make_context(self, limits: Limits) -> None:
        lib = self._lib
        params = lib.llama_context_default_params()
        params.n_ctx = limits.context
        params.n_batch = params.n_ubatch = min(BATCH, limits.context)
        params.n_seq_max = 1  # room for batching: one sequence per request, see docs/architecture.md
        params.n_threads = params.n_threads_batch = limits.threads
        params.no_perf = True
        self._context = lib.llama_init_from_model(self._model, params)
        if not self._context:
            reason = last_words()
            self.close()
            raise ModelError(
                f"llama.cpp could not make a context of {limits.context} tokens: {reason}",
                "Set a smaller context.",
            )

    def close(self) -> None:
        """Free the context, the adapters and the model, in that order; harmless when done before."""
        if self._context:
            self._lib.llama_free(self._context)
        for pointer in self._adapters.values():
            self._lib.llama_adapter_lora_free(pointer)
        if self._model:
            self._lib.llama_model_free(self._model)
        self._adapters, self._context, self._model = {}, None, None

    # tokens

    def _control_tokens(self) -> dict[str, int]:
        attributes = (self._lib.llama_vocab_get_attr(self._vocab, token) for token in range(self.vocabulary))
        controls = [token for token, attribute in enumerate(attributes) if attribute & _CONTROL]
        texts = {self.token_text(token): token for token in controls}
        return {text: token for text, token in texts.items() if text}

    def token_text(self, token: int) -> str:
        """How the vocabulary spells a token."""
        raw = self._lib.llama_vocab_get_text(self._vocab, token)
        return raw.decode("utf-8", "replace") if raw else ""

    def tokenize(self, text: str) -> list[int]:
        """Token ids of plain text; a control token's spelling stays text and no BOS is added."""
        data = text.encode("utf-8", "replace")
        if not data:
            return []
        room = len(data) + 8
        for _ in range(2):
            ids = (self._lib.llama_token * room)()
            count = self._lib.llama_tokenize(self._vocab, data, len(data), ids, room, False, False)
            if count >= 0:
                return list(ids[:count])
            room = -count
        raise ModelError("The prompt could not be tokenized.", "Shorten it.")

    def encode(self, segments: list[Segment]) -> list[int]:
        """Token ids of a rendered prompt: control tokens only where the template wrote them.

        Text between two control tokens is tokenized in one go, content and template together, so the ids are
        those of training.
        """
        ids: list[int] = []
        plain = ""
        for segment in segments:
            if not segment.from_template or not self._controls:
                plain += segment.text
                continue
            at = 0
            for match in self._split.finditer(segment.text):
                ids += self.tokenize(plain + segment.text[at : match.start()])
                ids.append(self._controls[match.group()])
                plain, at = "", match.end()
            plain += segment.text[at:]
        ids += self.tokenize(plain)
        return [self.bos, *ids] if self.adds_bos and ids[:1] != [self.bos] else ids

    def is_end(self, token: int) -> bool:
        """Whether the token ends a reply."""
        return bool(self._lib.llama_vocab_is_eog(self._vocab, token))

    def control_id(self, text: str) -> int | None:
        """The control token spelt like this, if there is one."""
        return self._controls.get(text)

    def piece(self, token: int) -> bytes:
        """The bytes a token stands for; a control token stands for none."""
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            count = self._lib.llama_token_to_piece(self._vocab, token, buffer, size, 0, False)
            if count >= 0:
                return buffer.raw[:count]
            size = -count

    # adapters

    def load_adapter(self, adapter_id: str, path: Path) -> None:
        """Load a LoRA (raises ModelError: a file that does not fit gives a NULL pointer, not an error)."""
        pointer = self._lib.llama_adapter_lora_init(self._model, str(path).encode())
        if not pointer:
            raise ModelError(f"llama.cpp refused the adapter {adapter_id}: {last_words()}", "Train it again.")
        self.free_adapter(adapter_id)
        self._adapters[adapter_id] = pointer

    def free_adapter(self, adapter_id: str) -> None:
        """Take an adapter out of use, then free it."""
        pointer = self._adapters.pop(adapter_id, None)
        if pointer is None:
            return
        if self._active == adapter_id:
            self._apply(None)
        self._lib.llama_adapter_lora_free(pointer)

    def use(self, adapter_id: str | None) -> None:
        """Switch to an adapter or to the bare base; the cache of the old one is dropped."""
        if adapter_id != self._active:
            self._apply(adapter_id)

    def _apply(self, adapter_id: str | None) -> None:
        lib = self._lib
        pointers = [] if adapter_id is None else [self._adapters[adapter_id]]
        adapters = (lib.llama_adapter_lora_p_ctypes * 1)(*pointers)
        scales = (ctypes.c_float * 1)(1.0)
        arguments = (adapters, 1, scales) if pointers else (None, 0, None)
        if lib.llama_set_adapters_lora(self._context, *arguments):
            raise ModelError(
                f"llama.cpp could not switch to {adapter_id or 'the base model'}.", "Restart it."
            )
        self._active = adapter_id
        self.forget()

    # generation

    def forget(self) -> None:
        """Empty the key-value cache."""
        self._cached = []
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), True)

    def watch(self, stop: StopFlag) -> None:
        """Let `stop` interrupt a running evaluation.

        llama.cpp asks its callback before every graph node. The C function strlen serves as that callback: it
        returns 0 for the flag's empty string and 1 once it is set, without taking Python's lock each time.
        """
        self._stop = stop
        callback = self._lib.ggml_abort_callback(_strlen())
        address = ctypes.addressof(ctypes.c_char.from_buffer(stop.buffer))
        self._lib.llama_set_abort_callback(self._context, callback, ctypes.c_void_p(address))

    def prefill(self, tokens: list[int]) -> bool:
        """Evaluate a prompt, reusing whole blocks of the previous one; False when it was interrupted."""
        common = 0
        for left, right in zip(self._cached, tokens, strict=False):
            if left != right:
                break
            common += 1
        keep = min(common, len(tokens) - 1) // BLOCK * BLOCK
        memory = self._lib.llama_get_memory(self._context)
        if keep == 0 or not self._lib.llama_memory_seq_rm(memory, 0, keep, -1):
            self.forget()
            keep = 0
        self._cached = tokens[:keep]
        for start in range(keep, len(tokens), BLOCK):
            block = tokens[start : start + BLOCK]
            if self._stop.is_set or not self._decode(block):
                self.forget()
                return False
            self._cached += block
        return True

    def step(self, token: int) -> bool:
        """Evaluate one generated token; False when it was interrupted. It is never reused as a prompt."""
        if self._decode([token]):
            return True
        self.forget()
        return False

    def _decode(self, tokens: list[int]) -> bool:
        lib = self._lib
        ids = (lib.llama_token * len(tokens))(*tokens)
        code = lib.llama_decode(self._context, lib.llama_batch_get_one(ids, len(tokens)))
        if code == 2 or (code and self._stop.is_set):
            return False
        if code:
            self.forget()
            raise ModelError(f"llama.cpp failed to evaluate the prompt (code {code}).", "Shorten the prompt.")
        return True

    def finite(self) -> bool:
        """Whether every logit of the last token is a finite number."""
        import numpy as np

        logits = self._lib.llama_get_logits_ith(self._context, -1)
        return bool(np.isfinite(np.ctypeslib.as_array(logits, (self.vocabulary,))).all())

    def sampler(self, sampling: Sampling) -> Sampler:
        """A sampler chain for one reply; close it."""
        return Sampler(self._lib, self._context, self.vocabulary, sampling)


def last_words() -> str:
    """llama.cpp's latest error line, which its return values do not carry."""
    return _last_words or "it gave no reason"


def _strlen() -> int:
    pointer = ctypes.cast(ctypes.CDLL(None).strlen, ctypes.c_void_p).value
    return int(pointer or 0)


_callback: Any = None


def _silence(library: Any) -> None:
    """Keep llama.cpp's log off the terminal, remembering the last error."""
    global _callback

    def remember(level: int, text: bytes | None, _data: Any) -> None:
        global _last_words
        if level == 4 and text:  # GGML_LOG_LEVEL_ERROR
            _last_words = text.decode("utf-8", "replace").strip()[:300]

    _callback = library.llama_log_callback(remember)
    library.llama_log_set(_callback, ctypes.c_void_p(0))
