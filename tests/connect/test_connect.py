"""The lakehouse over Spark Connect behaves as it does in a classic session."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.slow


def client(module: str, server: str, folder: Path) -> dict[str, Any]:
    """What a client process tells; it ends without error."""
    done = subprocess.run(
        [sys.executable, "-m", module, str(folder)],
        cwd=ROOT,
        env={**os.environ, "SPARK_REMOTE": server},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def told(connect_server: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return client("tests.connect.client", connect_server, tmp_path_factory.mktemp("remote"))


def test_the_whole_line_runs_and_a_rerun_adds_no_row(connect_server: str, tmp_path: Path) -> None:
    told = client("tests.connect.line", connect_server, tmp_path)
    assert "connect" in told["module"]
    assert told["rows"]["gold.uplift_scores"] == 2 * 3000 and told["rows"]["gold.lift_table"] > 0
    # The registry knows all definitions by then: nothing is left to write.
    assert set(told["again"]) == set(told["rows"]) - {"silver.feature_registry"} and not any(told["again"].values())
    assert told["same_bytes"] and told["same_learner"] and told["same_refreshed"]
    assert told["erased"]["gold.uplift_scores"] == 2 and told["erased"]["bronze.assignment"] == 1
    assert told["exported"] == told["purged"] == 2999
    assert told["said"] and all("of 4 tasks done" in text for text in told["said"])


def test_streams_replays_and_new_columns_add_each_row_once(connect_server: str, tmp_path: Path) -> None:
    told = client("tests.connect.arrivals", connect_server, tmp_path)
    assert told["first"] == {"good": 1, "rejected": {"unit_present": 1}}
    assert told["second"] == told["after_loss"] == {"good": 1, "rejected": {}}
    assert told["wrong"].startswith("ConfigError: --repair unit_id='max(event)' is no expression over the row's fields")
    assert (told["replayed"], told["again"]) == (1, 0)
    assert told["rows"] == [["a", None], ["b", None], ["c", None], ["d", 2.5], ["x", None]]
    assert told["optimized"].endswith(" -> 1")


def test_session_is_the_remote_one_in_utc(told: dict[str, Any]) -> None:
    assert "connect" in told["module"]
    assert told["zone"] == "UTC"


def test_writes_happen_once_per_run(told: dict[str, Any]) -> None:
    assert told["first"] == {"table": "gold.demo", "version": 0, "rows": 10, "skipped": False}
    assert told["again"] == {"table": "gold.demo", "version": 0, "rows": 0, "skipped": True}
    assert told["other"].startswith(
        "ConflictError: run r1 wrote table gold.demo before with other data (10 rows then, 9"
    )
    assert told["overwritten"] == {"table": "gold.demo", "version": 2, "rows": 1, "skipped": False}


def test_tables_are_found_by_name_and_version(told: dict[str, Any]) -> None:
    assert told["tables"] == ["gold.demo"]
    assert told["by_name"] == [1]
    assert told["absent"].startswith("DataError: table gold.lift_table does not exist")


def test_workers_map_arrow_batches(told: dict[str, Any]) -> None:
    assert told["second"]["rows"] == 10
    assert told["before"] == 45 + 90
