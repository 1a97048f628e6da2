"""The estimators: numpy, numba and scikit-learn, no Spark."""

from uplift_spark.vocabulary import keep_kernels

keep_kernels()
