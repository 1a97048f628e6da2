"""Drivers killed while they write; `make faults` does this for every job and at more moments."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.matrix import Stage, crash
from uplift_spark.lake.tables import Lake


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
