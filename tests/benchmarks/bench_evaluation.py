"""An evaluation with all its resamples against a plain count of the same table: time, Spark jobs.

    python tests/benchmarks/bench_evaluation.py --units 1000000 10000000

Counted is what an evaluation must at least do: join the hold-out with its scores, and count by level and arm. Linux
only (reads /proc).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

from lakes import fresh_lake
from processes import Usage
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from uplift_spark.evaluation.metrics import EvaluationSpec, curve_table, metric_table
from uplift_spark.evaluation.spark import comparison, describe_arms, evaluate

LEVELS = ("5%", "10%")


def main() -> None:
    """Measure every size; print a line each, and at the end everything as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--units", type=int, nargs="*", default=[100_000])
    parser.add_argument("--replicates", type=int, default=200)
    arguments = parser.parse_known_args()[0]
    print(json.dumps([one_size(units, arguments.replicates) for units in arguments.units]))


def one_size(units: int, replicates: int) -> dict[str, Any]:
    """Seconds, processor seconds and Spark jobs of both, and their ratio."""
    with fresh_lake("evaluation", units) as lake:
        spark = lake.spark
        lake.write("silver.holdout", holdout(spark, units), "features", mode="overwrite")
        lake.write("gold.scores", scores(spark, units), "score", mode="overwrite")
        tables = lake.read("silver.holdout"), lake.read("gold.scores")
        spec = EvaluationSpec("none", ("bought",), ("region",), replicates=replicates)

        def whole() -> None:
            evaluation = evaluate(*tables, spec)
            metric_table(evaluation), curve_table(evaluation)

        def counted() -> None:
            rows = comparison(*tables, spec, arms)
            rows.groupBy("level", "treated").count().collect()

        arms = describe_arms(tables[0], spec)
        counted(), whole()  # compiled, and the files in memory
        times = {name: measured(spark, name, run) for name, run in (("count", counted), ("evaluation", whole))}
    ratio = round(times["evaluation"]["seconds"] / times["count"]["seconds"], 1)
    print(
        f"{units:,} units x {len(LEVELS)} levels, {replicates} resamples: {times}, {ratio} times the count", flush=True
    )
    return {"units": units, "replicates": replicates, **times, "ratio": ratio}


def measured(spark: SparkSession, name: str, run: Callable[[], None]) -> dict[str, Any]:
    """One run's figures."""
    spark.sparkContext.setJobGroup(name, name)
    usage = Usage()
    run()
    usage.stop()
    jobs = len(spark.sparkContext.statusTracker().getJobIdsForGroup(name))
    return {"seconds": round(usage.seconds, 1), "cpu": round(usage.cpu, 1), "jobs": jobs}


def holdout(spark: SparkSession, units: int) -> DataFrame:
    """Units, a third of them in each arm."""
    arm = F.element_at(F.array(*map(F.lit, ("none", *LEVELS))), (F.floor(F.rand(1) * 3) + 1).cast("int"))
    return spark.range(0, units, 1, max(2, units // 500_000)).select(
        F.concat(F.lit("u"), "id").alias("unit_id"),
        arm.alias("treatment"),
        F.lit(1 / 3).alias("propensity"),
        (F.rand(2) < 0.05).cast("double").alias("bought"),
        F.concat(F.lit("r"), F.col("id") % 5).alias("region"),
    )


def scores(spark: SparkSession, units: int) -> DataFrame:
    """Any scores of every level."""
    level = F.explode(F.array(*map(F.lit, LEVELS))).alias("treatment")
    rows = spark.range(0, units, 1, max(2, units // 500_000))
    return rows.select(F.concat(F.lit("u"), "id").alias("unit_id"), level).withColumn("uplift", F.rand(3) / 50)


if __name__ == "__main__":
    main()
