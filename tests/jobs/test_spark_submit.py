"""Every job file runs by spark-submit as it is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from uplift_spark.spark_versions import delta_package

pytestmark = pytest.mark.slow


def submit(job: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run jobs/<job>.py by spark-submit, with this interpreter for driver and workers."""
    bin_ = Path(sys.executable).parent
    return subprocess.run(
        [
            *(str(bin_ / "spark-submit"), "--master", "local[2]", "--packages", delta_package()),
            *("--conf", "spark.ui.enabled=false", "--conf", "spark.sql.shuffle.partitions=2"),
            *(f"jobs/{job}.py", "--conf", "conf/demo.yaml", *arguments),
        ],
        cwd=ROOT,
        env={**os.environ, "PYSPARK_PYTHON": sys.executable, "PATH": f"{bin_}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_a_job_runs_and_a_mistake_is_one_sentence(tmp_path: Path) -> None:
    there = f"lakehouse.path={tmp_path / 'lake'}"
    process = submit("ingest", "--set", there, "--set", "source.units=300")
    assert process.returncode == 0, process.stderr[-3000:]
    assert "bronze.assignment" in process.stdout and "300" in process.stdout
    wrong = submit("features", "--set", there, "--set", "roles.feature=[age]")
    output = wrong.stdout + wrong.stderr  # the launcher sends what Python says on stderr to stdout
    assert wrong.returncode != 0 and "Traceback" not in output
    assert "unknown key 'roles.feature'" in output
