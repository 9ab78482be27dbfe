"""`python -m engine.amx_trial`: multiply by way of AMX once. Exit code 0 when the product is right.

A build that breaks AMX dies here by a signal, and nobody is harmed; see `engine.amx`.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any

from engine.native import binding

ROWS, INNER, COLUMNS = 64, 256, 40  # of the weights and of what they are multiplied with; more than one tile
_CPU, _F32, _Q8_0 = 0, 0, 8  # GGML_BACKEND_DEVICE_TYPE_CPU, GGML_TYPE_F32, GGML_TYPE_Q8_0
_BLOCK = 32  # values that share a scale


class _InitParams(ctypes.Structure):
    """ggml_init_params."""

    _fields_ = (("size", ctypes.c_size_t), ("buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


class _Ggml:
    """ggml's C functions that the trial calls; all their pointers are opaque."""

    def __init__(self, library: Any) -> None:
        self._library = library

    def __call__(self, name: str, *arguments: Any, result: Any = ctypes.c_void_p) -> Any:
        function = getattr(self._library, f"ggml_{name}")
        function.restype = result
        return function(*arguments)

    def context(self) -> ctypes.c_void_p:
        return ctypes.c_void_p(self("init", _InitParams(1 << 20, None, True)))

    def tensor(self, context: ctypes.c_void_p, kind: int, inner: int, rows: int) -> ctypes.c_void_p:
        sizes = ctypes.c_int64(inner), ctypes.c_int64(rows)
        return ctypes.c_void_p(self("new_tensor_2d", context, ctypes.c_int(kind), *sizes))

    def amx(self) -> ctypes.c_void_p:
        """The buffer type whose weights are multiplied in tiles (raises LookupError)."""
        device = ctypes.c_void_p(self("backend_dev_by_type", ctypes.c_int(_CPU)))
        registry = ctypes.c_void_p(self("backend_dev_backend_reg", device))
        found = self("backend_reg_get_proc_address", registry, b"ggml_backend_dev_get_extra_bufts")
        kinds = ctypes.CFUNCTYPE(ctypes.POINTER(ctypes.c_void_p), ctypes.c_void_p)(found)(device)
        at = 0
        while kinds[at]:
            kind = ctypes.c_void_p(kinds[at])
            if self("backend_buft_name", kind, result=ctypes.c_char_p) == b"AMX":
                return kind
            at += 1
        raise LookupError("llama.cpp offers no AMX buffer.")


def main() -> int:
    """Multiply; 0 when the product is right, else 1 or death by a signal."""
    import numpy as np

    rng = np.random.default_rng(0)
    weights = rng.integers(-127, 128, (ROWS, INNER // _BLOCK, _BLOCK)).astype(np.int8)
    scales = rng.uniform(0.001, 0.01, (ROWS, INNER // _BLOCK, 1)).astype(np.float16)
    blocks = np.concatenate([scales.view(np.uint8), weights.view(np.uint8)], axis=2)
    inputs = rng.standard_normal((COLUMNS, INNER), np.float32)
    product = _multiply(_Ggml(binding("_ggml").libggml), blocks.tobytes(), inputs.tobytes())
    found = np.frombuffer(product, np.float32).reshape(COLUMNS, ROWS)
    expected = inputs @ (weights * scales.astype(np.float32)).reshape(ROWS, INNER).T
    # the inputs are rounded to eight bits
    return 0 if np.abs(found - expected).max() < 0.02 * np.abs(expected).max() else 1


def _multiply(ggml: _Ggml, weights: bytes, inputs: bytes) -> bytes:
    """The product's bytes; `weights` are blocks of Q8_0, `inputs` float32."""
    backend = ctypes.c_void_p(ggml("backend_init_by_type", ctypes.c_int(_CPU), None))
    kept, work = ggml.context(), ggml.context()
    left = ggml.tensor(kept, _Q8_0, INNER, ROWS)
    ggml("backend_alloc_ctx_tensors_from_buft", kept, ggml.amx())
    right = ggml.tensor(work, _F32, INNER, COLUMNS)
    product = ctypes.c_void_p(ggml("mul_mat", work, left, right))
    graph = ctypes.c_void_p(ggml("new_graph", work))
    ggml("build_forward_expand", graph, product, result=None)
    ggml("backend_alloc_ctx_tensors", work, backend)
    for tensor, data in ((left, weights), (right, inputs)):
        ggml("backend_tensor_set", tensor, data, ctypes.c_size_t(0), ctypes.c_size_t(len(data)), result=None)
    if ggml("backend_graph_compute", backend, graph, result=ctypes.c_int):
        raise RuntimeError("llama.cpp could not multiply.")
    found = ctypes.create_string_buffer(4 * ROWS * COLUMNS)
    size = ctypes.c_size_t(len(found.raw))
    ggml("backend_tensor_get", product, found, ctypes.c_size_t(0), size, result=None)
    return found.raw


if __name__ == "__main__":
    sys.exit(main())
