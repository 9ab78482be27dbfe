"""Whether llama.cpp multiplies quantised weights rightly in AMX tiles, tried in a process of its own.

gcc's `_tile_loadconfig` says of the tile configuration's 64 bytes that eight are read, so an optimising build
drops the stores of the others, and the process dies at its first prompt (llama.cpp issue 20824). The Makefile
builds llama.cpp without that optimisation; a wheel from elsewhere may have been built with it. A Q8_0 model
reads prompts twice as fast with AMX, so it is used wherever this trial ends well.
"""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache
from pathlib import Path

from core.children import ends_well
from core.settings import PROJECT

REPORTED = b"AMX_INT8 = 1"  # in what llama.cpp says of its own build
SECONDS = 30.0
_DONTNEED = 4  # MADV_DONTNEED, the same on every Linux; AMX is used on no other system


@cache
def usable(reported: bytes) -> bool:
    """Whether AMX may be used, given what `llama_print_system_info` reports; tried once in a process."""
    return REPORTED in reported and ends_well([sys.executable, "-m", "engine.amx_trial"], SECONDS, PROJECT)


def forget_pages(path: Path) -> None:
    """Take a loaded model's file out of this process's memory; what is read again comes back by itself.

    The weights in tiles are copies, so the mapped file would lie beside them whole. Only what has no tiles is
    still read from it, most of all the few rows of the embedding that a prompt needs.
    """
    advise = ctypes.CDLL(None).madvise
    advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    file = os.stat(path).st_ino
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, _, _, _, inode, *_ = line.split(maxsplit=5)
        if int(inode) == file and line.endswith(path.name):
            begin, end = (int(address, 16) for address in span.split("-"))
            advise(begin, end - begin, _DONTNEED)
