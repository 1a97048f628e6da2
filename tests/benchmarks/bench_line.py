"""Time, peak memory and Spark's work of every job of the main line on a simulated campaign.

    make bench ONLY=line ARGS="--units 1000000 --arms 4"
    python tests/benchmarks/bench_line.py --units 20000 --jobs ingest features train score lift policy report compare

Each job: seconds, seconds of processor time, MiB, Spark jobs, SQL executions, and commits to Delta tables. Time and
memory (proportional set size) are those of this process and everything below it: driver, JVM and Python workers
together. Linux only (reads /proc).
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from importlib import import_module
from pathlib import Path

from processes import cpu_ticks, family, watched

from uplift_spark.campaign import Campaign
from uplift_spark.config import Config, load_config
from uplift_spark.events.simulate import CampaignSimulator
from uplift_spark.jobs import whole_line
from uplift_spark.lake.session import spark_session
from uplift_spark.lake.tables import Lake

CONF = Path(__file__).resolve().parents[2] / "conf" / "demo.yaml"


def main() -> None:
    """Run the line once and print one line per job, at the end everything as JSON."""
    arguments = parsed()
    with tempfile.TemporaryDirectory(prefix="bench-line-") as folder:
        config = campaign(arguments, arguments.lakehouse or folder)
        spark = spark_session(config.lakehouse)
        lake = Lake(spark, config.lakehouse)
        figures = {}
        for verb in arguments.jobs or whole_line(config):
            figures[verb] = measured(verb, Campaign(config, lake))
        spark.stop()
    print(json.dumps({"units": arguments.units, "arms": arguments.arms, "design": arguments.design, "jobs": figures}))


def parsed() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--units", type=int, default=200_000)
    parser.add_argument("--arms", type=int, default=3, help="levels with control")
    parser.add_argument("--design", choices=["binary", "ordered", "unordered"], default="ordered")
    parser.add_argument("--jobs", nargs="*", help="verbs to run, in their order; by default those of the demo")
    parser.add_argument("--few-mb", type=float, help="lakehouse.few_mb; 0 has Spark's workers do all the work")
    parser.add_argument("--lakehouse", help="folder to keep the tables in; a temporary one by default")
    return parser.parse_known_args()[0]


def campaign(arguments: argparse.Namespace, lakehouse: str) -> Config:
    """The demo's campaign at another size; costs and doses follow the simulator's levels."""
    units, arms, design = arguments.units, arguments.arms, arguments.design
    levels = CampaignSimulator(design=design, arms=arms).levels  # type: ignore[arg-type]
    dose = dict(zip(levels.names, levels.doses, strict=True)) if levels.doses and design == "ordered" else None
    changes: dict[str, object] = {
        "lakehouse.path": lakehouse,
        "source.units": units,
        "source.arms": arms,
        "source.design": design,
        "roles.control": levels.control,
        "roles.dose": dose,
        "economics.cost": dict.fromkeys(levels.treated, 0.1),
    }
    if arguments.few_mb is not None:
        changes["lakehouse.few_mb"] = arguments.few_mb
    return load_config(CONF, tuple(f"{key}={json.dumps(value)}" for key, value in changes.items()))


def measured(verb: str, campaign: Campaign) -> dict[str, float]:
    """What one job took."""
    run = import_module(f"uplift_spark.jobs.{verb}").run
    before, started = work(campaign.lake), time.monotonic()
    with watched() as peak, campaign.planned(verb):
        run(campaign)
    seconds = time.monotonic() - started
    cpu, jobs, queries, commits = (now - then for now, then in zip(work(campaign.lake), before, strict=True))
    print(
        f"{verb:<9} {seconds:7.1f} s {cpu:7.1f} s of processor time {peak.mib:7,.0f} MiB {jobs:4.0f} jobs "
        f"{queries:4.0f} queries {commits:3.0f} commits",
        flush=True,
    )
    figures = {"cpu": round(cpu, 1), "jobs": jobs, "queries": queries, "commits": commits}
    return {"seconds": round(seconds, 1), "peak_mib": round(peak.mib), **figures}


def work(lake: Lake) -> tuple[float, int, int, int]:
    """So far: seconds of processor time, Spark jobs, SQL executions, commits to the tables."""
    context = lake.spark.sparkContext._jsc.sc()
    context.listenerBus().waitUntilEmpty()
    queries = lake.spark._jsparkSession.sharedState().statusStore().executionsCount()
    commits = sum(len(lake.history(table)) for table in lake.tables())
    ticks = sum(map(cpu_ticks, family(os.getpid())))
    return ticks / os.sysconf("SC_CLK_TCK"), context.statusStore().jobsList(None).size(), queries, commits


if __name__ == "__main__":
    main()
