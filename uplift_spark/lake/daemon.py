"""The process that a local session's Python workers are forked from (`spark.python.daemon.module`).

It has imported what most workers run, which takes seconds: a worker that is forked need not.
"""

from __future__ import annotations

from pyspark.daemon import manager

import uplift_spark.evaluation.spark
import uplift_spark.forest.spark  # noqa: F401 - imported for the workers

if __name__ == "__main__":
    manager()
