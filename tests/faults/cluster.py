"""Executors that die and tasks that hang, on clusters of this machine: the same rows to the bit, each once.

A job's rows pass a shuffle before they are written, and the tasks behind it are held up: so the fault comes after the
map stage and before the reduce stage is done, on any machine. Spark's event log is the witness that it happened.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.conftest import end_group
from tests.connect.server import free_port
from tests.faults import driver
from tests.faults.campaign import Job
from tests.faults.interruptions import Case, print_cases
from tests.faults.matrix import Stage, different
from tests.faults.workers import GO, HELD, wait

# The tables whose last stage is held up.
TABLES = {"features": "silver.training_spring", "score": "gold.uplift_scores"}
_SPECULATION = (
    *("spark.speculation=true", "spark.speculation.interval=100ms", "spark.speculation.quantile=0.5"),
    *("spark.speculation.multiplier=1.1", "spark.speculation.minTaskRuntime=100ms"),
)


def disturbed(name: str, job: Job, stage: Stage) -> list[Case]:
    """An executor killed after the map stage, and a straggler overtaken by a copy of it."""
    stage.reset(name)
    job.second(stage.lake)
    expected = stage.reader.state()
    cases = []
    for fault, run in (("executor killed after the map stage", _killed), ("straggler, speculation on", _overtaken)):
        stage.reset(name)
        log = stage.folder / f"events-{name}-{run.__name__}"
        log.mkdir()
        case = Case(name, fault, *run(name, stage, log))
        case.wrong += different(stage.reader.state(), expected)
        cases.append(case)
    print_cases(cases)
    return cases


def _killed(name: str, stage: Stage, log: Path) -> tuple[str, list[str]]:
    process = _driver(name, "hold", stage, log, "local-cluster[2,1,1024]")
    try:
        process.go()
        wait(lambda: len(list(log.glob(f"{HELD}-*"))) == 2, "two executors never came to the reduce stage")
        victim = int(next(log.glob(f"{HELD}-*")).name.split("-")[1])
        os.kill(victim, signal.SIGKILL)
        Path(log, GO).touch()
        wait(process.ended, "the job never ended")
        output = process.next_line()
    finally:
        process.kill()
    events = _events(log)
    what = f"{events['lost']} executor lost, {events['again']} stages run again, job {output}"
    return what, [] if events["lost"] and events["again"] and output == "done" else [
        f"no fault, or no recovery: {what}"
    ]


def _overtaken(name: str, stage: Stage, log: Path) -> tuple[str, list[str]]:
    with standalone(stage.folder) as master:
        process = _driver(name, "hang", stage, log, master, *_SPECULATION)
        try:
            process.go()
            wait(process.ended, "the job waited for its straggler")
            output = process.next_line()
        finally:
            Path(log, GO).touch()
            process.kill()
    events = _events(log)
    what = f"{events['speculative']} speculative tasks, {events['overtaken']} stragglers overtaken, job {output}"
    return what, [] if events["overtaken"] and output == "done" else [f"no straggler was overtaken: {what}"]


def _driver(name: str, worker: str, stage: Stage, log: Path, master: str, *settings: str) -> driver.Driver:
    events = ("enabled=true", f"dir={log.as_uri()}", "rolling.enabled=false", "compress=false")
    conf = (f"{driver.SLOWED}={TABLES[name]},{worker},{log}", "spark.sql.adaptive.enabled=false")
    return driver.Driver(stage.folder, name, master, *conf, *(f"spark.eventLog.{one}" for one in events), *settings)


@contextmanager
def standalone(folder: Path) -> Iterator[str]:
    """Master URL of a cluster with two workers, one core each, on two addresses of this machine.

    Spark starts no copy of a task on the host of the original, and all executors of a local-cluster share one host.
    """
    import pyspark

    home = Path(pyspark.__file__).parent
    address = f"127.0.0.1:{free_port()}"
    host, port = address.split(":")
    parts = [["master.Master", "--host", host, "--port", port, "--webui-port", "0"]]
    for worker in ("127.0.0.2", "127.0.0.3"):
        options = f"--host {worker} --cores 1 --memory 1g --webui-port 0".split()
        parts.append(["worker.Worker", *options, "--work-dir", f"{folder}/work", f"spark://{address}"])
    log = (folder / "cluster.log").open("a")
    started = []
    try:
        for part, *arguments in parts:
            command = [str(home / "bin" / "spark-class"), f"org.apache.spark.deploy.{part}", *arguments]
            variables = {**driver.environment(), "SPARK_HOME": str(home), "SPARK_DAEMON_MEMORY": "256m"}
            started.append(subprocess.Popen(command, env=variables, stdout=log, stderr=log, start_new_session=True))
        yield f"spark://{address}"
    finally:
        for process in started:
            end_group(process)


def _events(log: Path) -> dict[str, int]:
    """What the event log witnesses."""
    (file,) = (path for path in log.iterdir() if path.name.startswith(("app", "local")))
    counts = dict.fromkeys(("lost", "again", "speculative", "overtaken"), 0)
    for line in file.read_text().splitlines():
        event = json.loads(line)
        kind = event["Event"].removeprefix("SparkListener")
        counts["lost"] += kind == "ExecutorRemoved"
        counts["again"] += kind == "StageSubmitted" and event["Stage Info"]["Stage Attempt ID"] > 0
        if kind == "TaskEnd":
            speculative = event["Task Info"]["Speculative"]
            counts["speculative"] += speculative
            reason = event["Task End Reason"]
            counts["overtaken"] += not speculative and "another attempt succeeded" in reason.get("Kill Reason", "")
    return counts
