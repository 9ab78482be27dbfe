"""A file is the old one or the new one, never half of either."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import ConflictError, StorageError
from core.files import (
    atomic_path,
    inside,
    owner_lock,
    read_json,
    read_jsonl,
    require_space,
    sealed_copy,
    sha256_of,
    write_bytes,
    write_json,
    write_jsonl,
    write_text,
)
from core.settings import PROJECT

CHILD = {**os.environ, "PYTHONPATH": str(PROJECT)}


def test_writing_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "card.json"
    write_json(target, {"b": 1, "a": "ü"})
    write_json(target, {"b": 2})
    assert read_json(target) == {"b": 2}
    assert [path.name for path in target.parent.iterdir()] == ["card.json"]


def test_an_error_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    write_text(target, "old")

    def fail() -> None:
        with atomic_path(target) as partial:
            partial.write_text("half")
            raise KeyError("x")

    with pytest.raises(KeyError):
        fail()
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


FULL = """
import resource, sys
from pathlib import Path
from core.errors import StorageError
from core.files import write_bytes
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    write_bytes(Path(sys.argv[1]), b"n" * 1_000_000)
except StorageError as error:
    print(error)
    sys.exit(7)
"""


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    """R08: the write fails in the middle, as on a full disk; the message names the path."""
    target = tmp_path / "model.gguf"
    write_bytes(target, b"old")
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(target)], cwd=PROJECT, env=CHILD, capture_output=True, text=True
    )
    assert done.returncode == 7, done.stderr
    assert str(target) in done.stdout
    assert "space" in done.stdout
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]


KILLED = """
import sys
from pathlib import Path
from core.files import atomic_path
with atomic_path(Path(sys.argv[1])) as partial:
    with partial.open("wb") as file:
        for turn in range(10_000):
            file.write(b"n" * 10_000)
            if turn == 5:
                file.flush()
                print("now", flush=True)
"""


def test_a_kill_in_the_middle_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "model.gguf"
    write_bytes(target, b"old")
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(target)], cwd=PROJECT, env=CHILD, stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    with child.stdout:
        child.stdout.readline()
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert target.read_bytes() in (b"old", b"n" * 100_000_000)
    write_bytes(target, b"new")
    assert target.read_bytes() == b"new"


def test_threads_that_write_the_same_file_do_not_mix(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    errors: list[BaseException] = []

    def work(byte: bytes) -> None:
        try:
            for _ in range(20):
                write_bytes(target, byte * 50_000)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(bytes([65 + number]),)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(set(target.read_bytes())) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


def test_a_folder_that_is_a_file_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="Could not write"):
        write_text(tmp_path / "file" / "a.txt", "y")


@given(rows=st.lists(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), st.text(
    st.characters(exclude_categories=["Cs"])))))  # fmt: skip
def test_any_rows_come_back(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, str]]) -> None:
    path = tmp_path_factory.mktemp("rows") / "a.jsonl"
    write_jsonl(path, rows)
    assert read_jsonl(path) == rows


def test_line_separators_inside_text_are_no_line_ends(tmp_path: Path) -> None:
    rows = [{"text": "one\u2028two\u2029three\x85four\x0bfive\x1csix"}]
    write_jsonl(tmp_path / "a.jsonl", rows)
    assert read_jsonl(tmp_path / "a.jsonl") == rows


@pytest.mark.parametrize(
    ("content", "says"), [(b'{"a": 1}\n{"b": \n', ":2 is not JSON"), (b"[1]\n", ":1 is not a JSON object"),
                          (b"\xff\xfe\x00", "Could not read")],
)  # fmt: skip
def test_a_bad_line_is_named(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(StorageError, match=says):
        read_jsonl(path)


def test_blank_lines_windows_ends_and_a_mark_in_front_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\r\n{"a": 2}')
    assert read_jsonl(path) == [{"a": 1}, {"a": 2}]


def test_missing_files_are_storage_errors(tmp_path: Path) -> None:
    for read in (read_json, read_jsonl):
        with pytest.raises(StorageError, match="Could not read"):
            read(tmp_path / "nothing.json")


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", "..", ".", "", "a\0b"])
def test_names_stay_inside(tmp_path: Path, name: str) -> None:
    with pytest.raises(StorageError):
        inside(tmp_path, name)


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "link").symlink_to("/etc")
    with pytest.raises(StorageError):
        inside(folder, "link/passwd")
    assert inside(folder, "plain") == folder / "plain"


def test_the_lock_names_its_holder_and_dies_with_it(tmp_path: Path) -> None:
    """R04: one owner; the kernel frees the lock of a killed one."""
    path = tmp_path / "engine.lock"
    code = (
        "import sys, time; from pathlib import Path; from core.files import owner_lock\n"
        "with owner_lock(Path(sys.argv[1]), 'The data folder'): print('held', flush=True); time.sleep(600)"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(path)], cwd=PROJECT, stdout=subprocess.PIPE)
    assert child.stdout is not None

    def take() -> None:
        with owner_lock(path, "The data folder"):
            pass

    with child.stdout:
        child.stdout.readline()
        with pytest.raises(ConflictError, match=f"process {child.pid}"):
            take()
        child.send_signal(signal.SIGKILL)
        child.wait()
    take()
    take()


def test_too_little_space_is_said_beforehand(tmp_path: Path) -> None:
    require_space(tmp_path / "not" / "yet", 1)
    with pytest.raises(StorageError, match="are needed"):
        require_space(tmp_path / "not" / "yet", 2**62)


def test_the_hash_is_sha256(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a", b"abc")
    assert sha256_of(tmp_path / "a").startswith("ba7816bf")


def test_a_sealed_copy_stays_what_was_hashed(tmp_path: Path) -> None:
    path = tmp_path / "adapter.gguf"
    data = os.urandom((1 << 20) + 17)  # more than a block
    path.write_bytes(data)
    before = len(os.listdir("/proc/self/fd"))
    with sealed_copy(path) as (copy, digest):
        assert digest == sha256_of(path)
        path.write_bytes(b"swapped")
        assert copy.read_bytes() == data
        for flags in (os.O_WRONLY, os.O_RDWR):
            handle = os.open(copy, flags)
            with pytest.raises(PermissionError):
                os.write(handle, b"x")
            with pytest.raises(PermissionError):
                os.truncate(handle, 3)
            os.close(handle)
        assert copy.read_bytes() == data
    assert len(os.listdir("/proc/self/fd")) == before
    with pytest.raises(FileNotFoundError), sealed_copy(tmp_path / "none"):
        pass
    assert len(os.listdir("/proc/self/fd")) == before
