"""How far Spark is, said while it works: for steps that take minutes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread
from typing import Any

from py4j.protocol import Py4JError  # type: ignore[import-untyped]
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession

from uplift_spark.causal.training import Say

EVERY = 10.0  # seconds between two sentences; steps that take less say nothing

Counts = dict[Any, tuple[int, int]]


@contextmanager
def watched(spark: SparkSession, say: Say, every: float = EVERY) -> Iterator[None]:
    """While the block runs, tell `say` how many tasks are done and about how long the others take, by the pace so far.

    Tasks are those of the stages seen since the block began; where sessions share an application, of all of them.
    Stages that Spark has not planned yet are not in it, so the time left is that of the step Spark is at.
    """
    seen: Counts = {}
    over, started = Event(), time.monotonic()
    with _counting(spark, seen) as count:

        def speak() -> None:
            while not over.wait(every):
                count()
                done, total = (sum(part) for part in zip(*seen.values(), strict=True)) if seen else (0, 0)
                left = (time.monotonic() - started) * (total - done) / max(done, 1)
                if total:
                    rest = f", about {left:,.0f} s left" if 0 < done < total else ""
                    say(f"{done:,} of {total:,} tasks done{rest}")

        speaker = Thread(target=speak, daemon=True)
        speaker.start()
        try:
            yield
        finally:
            over.set()
            speaker.join()


@contextmanager
def _counting(spark: SparkSession, seen: Counts) -> Iterator[Callable[[], None]]:
    """What brings `seen`, (tasks done, tasks) by stage, up to date: Connect tells it by itself, else Spark is asked."""
    if type(spark).__module__.startswith("pyspark.sql.connect"):

        def told(stages: Any, inflight_tasks: int, operation_id: str | None, done: bool) -> None:
            seen.update({(operation_id, s.stage_id): (s.num_completed_tasks, s.num_tasks) for s in stages or ()})

        session: Any = spark
        session.registerProgressHandler(told)
        try:
            yield lambda: None
        finally:
            session.removeProgressHandler(told)
        return
    try:
        tracker = spark.sparkContext.statusTracker()
    except (PySparkException, Py4JError):  # clusters that several users share do not let them ask
        yield lambda: None
        return
    before = set(tracker.getActiveStageIds())

    def ask() -> None:
        infos = [tracker.getStageInfo(stage) for stage in tracker.getActiveStageIds() if stage not in before]
        active = {info.stageId: (info.numCompletedTasks, info.numTasks) for info in infos if info}
        seen.update({stage: (total, total) for stage, (_, total) in seen.items()} | active)

    yield ask
