"""`python -m engine.tokenize MODEL.gguf`: JSON strings in, a line each; JSON lists of token ids out.

Used after a conversion to prove that the GGUF tokenizes as the original does.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from core.errors import UnderstudyError
from core.gguf import check_gguf
from core.settings import quiet_environment


def main(argv: Sequence[str] | None = None) -> int:
    """Tokenize standard input; control tokens are not recognised and no BOS is added."""
    parser = argparse.ArgumentParser(
        prog="python -m engine.tokenize", description="Token ids of JSON strings read from standard input."
    )
    parser.add_argument("model", type=Path, help="a GGUF file")
    path = parser.parse_args(argv).model
    quiet_environment()
    from engine.native import NativeModel

    try:
        check_gguf(path)
        model = NativeModel(path)
    except UnderstudyError as error:
        print(error, file=sys.stderr)
        return 1
    for line in sys.stdin:
        print(json.dumps(model.tokenize(json.loads(line))))
    model.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
