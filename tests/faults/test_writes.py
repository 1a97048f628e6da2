"""A driver killed in the middle of a write: readers see the old version or the new one, and a rerun completes it.

`--kills N` sets how many moments are tried: the first task's file, the commit file, then moments spread over the write.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT, end_group
from tests.faults.writer import ROWS, SECONDS_PER_TASK, TASKS, slow_rows
from uplift_spark.lake.tables import Lake

pytestmark = pytest.mark.slow

TABLE = "gold.demo"
PATIENCE = 300  # seconds for a driver to get where it is killed; no test fails for being slow within it
Moment = Callable[[Path], bool]


def moments(kills: int) -> list[Moment]:
    length = 1.5 * SECONDS_PER_TASK * TASKS
    spread = [after(length * place / max(1, kills - 2)) for place in range(1, kills - 1)]
    return [a_new_file(".parquet"), a_new_file(".json"), *spread][:kills]


def a_new_file(suffix: str) -> Moment:
    """The first file of that kind that was not there when first asked."""
    known: list[set[Path]] = []

    def now(folder: Path) -> bool:
        files = set(folder.rglob(f"*{suffix}"))
        known.append(files)
        return not files <= known[0]

    return now


def after(seconds: float) -> Moment:
    started: list[float] = []

    def now(folder: Path) -> bool:
        started.append(time.monotonic())
        return time.monotonic() - started[0] >= seconds

    return now


def kill_a_driver(lake: Lake, run: str, moment: Moment) -> None:
    """Start a driver that writes `run`, and SIGKILL it with its JVM at that moment of the write."""
    folder = Path(lake.lakehouse.path)
    driver = subprocess.Popen(
        [sys.executable, "-m", "tests.faults.writer", str(folder), TABLE, run],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert driver.stdout is not None
        assert driver.stdout.readline() == "writing\n"
        deadline = time.monotonic() + PATIENCE
        while not moment(folder) and driver.poll() != 0:
            assert driver.poll() is None, "the driver failed before it was killed"
            assert time.monotonic() < deadline, "the driver never got to the moment"
            time.sleep(0.002)
    finally:
        end_group(driver)


def rows_by_run(lake: Lake) -> dict[str, int]:
    if not lake.exists(TABLE):
        return {}
    return {row["run_id"]: row["count"] for row in lake.read(TABLE).groupBy("run_id").count().collect()}


def test_readers_see_old_or_new_and_a_rerun_completes(lake: Lake, pytestconfig: pytest.Config) -> None:
    complete: dict[str, int] = {}
    for place, moment in enumerate(moments(pytestconfig.getoption("--kills"))):
        run = f"run{place}"
        kill_a_driver(lake, run, moment)
        assert rows_by_run(lake) in (complete, {**complete, run: ROWS})
        lake.write(TABLE, slow_rows(lake.spark), run)
        complete[run] = ROWS
        assert rows_by_run(lake) == complete
        assert lake.write(TABLE, slow_rows(lake.spark), run).skipped
    values = lake.read(TABLE).groupBy("run_id").agg({"id": "sum"}).collect()
    assert {row[1] for row in values} == {ROWS * (ROWS - 1) // 2}
