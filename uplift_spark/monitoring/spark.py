"""Windows on Spark: one pass over the units of a window, whatever the number of features; sums of logs."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import partial

import numpy as np
import pyarrow as pa
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from uplift_spark.errors import DataError
from uplift_spark.forest.forest import Model
from uplift_spark.monitoring.windows import SUM_KEYS, WINDOW_OUTCOME, WindowPlan, count_batches, plan_of
from uplift_spark.roles import DELIVERED, PROPENSITY, RUN_ID, TREATMENT, UNIT

_SUMS = "part string, arm string, column string, bin int, n bigint, total double"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FINE = 40  # bins of a latency between x and 10 x


def counted_rows(rows: DataFrame, features: Sequence[str], outcome: Column) -> DataFrame:
    """Columns that `window_sums` counts.

    Args:
        rows: with unit, treatment and the features; propensity and delivered where they are known.
        features: of the model.
        outcome: of a unit; null where it is not known or must not be used.

    Returns:
        The frame.
    """
    nothing = F.lit(None)
    propensity = F.col(PROPENSITY) if PROPENSITY in rows.columns else nothing
    delivered = F.col(DELIVERED) if DELIVERED in rows.columns else nothing
    return rows.select(
        UNIT,
        TREATMENT,
        propensity.cast("double").alias(PROPENSITY),
        delivered.cast("double").alias(DELIVERED),
        outcome.cast("double").alias(WINDOW_OUTCOME),
        *(f"`{name}`" for name in features),
    )


def reference_plan(rows: DataFrame, model: Model, share: float, bins: int) -> WindowPlan:
    """Bins from a sample of the reference, by a hash of the units.

    Args:
        rows: `counted_rows` of the reference.
        model: whose predictions are counted.
        share: of the units that bins are made from.
        bins: of a column, at most.

    Returns:
        The plan. Raises DataError when the reference has no row.
    """
    steps = 1_000_000
    some = F.pmod(F.xxhash64(F.concat(F.lit("monitor|"), F.col(UNIT).cast("string"))), F.lit(steps)) < share * steps
    return plan_of(model, rows.where(some).toArrow(), bins)


def window_sums(rows: DataFrame, plan: WindowPlan, model: Model) -> pa.Table:
    """Sums of all columns in one pass.

    Args:
        rows: `counted_rows` of a window or of the reference.
        plan: Bins.
        model: whose predictions are counted.

    Returns:
        Rows of `windows.SUM_SCHEMA`; none of an empty window.
    """
    parts = rows.mapInArrow(partial(count_batches, plan, model), _SUMS)
    return parts.groupBy(*SUM_KEYS).agg(F.sum("n").alias("n"), F.sum("total").alias("total")).toArrow()


def send_counts(labels: DataFrame) -> dict[str, tuple[int, int]]:
    """Deliveries by arm.

    Args:
        labels: with `treatment` and `delivered`, null where none was logged.

    Returns:
        {arm: (units reached, units assigned)}, of arms with any.
    """
    logged = labels.where(F.col(DELIVERED).isNotNull()).groupBy(TREATMENT)
    rows = logged.agg(F.count_if(F.col(DELIVERED).cast("boolean")).alias("reached"), F.count(F.lit(1)).alias("n"))
    return {row[TREATMENT]: (row["reached"], row["n"]) for row in rows.collect()}


def inside(time: str, start: datetime, end: datetime) -> Column:
    """Whether a row's time lies in a window; the end does not.

    Args:
        time: Column.
        start: of the window (UTC).
        end: of the window (UTC).

    Returns:
        The condition, whatever the session's time zone.
    """
    begin, finish = (F.timestamp_micros(F.lit(_micros(one))) for one in (start, end))
    return (F.col(time).cast("timestamp") >= begin) & (F.col(time).cast("timestamp") < finish)


def _micros(at: datetime) -> int:
    return (at - _EPOCH) // timedelta(microseconds=1)


def ratio_sums(rows: DataFrame, name: str, value: str, per: str) -> dict[str, float]:
    """Sums for a KPI of the user's own.

    Args:
        rows: of the window.
        name: of the KPI, for messages.
        value: SQL.
        per: SQL.

    Returns:
        {n, v, p, vv, vp, pp}.

    Raises:
        DataError: A value is not known or is no finite number.
    """
    v, p = F.expr(value).cast("double"), F.expr(per).cast("double")
    bad = v.isNull() | p.isNull() | F.isnan(v) | F.isnan(p)
    sums = {"v": v, "p": p, "vv": v * v, "vp": v * p, "pp": p * p}
    totals = [F.sum(column).alias(key) for key, column in sums.items()]
    row = rows.agg(F.count(F.lit(1)).alias("n"), F.count_if(bad).alias("bad"), *totals).collect()[0]
    if row["bad"]:
        raise DataError(
            f"monitoring.kpis.{name}: value or per is missing in {row['bad']:,} of {row['n']:,} rows: leave these rows "
            "out with `where`, or give them a value with coalesce"
        )
    return {key: float(row[key] or 0) for key in ("n", *sums)}


def request_sums(rows: DataFrame, ms: str, failed: str) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Latencies as a histogram, and failures, in one pass.

    Args:
        rows: of the window.
        ms: SQL: milliseconds.
        failed: SQL: whether a request failed.

    Returns:
        (upper ends of the bins in ms, requests in each, failures, requests).
    """
    took = F.expr(ms).cast("double")
    step = F.when(took > 0, F.ceil(F.log10(took) * _FINE)).cast("int")
    bad = F.coalesce(F.expr(failed).cast("boolean"), F.lit(True))
    table = rows.groupBy(step.alias("step")).agg(F.count(F.lit(1)).alias("n"), F.count_if(bad).alias("bad")).toPandas()
    known = table[table["step"].notna()].sort_values("step")
    ends = 10 ** (known["step"].to_numpy(float) / _FINE)
    return ends, known["n"].to_numpy(), int(table["bad"].sum()), int(table["n"].sum())


def newest_row(rows: DataFrame, end: datetime) -> tuple[datetime | None, int]:
    """When the newest row was known, of those known before a moment.

    Args:
        rows: with `known_at`.
        end: The moment (UTC).

    Returns:
        (when, None without a row; rows).
    """
    micros = F.unix_micros("known_at")
    last, n = rows.where(micros < _micros(end)).agg(F.max(micros), F.count(F.lit(1))).collect()[0]
    return (None if last is None else _EPOCH + timedelta(microseconds=last)), n


def last_runs(rows: DataFrame) -> dict[datetime, str]:
    """Of each window the run that knew most.

    Args:
        rows: of a table with `window_start`, `as_of` and `run_id`.

    Returns:
        {start: run}.
    """
    runs = rows.groupBy("window_start", RUN_ID).agg(F.max("as_of").alias("as_of")).orderBy("as_of", RUN_ID)
    ordered = runs.select(F.unix_micros("window_start").alias("at"), RUN_ID).collect()
    return {_EPOCH + timedelta(microseconds=row["at"]): row[RUN_ID] for row in ordered}
