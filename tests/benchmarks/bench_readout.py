"""Seconds of a trial's readout with CUPED at scale, against a count of the units of the same table.

    make bench ONLY=readout
    make bench ONLY=readout ARGS="--units 10000000 --metrics 10"

Every metric has a covariate of its own from before the trial, so the sums are of twice as many columns. The readout
looks at every unit's id, too, since one that is there twice would count twice; the count beside it does the same.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from lakes import fresh_lake
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from uplift_spark.experiments.health import ReadoutDesign
from uplift_spark.experiments.readout import PRIMARY, SECONDARY, ReadoutMetric, read_sums
from uplift_spark.experiments.spark import unit_sums

EFFECT = 0.02
RUNS = 3


def main() -> None:
    """Print seconds, their ratio, and what the primary metric's readout says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--units", type=int, default=500_000)
    parser.add_argument("--metrics", type=int, default=10)
    arguments = parser.parse_known_args()[0]
    n, width = arguments.units, arguments.metrics
    metrics = [
        ReadoutMetric(f"metric {k}", f"y{k}", covariates=(f"x{k}",), role=SECONDARY if k else PRIMARY)
        for k in range(width)
    ]
    with fresh_lake("readout", n) as lake:
        lake.write("silver.trial_of_all", units(lake.spark, n, width), "made")
        table = lake.read("silver.trial_of_all")
        counted, read = [], []
        for _ in range(RUNS):  # in turn, so that a busy moment hits both
            started = time.monotonic()
            (row,) = table.agg(F.count("*"), F.count_distinct("unit_id")).collect()
            counted.append(time.monotonic() - started)
            assert tuple(row) == (n, n)
            started = time.monotonic()
            design = ReadoutDesign({"none": 0.5, "mail": 0.5})
            sums, facts = unit_sums(table, metrics, design)
            result = read_sums(sums, metrics, design, facts)
            read.append(time.monotonic() - started)
    first = result.table().query("metric == 'metric 0'").iloc[0]
    print(
        f"{n:,} units, {width} metrics with CUPED: readout {np.median(read):.1f} s, count of units "
        f"{np.median(counted):.1f} s, {np.median(read) / np.median(counted):.1f} times; primary effect "
        f"{first['effect']:.5f} ({first['lower']:.5f} to {first['upper']:.5f}), true {EFFECT}"
    )


def units(spark: SparkSession, n: int, width: int) -> DataFrame:
    """A row a unit: metrics that follow a covariate with correlation .6, the effect on each."""
    rows = spark.range(0, n, 1, max(2, n // 500_000))
    arm = F.when(F.rand(1) < 0.5, "none").otherwise("mail").alias("treatment")
    unit = F.concat(F.lit("customer-"), F.lpad(F.col("id").cast("string"), 9, "0")).alias("unit_id")
    before = [F.randn(10 + k).alias(f"x{k}") for k in range(width)]
    frame = rows.select(unit, arm, *before)
    after = [
        (0.6 * F.col(f"x{k}") + 0.8 * F.randn(100 + k) + EFFECT * (F.col("treatment") == "mail").cast("int")).alias(
            f"y{k}"
        )
        for k in range(width)
    ]
    return frame.select("*", *after)


if __name__ == "__main__":
    main()
