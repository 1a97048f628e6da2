"""Drivers killed while they write; `make faults` does this for every job and at more moments."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.campaign import JOBS
from tests.faults.matrix import Stage, crash
from uplift_spark.lake.tables import Lake

# These write no table: some print, the others write files beside the lakehouse.
WRITE_NO_TABLE = {
    "contract",
    "dashboard",
    "digest",
    "doctor",
    "gameday",
    "grants",
    "power",
    "report",
    "export",
    "monitoring_files",
    "publish",
    "serve",
    "package",
}
# Killed before and after each of their deeds by tests/jobs/test_canary.py, in a campaign with two versions;
# a runbook writes by them, by monitor and by alert.
KILLED_ELSEWHERE = {"canary", "rollback", "runbook"}


def test_every_job_that_writes_is_killed_by_make_faults() -> None:
    jobs = {path.stem for path in Path(__file__).parents[2].joinpath("jobs").glob("[a-z]*.py")}
    assert jobs - WRITE_NO_TABLE - KILLED_ELSEWHERE <= set(JOBS)
    assert jobs >= WRITE_NO_TABLE | KILLED_ELSEWHERE and not KILLED_ELSEWHERE & set(JOBS)


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["load", "events"])
def test_readers_see_old_or_new_and_a_rerun_completes(
    lake: Lake, tmp_path: Path, pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    monkeypatch.setenv("MLFLOW_SQLALCHEMYSTORE_POOLCLASS", "NullPool")  # put back to what it was
    kills = pytestconfig.getoption("--kills")
    stage = Stage.of(tmp_path, lake)
    ((name, job),) = stage.prepared([verb])
    row = crash(name, job, stage, kills)
    assert (row.kills, row.complete, row.equal, row.wrong) == (kills, kills, kills, [])
