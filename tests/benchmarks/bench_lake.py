"""Labels, windowed features and the training set of a made-up lakehouse: time, processor time, memory and shuffled
bytes of every step, at two sizes to see how cost grows.

    python tests/benchmarks/bench_lake.py --units 1000000 10000000 --events 10

Every unit has that many events before its assignment, of which one in a hundred is delivered twice and one in a hundred
known only after the assignment, two outcomes, a delivery and two attributes; the training set has twelve aggregates of
events. Memory is the proportional set size of this process and everything below it. Linux only (reads /proc).
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from processes import Usage, watched
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from uplift_spark.campaign import Campaign
from uplift_spark.config import DAY, Config, Feature, Lakehouse, RolesConf, Simulation
from uplift_spark.jobs import features
from uplift_spark.lake.session import check_java, local_conf, local_session
from uplift_spark.lake.tables import Lake, Written

CAMPAIGN = "scale"
ASSIGNED_AT = datetime(2025, 1, 6)
EVENTS = ("visit", "cart", "order")
WINDOWS = (7, 30, 90)
AGGREGATES = (("visit", "count"), ("order", "sum"), ("order", "recency"), ("cart", "distinct"))
FEATURES = tuple(
    Feature(f"{event}_{kind}_{days}d", aggregate=kind, source="event", event=event, window_days=days)  # type: ignore[arg-type]
    for event, kind in AGGREGATES
    for days in WINDOWS
)
ROWS_PER_PARTITION = 1_000_000  # of the largest shuffle, as one would set for such a job


def main() -> None:
    """Make and measure every size, print a line per step and at the end everything as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--units", type=int, nargs="*", default=[100_000])
    parser.add_argument("--events", type=int, default=10, help="events of behaviour per unit")
    arguments = parser.parse_known_args()[0]
    print(json.dumps([one_size(units, arguments.events) for units in arguments.units]))


def one_size(units: int, each: int) -> dict[str, Any]:
    """Figures of every step."""
    with tempfile.TemporaryDirectory(prefix="bench-lake-") as folder:
        steps = Steps(Path(folder) / "log")
        spark = session(folder, steps.log, units * each)
        lake = Watched(spark, Lakehouse(path=f"{folder}/lakehouse"), steps)
        print(f"{units:,} units, {units * each:,} events", flush=True)
        for table, frame in tables(spark, units, each).items():
            with steps.step(f"generate {table}"):
                Lake.write(lake, table, frame, "bench")
        names = (*(feature.name for feature in FEATURES), "age", "city")
        roles = RolesConf("bought", "none", names, more_outcomes=("spent",))
        config = Config(CAMPAIGN, Simulation(units=units), roles, lakehouse=lake.lakehouse, features=FEATURES)
        with steps.step("features job, whole"):
            result = features.run(Campaign(config, lake), progress=steps.progress)
        spark.stop()
        steps.add_shuffles()
        size = sum(file.stat().st_size for file in Path(lake.lakehouse.path).rglob("*.parquet"))
    details = {key: result.details[key] for key in ("train", "holdout", "duplicate_events", "late_events")}
    print(f"lakehouse {size / 2**30:.2f} GiB, {details}", flush=True)
    return {"units": units, "events": units * each, "lakehouse_bytes": size, "steps": steps.recorded, **details}


def session(folder: str, log: Path, events: int) -> SparkSession:
    """A local session as users get it, with the optimising compiler and partitions for this many rows."""
    os.environ["SPARK_SUBMIT_OPTS"] = ""
    check_java()
    log.mkdir()
    conf = local_conf(Lakehouse(path=f"{folder}/lakehouse"), "bench")
    logged = {
        "spark.eventLog.enabled": "true",
        "spark.eventLog.compress": "false",
        "spark.eventLog.dir": f"file://{log}",
    }
    partitions = str(max(2, events // ROWS_PER_PARTITION))
    local = {"spark.local.dir": f"{folder}/spark", "spark.sql.shuffle.partitions": partitions}
    return local_session({**conf, **logged, **local})


def tables(spark: SparkSession, units: int, each: int) -> dict[str, DataFrame]:
    """The bronze tables, made where their rows are written."""
    at = F.lit(ASSIGNED_AT.isoformat() + "Z").cast("timestamp")
    people = spark.range(0, units, 1, max(2, units // 500_000))
    unit = F.concat(F.lit("customer-"), F.lpad(F.col("id").cast("string"), 9, "0")).alias("unit_id")
    mine = F.lit(CAMPAIGN).alias("campaign")
    origin = (F.lit(None).cast("string").alias("event_id"), F.lit("bench").alias("source"))
    treated = F.col("id") % 2 == 1
    assignment = people.select(
        unit, mine, F.when(treated, "mail").otherwise("none").alias("treatment"),
        at.alias("assigned_at"), F.lit(0.5).alias("propensity"), F.lit("bench").alias("source"),
    )  # fmt: skip
    age = F.floor(18 + 60 * F.rand(1)).cast("double").alias("age")
    city = F.concat(F.lit("city"), F.floor(F.rand(2) * 40)).alias("city")
    profile = people.select(
        unit,
        age,
        city,
        _before(at, 1).alias("observed_at"),
        _before(at, 1).alias("known_at"),
        F.lit("bench").alias("source"),
    )
    later = F.timestamp_micros(F.unix_micros(at) + F.floor(F.rand(3) * 10 * DAY))
    happened = people.filter(F.rand(4) < 0.1 + 0.02 * treated.cast("int")).withColumn("occurred_at", later)
    amounts = F.array(*(F.struct(F.lit(n).alias("outcome"), v.alias("value")) for n, v in _amounts().items()))
    outcome = happened.select(
        unit, mine, F.inline(amounts), "occurred_at", F.col("occurred_at").alias("known_at"), *origin
    )
    delivered = people.filter(treated).select(
        unit, mine, F.concat(F.lit("d"), "id").alias("delivery_id"), F.lit("delivered").alias("status"),
        at.alias("delivered_at"), at.alias("known_at"), *origin,
    )  # fmt: skip
    return {
        f"bronze.profile_{CAMPAIGN}": profile,
        "bronze.event": _behaviour(spark, units, each, at, unit),
        "bronze.outcome": outcome,
        "bronze.delivery": delivered,
        "bronze.assignment": assignment,
    }


def _amounts() -> dict[str, Column]:
    return {"bought": F.lit(1.0), "spent": F.round(F.rand(5) * 100, 2)}


def _before(at: Column, days: int) -> Column:
    return F.timestamp_micros(F.unix_micros(at) - F.lit(days * DAY))


def _behaviour(spark: SparkSession, units: int, each: int, at: Column, unit: Column) -> DataFrame:
    """`each` events a unit over 120 days, in the order of time as a stream brings them: users are spread over files."""
    rows = spark.range(0, units * each, 1, max(2, units * each // 2_000_000))
    past = F.floor((F.lit(1.0) - F.col("id") / F.lit(units * each)) * 120 * DAY)
    happened = F.unix_micros(at) - past
    known = F.when(F.rand(6) < 0.01, F.unix_micros(at) + F.lit(DAY)).otherwise(happened + F.floor(F.rand(7) * DAY))
    event = F.element_at(F.array(*map(F.lit, EVENTS)), (F.floor(F.rand(8) * len(EVENTS)) + 1).cast("int"))
    events = rows.select(
        F.pmod(F.xxhash64("id"), F.lit(units)).alias("id"),
        event.alias("event"),
        F.concat(F.lit("c"), F.floor(F.rand(9) * 50)).alias("item"),
        F.round(F.rand(10) * 100, 2).alias("value"),
        F.timestamp_micros(happened).alias("occurred_at"),
        F.timestamp_micros(known).alias("known_at"),
        F.lower(F.hex("id")).alias("event_id"),
        F.when(F.rand(11) < 0.01, F.lit(2)).otherwise(F.lit(1)).alias("times"),
    )
    repeated = events.withColumn("again", F.explode(F.sequence(F.lit(1), F.col("times"))))
    return repeated.select(
        unit, "event", "item", "value", "occurred_at", "known_at", "event_id", F.lit("bench").alias("source")
    )


class Steps:
    """What happened when, in seconds since 1970, and what it used."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self.recorded: list[dict[str, Any]] = []

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Measure the body."""
        with watched() as peak:
            usage, started = Usage(), time.time()
            yield
            usage.stop()
        figures = {"seconds": round(usage.seconds, 1), "cpu": round(usage.cpu, 1), "peak_mib": round(peak.mib)}
        self.recorded.append(
            {"step": name, "from": started, "to": time.time(), **figures, "others": round(usage.others, 2)}
        )
        print(
            f"{name:<34} {usage.seconds:8.1f} s {usage.cpu:8.1f} CPU s {peak.mib:7,.0f} MiB, others {usage.others:.0%}",
            flush=True,
        )

    def progress(self, message: str) -> None:
        print(f"    {message}", flush=True)

    def add_shuffles(self) -> None:
        """Shuffled and spilled bytes of the tasks that ended during each step, from Spark's log of events."""
        tasks = []
        for file in sorted(self.log.rglob("events_*")) or sorted(p for p in self.log.iterdir() if p.is_file()):
            for line in file.open():
                if '"SparkListenerTaskEnd"' in line[:60]:
                    tasks.append(json.loads(line))
        for step in self.recorded:
            mine = [t for t in tasks if step["from"] <= t["Task Info"]["Finish Time"] / 1e3 <= step["to"]]
            known = [t["Task Metrics"] for t in mine if t.get("Task Metrics")]
            step["shuffled"] = sum(m["Shuffle Write Metrics"]["Shuffle Bytes Written"] for m in known)
            step["spilled"] = sum(m["Disk Bytes Spilled"] for m in known)
            moved, spilled = step["shuffled"] / 2**20, step["spilled"] / 2**20
            print(f"{step['step']:<34} shuffled {moved:8,.0f} MiB, spilled {spilled:8,.0f} MiB")


class Watched(Lake):
    """A lakehouse whose writes are steps."""

    def __init__(self, spark: SparkSession, lakehouse: Lakehouse, steps: Steps) -> None:
        super().__init__(spark, lakehouse)
        self._steps = steps

    def write(self, table: str, frame: DataFrame, run_id: str, **how: Any) -> Written:
        """Write and measure."""
        with self._steps.step(f"  write {table}"):
            return super().write(table, frame, run_id, **how)


if __name__ == "__main__":
    main()
