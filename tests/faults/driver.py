"""A driver in a process of its own that runs one job when it is told to; who started it may kill it with its JVM.

Run as `python -m tests.faults.driver FOLDER JOB MASTER [KEY=VALUE ...]` with Spark's settings at the end. Prints
`ready` when its session runs, waits for a line on standard input, runs the job's second run (of `JOB:first` the first),
and prints `done` or the named error that ended it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

from tests.conftest import ROOT, end_group
from tests.faults.campaign import AT_ONCE, JOBS, lakehouse
from tests.faults.workers import met, slowed
from uplift_spark.errors import UpliftError
from uplift_spark.lake.session import local_conf, local_session
from uplift_spark.lake.tables import Lake

READY = "ready"
SLOWED = "faults.slowed"  # a setting for `tests.faults.workers.slowed`, not for Spark
MET = "faults.met"  # a folder in which this driver waits for another one before its first write


class Driver:
    """A driver process: `go` lets it run its job, `kill` ends it and its JVM at once."""

    def __init__(self, folder: Path, job: str, master: str = "local[2]", *settings: str) -> None:
        self._ready = self._killed = False
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.driver", str(folder), job, master, *settings],
            cwd=folder,  # the lift job leaves its pictures in the working folder
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(folder / "driver.log").open("a"),
            text=True,
            start_new_session=True,
        )

    def ready(self) -> None:
        """Wait until the session runs."""
        if not self._ready:
            output = self.next_line()
            assert output == READY, f"the driver did not start but said {output!r}: see driver.log"
            self._ready = True

    def go(self) -> None:
        """Start the job."""
        self.ready()
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def next_line(self) -> str:
        """The next line the driver prints."""
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def ended(self) -> bool:
        """Whether the job has ended; an error if it failed without a named error."""
        if self._process.poll() is None:
            return False
        assert self._process.returncode == 0, "the driver's job failed: see driver.log"
        return True

    def kill(self) -> None:
        """SIGKILL to driver and JVM, the first time: later their number may be somebody else's."""
        if not self._killed:
            self._killed = True
            end_group(self._process)


def environment() -> dict[str, str]:
    """Variables of processes that import the tests and need little memory."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, "SPARK_DRIVER_MEMORY": "1g"}


def main(folder: str, job: str, master: str, *settings: str) -> None:
    where = lakehouse(Path(folder))
    conf = local_conf(where, f"faults {job}", master) | dict(setting.split("=", 1) for setting in settings)
    held_up = slowed(*conf.pop(SLOWED).split(",")) if SLOWED in conf else nullcontext()
    waiting = met(conf.pop(MET)) if MET in conf else nullcontext()
    lake = Lake(local_session(conf), where)
    print(READY, flush=True)
    sys.stdin.readline()
    try:
        name, _, which = job.partition(":")
        with held_up, waiting:
            getattr({**JOBS, **AT_ONCE}[name], which or "second")(lake)
        print("done", flush=True)
    except UpliftError as error:
        print(f"{type(error).__name__}: {error}", flush=True)
    lake.spark.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
