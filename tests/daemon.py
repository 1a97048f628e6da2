"""Spark's daemon of Python workers for tests: it has imported what workers run, so that a forked worker need not."""

from __future__ import annotations

from pyspark.daemon import manager

import uplift_spark.forest.spark
import uplift_spark.learners.spark
import uplift_spark.policy.spark  # noqa: F401 - imported for the workers

if __name__ == "__main__":
    manager()
