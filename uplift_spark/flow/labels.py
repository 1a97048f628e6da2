"""Labels: what each assigned unit did inside its attribution window, as known at a stated time (R1.2)."""

from __future__ import annotations

from datetime import datetime

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from uplift_spark.config import Labels
from uplift_spark.flow.clock import instant, plus_hours


def label_table(
    assignments: DataFrame, outcomes: DataFrame, names: tuple[str, ...], labels: Labels, as_of: datetime
) -> DataFrame:
    """One row per assignment in the shape of silver.label, without run_id.

    assignments, outcomes   rows of one experiment from bronze.assignment and bronze.outcome
    names                   outcomes to label; the map has exactly these keys
    as_of                   events after it are not known yet; a window that ends later is immature

    An outcome is the sum of its events' values in [assigned_at, assigned_at + window): 0 without an event, null when
    an event's value is not known. Only event times are compared: a historic load arrives long after its events.
    """
    ends_at = plus_hours(F.col("assigned_at"), F.lit(24.0 * labels.window_days))
    units = assignments.select("experiment", "unit_id", "treatment", "assigned_at", "propensity")
    windows = units.select("unit_id", "assigned_at", ends_at.alias("ends_at"))
    totals = _totals(outcomes.filter(F.col("occurred_at") <= instant(as_of)), windows, names)
    return units.join(totals, "unit_id", "left").select(
        "experiment",
        "unit_id",
        "treatment",
        "assigned_at",
        "propensity",
        _as_map(names).alias("outcomes"),
        (ends_at <= instant(as_of)).alias("mature"),
        instant(as_of).alias("as_of"),
    )


def _totals(events: DataFrame, windows: DataFrame, names: tuple[str, ...]) -> DataFrame:
    """unit_id and one array of values per outcome, of the events inside the unit's window."""
    inside = events.join(windows, "unit_id").filter(
        (F.col("occurred_at") >= F.col("assigned_at")) & (F.col("occurred_at") < F.col("ends_at"))
    )
    values = [
        F.collect_list(F.when(F.col("outcome") == name, F.struct("value"))).alias(_position(i))
        for i, name in enumerate(names)
    ]
    return inside.groupBy("unit_id").agg(*values)


def _position(i: int) -> str:
    return f"_outcome_{i}"


def _as_map(names: tuple[str, ...]) -> Column:
    pairs = [part for i, name in enumerate(names) for part in (F.lit(name), _sum(F.col(_position(i))))]
    return F.create_map(*pairs)


def _sum(values: Column) -> Column:
    """Sum of an array of structs of one value: in sorted order, so that no partitioning changes the last bit."""
    ordered = F.array_sort(values)
    total = F.aggregate(ordered, F.lit(0.0), lambda running, item: running + item["value"])
    return F.when(values.isNull(), F.lit(0.0)).otherwise(total)
