"""Whether llama.cpp multiplies quantised weights rightly in AMX tiles, tried in a process of its own.

gcc's `_tile_loadconfig` says of the tile configuration's 64 bytes that eight are read, so an optimising build
drops the stores of the others, and the process dies at its first prompt (llama.cpp issue 20824). The Makefile
builds llama.cpp without that optimisation; a wheel from elsewhere may have been built with it. A Q8_0 model
reads prompts twice as fast with AMX, so it is used wherever this trial ends well.
"""

from __future__ import annotations

import sys
from functools import cache

from core.children import ends_well
from core.settings import PROJECT

REPORTED = b"AMX_INT8 = 1"  # in what llama.cpp says of its own build
SECONDS = 30.0


@cache
def usable(reported: bytes) -> bool:
    """Whether AMX may be used, given what `llama_print_system_info` reports; tried once in a process."""
    return REPORTED in reported and ends_well([sys.executable, "-m", "engine.amx_trial"], SECONDS, PROJECT)
