"""Time and peak memory of every job of the main line on a simulated campaign (R4.1).

    make bench ARGS="--units 1000000 --arms 4"

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
from dataclasses import dataclass
from importlib import import_module
from os import getpid
from pathlib import Path

from processes import family

from uplift_spark.causal.simulate import CampaignSimulator
from uplift_spark.cli import JOBS
from uplift_spark.config import Config, load_config
from uplift_spark.lake.session import spark_session
from uplift_spark.lake.tables import Lake

CONF = Path(__file__).resolve().parents[2] / "conf" / "demo.yaml"
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
        figures = {verb: measured(verb, config, lake) for verb in JOBS}
        spark.stop()
    print(json.dumps({"units": arguments.units, "arms": arguments.arms, "design": arguments.design, "jobs": figures}))


def parsed() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--units", type=int, default=200_000)
    parser.add_argument("--arms", type=int, default=3, help="levels with control")
    parser.add_argument("--design", choices=["binary", "ordered", "unordered"], default="ordered")
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
