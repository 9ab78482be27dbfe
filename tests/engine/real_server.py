"""`python -m tests.engine.real_server MODEL ADAPTER...`: llama-server's core."""

from __future__ import annotations

import importlib
import sys


def main(model: str, adapters: list[str]) -> None:
    library = importlib.import_module("xllamacpp")
    params = library.CommonParams()
    params.model.path = model
    params.n_ctx, params.n_parallel = 2048, 2
    params.lora_init_without_apply = True
    params.lora_adapters = [library.CommonAdapterLoraInfo(path, 1.0) for path in adapters]
    server = library.Server(params)
    print(server.listening_address, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
