"""The forest: numpy, numba and scikit-learn; Spark in `forest.spark` alone."""

from uplift_spark.runtime import keep_kernels

keep_kernels()
