"""A lakehouse of its own for one measurement."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from uplift_spark.config import Lakehouse
from uplift_spark.lake.session import check_java, local_conf, local_session
from uplift_spark.lake.tables import Lake


@contextmanager
def fresh_lake(name: str, units: int) -> Iterator[Lake]:
    """An empty lakehouse in a temporary folder and a session with the optimising compiler, its shuffles for `units`."""
    with tempfile.TemporaryDirectory(prefix=f"bench-{name}-") as folder:
        os.environ["SPARK_SUBMIT_OPTS"] = ""  # the optimising compiler
        check_java()
        lakehouse = Lakehouse(path=f"{folder}/lakehouse")
        shuffles = {"spark.sql.shuffle.partitions": str(max(2, units // 500_000)), "spark.local.dir": f"{folder}/spark"}
        spark = local_session({**local_conf(lakehouse, "bench"), **shuffles})
        yield Lake(spark, lakehouse)
        spark.stop()
