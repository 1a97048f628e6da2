"""Progress of Spark's tasks, said while they run."""

from __future__ import annotations

import re
import threading
import time

import pytest
from pyspark.sql.connect.shell.progress import StageInfo

from uplift_spark.forest.spark import watched


def slowly(batches):
    time.sleep(0.4)
    yield from batches


def test_finished_tasks_and_time_left_are_reported(spark):
    messages: list[str] = []
    slow = spark.range(0, 8, 1, 8).mapInArrow(slowly, "id long")
    with watched(spark, messages.append, every=0.1):
        assert len(slow.collect()) == 8
    matches = [re.fullmatch(r"(\d+) of 8 tasks done(, about \d+ s left)?", text) for text in messages]
    assert all(matches) and len(matches) > 3
    counts = [int(match[1]) for match in matches]
    assert counts == sorted(counts) and counts[0] < 8 and any(match[2] for match in matches)


def test_nothing_is_said_of_short_steps_nor_after_the_end(spark):
    messages: list[str] = []
    before = threading.active_count()
    with pytest.raises(ZeroDivisionError), watched(spark, messages.append):
        1 / 0  # noqa: B018
    assert threading.active_count() == before and messages == []


def test_connect_tells_by_itself():
    handlers = []
    remote = type("Remote", (), {"__module__": "pyspark.sql.connect.session"})()
    remote.registerProgressHandler, remote.removeProgressHandler = handlers.append, handlers.remove
    messages: list[str] = []
    with watched(remote, messages.append, every=0.05):
        handlers[0]([StageInfo(0, 4, 4, 0, True), StageInfo(1, 6, 1, 0, False)], 2, "a", False)
        handlers[0](None, 0, "a", False)
        time.sleep(0.2)
    assert handlers == [] and messages and all(text.startswith("5 of 10 tasks done, about ") for text in messages)
