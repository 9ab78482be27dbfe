"""Fixtures every package's tests share."""

from __future__ import annotations

import fcntl
import socket
import struct
from contextlib import suppress

import pytest

from core.settings import quiet_environment
from tests.tiny import TinyModel
from tests.tiny import tiny_model as build

quiet_environment()


def raise_loopback() -> None:
    """Bring up the loopback device: in a new network namespace (`unshare -rn`) it is there but down.

    Source: netdevice(7). Where that is not allowed, tests that need it fail with the system's own message.
    """
    get_flags, set_flags, up, request = 0x8913, 0x8914, 0x1, "16sH14x"
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        found = fcntl.ioctl(any_socket, get_flags, struct.pack(request, b"lo", 0))
        flags = struct.unpack(request, found)[1]
        if not flags & up:
            fcntl.ioctl(any_socket, set_flags, struct.pack(request, b"lo", flags | up))


raise_loopback()


@pytest.fixture(scope="session")
def tiny_model() -> TinyModel:
    """A random two-layer Llama as Hugging Face folder and GGUF (see tests/tiny.py)."""
    return build()
