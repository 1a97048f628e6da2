"""`uplift policy` at scale: time, processor time, memory, looks at all units and the certified gap.

    python tests/benchmarks/bench_policy.py --units 1000000 10000000

Every unit has scores for four levels, whose gains and costs differ by unit; the limits are a budget, a capacity of the
dearest level, a cap and a floor in one region each, and treated shares within .05 of each other over five regions.
Linux only (reads /proc).
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from lakes import fresh_lake
from processes import Usage, watched
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from uplift_spark.campaign import Campaign
from uplift_spark.config import Config, Economics, Lakehouse, Limit, Policy, RolesConf, Simulation
from uplift_spark.jobs import policy

CAMPAIGN = "scale"
LEVELS = ("5%", "10%", "15%", "20%")
REGIONS = ("east", "north", "south", "west", "islands")


def main() -> None:
    """Make and measure every size; print a line each, and at the end everything as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--units", type=int, nargs="*", default=[100_000])
    arguments = parser.parse_known_args()[0]
    print(json.dumps([one_size(units) for units in arguments.units]))


def one_size(units: int) -> dict[str, Any]:
    """Figures of the job."""
    with fresh_lake("policy", units) as lake:
        spark = lake.spark
        lake.write(f"silver.training_{CAMPAIGN}", training(spark, units), "features", mode="overwrite")
        lake.write("gold.uplift_scores", scores(spark, units), "score", partition_by=("model_name", "model_version"))
        with watched() as peak:
            usage = Usage()
            result = policy.run(
                Campaign(config(lake.lakehouse, units), lake),
                progress=lambda message: print(f"    {message}", flush=True),
            )
            usage.stop()
    kept = ("candidates", "units", "gain", "cost", "gap", "scans", "observed", "observed_lower", "observed_upper")
    figures = {"seconds": round(usage.seconds, 1), "cpu": round(usage.cpu, 1), "peak_mib": round(peak.mib)}
    figures |= {key: result.details[key] for key in kept}
    print(f"{units:,} units x {len(LEVELS)} levels: {figures}, others {usage.others:.0%}", flush=True)
    return {"of": units, **figures}


def config(lakehouse: Lakehouse, units: int) -> Config:
    """A campaign whose budget is enough for about a third of the units."""
    limits = (
        Limit(units=units // 20, level=LEVELS[-1]),
        Limit(share=0.25, segment="region", bucket="north"),
        Limit(share=0.40, segment="region", bucket="south", least=True),
        Limit(gap=0.08, segment="region"),
    )
    return Config(
        campaign=CAMPAIGN,
        source=Simulation(units=units),
        roles=RolesConf("bought", "none", ("age",), {"none": 0.0, **{level: float(level[:-1]) for level in LEVELS}}),
        economics=Economics(value={"bought": 30.0}, cost={level: 0.1 * (k + 1) for k, level in enumerate(LEVELS)}),
        lakehouse=lakehouse,
        policy=Policy(budget=0.1 * units, limits=limits, cost={LEVELS[0]: "0.05 + age / 1000"}),
    )


def training(spark: SparkSession, units: int) -> DataFrame:
    """Half of the units held out, arms at random; effects fall with age and differ by unit."""
    rows = spark.range(0, units, 1, max(2, units // 500_000))
    arm = F.element_at(F.array(*map(F.lit, ("none", *LEVELS))), (F.floor(F.rand(1) * 5) + 1).cast("int"))
    region = F.element_at(F.array(*map(F.lit, REGIONS)), (F.floor(F.rand(2) * 5) + 1).cast("int"))
    return rows.select(
        _unit(), arm.alias("treatment"), F.lit(0.2).alias("propensity"),
        F.lit("2025-01-06T00:00:00Z").cast("timestamp").alias("assigned_at"),
        F.when(F.rand(3) < 0.5, "train").otherwise("holdout").alias("split"),
        (F.rand(4) < 0.05).cast("double").alias("bought"), F.floor(18 + 60 * F.rand(5)).cast("double").alias("age"),
        region.alias("region"),
    )  # fmt: skip


def scores(spark: SparkSession, units: int) -> DataFrame:
    """Predicted effects of four levels: concave in the dose, different by unit, some below zero."""
    rows = spark.range(0, units, 1, max(2, units // 500_000))
    strength = 0.02 * F.randn(6)
    each = F.array(*(
        F.struct(F.lit(level).alias("treatment"), (strength * (k + 1) ** 0.5 + 0.004 * F.randn(7 + k)).alias("uplift"))
        for k, level in enumerate(LEVELS)
    ))  # fmt: skip
    effects = rows.select(_unit(), F.inline(each))
    return effects.select(
        "*", F.lit(0.01).alias("uplift_se"), (F.col("uplift") - 0.02).alias("uplift_lower"),
        (F.col("uplift") + 0.02).alias("uplift_upper"), F.lit(False).alias("low_support"),
        F.lit(CAMPAIGN).alias("model_name"), F.lit("1").alias("model_version"), F.lit(0).alias("feature_version"),
        F.current_timestamp().alias("scored_at"),
    )  # fmt: skip


def _unit() -> Any:
    return F.concat(F.lit("customer-"), F.lpad(F.col("id").cast("string"), 9, "0")).alias("unit_id")


if __name__ == "__main__":
    main()
