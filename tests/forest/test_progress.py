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


def test_tasks_done_and_time_left_are_said(spark):
    said: list[str] = []
    slow = spark.range(0, 8, 1, 8).mapInArrow(slowly, "id long")
    with watched(spark, said.append, every=0.1):
        assert len(slow.collect()) == 8
    found = [re.fullmatch(r"(\d+) of 8 tasks done(, about \d+ s left)?", text) for text in said]
    assert all(found) and len(found) > 3
    done = [int(match[1]) for match in found]
    assert done == sorted(done) and done[0] < 8 and any(match[2] for match in found)


def test_nothing_is_said_of_short_steps_nor_after_the_end(spark):
    said: list[str] = []
    before = threading.active_count()
    with pytest.raises(ZeroDivisionError), watched(spark, said.append):
        1 / 0  # noqa: B018
    assert threading.active_count() == before and said == []


def test_connect_tells_by_itself():
    handlers = []
    remote = type("Remote", (), {"__module__": "pyspark.sql.connect.session"})()
    remote.registerProgressHandler, remote.removeProgressHandler = handlers.append, handlers.remove
    said: list[str] = []
    with watched(remote, said.append, every=0.05):
        handlers[0]([StageInfo(0, 4, 4, 0, True), StageInfo(1, 6, 1, 0, False)], 2, "a", False)
        handlers[0](None, 0, "a", False)
        time.sleep(0.2)
    assert handlers == [] and said and all(text.startswith("5 of 10 tasks done, about ") for text in said)
