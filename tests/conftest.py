"""One local Spark session for all tests, a fresh lakehouse per test, and a local Spark Connect server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from uplift_spark.config import Lakehouse
from uplift_spark.lake.session import check_java, local_conf, local_session
from uplift_spark.lake.tables import Lake

ROOT = Path(__file__).resolve().parents[1]
# Tests have few rows: compiling a query and planning it anew between its stages takes longer than interpreting it. The
# demo, the notebooks and `make slow` run with the settings of users.
FEW_ROWS = {
    "spark.sql.adaptive.enabled": "false",
    "spark.sql.codegen.wholeStage": "false",
    "spark.sql.codegen.factoryMode": "NO_CODEGEN",
}
NEEDS_SPARK = {"spark", "lake", "connect_server"}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=3, help="moments of a job at which tests/faults kill its driver")


def pytest_configure(config: pytest.Config) -> None:
    # Python workers import what tests define; they know the driver's environment, not its sys.path.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    os.environ.setdefault("SPARK_DRIVER_MEMORY", "2g")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs Spark, and put the files with most of it first: many short tests are left to even out the end."""
    spark_tests: Counter[Path] = Counter()
    for item in items:
        if NEEDS_SPARK.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.spark)
            spark_tests[item.path] += 1
    items.sort(key=lambda item: -spark_tests[item.path])


@pytest.fixture(scope="session")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkSession]:
    """The session all tests share; a lost task is tried again, as on a cluster."""
    check_java()
    conf = local_conf(Lakehouse(path=str(tmp_path_factory.mktemp("warehouse"))), "tests", "local[2,4]")
    session = local_session({**conf, **FEW_ROWS, "spark.python.daemon.module": "tests.daemon"})
    yield session
    session.stop()


@pytest.fixture
def lake(spark: SparkSession, tmp_path: Path) -> Lake:
    """An empty lakehouse."""
    return Lake(spark, Lakehouse(path=str(tmp_path / "lakehouse")))


@pytest.fixture(scope="session")
def connect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a Spark Connect server with Delta on 127.0.0.1, for clients in processes of their own."""
    folder = tmp_path_factory.mktemp("connect")
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.connect.server", str(folder)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert server.stdin is not None and server.stdout is not None
    try:
        address = server.stdout.readline().strip()
        assert address.startswith("sc://127.0.0.1:"), f"the Connect server did not start: {address!r}"
        yield address
    finally:
        server.stdin.close()
        try:
            server.wait(60)
        finally:
            end_group(server)


def end_group(process: subprocess.Popen[str]) -> None:
    """Kill what is left of a process started with start_new_session, its JVM included."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
