"""One llama.cpp context with a key-value cache of its own for each sequence, for the owner thread only.

Measured on one core with a 0.6B model of Q4_K_M and 1,000 tokens in each of 8 sequences, one decode of the
batch took 0.33 s with a cache for each sequence, and 0.51 s with one unified cache, where every token looks
at everybody's cells. Flash attention made it 0.53 and 0.72 s on a CPU, so it is on for a GPU alone.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from core.errors import ModelError
from engine.native import Limits, NativeModel, last_words

if TYPE_CHECKING:
    import numpy as np

BATCH = 512  # tokens that one call may evaluate
CPU_ROWS = 256
OUTPUTS = 32  # rows of logits that one call may give back, at least
_FLASH_AUTO, _FLASH_OFF = -1, 0
_Q8_0 = 8  # GGML_TYPE_Q8_0
Variant = tuple[str | None, float]
"""An adapter's id (None is the bare base) and its scale."""
BASE: Variant = (None, 1.0)


class NativeContext:
    """A context of `limits.slots` sequences. One set of adapters acts on a whole batch, see `use`."""

    def __init__(self, model: NativeModel, limits: Limits) -> None:
        """Make it (raises ModelError with llama.cpp's own reason)."""
        self._model = model
        self._lib: Any = model.library
        self.variant: Variant = BASE
        self._flag = bytearray(2)  # an empty C string until `interrupt` makes it one character long
        self.pointer: Any = self._lib.llama_init_from_model(model.pointer, self._params(limits))
        if not self.pointer:
            raise ModelError(
                f"llama.cpp could not make {limits.slots} x {limits.context} tokens of context: "
                f"{last_words()}",
                "Set a smaller context or fewer slots.",
            )
        self.memory: Any = self._lib.llama_get_memory(self.pointer)
        if not self.memory:
            self.close()
            raise ModelError("This model embeds texts and writes none.", "Choose a chat model.")
        self.context = min(limits.context, int(self._lib.llama_n_ctx_seq(self.pointer)))
        self._make_batch()
        self._watch()

    def _params(self, limits: Limits) -> Any:
        params = self._lib.llama_context_default_params()
        padded = -(-limits.context // 256) * 256  # llama.cpp rounds a sequence's share up to this
        params.n_ctx = padded * limits.slots
        gpu = self._model.offloaded and limits.gpu_layers != 0
        params.n_batch = min(BATCH, padded)
        # a CPU is no faster with 512 rows than with 256 (7.5 ms a token), and the scratch memory halves
        params.n_ubatch = params.n_batch if gpu else min(CPU_ROWS, padded)
        params.n_seq_max = limits.slots
        params.n_outputs_max = max(OUTPUTS, limits.slots)  # the logits of 512 rows would be 300 MB
        params.kv_unified = False
        params.flash_attn_type = _FLASH_AUTO if gpu else _FLASH_OFF
        if limits.short_keys and not gpu:
            params.type_k = _Q8_0
        params.n_threads = params.n_threads_batch = limits.threads
        params.no_perf = True
        return params

    def _make_batch(self) -> None:
        lib = self._lib
        self._tokens = (lib.llama_token * BATCH)()
        self._positions = (lib.llama_pos * BATCH)()
        self._counts = (ctypes.c_int32 * BATCH)(*[1] * BATCH)
        self._sequences = (lib.llama_seq_id * BATCH)()
        width = ctypes.sizeof(lib.llama_seq_id)
        first = ctypes.addressof(self._sequences)
        pointer = ctypes.POINTER(lib.llama_seq_id)
        self._rows = (pointer * BATCH)(*[ctypes.cast(first + width * row, pointer) for row in range(BATCH)])
        self._outputs = (ctypes.c_int8 * BATCH)()
        self._batch = lib.llama_batch(
            0, self._tokens, None, self._positions, self._counts, self._rows, self._outputs
        )

    def _watch(self) -> None:
        """Let `interrupt` stop a running evaluation.

        llama.cpp asks its callback before every graph node. The C function strlen serves as that callback: it
        returns 0 for the flag's empty string and 1 once it is set, without taking Python's lock each time.
        """
        strlen = ctypes.cast(ctypes.CDLL(None).strlen, ctypes.c_void_p).value or 0
        self._callback = self._lib.ggml_abort_callback(int(strlen))
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._flag))
        self._lib.llama_set_abort_callback(self.pointer, self._callback, ctypes.c_void_p(address))

    def interrupt(self) -> None:
        """Make the running evaluation and all later ones return at once; on any thread."""
        self._flag[0] = 1

    def close(self) -> None:
        """Free it; harmless when done before."""
        if self.pointer:
            self._lib.llama_free(self.pointer)
            self.pointer = None

    def use(self, variant: Variant) -> None:
        """Let this adapter act on the batches that follow.

        Cached sequences stay, so whoever mixes those of several adapters must keep them apart. A switch back
        and forth was measured to cost 5 ms of a decode's 33 ms (0.6B, one core).
        """
        if variant == self.variant:
            return
        lib, (adapter_id, scale) = self._lib, variant
        pointers = [] if adapter_id is None else [self._model.adapter(adapter_id)]
        adapters = (lib.llama_adapter_lora_p_ctypes * 1)(*pointers)
        scales = (ctypes.c_float * 1)(scale)
        arguments = (adapters, 1, scales) if pointers else (None, 0, None)
        if lib.llama_set_adapters_lora(self.pointer, *arguments):
            raise ModelError(
                f"llama.cpp could not switch to {adapter_id or 'the base model'}.", "Restart it."
            )
        self.variant = variant

    def decode(self, rows: Sequence[tuple[int, int, int, bool]]) -> bool:
        """Evaluate rows of (token, position, sequence, whether its logits are wanted).

        False when it was interrupted; raises ModelError when llama.cpp failed. After either, what the
        sequences hold is unknown.
        """
        count = len(rows)
        for row, (token, position, sequence, wanted) in enumerate(rows):
            self._tokens[row] = token
            self._positions[row] = position
            self._sequences[row] = sequence
            self._outputs[row] = wanted
        self._batch.n_tokens = count
        code = self._lib.llama_decode(self.pointer, self._batch)
        if code == 0:
            # a GPU works on after the call; whoever times it must not be told of the launch alone
            self._lib.llama_synchronize(self.pointer)
            return True
        if code == 2 or self._flag[0]:
            return False
        raise ModelError(f"llama.cpp failed to evaluate a batch (code {code}): {last_words()}", "Ask again.")

    # sequences

    def cut(self, sequence: int, start: int) -> bool:
        """Forget a sequence's tokens from position `start` on; False when all of it had to go."""
        if self._lib.llama_memory_seq_rm(self.memory, sequence, start, -1):
            return True
        self._lib.llama_memory_seq_rm(self.memory, sequence, -1, -1)  # a recurrent state has no positions
        return False

    def held_bytes(self, sequence: int) -> int:
        """How large the copy is that `save` would make."""
        return int(self._lib.llama_state_seq_get_size(self.pointer, sequence))

    def save(self, sequence: int) -> bytes:
        """A copy of everything one sequence holds, kept in this process and never written out."""
        size = self.held_bytes(sequence)
        data = (ctypes.c_uint8 * size)()
        done = int(self._lib.llama_state_seq_get_data(self.pointer, data, size, sequence))
        return bytes(memoryview(data)[:done])

    def restore(self, sequence: int, data: bytes) -> bool:
        """Put a copy into an empty sequence; whether it went in."""
        buffer = (ctypes.c_uint8 * len(data)).from_buffer_copy(data)
        return bool(self._lib.llama_state_seq_set_data(self.pointer, buffer, len(data), sequence))

    # what came out

    def logits(self, row: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        """The logits (vocabulary,) of a row of the last batch that wanted them; a view, not a copy."""
        import numpy as np

        pointer = self._lib.llama_get_logits_ith(self.pointer, row)
        return np.ctypeslib.as_array(pointer, (self._model.vocabulary,))

    def finite(self, row: int) -> bool:
        """Whether every logit of a row is a finite number."""
        import numpy as np

        return bool(np.isfinite(self.logits(row)).all())
