"""What the platform does when things break: crashes of writing jobs, lost replies, lost executors, bad input.

`make faults` runs everything; ARGS="--parts crash --jobs load --kills 3" some of it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.faults import cluster, inputs, interruptions, matrix, table
from tests.faults.campaign import JOBS, lakehouse
from tests.learners import odd_frames
from uplift_spark.config import Lakehouse
from uplift_spark.lake.session import spark_session
from uplift_spark.lake.tables import Lake

PARTS = ("crash", "interrupt", "cluster", "input", "frames", "files")


def main() -> int:
    """Run the parts asked for and print their tables; 1 if anything is not as it should be."""
    arguments = parsed()
    started, failed = time.monotonic(), 0
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        where = Path(folder)
        if "files" in arguments.parts:
            (where / "files").mkdir()
            text, unexpected = inputs.checked(where / "files")
            print(f"\nFiles, frames and configurations as users have them\n\n{text}", flush=True)
            failed += unexpected
        if set(arguments.parts) - {"files"}:  # the rest needs Spark
            failed += on_spark(arguments, where)
    print(f"\n{failed} not as expected, {time.monotonic() - started:.0f} s")
    return int(failed > 0)


def on_spark(arguments: argparse.Namespace, where: Path) -> int:
    """Run the parts that need Spark and print their tables; how many rows are not as they should be."""
    spark = spark_session(lakehouse(where), "faults", "local[2]")
    stage = matrix.Stage.of(where, Lake(spark, lakehouse(where)))
    rows: list[matrix.Row] = []
    cases: list[interruptions.Case] = []
    whole = set(arguments.parts) & {"crash", "interrupt", "cluster"}
    for name, job in stage.prepared(arguments.jobs if whole else []):
        if "crash" in arguments.parts:
            rows.append(matrix.crash(name, job, stage, arguments.kills, arguments.first))
        if "interrupt" in arguments.parts:
            cases += interruptions.interrupted(name, job, stage)
        if "cluster" in arguments.parts and name in cluster.TABLES:
            cases += cluster.disturbed(name, job, stage)
    failed = sum(len(one.wrong) for one in (*rows, *cases))
    if rows:
        print(f"\nDriver and JVM killed while a job writes\n\n{matrix.shown(rows)}", flush=True)
    if cases:
        print(f"\nOther faults of writing jobs\n\n{interruptions.shown(cases)}", flush=True)
    if "input" in arguments.parts:
        text, unexpected = table.checked(lambda n: Lake(spark, Lakehouse(path=str(where / f"{n}" / "lakehouse"))))
        print(f"\nBad input\n\n{text}", flush=True)
        failed += unexpected
    if "frames" in arguments.parts:
        frames, unexpected = odd_frames.table(spark)
        print(f"\nFrames as people have them, on pandas and on Spark\n\n{frames.to_string(index=False)}", flush=True)
        failed += unexpected
    spark.stop()
    return failed


def parsed() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(prog="make faults", description=__doc__)
    parser.add_argument("--kills", type=int, default=20, help="moments at which each job's driver is killed")
    parser.add_argument("--first", type=int, default=0, help="moments to leave out, when they were done before")
    parser.add_argument("--jobs", nargs="*", choices=list(JOBS), default=list(JOBS))
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=PARTS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
