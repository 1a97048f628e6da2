"""What a session and a write cost before they do anything: the start with and without the archive of Java's classes,
and a table's history by its log and by Spark.

    python tests/benchmarks/bench_start.py --starts 3

Starts alternate in processes of their own; each writes a Delta table of three rows and reads it. Processor time is that
of Python and the JVM. Linux only (reads /proc).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from processes import cpu_ticks, family

START = """
import os, sys, time
from uplift_spark.config import Lakehouse
from uplift_spark.lake import session
if sys.argv[1] == "without":
    from pathlib import Path
    session.class_archive = lambda: Path("/nowhere")
started = session.local_session(session.local_conf(Lakehouse(sys.argv[2]), "start"))
started.range(3).write.format("delta").save(sys.argv[2] + "/table")
assert started.read.format("delta").load(sys.argv[2] + "/table").count() == 3
print("measure", flush=True)
sys.stdin.readline()
"""


def main() -> None:
    """Print one line for each way of starting, and one for each way of reading a history."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--starts", type=int, default=3)
    starts = parser.parse_known_args()[0].starts
    from uplift_spark.lake.session import archive_classes, class_archive

    if not class_archive().exists() and archive_classes() is None:
        print(f"no archive can be made at {class_archive()}: both ways start without one")
    figures: dict[str, list[tuple[float, float]]] = {"with": [], "without": []}
    for _ in range(starts):
        for how, measured in figures.items():
            measured.append(one_start(how))
    for how, measured in figures.items():
        wall, cpu = (median(part) for part in zip(*measured, strict=True))
        print(f"session and first table, {how} the archive: {wall:.1f} s, {cpu:.1f} s of processor time")
    histories()


def one_start(how: str) -> tuple[float, float]:
    """(seconds, seconds of processor time) of one process."""
    with tempfile.TemporaryDirectory(prefix="bench-start-") as folder:
        began = time.monotonic()
        command = [sys.executable, "-c", START, how, folder]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline().strip() == "measure"
        wall = time.monotonic() - began
        ticks = sum(map(cpu_ticks, family(process.pid)))
        process.communicate("\n")
    return wall, ticks / 100


def histories(calls: int = 20) -> None:
    """Milliseconds of a history by the log and by Spark, in one session."""
    from uplift_spark.config import Lakehouse
    from uplift_spark.lake.session import spark_session
    from uplift_spark.lake.storage import Folder, described_history

    with tempfile.TemporaryDirectory(prefix="bench-start-") as path:
        spark = spark_session(Lakehouse(path))
        spark.range(3).write.format("delta").save(str(Path(path) / "gold" / "demo"))
        folder = Folder(spark, path)
        ways: dict[str, Callable[[], object]] = {
            "by its log": lambda: folder.history("gold.demo", 20),
            "by Spark": lambda: described_history(spark, folder.reference("gold.demo"), 20),
        }
        for name, call in ways.items():
            call()
            began = time.monotonic()
            for _ in range(calls):
                call()
            print(f"history of a table, {name}: {(time.monotonic() - began) / calls * 1000:.1f} ms")


if __name__ == "__main__":
    main()
