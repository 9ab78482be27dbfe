"""The files below a folder and their bytes, as every way of adding a folder sees them."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from core.errors import DocumentError

_NO_FILE = (errno.ELOOP, errno.ENXIO, errno.ENODEV)  # how open(2) refuses a link, a socket and a device


class UnreadError(DocumentError):
    """The file could not be read this time, which says nothing about what it holds."""


class NoFileError(DocumentError):
    """There is no regular file (any more): a link, a pipe or a device has its place."""


class _ChangedError(UnreadError):
    """A file was written to while it was read."""


def below(folder: Path, unread: Callable[[Path, str], None]) -> Iterator[Path]:
    """Files below the folder, sorted; links to folders are listed but not followed, hidden names skipped.

    `unread` is told each folder that cannot be listed, and why: of those, nothing is yielded.
    """

    def unlisted(error: OSError) -> None:
        unread(Path(error.filename or folder), f"The folder cannot be read: {error.strerror}.")

    for parent, folders, names in os.walk(folder, onerror=unlisted, followlinks=False):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        linked = [name for name in folders if (Path(parent) / name).is_symlink()]
        yield from (Path(parent) / name for name in sorted([*names, *linked]) if not name.startswith("."))


def read_regular(path: Path, check_size: Callable[[int], None]) -> bytes:
    """A regular file's bytes; one that changes meanwhile is tried once more.

    `check_size` may raise for a size in bytes. Raises NoFileError for links, pipes and devices, UnreadError
    for a file that cannot be read or does not stand still.
    """
    try:
        return _read(path, check_size)
    except _ChangedError:
        return _read(path, check_size)


def _read(path: Path, check_size: Callable[[int], None]) -> bytes:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            before = os.fstat(handle)
            if not stat.S_ISREG(before.st_mode):
                raise NoFileError("This is not a regular file.")
            check_size(before.st_size)
            with os.fdopen(handle, "rb", closefd=False) as file:
                data = file.read(before.st_size + 1)
            after = os.fstat(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno in _NO_FILE:
            raise NoFileError("This is not a regular file.") from None
        raise UnreadError(f"The file cannot be read: {error.strerror}.") from error
    if len(data) != before.st_size or after.st_mtime_ns != before.st_mtime_ns:
        raise _ChangedError("The file changed while it was read.", "Try again when it is complete.")
    return data
