"""The lakehouse over Spark Connect behaves as it does in a classic session."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyspark
import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.slow


def client(module: str, server: str, folder: Path) -> dict[str, Any]:
    """What a client process tells; it ends without error."""
    process = subprocess.run(
        [sys.executable, "-m", module, str(folder)],
        cwd=ROOT,
        env={**os.environ, "SPARK_REMOTE": server},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    return json.loads(process.stdout)


@pytest.fixture(scope="module")
def report(connect_server: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return client("tests.connect.client", connect_server, tmp_path_factory.mktemp("remote"))


def test_the_whole_line_runs_and_a_rerun_adds_no_row(connect_server: str, tmp_path: Path) -> None:
    report = client("tests.connect.line", connect_server, tmp_path)
    assert "connect" in report["module"]
    assert report["rows"]["gold.uplift_scores"] == 2 * 3000 and report["rows"]["gold.lift_table"] > 0
    # The registry knows all definitions by then: nothing is left to write.
    assert set(report["again"]) == set(report["rows"]) - {"silver.feature_registry"} and not any(
        report["again"].values()
    )
    assert report["same_bytes"] and report["same_learner"] and report["same_refreshed"]
    assert report["erased"]["gold.uplift_scores"] == 2 and report["erased"]["bronze.assignment"] == 1
    assert report["exported"] == report["purged"] == 2999
    assert all("of 4 tasks done" in text for text in report["messages"])
    assert report["messages"] or pyspark.__version__ < "4"  # Spark 3.5 does not tell its clients how far it is


def test_streams_replays_and_new_columns_add_each_row_once(connect_server: str, tmp_path: Path) -> None:
    report = client("tests.connect.arrivals", connect_server, tmp_path)
    assert report["first"] == {"good": 1, "rejected": {"unit_present": 1}}
    assert report["second"] == report["after_loss"] == {"good": 1, "rejected": {}}
    assert report["wrong"].startswith(
        "ConfigError: --repair unit_id='max(event)' must be an expression over the row's own columns"
    )
    assert (report["replayed"], report["again"]) == (1, 0)
    assert report["rows"] == [["a", None], ["b", None], ["c", None], ["d", 2.5], ["x", None]]
    assert report["optimized"].endswith(" -> 1")


def test_session_is_the_remote_one_in_utc(report: dict[str, Any]) -> None:
    assert "connect" in report["module"]
    assert report["zone"] == "UTC"


def test_writes_happen_once_per_run(report: dict[str, Any]) -> None:
    assert report["first"] == {"table": "gold.demo", "version": 0, "rows": 10, "skipped": False}
    assert report["again"] == {"table": "gold.demo", "version": 0, "rows": 0, "skipped": True}
    assert report["other"].startswith(
        "ConflictError: run r1 wrote table gold.demo before with other data (10 rows then, 9"
    )
    assert report["overwritten"] == {"table": "gold.demo", "version": 2, "rows": 1, "skipped": False}


def test_tables_are_read_by_name_and_version(report: dict[str, Any]) -> None:
    assert report["tables"] == ["gold.demo"]
    assert report["by_name"] == [1]
    assert report["absent"].startswith("DataError: table gold.lift_table does not exist")


def test_workers_map_arrow_batches(report: dict[str, Any]) -> None:
    assert report["second"]["rows"] == 10
    assert report["before"] == 45 + 90
