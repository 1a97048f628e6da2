"""Sums that merge and what follows from them: moments, intervals, curves, tests, off-policy values, draws."""

from uplift_spark.runtime import keep_kernels

keep_kernels()
