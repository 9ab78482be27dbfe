"""Writing files so that a crash or a full disk never leaves a half-written one behind.

Every artefact goes through here: write to a `.partial` sibling, fsync it, rename it, fsync the folder
(the order that survives power loss, see "All File Systems Are Not Created Equal", OSDI 2014).
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from core.errors import ConflictError, StorageError

_BLOCK = 1 << 20  # bytes


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


@contextmanager
def sealed_copy(path: Path) -> Iterator[tuple[Path, str]]:
    """A private copy of a file that nothing can change any more, and its hex SHA-256.

    The file is opened once; the copy holds the very bytes that were hashed, whatever happens to `path`
    meanwhile. It lies in memory without a name (memfd_create(2), sealed), the yielded path leads to it
    through this process's descriptor, and it is gone after the block. Raises OSError when `path` cannot be
    read.
    """
    memory = os.memfd_create("understudy", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with open(memory, "wb") as copy, path.open("rb") as source:
        digest = hashlib.sha256()
        while block := source.read(_BLOCK):
            digest.update(block)
            copy.write(block)
        copy.flush()
        seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
        fcntl.fcntl(copy, fcntl.F_ADD_SEALS, seals)
        yield Path(f"/proc/self/fd/{copy.fileno()}"), digest.hexdigest()


def make_folder(folder: Path) -> None:
    """Make a folder and those above it.

    Raises StorageError when a file has its name or the place cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"The folder {folder} cannot be made: {error.strerror}.", "Choose another data_dir."
        ) from error


def fsync_dir(path: Path) -> None:
    """Make a rename inside `path` durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Yield a `.partial` path to write; it becomes `target` only when the block ends without an error.

    Raises StorageError when the disk is full or the folder cannot be written; `target` is then untouched.
    """
    partial = target.with_name(f"{target.name}.{os.getpid()}.{threading.get_ident()}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        with partial.open("rb") as handle:
            os.fsync(handle.fileno())
        os.replace(partial, target)
        fsync_dir(target.parent)
    except OSError as error:
        raise StorageError(
            f"Could not write {target}: {error.strerror or error}.",
            "Free some space or check the folder's permissions, then try again.",
        ) from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def write_bytes(target: Path, data: bytes) -> None:
    """Atomically replace `target` with `data`."""
    with atomic_path(target) as partial:
        partial.write_bytes(data)


def write_text(target: Path, text: str) -> None:
    """Atomically replace `target` with UTF-8 `text`."""
    write_bytes(target, text.encode("utf-8"))


def write_json(target: Path, value: Any) -> None:
    """Atomically replace `target` with indented JSON."""
    write_text(target, json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True) + "\n")


def read_json(path: Path) -> Any:
    """Parse a JSON file.

    Raises StorageError when it is missing or not JSON.
    """
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise StorageError(f"Could not read {path}: {error}.", "Restore it from a backup.") from error


def write_jsonl(target: Path, rows: list[dict[str, Any]]) -> None:
    """Atomically replace `target` with one JSON object a line."""
    write_text(target, "".join(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in rows))


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Parse one JSON object a line; blank lines are skipped.

    Raises StorageError naming the file and line when a line is not an object.
    """
    rows: list[dict[str, Any]] = []
    try:
        lines = path.read_text("utf-8-sig").split("\n")  # splitlines would also split at U+2028 in a string
    except (OSError, UnicodeDecodeError) as error:
        raise StorageError(f"Could not read {path}: {error}.") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise StorageError(f"{path}:{number} is not JSON: {error}.", "Mend that line.") from error
        if not isinstance(row, dict):
            raise StorageError(f"{path}:{number} is not a JSON object.", "Mend that line.")
        rows.append(row)
    return rows


def require_space(folder: Path, needed: int) -> None:
    """Raise StorageError when the disk under `folder` has fewer than `needed` free bytes."""
    existing = folder
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise StorageError(
            f"Not enough disk space under {folder}: {needed:,} bytes are needed, {free:,} are free.",
            "Free some space, then try again.",
        )


def inside(folder: Path, name: str) -> Path:
    """Resolve `name` below `folder`; the one place that guards against path traversal.

    Raises StorageError when the result would lie outside `folder`.
    """
    if "\0" in name:
        raise StorageError("A name must not hold a NUL character.", "Choose a plain name.")
    whole = folder.resolve()
    path = (whole / name).resolve()
    if not path.is_relative_to(whole) or path == whole:
        raise StorageError(f"The name {name!r} leaves the folder {folder}.", "Choose a plain name.")
    return path


@contextmanager
def owner_lock(path: Path, what: str, *, wait: bool = False) -> Iterator[None]:
    """Hold an exclusive `flock` on `path`; the kernel frees it when the process dies, however it dies.

    Raises ConflictError naming the holder when it is taken and `wait` is false.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            handle.seek(0)
            holder = handle.read().strip() or "another process"
            raise ConflictError(f"{what} is already in use by {holder}.", "Stop it first.") from error
        handle.seek(0)
        handle.truncate()
        handle.write(f"process {os.getpid()} on {os.uname().nodename}")
        handle.flush()
        yield
