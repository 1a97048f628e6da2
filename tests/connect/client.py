"""What a Connect client does with a lakehouse, told as JSON. Run as `python -m tests.connect.client FOLDER`
with SPARK_REMOTE set; it must be a process of its own, because one process has either classic or Connect sessions."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict

import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from uplift_spark.config import Lakehouse
from uplift_spark.errors import UpliftError
from uplift_spark.lake.session import spark_session
from uplift_spark.lake.tables import Lake


def main(folder: str) -> None:
    spark = spark_session(Lakehouse(path=folder))
    lake = Lake(spark, Lakehouse(path=folder))
    rows = spark.range(10).select(
        F.concat(F.lit("u"), "id").alias("unit_id"), F.col("id").cast("double").alias("value")
    )
    report = {
        "module": type(spark).__module__,
        "zone": spark.conf.get("spark.sql.session.timeZone"),
        "first": asdict(lake.write("gold.demo", rows, "r1")),
        "again": asdict(lake.write("gold.demo", rows.orderBy(F.desc("value")), "r1")),
        "other": _refused(lake, rows.limit(9)),
        "second": asdict(lake.write("gold.demo", doubled(rows), "r2")),
        "overwritten": asdict(lake.write("gold.demo", rows.limit(1), "r3", mode="overwrite")),
        "tables": lake.tables(),
        "by_name": [row["n"] for row in lake.sql("SELECT count(*) AS n FROM gold.demo").collect()],
        "before": lake.read("gold.demo", 1).agg(F.sum("value")).collect()[0][0],
        "absent": _refused_read(lake),
    }
    print(json.dumps(report))


def doubled(rows: DataFrame) -> DataFrame:
    return rows.mapInArrow(double_value, rows.schema)


def double_value(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        yield batch.set_column(1, "value", pc.multiply(batch.column("value"), 2.0))


def _refused(lake: Lake, rows: DataFrame) -> str:
    try:
        lake.write("gold.demo", rows, "r1")
    except UpliftError as error:
        return f"{type(error).__name__}: {error}"
    return "written"


def _refused_read(lake: Lake) -> str:
    try:
        lake.read("gold.lift_table")
    except UpliftError as error:
        return f"{type(error).__name__}: {error}"
    return "read"


if __name__ == "__main__":
    main(sys.argv[1])
