"""Disks mounted below a synchronised folder, for real: in a namespace where a process may mount (Linux)."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from core.settings import PROJECT

ALONE = ["unshare", "--map-root-user", "--mount"]
SCRIPT = """
import json, subprocess, sys
from pathlib import Path
from core.db import Database
from core.settings import load_settings
from rag.documents import DocumentStore
from rag.mounts import UNMOUNTED
from rag.reader import Reader
from rag.sync import sync

folder, disk = Path(sys.argv[1]) / "in", Path(sys.argv[1]) / "in" / "media" / "disk"
settings = load_settings({}, data_dir=sys.argv[1] + "/data")
store = DocumentStore(Database(settings.database), settings)

def mount(where):
    subprocess.run(["mount", "-t", "tmpfs", "none", str(where)], check=True)

def unmount(where):
    subprocess.run(["umount", str(where)], check=True)

def write(path, title):
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"# {title}\\n\\nText.")

def run():
    said = []
    with Reader(settings) as reader:
        changes = sync(store, folder, reader, said.append)
    return [[name for name, reason in changes.unread if reason == UNMOUNTED], changes.removed,
        sorted(document.title for document in store.list())]

disk.mkdir(parents=True)
write(folder / "a.md", "Apples")
"""


def results(folder: Path, script: str) -> list[object]:
    """What `script`, after SCRIPT, prints as JSON."""
    done = subprocess.run(
        [*ALONE, sys.executable, "-c", SCRIPT + script, str(folder)],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout))


def may_mount() -> bool:
    """Whether this machine lets a namespace mount."""
    command = [*ALONE, "mount", "-t", "tmpfs", "none", "/mnt"]
    return shutil.which("unshare") is not None and (
        subprocess.run(command, capture_output=True, check=False).returncode == 0
    )


pytestmark = pytest.mark.skipif(not may_mount(), reason="mounting is not allowed here, nor in a namespace")


def test_what_was_on_an_unmounted_disk_stays_until_it_is_back(tmp_path: Path) -> None:
    script = """
mount(disk)
write(disk / "b.md", "Boats"); write(disk / "deep" / "c.md", "Cats")
found = [run()]
unmount(disk)
found += [run(), run()]
mount(disk)
write(disk / "b.md", "Boats")
found += [run()]
print(json.dumps(found))
"""
    everything = ["Apples", "Boats", "Cats"]
    assert results(tmp_path, script) == [
        [[], 0, everything],
        [["media/disk"], 0, everything],
        [["media/disk"], 0, everything],
        [[], 1, ["Apples", "Boats"]],  # the disk is back, and one of its files is gone
    ]


def test_a_disk_in_a_disk_and_an_empty_folder_that_was_none(tmp_path: Path) -> None:
    script = """
mount(disk)
(disk / "inner").mkdir()
mount(disk / "inner")
write(disk / "inner" / "b.md", "Boats")
write(folder / "media" / "c.md", "Cats")
write(folder / "plain" / "d.md", "Dogs")
found = [run()]
unmount(disk / "inner")
found += [run()]
unmount(disk)
(folder / "plain" / "d.md").unlink()
found += [run()]
disk.rmdir()
found += [run()]
print(json.dumps(found))
"""
    assert results(tmp_path, script) == [
        [[], 0, ["Apples", "Boats", "Cats", "Dogs"]],
        [["media/disk/inner"], 0, ["Apples", "Boats", "Cats", "Dogs"]],
        [["media/disk"], 1, ["Apples", "Boats", "Cats"]],
        [[], 1, ["Apples", "Cats"]],  # the empty folder was removed, and with it what is known of the disk
    ]


def test_a_disk_whose_files_were_deleted(tmp_path: Path) -> None:
    script = """
mount(disk)
write(disk / "b.md", "Boats")
found = [run()]
(disk / "b.md").unlink()
found += [run()]
unmount(disk)
found += [run()]
print(json.dumps(found))
"""
    assert results(tmp_path, script) == [
        [[], 0, ["Apples", "Boats"]],
        [[], 1, ["Apples"]],
        [[], 0, ["Apples"]],
    ]
