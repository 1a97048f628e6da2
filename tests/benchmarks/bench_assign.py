"""Arms of a million odd ids by Python, Spark, Spark SQL and DuckDB; balance over salts; assignments a second on Spark.

    make bench ONLY=assign
    make bench ONLY=assign ARGS="--units 1000000 --salts 1000 --timed 16000000"

A quarter of the ids each are plain, have leading zeros, have letters that are no ASCII, and are integers of 19 digits.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import replace
from itertools import pairwise

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
from lakes import fresh_lake
from pyspark.sql import functions as F
from scipy.stats import chi2

from uplift_spark.experiments.assignment import (
    AssignmentColumns,
    Experiment,
    ProgrammeHoldout,
    Slot,
    assign,
    assignment_sql,
    uniform,
)
from uplift_spark.experiments.spark import with_arms

THIRDS = Experiment("spring", {"none": 0.5, "mail": 0.3, "push": 0.2})
DESIGNS = {
    "plain": (THIRDS, AssignmentColumns()),
    "slot, holdout, ramp, exploration": (
        replace(
            THIRDS, ramp=0.7, slot=Slot("shop", 0.0, 0.8), programme=ProgrammeHoldout("programme", 0.1), exploration=0.3
        ),
        AssignmentColumns(decision="decision"),
    ),
}
SAID = ["treatment", "left_out", "explored"]


def odd_ids(n: int) -> list[str]:
    """Plain ids, leading zeros, letters beyond ASCII, integers of 19 digits."""
    part = n // 4
    plain = [f"user-{k}" for k in range(n - 3 * part)]
    zeros = [f"{k:012d}" for k in range(part)]
    letters = [f"kündin-{k}-Ж-日本-😀" for k in range(part)]
    return [*plain, *zeros, *letters, *(str(10**18 + 7_919 * k) for k in range(part))]


def differences(wanted: pd.DataFrame, given: pd.DataFrame) -> int:
    """Units whose arm, reason, exploration or propensity is another."""
    given = given.set_index("unit_id").loc[wanted["unit_id"]].reset_index()
    other = np.zeros(len(wanted), bool)
    for name in SAID:
        other |= (wanted[name].fillna("") != given[name].fillna("")).to_numpy()
    p, q = (one["propensity"].to_numpy(float) for one in (wanted, given))
    return int((other | ~np.isclose(p, q, rtol=1e-12, atol=0, equal_nan=True)).sum())


def p_of(codes: np.ndarray, shares: np.ndarray) -> float:
    """χ² of counts against shares."""
    counts, usual = np.bincount(codes, minlength=shares.size), len(codes) * shares
    return float(chi2.sf(((counts - usual) ** 2 / usual).sum(), shares.size - 1))


def over_salts(salts: int, units: int = 10_000) -> str:
    """Balance of single salts, and independence of pairs."""
    ids, shares = [f"u{k}" for k in range(units)], np.array(list(THIRDS.arms.values()))
    codes = [np.searchsorted(THIRDS.cuts, uniform(ids, f"salt-{k}", "arm"), side="right") for k in range(salts)]
    single = np.array([p_of(one, shares) for one in codes])
    both = np.outer(shares, shares).ravel()
    pairs = np.array([p_of(a * 3 + b, both) for a, b in pairwise(codes)])
    return (
        f"{salts:,} salts, {units:,} units each: {np.mean(single < 0.01):.2%} have a χ² p < .01 (1 % is due); of "
        f"{len(pairs):,} pairs {np.mean(pairs < 0.01):.2%}"
    )


def main() -> None:
    """Print differences, balance, moved units and assignments a second."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--units", type=int, default=1_000_000)
    parser.add_argument("--salts", type=int, default=1000)
    parser.add_argument("--timed", type=int, default=16_000_000)
    arguments = parser.parse_known_args()[0]
    ids = odd_ids(arguments.units)
    rows = pd.DataFrame({"unit_id": ids, "decision": np.array(list(THIRDS.arms))[np.arange(len(ids)) % 3]})
    with fresh_lake("assign", arguments.units) as lake:
        frame = lake.spark.createDataFrame(pa.Table.from_pandas(rows)).repartition(4)
        frame.createOrReplaceTempView("rows")
        for name, (design, columns) in DESIGNS.items():
            decisions = rows["decision"] if columns.decision else None
            wanted = assign(ids, design, decisions=decisions)
            spark_sql, duckdb_sql = (assignment_sql(design, columns, one).select("rows") for one in ("spark", "duckdb"))
            counts = {
                "Spark": differences(wanted, with_arms(frame, design, columns).toPandas()),
                "Spark SQL": differences(wanted, lake.spark.sql(spark_sql).toPandas()),
                "DuckDB": differences(wanted, duckdb.sql(duckdb_sql).df()),
            }
            print(f"{len(ids):,} ids, {name}: units that differ from Python's: {counts}")
        small, large = (assign(ids, replace(THIRDS, ramp=share))["treatment"] for share in (0.05, 0.5))
        taking = small.notna()
        print(f"ramp 5 to 50 %: {int((small[taking] != large[taking]).sum())} of {int(taking.sum()):,} units move")
        print(over_salts(arguments.salts))
        print(timed(lake.spark, arguments.timed))


def timed(spark, n: int) -> str:  # type: ignore[no-untyped-def]
    """Assignments a second of the columns, from ids that are in memory, less the time that reading these takes."""
    ids = spark.range(0, n, 1, os.cpu_count()).select(F.concat(F.lit("user-"), F.col("id")).alias("unit_id")).cache()
    ids.count()
    ids.createOrReplaceTempView("timed")
    parts = assignment_sql(THIRDS, AssignmentColumns(), "spark")
    query, arm = parts.select("timed"), f"SELECT unit_id, {parts.treatment} AS treatment FROM timed"

    def seconds(run) -> float:  # type: ignore[no-untyped-def]
        times = []
        for _ in range(4):
            started = time.monotonic()
            run()
            times.append(time.monotonic() - started)
        return float(np.median(times[1:]))  # the first compiles

    alone = seconds(lambda: ids.write.format("noop").mode("overwrite").save())
    arms = seconds(lambda: spark.sql(arm).write.format("noop").mode("overwrite").save())
    columns = seconds(lambda: spark.sql(query).write.format("noop").mode("overwrite").save())
    checked = seconds(lambda: with_arms(ids, THIRDS).write.format("noop").mode("overwrite").save())
    cores = os.cpu_count() or 1
    return (
        f"{n:,} units on {cores} cores: the arm of three {arms:.1f} s (reading ids alone {alone:.1f} s), "
        f"{n / arms / cores / 1e6:.2f} M a second and core; arm, reason, exploration and propensity {columns:.1f} s, "
        f"{n / columns / cores / 1e6:.2f} M; with the check that every id is there once "
        f"{checked:.1f} s, {n / checked / cores / 1e6:.2f} M"
    )


if __name__ == "__main__":
    main()
