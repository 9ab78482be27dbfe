"""Disks mounted below a synchronised folder: an unmounted one leaves an empty folder, not an empty disk.

Which folders were mount points is remembered: those on another device (`st_dev`) than the folder they are in.
One that was, and is now an empty folder on the device of the folder it is in, is taken for an unmounted disk;
whose files are really gone for good, removes the empty folder. Not covered: a mount point whose folder went
with the disk or now shows files of its own, a mount of the very file system that it is mounted in (a bind
mount), and a disk that was not mounted in any run since mount points are remembered.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path, PurePath
from stat import S_ISDIR

UNMOUNTED = (
    "The disk that was mounted here is not: the folder is empty."
    " Mount it again, or remove the empty folder when its files are gone for good."
)


def mounted(root: Path, files: Iterable[str]) -> set[str]:
    """The mount points among the folders, below the root, of files; all as paths below it."""
    folders = {folder for name in files for folder in PurePath(name).parents if folder.name}
    return {str(folder) for folder in folders if _on_own_device(root / folder) is True}


def unmounted(root: Path, remembered: Iterable[str]) -> set[str]:
    """Those of the remembered mount points that are empty folders now."""
    return {name for name in remembered if _on_own_device(root / name) is False and _empty(root / name)}


def _on_own_device(folder: Path) -> bool | None:
    """Whether a folder is on another device than the one it is in; None for what is no folder."""
    try:
        seen = folder.lstat()
        return seen.st_dev != folder.parent.lstat().st_dev if S_ISDIR(seen.st_mode) else None
    except OSError:
        return None


def _empty(folder: Path) -> bool:
    """Whether nothing is seen in a folder, as `rag.files.below` sees it."""
    try:
        return all(name.startswith(".") for name in os.listdir(folder))
    except OSError:
        return False
