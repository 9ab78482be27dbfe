"""A job's process for the worker's tests: does what the job's payload says.

`do` is done, die, hang (until killed), ignore (SIGTERM) or once (die at the first try, be done at the
second).
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time

from core.db import Database
from core.jobs import Jobs
from core.settings import load_settings


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--job")
    parser.add_argument("--token", type=int)
    arguments = parser.parse_args()
    settings = load_settings()
    jobs = Jobs(Database(settings.database))
    job = jobs.get(arguments.job)
    assert job.token == arguments.token
    (settings.data_dir / f"pid-{job.id}").write_text(f"{os.getpid()} {os.nice(0)}")
    do = job.payload["do"]
    if do == "die":
        print("The cause of death", file=sys.stderr)
        os.kill(os.getpid(), signal.SIGKILL)
    if do == "ignore":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if do in ("hang", "ignore") or (do == "once" and job.attempts == 1):
        time.sleep(600)
    if do == "exit":
        return 7
    jobs.finish(job, "done", "Done.", {"pid": os.getpid()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
