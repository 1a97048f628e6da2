"""What runs in executors while they are disturbed: tasks that are held up, and tasks that hang."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from unittest.mock import patch

import pyarrow as pa
from pyspark import TaskContext
from pyspark.sql import DataFrame

from uplift_spark.lake.tables import Lake, Written

Batches = Iterator[pa.RecordBatch]

PATIENCE = 600  # seconds for anything to happen; nothing fails for being slow within it
HELD, GO = "held", "go"


def wait(until: Callable[[], bool], otherwise: str) -> None:
    """Return when it is so; TimeoutError after PATIENCE."""
    deadline = time.monotonic() + PATIENCE
    while not until():
        if time.monotonic() > deadline:
            raise TimeoutError(otherwise)
        time.sleep(0.05)


def breathe(batches: Batches) -> Batches:
    """A task of the map stage that takes its time, so that every executor gets some of them."""
    time.sleep(0.3)
    yield from batches


def hold(folder: str, batches: Batches) -> Batches:
    """A task that says which executor runs it, and goes on once it may."""
    daemon = os.getppid()
    executor = int(Path(f"/proc/{daemon}/stat").read_text().rsplit(")", 1)[1].split()[1])
    Path(folder, f"{HELD}-{executor}").touch()
    wait(lambda: Path(folder, GO).exists(), "nobody let the task go on")
    yield from batches


def hang(folder: str, batches: Batches) -> Batches:
    """The first attempt of one task hangs in the middle of its rows; every other one runs through."""
    context = TaskContext.get()
    assert context is not None
    for batch in batches:
        yield batch
        if (context.partitionId(), context.attemptNumber()) == (0, 0):
            wait(lambda: Path(folder, GO).exists(), "nobody let the task go on")


@contextmanager
def met(folder: str) -> Iterator[None]:
    """The first write in the body waits until another process is at its first, too: both have read the same state."""
    real, here = Lake.write, Path(folder, f"at-{os.getpid()}")

    def write(self: Lake, name: str, frame: DataFrame, run_id: str, **how: object) -> Written:
        if not here.exists():
            here.touch()
            wait(lambda: len(list(Path(folder).glob("at-*"))) > 1, "no other process came to its first write")
        return real(self, name, frame, run_id, **how)  # type: ignore[arg-type]

    with patch.object(Lake, "write", write):
        yield


WORKERS = {"hold": hold, "hang": hang}


@contextmanager
def slowed(table: str, worker: str, folder: str) -> Iterator[None]:
    """Rows written to `table` in the body pass a shuffle, whose outputs lie on every executor, and then that worker."""
    real = Lake.write

    def write(self: Lake, name: str, frame: DataFrame, run_id: str, **how: object) -> Written:
        if name == table:
            spread = frame.repartition(8).mapInArrow(breathe, frame.schema)
            frame = spread.repartition(4).mapInArrow(partial(WORKERS[worker], folder), frame.schema)
        return real(self, name, frame, run_id, **how)  # type: ignore[arg-type]

    with patch.object(Lake, "write", write):
        yield
