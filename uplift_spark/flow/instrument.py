"""Complier effects on Spark: one pass for what deliveries bring on average, then the forest's own (R3.7)."""

from __future__ import annotations

import numpy as np
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from uplift_spark.causal.instrument import LEFT, Instrumental, left_roles, two_stage
from uplift_spark.causal.training import Params, Say
from uplift_spark.flow.training import fit_frame
from uplift_spark.vocabulary import DataError, Roles


def fit_instrumental_frame(
    frame: DataFrame, roles: Roles, delivered: str, params: Params, say: Say = lambda _: None
) -> Instrumental:
    """`causal.instrument.fit_instrumental` of a Spark frame: the same model, byte for byte."""
    inner = left_roles(roles, delivered)
    for name in (delivered, roles.outcome):
        if name not in frame.columns:
            raise DataError(f"column {name!r} is missing from the frame: complier effects need it")
    y, d = (F.col(f"`{name}`").cast("double") for name in (roles.outcome, delivered))
    weight = F.lit(1.0) if roles.weight is None else F.col(f"`{roles.weight}`").cast("double")
    if roles.propensity:
        weight = weight / F.col(f"`{roles.propensity}`")
    bad = d.isNull() | F.isnan(d) | (F.abs(d) == float("inf"))
    finite = F.when(F.isnan(y) | (F.abs(y) == float("inf")), 0.0).otherwise(F.coalesce(y, F.lit(0.0)))
    parts = (weight, weight * d, weight * finite, weight * d * d)
    sums = frame.groupBy(F.col(f"`{roles.treatment}`").cast("string").alias("level")).agg(
        F.count("*").alias("n"),
        F.count_if(bad).alias("bad"),
        *(F.sum(part).alias(f"s{i}") for i, part in enumerate(parts)),
    )
    rows = sorted(sums.collect(), key=lambda row: str(row["level"]))
    n, missing = (sum(row[name] for row in rows) for name in ("n", "bad"))
    if missing:
        raise DataError(f"column {delivered!r} is null, NaN or infinite in {missing} of {n} rows: fill or drop them")
    overall = two_stage(np.array([[row[f"s{i}"] for row in rows] for i in range(4)], float), delivered, n)
    say(f"a delivery brings {overall:.4g} on average, by two-stage least squares")
    return Instrumental(
        fit_frame(frame.withColumn(LEFT, y - overall * d), inner, params, say), roles, overall, delivered
    )
