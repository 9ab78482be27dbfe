"""The thin layer over llama.cpp's model: vocabulary, adapters and file, checked at every call.

The only file that imports llama_cpp. Its high-level class is not used: it holds one sequence, reuses the
prompt cache across adapters, which moved the next logits by 1.15 in a measurement, and cannot be stopped
inside a prompt. What reads the vocabulary alone may run on any thread; everything else belongs to the owner
thread.
"""

from __future__ import annotations

import ctypes
import importlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import ModelError
from engine import amx
from engine.template import Segment

_CONTROL = 1 << 3  # LLAMA_TOKEN_ATTR_CONTROL
_last_words = ""


@dataclass(frozen=True)
class Limits:
    """How much of the machine a model may take.

    `context` is tokens of one sequence, `slots` how many sequences there are; `gpu_layers` -1 is all. With
    `short_keys` a CPU keeps the cache's keys in 8 bits.
    """

    context: int
    threads: int
    gpu_layers: int = -1
    slots: int = 1
    short_keys: bool = False


class NativeModel:
    """A loaded model. Create and close it on one thread."""

    def __init__(self, path: Path, gpu_layers: int | None = None, tiles: bool = False) -> None:
        """Load the model, or without `gpu_layers` its vocabulary only.

        With `tiles` the weights may be stored another way for AMX, see `engine.amx`; those of 16 bits gain
        nothing by it. Raises ModelError with llama.cpp's own reason.
        """
        import llama_cpp.llama_cpp as library

        self.library: Any = library
        self.pointer: Any = None
        self._adapters: dict[str, Any] = {}
        _silence(library)
        library.llama_backend_init()
        self._load(path, gpu_layers, tiles)
        self._vocab: Any = library.llama_model_get_vocab(self.pointer)
        self.vocabulary = int(library.llama_vocab_n_tokens(self._vocab))
        self.bos = int(library.llama_vocab_bos(self._vocab))
        self.adds_bos = bool(library.llama_vocab_get_add_bos(self._vocab)) and self.bos >= 0
        self._pieces: dict[int, bytes] = {}
        self._controls = self._control_tokens()
        self._split = re.compile("|".join(re.escape(text) for text in sorted(self._controls, key=len)[::-1]))

    def _load(self, path: Path, gpu_layers: int | None, tiles: bool) -> None:
        params = self.library.llama_model_default_params()
        params.vocab_only = gpu_layers is None
        params.n_gpu_layers = gpu_layers or 0
        info = self.library.llama_print_system_info()
        tiles = tiles and amx.usable(info)
        if amx.REPORTED in info:
            params.use_extra_bufts = tiles
        self.pointer = self.library.llama_model_load_from_file(str(path).encode(), params)
        if not self.pointer:
            raise ModelError(f"llama.cpp could not load {path.name}: {last_words()}", "Download it again.")
        if tiles:
            amx.forget_pages(path)

    @property
    def vocab(self) -> Any:
        """llama.cpp's pointer to the vocabulary."""
        return self._vocab

    @property
    def rewinds(self) -> bool:
        """Whether the end of a sequence can be taken back; a recurrent state holds no positions."""
        lib = self.library
        return not (lib.llama_model_is_recurrent(self.pointer) or lib.llama_model_is_hybrid(self.pointer))

    @property
    def offloaded(self) -> bool:
        """Whether llama.cpp was built for a GPU and finds one."""
        return bool(self.library.llama_supports_gpu_offload())

    def close(self) -> None:
        """Free the adapters and the model, in that order, after every context; harmless when done before."""
        for pointer in self._adapters.values():
            self.library.llama_adapter_lora_free(pointer)
        if self.pointer:
            self.library.llama_model_free(self.pointer)
        self._adapters, self.pointer = {}, None

    # tokens

    def _control_tokens(self) -> dict[str, int]:
        attributes = (
            self.library.llama_vocab_get_attr(self._vocab, token) for token in range(self.vocabulary)
        )
        controls = [token for token, attribute in enumerate(attributes) if attribute & _CONTROL]
        texts = {self.token_text(token): token for token in controls}
        return {text: token for text, token in texts.items() if text}

    def token_text(self, token: int) -> str:
        """How the vocabulary spells a token."""
        raw = self.library.llama_vocab_get_text(self._vocab, token)
        return raw.decode("utf-8", "replace") if raw else ""

    def tokenize(self, text: str) -> list[int]:
        """Token ids of plain text; a control token's spelling stays text and no BOS is added."""
        data = text.encode("utf-8", "replace")
        if not data:
            return []
        room = len(data) + 8
        for _ in range(2):
            ids = (self.library.llama_token * room)()
            count = self.library.llama_tokenize(self._vocab, data, len(data), ids, room, False, False)
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
        return bool(self.library.llama_vocab_is_eog(self._vocab, token))

    def control_id(self, text: str) -> int | None:
        """The control token spelt like this, if there is one."""
        return self._controls.get(text)

    def piece(self, token: int) -> bytes:
        """The bytes a token stands for; a control token stands for none."""
        known = self._pieces.get(token)
        if known is None:
            known = self._pieces[token] = self._spell(token)
        return known

    def _spell(self, token: int) -> bytes:
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            count = self.library.llama_token_to_piece(self._vocab, token, buffer, size, 0, False)
            if count >= 0:
                return buffer.raw[:count]
            size = -count

    # adapters

    def load_adapter(self, adapter_id: str, path: Path) -> None:
        """Load a LoRA (raises ModelError: a file that does not fit gives a NULL pointer, not an error).

        One loaded under this id before must be free of use.
        """
        pointer = self.library.llama_adapter_lora_init(self.pointer, str(path).encode())
        if not pointer:
            raise ModelError(f"llama.cpp refused the adapter {adapter_id}: {last_words()}", "Train it again.")
        self.free_adapter(adapter_id)
        self._adapters[adapter_id] = pointer

    def free_adapter(self, adapter_id: str) -> None:
        """Free an adapter that no context has set; unknown ids are ignored."""
        pointer = self._adapters.pop(adapter_id, None)
        if pointer is not None:
            self.library.llama_adapter_lora_free(pointer)

    def adapter(self, adapter_id: str) -> Any:
        """The pointer of a loaded adapter (raises ModelError when it is not loaded)."""
        if adapter_id not in self._adapters:
            raise ModelError(f"Adapter {adapter_id} is not loaded any more.", "Ask again.")
        return self._adapters[adapter_id]


def binding(name: str) -> Any:
    """Another module of llama-cpp-python, so that this file stays its only door."""
    return importlib.import_module(f"llama_cpp.{name}")


def last_words() -> str:
    """llama.cpp's latest error line, which its return values do not carry."""
    return _last_words or "it gave no reason"


_callback: Any = None


def _silence(library: Any) -> None:
    """Keep llama.cpp's log off the terminal, remembering the last error."""
    global _callback

    def remember(level: int, text: bytes | None, _data: Any) -> None:
        global _last_words
        # the last error of a failed load only says that it failed; the one before says why
        if level == 4 and text and b"failed to load model" not in text:  # GGML_LOG_LEVEL_ERROR
            _last_words = text.decode("utf-8", "replace").strip()[:300]

    _callback = library.llama_log_callback(remember)
    library.llama_log_set(_callback, ctypes.c_void_p(0))
