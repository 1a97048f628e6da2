"""Writes `digests.json`, what `test_golden.py` compares with: `python -m tests.golden.make [--out FILE] [PART ...]`.

Parts are `estimators` and the names of campaigns; without any all are made.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from delta import configure_spark_with_delta_pip
from pyspark.sql import SparkSession

from tests.golden.campaigns import CAMPAIGNS, Run
from tests.golden.frames import CASES, case_digests, portable_digest

FILE = Path(__file__).with_name("digests.json")
_LIBRARIES = ("numpy", "scipy", "scikit-learn", "numba", "pandas", "pyarrow", "pyspark")


def machine() -> dict[str, Any]:
    """What last bits may depend on beside the code."""
    simd = np.show_config(mode="dicts")["SIMD Extensions"]["found"]
    versions = {name: metadata.version(name) for name in _LIBRARIES}
    return {"machine": platform.machine(), "python": platform.python_version(), "simd": " ".join(simd), **versions}


def session(folder: Path, master: str = "local[2]", partitions: int = 2) -> SparkSession:
    """A small Spark session with Delta."""
    os.environ["PYSPARK_PYTHON"] = sys.executable
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [os.getcwd(), os.environ.get("PYTHONPATH")]))
    settings: dict[str, bool | float | int | str | None] = {
        "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
        "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
        "spark.sql.warehouse.dir": str(folder),
        "spark.sql.shuffle.partitions": str(partitions),
        "spark.sql.session.timeZone": "UTC",
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.memory": "2g",
        "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:ReservedCodeCacheSize=512m -XX:+UseParallelGC",
        "spark.databricks.delta.snapshotPartitions": "1",
        "spark.sql.sources.parallelPartitionDiscovery.parallelism": "8",
    }
    builder = SparkSession.builder.appName("golden").master(master).config(map=settings)
    started = configure_spark_with_delta_pip(builder).getOrCreate()
    started.sparkContext.setLogLevel("ERROR")
    return started


def say(started: float, what: str) -> None:
    """Print a step with the seconds since the start."""
    print(f"{time.monotonic() - started:7.1f} s  {what}", flush=True)


def estimators(started: float) -> dict[str, Any]:
    """Digests of every case in memory; those of ONNX are left out without the extra."""
    found: dict[str, Any] = {}
    for name in CASES:
        found |= case_digests(name)
        say(started, name)
    try:
        found["onnx: effect"] = portable_digest()
    except ImportError as error:
        say(started, f"no ONNX: {error}")
    return found


def campaign(name: str, spark: SparkSession, folder: Path, started: float, few: bool = False) -> dict[str, Any]:
    """Digests of what a campaign leaves, and of what is left when units are erased from the first; `few` as `Run`."""
    run = Run(name, folder, few)
    for verb in run.run_all():
        say(started, f"{name}: {verb}")
    found: dict[str, Any] = {name: run.digests(spark), f"{name} run ids": run.run_ids(spark)}
    say(started, f"{name}: digests")
    if run.campaign.erases:
        run.erase(spark)
        found[f"{name} erased"] = run.digests(spark)
        say(started, f"{name}: erased")
    return found


def written(value: Any, depth: int = 0) -> str:
    """JSON with one column a line."""
    if isinstance(value, dict) and any(isinstance(one, dict) for one in value.values()):
        inner = ",\n".join(f"{' ' * (depth + 1)}{json.dumps(k)}: {written(v, depth + 1)}" for k, v in value.items())
        return f"{{\n{inner}\n{' ' * depth}}}"
    return json.dumps(value)


def main() -> None:
    """Compute the digests of the parts that are asked for and write them over those that are there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[[], "estimators", *CAMPAIGNS], metavar="PART")
    parser.add_argument("--out", type=Path, default=FILE)
    parser.add_argument("--master", default="local[2]")
    parser.add_argument("--partitions", type=int, default=2)
    parser.add_argument("--few", action="store_true", help="work in this process, as for few rows")
    asked = parser.parse_args()
    parts = asked.parts or ["estimators", *CAMPAIGNS]
    started = time.monotonic()
    found = json.loads(asked.out.read_text()) if asked.out.exists() else {}
    found["made on"] = machine()
    if "estimators" in parts:
        found["estimators"] = estimators(started)
    if wanted := [name for name in CAMPAIGNS if name in parts]:
        with tempfile.TemporaryDirectory() as folder:
            spark = session(Path(folder), asked.master, asked.partitions)
            say(started, "Spark")
            for name in wanted:
                found |= campaign(name, spark, Path(folder), started, asked.few)
            spark.stop()
    asked.out.write_text(written(found) + "\n")


if __name__ == "__main__":
    main()
