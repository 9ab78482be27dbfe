"""`understudy backup`: a copy of all that cannot be made again, taken while everything runs.

    names → copy files → (what is new?) → copy those → nobody writes: snapshot and names → copy the database

A file is in place before the commit that names it, and removed only after a commit that names it no longer.
So the files that a snapshot of the database names are all there as long as nobody commits. The bulk is copied
before, at leisure. Then, while the write lock is held for a moment, the snapshot begins, and the few files
that it names and that are not copied yet are opened: what is removed from then on can still be read. Writers
go on at once; the files that were opened, and the database as the snapshot sees it, are copied beside them.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import re
import shutil
import signal
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from app.commands import VERSION
from app.manifest import (
    DATABASE,
    FOLDERS,
    MANIFEST,
    Manifest,
    Stored,
    Tell,
    Terminal,
    copy,
    own_records,
    read_through,
    sync_folders,
    write_manifest,
)
from core.adapters import CARD, GGUF, AdapterRegistry
from core.db import Database, now_ms, schema_of
from core.errors import ConflictError, NotFoundError, SettingsError, StorageError
from core.files import fsync_dir, require_space
from core.settings import Settings, load_settings
from feedback.store import FeedbackStore
from rag.documents import DocumentStore
from rag.embed import EMBEDDING
from rag.embedders import WEIGHTS, Embedders
from rag.queue import Queue

AT_ONCE = 100  # files opened under the write lock
ROUNDS = 50  # of copying what came meanwhile; each is shorter than the one before
SPARE = 64 << 20  # bytes left free
VERDICT = "verdict.json"  # an embedder has it when its training came to an end, see finetune/embedder.py
_WORK = ("work", "judges")  # folders that only the training needs
_NAME = re.compile(r"understudy-\d{8}-\d{6}")


def main(argv: Sequence[str] | None = None) -> int:
    """Write one backup; with --keep, into a folder of dated ones of which the newest stay."""
    parser = argparse.ArgumentParser(
        prog="understudy backup",
        description="Copy the database and all files that it names to a new folder, consistently, while"
        " everything runs. Models, the search index and training checkpoints are left out: they can be had"
        " again. `understudy restore` puts a backup back.",
    )
    parser.add_argument("target", type=Path, metavar="TARGET", help="the folder to make")
    parser.add_argument(
        "--keep",
        type=int,
        metavar="N",
        help="make a dated one in TARGET, and keep only the newest N there",
    )
    options = parser.parse_args(argv)
    if options.keep is not None and options.keep < 1:
        raise SettingsError(f"--keep is {options.keep}; at least one backup must stay.")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # leaves nothing behind, like Ctrl-C
    settings = load_settings()
    target = options.target.expanduser().resolve()
    if options.keep is not None:
        target = target / f"understudy-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    tell = Terminal()
    try:
        manifest = backup(settings, target, tell)
        tell.say(f"{target}: {manifest}.")
        if manifest.lacking:
            tell.say(
                f"warning: the data folder lacks {len(manifest.lacking)} files that its database names,"
                f" such as {manifest.lacking[0]}."
            )
        for path in rotate(target.parent, options.keep) if options.keep is not None else ():
            tell.say(f"Removed {path}.")
    finally:
        tell.clear()
    return 0


def backup(settings: Settings, target: Path, tell: Tell) -> Manifest:
    """Back up the data folder to the new folder `target`, which appears when it is complete and on the disk.

    Raises NotFoundError when there is nothing to back up, ConflictError when `target` exists, StorageError
    when it lies in the data folder, the disk is too small, or the database is damaged.
    """
    if not settings.database.exists():
        raise NotFoundError(
            f"There is no database in {settings.data_dir}, so there is nothing to back up.",
            "Look at the setting data_dir.",
        )
    if target.resolve().is_relative_to(settings.data_dir.resolve()):
        raise StorageError(
            f"{target} lies in the data folder itself.", "Choose another disk, or at least another folder."
        )
    with building(target) as folder, ExitStack() as open_ones:
        writer, reader = (Database(settings.database) for _ in range(2))
        for database in (writer, reader):
            open_ones.callback(database.close)
        files, lacking = _files(settings, writer, reader, folder, open_ones, tell)
        reader.backup(folder / DATABASE, lambda done: tell("Copying the database", done))
        (folder / DATABASE).chmod(0o600)
        schema = schema_of(folder / DATABASE)
        with (folder / DATABASE).open("rb") as database_copy:
            files[DATABASE] = read_through(database_copy)
        manifest = Manifest(VERSION, schema, now_ms(), dict(sorted(files.items())), lacking)
        write_manifest(folder, manifest)
        sync_folders(folder)
    return manifest


def _files(
    settings: Settings, writer: Database, reader: Database, folder: Path, held: ExitStack, tell: Tell
) -> tuple[dict[str, Stored], list[str]]:
    """Copy the files that the snapshot of `reader`, open until `held` closes, names; also those it lacks."""
    files: dict[str, Stored] = {}
    for attempt in range(ROUNDS):
        with ExitStack() as trial:
            with writer.write():  # nobody commits, so nobody removes what this snapshot names
                trial.enter_context(reader.snapshot())
                names = named(settings, reader)
                new = [name for name in names if name not in files]
                enough = len(new) <= AT_ONCE
                opened = {name: _open(settings.data_dir / name, trial) for name in new} if enough else {}
            if enough:
                held.push(trial.pop_all())
                break
        if not attempt:
            require_space(folder, _size(settings, new) + SPARE)
        for number, name in enumerate(new):
            tell("Copying files", number / len(new))
            with ExitStack() as one:  # what is gone again by now is not named in the next round
                if (source := _open(settings.data_dir / name, one)) is not None:
                    files[name] = _copy(source, folder / name)
    else:
        raise StorageError("Files come faster than they can be copied.", "Try again at a quieter time.")
    require_space(folder, _size(settings, opened) + SPARE)
    for name, source in opened.items():
        if source is not None:
            files[name] = _copy(source, folder / name)
    for name in set(files).difference(names):  # deleted while the others were copied: gone is gone
        (folder / name).unlink()
        del files[name]
    return files, sorted(name for name, source in opened.items() if source is None and names[name])


def named(settings: Settings, database: Database) -> dict[str, bool]:
    """The files below the data folder that belong into a backup of `database`; true for those it needs."""
    data, embedders = settings.data_dir, Embedders(settings, database)
    serving = {embedders.serving_id(), embedders.before()} - {"", EMBEDDING}
    adapters = {f"adapters/{one.id}" for one in AdapterRegistry(database, data / "adapters").all()}
    datasets = {f"datasets/{card['version']}" for card in FeedbackStore(database).datasets()}
    judged = {path.parent.name for path in (data / "embedders").glob(f"*/{VERDICT}")}
    there = [name for folder in adapters | datasets for name in _below(data, folder)]
    there += [name for one in judged | serving for name in _below(data, f"embedders/{one}")]
    there += [name for name in _below(data, "runs") if name.endswith("/report.md")]
    there += [name for top in own_records(settings) if top != "runs" for name in _below(data, top)]
    documents = DocumentStore(database, settings)
    needed = [f"documents/{one}" for one in documents.ids()]
    needed += [f"queue/{one}" for one in Queue(database, documents, settings).kept()]
    needed += [f"{folder}/{CARD}" for folder in adapters | datasets]
    needed += [f"{folder}/{GGUF}" for folder in adapters]
    needed += [f"embedders/{one}/{name}" for one in serving for name in (CARD, WEIGHTS)]
    return dict.fromkeys(there, False) | dict.fromkeys(needed, True)


def _below(data: Path, top: str) -> Iterator[str]:
    """The names of the complete files below one folder of the data folder."""
    for parent, folders, names in os.walk(data / top):
        folders[:] = [name for name in folders if name not in _WORK and not name.endswith(".partial")]
        for name in names:
            path = Path(parent) / name
            if path.is_file() and path.suffix != ".partial":
                yield path.relative_to(data).as_posix()


def _open(path: Path, stack: ExitStack) -> BinaryIO | None:
    try:
        return stack.enter_context(path.open("rb"))
    except FileNotFoundError:
        return None


def _copy(source: BinaryIO, target: Path) -> Stored:
    target.parent.mkdir(parents=True, exist_ok=True)
    return copy(source, target, 0o600)


def _size(settings: Settings, names: Iterable[str]) -> int:
    """Bytes that these files and the database take."""
    log = settings.database.with_name(f"{settings.database.name}-wal")
    paths = [settings.database, log, *(settings.data_dir / name for name in names)]
    return sum(path.stat().st_size for path in paths if path.exists())


@contextmanager
def building(target: Path) -> Iterator[Path]:
    """A folder beside `target` for its owner alone; it takes that name when the block ends without an error.

    Raises ConflictError when `target` is there already or is being written, StorageError when it cannot be.
    """
    if os.path.lexists(target):
        raise ConflictError(
            f"{target} is there already.", "Name a folder that is not, or use --keep for dated ones."
        )
    partial = target.with_name(f"{target.name}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _claimed(partial):
            try:
                yield partial
                partial.rename(target)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
            fsync_dir(target.parent)
    except OSError as error:
        raise StorageError(
            f"The backup {target} could not be written: {error}.",
            "Free some space or check the folder's permissions, then try again.",
        ) from error


@contextmanager
def _claimed(partial: Path) -> Iterator[None]:
    """Hold a folder in the making, emptied of what a killed backup left in it."""
    partial.mkdir(mode=0o700, exist_ok=True)
    handle = os.open(partial, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConflictError(f"{partial} is being written by another backup.", "Let it finish.") from None
        for path in partial.iterdir():
            if path.name in FOLDERS:
                shutil.rmtree(path)
            elif path.name.startswith((DATABASE, MANIFEST)):
                path.unlink()
            else:
                raise StorageError(f"{path} is no part of a backup.", f"Move {partial} out of the way.")
        yield
    finally:
        os.close(handle)


def rotate(folder: Path, keep: int) -> list[Path]:
    """Remove the dated backups in `folder` but the newest `keep`, and what killed ones left; returns them."""
    try:
        found = sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name))
        old = [path for path in found if (path / MANIFEST).is_file()][:-keep]
        for path in old:  # never half a backup under the name of a whole one
            path.rename(path.with_name(f"{path.name}.partial"))
        for path in folder.glob("understudy-*.partial"):
            if _NAME.fullmatch(path.stem):
                with suppress(ConflictError), _claimed(path):
                    path.rmdir()
    except OSError as error:
        raise StorageError(
            f"An old backup in {folder} cannot be removed: {error}.", "The new one is complete."
        ) from error
    return old
