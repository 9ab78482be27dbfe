"""What a backup holds: a folder with a copy of the database, the files that it names, and `manifest.json`.

The manifest is written last and names every file with its size and SHA-256. It comes from outside when a
backup is read: a name leads nowhere but to a plain file below the backup, in one of the folders of `FOLDERS`.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from core.db import schema_of
from core.errors import StorageError, first_line
from core.files import fsync_dir, read_json, write_json
from core.schema import MIGRATIONS
from core.settings import PROJECT, Settings

MANIFEST = "manifest.json"
DATABASE = "understudy.db"
FORMAT = 1
KEPT = ("documents", "queue", "adapters", "embedders", "datasets")
"""Folders of what the database names. A name there stands for the same bytes for ever."""
RECORDS = ("bench", "runs", "eval")
"""Folders of what may change and nothing depends on: measurements, reports, the operator's questions."""
FOLDERS = (*KEPT, *RECORDS)
NEXT = "Choose another backup; `understudy restore --verify SOURCE` tells whether it is good."
_BLOCK = 1 << 20  # bytes

Tell = Callable[[str, float], None]
"""Says what is done and which share of it (0 to 1)."""


@dataclass(frozen=True)
class Stored:
    """One file of a backup."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What is in a backup. `lacking` are files that the database names and the data folder had lost already.

    `schema` is the database's, `version` the product's, `created_at` in UTC milliseconds.
    """

    version: str
    schema: int
    created_at: int
    files: dict[str, Stored]
    lacking: list[str] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        """The size of all files together."""
        return sum(stored.bytes for stored in self.files.values())

    def __str__(self) -> str:
        when = datetime.fromtimestamp(self.created_at / 1000, UTC)
        return (
            f"{len(self.files):,} files, {self.bytes:,} bytes, of {when:%Y-%m-%d %H:%M:%S} UTC,"
            f" version {self.version}"
        )


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest, which makes the folder a backup."""
    write_json(folder / MANIFEST, {"product": "understudy", "format": FORMAT, **asdict(manifest)})
    (folder / MANIFEST).chmod(0o600)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a backup, its form and every name in it checked.

    Raises StorageError when the folder is no backup, or one that this version does not know.
    """
    if not (folder / MANIFEST).is_file():
        raise StorageError(
            f"{folder} is no backup: it has no {MANIFEST}.", "Name a folder that `understudy backup` wrote."
        )
    try:
        found = read_json(folder / MANIFEST)
    except (StorageError, RecursionError) as error:
        raise StorageError(f"{folder / MANIFEST} is damaged: {first_line(error)}.", NEXT) from error
    if not isinstance(found, dict) or found.get("product") != "understudy":
        raise StorageError(f"{folder / MANIFEST} is not the manifest of a backup.", NEXT)
    if found.get("format") != FORMAT:
        raise StorageError(
            f"The backup {folder} has the format {found.get('format')!r}; this version knows {FORMAT}.",
            "Restore it with the version that wrote it.",
        )
    try:
        manifest = Manifest(
            str(found["version"]), int(found["schema"]), int(found["created_at"]),
            {name: _stored(entry) for name, entry in found["files"].items()},
            [str(name) for name in found["lacking"]],
        )  # fmt: skip
        str(manifest)  # its date is one
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise StorageError(f"{folder / MANIFEST} is damaged: {error!r}.", NEXT) from error
    for name in manifest.files:
        _parts(name)
    if DATABASE not in manifest.files:
        raise StorageError(f"The backup {folder} holds no database.", NEXT)
    if not 1 <= manifest.schema <= len(MIGRATIONS):
        raise StorageError(
            f"The backup {folder} was made by another version ({manifest.version}, schema {manifest.schema};"
            f" this one knows 1 to {len(MIGRATIONS)}).",
            "Install that version to restore it.",
        )
    return manifest


def _stored(entry: dict[str, Any]) -> Stored:
    stored = Stored(**entry)
    if not isinstance(stored.bytes, int) or not isinstance(stored.sha256, str) or stored.bytes < 0:
        raise ValueError(entry)
    return stored


def _parts(name: str) -> list[str]:
    """A name's folders and file; raises StorageError when it could lead out of the backup or elsewhere."""
    parts = name.split("/")
    odd = "\0" in name or any(part in ("", ".", "..") for part in parts)
    if odd or not (name == DATABASE or (parts[0] in FOLDERS and len(parts) > 1)):
        raise StorageError(f"The manifest names {name!r}, which no backup holds.", NEXT)
    return parts


def place(folder: Path, name: str) -> Path:
    """Where a file of the backup `folder` lies (raises StorageError when it is missing or no plain file)."""
    path = folder
    for part in _parts(name):
        path = path / part
        if path.is_symlink():
            raise StorageError(f"{path} is a link, which no backup holds.", NEXT)
    if not path.is_file():
        raise StorageError(f"{path} is missing from the backup.", NEXT)
    return path


def verify(folder: Path, tell: Tell) -> Manifest:
    """Check everything in a backup: the manifest, each file's size and hash, each page of the database.

    Raises StorageError naming the first thing that is wrong. Changes nothing.
    """
    try:
        manifest = read_manifest(folder)
        done, whole = 0, max(1, manifest.bytes)
        for name, stored in manifest.files.items():
            tell("Checking the backup", done / whole)
            with place(folder, name).open("rb") as source:
                require(folder, name, stored, read_through(source))
            done += stored.bytes
    except OSError as error:
        raise StorageError(f"The backup {folder} cannot be read: {error}.", NEXT) from error
    tell("Checking the database", 0)
    try:
        schema = schema_of(place(folder, DATABASE))
    except StorageError as error:
        raise StorageError(error.message, NEXT) from error
    if schema != manifest.schema:
        raise StorageError(
            f"The database in {folder} has the schema {schema}, its manifest says {manifest.schema}.", NEXT
        )
    return manifest


def require(folder: Path, name: str, wanted: Stored, found: Stored) -> None:
    """Raise StorageError when a file is not what the manifest says."""
    if found != wanted:
        raise StorageError(
            f"{folder / name} is damaged: it is not what was backed up"
            f" ({found.bytes:,} bytes, {wanted.bytes:,} expected).",
            NEXT,
        )


def read_through(source: BinaryIO, target: BinaryIO | None = None) -> Stored:
    """Size and hash of what can be read, which is also written to `target`."""
    digest, size = hashlib.sha256(), 0
    while block := source.read(_BLOCK):
        digest.update(block)
        size += len(block)
        if target is not None:
            target.write(block)
    return Stored(size, digest.hexdigest())


def copy(source: BinaryIO, target: Path, mode: int) -> Stored:
    """Copy to a new file on the disk; returns what was copied. `mode` is its permissions, as for open(2)."""
    handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(handle, "wb") as file:
        stored = read_through(source, file)
        file.flush()
        os.fsync(handle)
    return stored


def sync_folders(folder: Path) -> None:
    """Make the names of all files below `folder` durable."""
    for parent, _, _ in os.walk(folder):
        fsync_dir(Path(parent))


def own_records(settings: Settings) -> list[str]:
    """The folders of records: in the project's own data folder, eval/ comes with the program."""
    return [top for top in RECORDS if top != "eval" or settings.data_dir.resolve() != PROJECT / "data"]


class Terminal:
    """Says on standard error how far it is: on one line at a terminal, else a line every ten seconds."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._what, self._next = "", 0.0

    def __call__(self, what: str, done: float) -> None:
        """Say that `done` (0 to 1) of `what` is done."""
        if what == self._what and time.monotonic() < self._next:
            return
        self._what, self._next = what, time.monotonic() + (0.2 if self._live else 10.0)
        begin, end = ("\r\033[K", "") if self._live else ("", "\n")
        print(f"{begin}{what}: {done:.0%}", end=end, file=sys.stderr, flush=True)

    def say(self, sentence: str) -> None:
        """Print a result on standard output."""
        self.clear()
        print(sentence, flush=True)

    def clear(self) -> None:
        """Leave the terminal's line empty."""
        if self._live:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
