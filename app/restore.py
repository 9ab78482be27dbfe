"""`understudy restore`: a backup checked whole, then put in the place of the data folder's state.

    verify → stage → link the old state aside → add files → the database, by one rename → remove files

Until that rename the old database is in force, and all its files are there: what is put in place before only
adds files, since a name in the folders of `KEPT` stands for the same bytes for ever. After it the new one is
in force, with all its files. So a restore that is killed leaves one of the two whole, and can be repeated.
Models, samples, the engine's key and the logs stay; the vector index is built anew from the database.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from itertools import chain, count
from pathlib import Path

from app.backup import named
from app.manifest import (
    DATABASE,
    KEPT,
    NEXT,
    Manifest,
    Tell,
    Terminal,
    copy,
    own_records,
    place,
    require,
    sync_folders,
    verify,
)
from core.db import Database, alone, audit
from core.errors import StorageError
from core.files import fsync_dir, make_folder, owner_lock, require_space
from core.settings import Settings, load_settings, quiet_environment
from rag.index import Index, IndexStatus
from rag.passages import put_notes

STAGE = "restore.partial"
ASIDE = "before-restore"
LOCKS = ("serve.lock", "worker.lock", "ingest.lock", "crawl.lock", "retrain.lock")
INDEX = "index"
_DATABASE_FILES = (DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm", f"{DATABASE}-journal")
SPARE = 64 << 20  # bytes left free


def main(argv: Sequence[str] | None = None) -> int:
    """Restore a backup, or only check it."""
    parser = argparse.ArgumentParser(
        prog="understudy restore",
        description="Check a backup that `understudy backup` wrote, then put it in the place of what is in"
        " the data folder. That is moved aside, never deleted. Nothing else may run on the data folder.",
    )
    parser.add_argument("source", type=Path, metavar="SOURCE", help="the folder of the backup")
    parser.add_argument("--verify", action="store_true", help="only check the backup; change nothing")
    options = parser.parse_args(argv)
    quiet_environment()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    source = options.source.expanduser().resolve()
    tell = Terminal()
    try:
        manifest = verify(source, tell)
        if options.verify:
            tell.say(f"The backup is sound: {manifest}.")
            return 0
        settings = load_settings()
        aside = restore(settings, source, manifest, tell)
        tell.say(f"Restored {source}: {manifest}.")
        if aside is not None:
            tell.say(f"What was there before is in {aside}.")
        status = rebuild(settings, tell)
        tell.say("The vector index was built anew." if status.usable else f"Search: {status.reason}")
    finally:
        tell.clear()
    return 0


def restore(settings: Settings, source: Path, manifest: Manifest, tell: Tell) -> Path | None:
    """Put a verified backup in place; returns the folder with what was there before, if anything was.

    Raises ConflictError when something runs on the data folder, StorageError when the disk is too small or a
    file of the backup changed since it was verified; the state is then as it was.
    """
    data = settings.data_dir
    if data.resolve().is_relative_to(source):
        raise StorageError("The data folder lies in the backup.", "Look at the setting data_dir.")
    make_folder(data)
    with ExitStack() as held:
        for lock in LOCKS:
            held.enter_context(owner_lock(data / lock, f"The data folder {data}"))
        if settings.database.exists():
            held.enter_context(alone(settings.database))
        for left in (data / STAGE, *data.glob(f"{ASIDE}-*.partial")):
            shutil.rmtree(left, ignore_errors=True)
        try:
            require_space(data, manifest.bytes + SPARE)
            _stage(settings, source, manifest, tell)
            aside = _link_aside(settings, tell)
            with _to_the_end():
                _put(settings, manifest, aside)
        except OSError as error:
            raise StorageError(
                f"Could not write {error.filename or data}: {error.strerror or error}.",
                "Check the disk's free space and permissions, then restore again.",
            ) from error
        finally:
            shutil.rmtree(data / STAGE, ignore_errors=True)
    return aside


def rebuild(settings: Settings, tell: Tell) -> IndexStatus:
    """Build the vector index from the restored database."""
    database = Database(settings.database)
    index = Index(settings, database)
    try:
        return index.open(lambda done: tell("Building the vector index", done))
    finally:
        index.close()
        database.close()


def _stage(settings: Settings, source: Path, manifest: Manifest, tell: Tell) -> None:
    """Copy the backup into the data folder, beside its state, and bring its database up to this version."""
    stage, done = settings.data_dir / STAGE, 0
    stage.mkdir(mode=0o700)
    for name, stored in manifest.files.items():
        tell("Copying", done / max(1, manifest.bytes))
        (stage / name).parent.mkdir(parents=True, exist_ok=True)
        with place(source, name).open("rb") as backed_up:
            require(source, name, stored, copy(backed_up, stage / name, 0o666))
        done += stored.bytes
    database = Database(stage / DATABASE)
    try:
        needed = {
            name
            for name, is_needed in named(replace(settings, data_dir=stage), database).items()
            if is_needed
        }
        if absent := needed.difference(manifest.files, manifest.lacking):
            raise StorageError(
                f"The database in {source} names {min(absent)}, which the backup does not hold.", NEXT
            )
        with database.write() as connection:
            # whatever index is found here is another database's
            put_notes(connection, {"index_generation": "0", "index_state": "", "index_version": ""})
            audit(connection, "local", "restore", f"{manifest} from {source}")
    finally:
        database.close()
    sync_folders(stage)


def _link_aside(settings: Settings, tell: Tell) -> Path | None:
    """A folder for the old state, where there is one: links to what must stay in its place until the end.

    They can be shared: files of these folders are replaced by renaming, never written into.
    """
    data = settings.data_dir
    olds = [name for top in KEPT for name in _below(data, top)]
    olds += [name for name in _DATABASE_FILES if (data / name).exists()]
    if not olds and not any((data / top).exists() for top in _moved(settings)):
        return None
    stem = f"{ASIDE}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    names = chain([stem], (f"{stem}-{number}" for number in count(2)))
    aside = next(data / name for name in names if not (data / name).exists())
    partial = aside.with_name(f"{aside.name}.partial")
    partial.mkdir(mode=0o700)
    for number, name in enumerate(olds):
        tell("Keeping what is there", number / len(olds))
        (partial / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(data / name, partial / name, follow_symlinks=False)
        except OSError:  # a file system without hard links
            shutil.copy2(data / name, partial / name, follow_symlinks=False)
    sync_folders(partial)
    partial.rename(aside)
    fsync_dir(data)
    return aside


def _moved(settings: Settings) -> list[str]:
    """The folders that are moved aside as a whole."""
    return [INDEX, *own_records(settings)]


def _put(settings: Settings, manifest: Manifest, aside: Path | None) -> None:
    """From the staged backup into force."""
    data = settings.data_dir
    for name in (name for name in manifest.files if name.split("/")[0] in KEPT):
        _move(data, name)
    for top in KEPT:
        sync_folders(data / top)
    for name in _DATABASE_FILES[1:]:  # there only beside a damaged database, which they belonged to
        (data / name).unlink(missing_ok=True)
    (data / STAGE / DATABASE).replace(data / DATABASE)  # the moment
    fsync_dir(data)
    for top in KEPT:
        for name in list(_below(data, top)):
            if name not in manifest.files:
                (data / name).unlink()
                with suppress(OSError):  # not empty yet
                    os.removedirs((data / name).parent)
    for top in _moved(settings):
        if aside is not None and (data / top).exists():
            (data / top).rename(aside / top)
    for name in (name for name in manifest.files if name.split("/")[0] in own_records(settings)):
        _move(data, name)


@contextmanager
def _to_the_end() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait: the block takes moments and had better not be done by half."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _move(data: Path, name: str) -> None:
    target = data / name
    target.parent.mkdir(parents=True, exist_ok=True)
    (data / STAGE / name).replace(target)


def _below(data: Path, top: str) -> Iterator[str]:
    for parent, _, names in os.walk(data / top):
        yield from ((Path(parent) / name).relative_to(data).as_posix() for name in names)
