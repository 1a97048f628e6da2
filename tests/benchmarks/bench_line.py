"""Time and peak memory of every job of the main line on a simulated campaign (R4.1).

    make bench ARGS="--units 1000000 --arms 4"
    python tests/benchmarks/bench_line.py --units 1000000 --events 10 --jobs ingest features

With --events every unit has that many events before its assignment, and the training set twelve aggregates of them.
Memory is the proportional set size of this process and everything below it: driver, JVM and Python workers together.
Linux only (reads /proc).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from os import getpid
from pathlib import Path

from processes import family
from pyspark.sql import functions as F

from uplift_spark.causal.simulate import CampaignSimulator
from uplift_spark.cli import JOBS
from uplift_spark.config import Config, Feature, load_config
from uplift_spark.lake.session import spark_session
from uplift_spark.lake.tables import Lake

CONF = Path(__file__).resolve().parents[2] / "conf" / "demo.yaml"
EVENTS = ("visit", "cart", "order")
PAUSE = 0.5  # seconds between looks at memory: one look at a large JVM takes tens of milliseconds


@dataclass
class Peak:
    """Highest memory seen so far, in MiB."""

    mib: float = 0.0


def main() -> None:
    """Run the line once and print one line per job, at the end everything as JSON."""
    arguments = parsed()
    with tempfile.TemporaryDirectory(prefix="bench-line-") as folder:
        config = campaign(arguments.units, arguments.arms, arguments.design, arguments.lakehouse or folder)
        spark = spark_session(config.lakehouse)
        lake = Lake(spark, config.lakehouse)
        figures = {}
        for verb in arguments.jobs:
            if verb == "features" and arguments.events:
                load_events(lake, arguments.events)
                config = behaving(config)
            figures[verb] = measured(verb, config, lake)
        spark.stop()
    print(json.dumps({"units": arguments.units, "arms": arguments.arms, "design": arguments.design, "jobs": figures}))


def parsed() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--units", type=int, default=200_000)
    parser.add_argument("--arms", type=int, default=3, help="levels with control")
    parser.add_argument("--design", choices=["binary", "ordered", "unordered"], default="ordered")
    parser.add_argument("--events", type=int, default=0, help="events of behaviour per unit")
    parser.add_argument("--jobs", nargs="*", choices=JOBS, default=JOBS, help="jobs to run, in their order")
    parser.add_argument("--lakehouse", help="folder to keep the tables in; a temporary one by default")
    return parser.parse_known_args()[0]


def campaign(units: int, arms: int, design: str, lakehouse: str) -> Config:
    """The demo's campaign at another size; costs and doses follow the simulator's levels."""
    levels = CampaignSimulator(design=design, arms=arms).levels  # type: ignore[arg-type]
    dose = dict(zip(levels.names, levels.doses, strict=True)) if levels.doses and design == "ordered" else None
    changes = {
        "lakehouse.path": lakehouse,
        "source.units": units,
        "source.arms": arms,
        "source.design": design,
        "roles.control": levels.control,
        "roles.dose": dose,
        "economics.cost": dict.fromkeys(levels.treated, 0.1),
    }
    return load_config(CONF, tuple(f"{key}={json.dumps(value)}" for key, value in changes.items()))


def load_events(lake: Lake, each: int) -> None:
    """Write `each` events per assigned unit into bronze.event: over 120 days before the assignment, known in a day."""
    units = lake.read("bronze.assignment").select("unit_id", F.unix_micros("assigned_at").alias("at"))
    day = 86_400_000_000
    happened = F.col("at") - F.floor(F.rand(1) * 120 * day)
    events = units.crossJoin(lake.spark.range(each)).select(
        "unit_id",
        F.element_at(F.array(*map(F.lit, EVENTS)), F.floor(F.rand(2) * len(EVENTS)).cast("int") + 1).alias("event"),
        F.concat(F.lit("c"), F.floor(F.rand(3) * 50)).alias("item"),
        F.round(F.rand(4) * 100, 2).alias("value"),
        F.timestamp_micros(happened).alias("occurred_at"),
        F.timestamp_micros(happened + F.floor(F.rand(5) * day)).alias("known_at"),
        F.lit(None).cast("string").alias("event_id"),
        F.lit("bench").alias("source"),
    )
    started = time.monotonic()
    written = lake.write("bronze.event", events, "bench")
    print(f"{written.rows:,} events written in {time.monotonic() - started:.1f} s", flush=True)


def behaving(config: Config) -> Config:
    """The campaign with twelve aggregates of its units' behaviour beside their attributes."""
    made = [
        Feature(f"{event}_{kind}_{days}d", aggregate=kind, source="event", event=event, window_days=days)
        for event, kind in (("visit", "count"), ("order", "sum"), ("order", "recency"), ("cart", "distinct"))
        for days in (7, 30, 90)
    ]
    roles = replace(config.roles, features=(*config.roles.features, *(f.name for f in made)))
    return replace(config, roles=roles, features=(*config.features, *made))


def measured(verb: str, config: Config, lake: Lake) -> dict[str, float]:
    """Seconds and peak memory of one job."""
    run = import_module(f"uplift_spark.jobs.{verb}").run
    started = time.monotonic()
    with watched() as peak:
        run(config, lake)
    seconds = time.monotonic() - started
    print(f"{verb:<9} {seconds:8.1f} s {peak.mib:8,.0f} MiB", flush=True)
    return {"seconds": round(seconds, 1), "peak_mib": round(peak.mib)}


@contextmanager
def watched() -> Iterator[Peak]:
    """Look at memory from a thread while the body runs."""
    peak, done = Peak(), threading.Event()

    def look() -> None:
        while not done.is_set():
            peak.mib = max(peak.mib, sum(map(memory, family(getpid()))))
            done.wait(PAUSE)

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()


def memory(pid: int) -> float:
    """Proportional set size in MiB, 0 when the process has ended meanwhile."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


if __name__ == "__main__":
    main()
