"""Time and peak memory of every job of the main line on a simulated campaign.

    make bench ARGS="--units 1000000 --arms 4"

Memory is the proportional set size of this process and everything below it: driver, JVM and Python workers together.
Linux only (reads /proc).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from importlib import import_module
from pathlib import Path

from processes import watched

from uplift_spark.campaign import Campaign
from uplift_spark.cli import DEMO_JOBS
from uplift_spark.config import Config, load_config
from uplift_spark.events.simulate import CampaignSimulator
from uplift_spark.lake.session import spark_session
from uplift_spark.lake.tables import Lake

CONF = Path(__file__).resolve().parents[2] / "conf" / "demo.yaml"


def main() -> None:
    """Run the line once and print one line per job, at the end everything as JSON."""
    arguments = parsed()
    with tempfile.TemporaryDirectory(prefix="bench-line-") as folder:
        config = campaign(arguments.units, arguments.arms, arguments.design, arguments.lakehouse or folder)
        spark = spark_session(config.lakehouse)
        lake = Lake(spark, config.lakehouse)
        figures = {}
        for verb in arguments.jobs:
            figures[verb] = measured(verb, config, lake)
        spark.stop()
    print(json.dumps({"units": arguments.units, "arms": arguments.arms, "design": arguments.design, "jobs": figures}))


def parsed() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--units", type=int, default=200_000)
    parser.add_argument("--arms", type=int, default=3, help="levels with control")
    parser.add_argument("--design", choices=["binary", "ordered", "unordered"], default="ordered")
    parser.add_argument("--jobs", nargs="*", choices=DEMO_JOBS, default=DEMO_JOBS, help="jobs to run, in their order")
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


def measured(verb: str, config: Config, lake: Lake) -> dict[str, float]:
    """Seconds and peak memory of one job."""
    run = import_module(f"uplift_spark.jobs.{verb}").run
    started = time.monotonic()
    with watched() as peak:
        run(Campaign(config, lake))
    seconds = time.monotonic() - started
    print(f"{verb:<9} {seconds:8.1f} s {peak.mib:8,.0f} MiB", flush=True)
    return {"seconds": round(seconds, 1), "peak_mib": round(peak.mib)}


if __name__ == "__main__":
    main()
