"""A driver that writes one run slowly enough to be killed in the middle.

Run as `python -m tests.faults.writer FOLDER TABLE RUN`; prints `writing` before it writes and `written` after.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession

from uplift_spark.config import Lakehouse
from uplift_spark.lake.session import spark_session
from uplift_spark.lake.tables import Lake

ROWS = 400
TASKS = 8
SECONDS_PER_TASK = 0.2


def slow_rows(spark: SparkSession) -> DataFrame:
    """ROWS rows in TASKS tasks, each of which takes its time after its first batch."""
    return spark.range(0, ROWS, 1, TASKS).mapInArrow(linger, "id bigint")


def linger(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        yield batch
        time.sleep(SECONDS_PER_TASK)


def main(folder: str, table: str, run: str) -> None:
    lakehouse = Lakehouse(path=folder)
    spark = spark_session(lakehouse, master="local[2]")
    rows = slow_rows(spark)
    print("writing", flush=True)
    Lake(spark, lakehouse).write(table, rows, run)
    print("written", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
