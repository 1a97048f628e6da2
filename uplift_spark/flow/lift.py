"""Lift tables: what treatment brought by decile and segment, with intervals and money (R4.3).

`incremental_outcomes` is uplift times units treated in the bucket: what the treatment of these units brought.
`revenue` is that times the value of one outcome, `cost` units treated times the cost of treating one, and `roi`
(revenue - cost) / cost. `cost_per_incremental` is given only where the uplift's 95 % interval lies above zero: a
quotient by something that may be zero has no finite interval. Null are: money that the configuration does not name,
anything whose denominator is zero, means of fewer than MIN_UNITS units and all that follows from them, and the interval
where no outcome varies.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from uplift_spark.config import Economics
from uplift_spark.flow.evaluation import DECILES, Evaluation, predicted_mean
from uplift_spark.stats.moments import Moments, difference

LIFT_COLUMNS = (
    "outcome", "treatment", "cut", "bucket", "n", "n_treated", "n_control", "mean_treated", "mean_control",
    "predicted_uplift", "uplift", "uplift_lower", "uplift_upper", "incremental_outcomes", "revenue", "cost", "roi",
    "cost_per_incremental",
)  # fmt: skip
_COUNTS = ("n", "n_treated", "n_control")


def lift_table(evaluation: Evaluation, economics: Economics) -> pd.DataFrame:
    """gold.lift_table without run_id and model_version, for the cuts `all`, `decile` and `segment:<feature>`.

    Decile `1` has the highest predicted uplift. `predicted_uplift` is given for the outcome the model predicts, and is
    the mean over the bucket's treated and control units.
    """
    rows = [row for cut in _cuts(evaluation) for row in _cut_rows(evaluation, *cut)]
    table = pd.DataFrame([row | money(row, economics) for row in rows], columns=list(LIFT_COLUMNS))
    return table.astype(dict.fromkeys(_COUNTS, "int64"))


def _cuts(evaluation: Evaluation) -> Iterator[tuple[str, tuple[str, ...], Moments]]:
    """Name, buckets and Moments [levels, 2, buckets, values] of every cut."""
    deciles = evaluation.deciles()
    yield "all", ("all",), deciles.sum(axis=2)[:, :, None]
    yield "decile", tuple(str(d + 1) for d in range(DECILES)), deciles
    for feature, sums in evaluation.cuts.items():
        yield f"segment:{feature}", sums.buckets, sums.moments


def _cut_rows(evaluation: Evaluation, cut: str, buckets: tuple[str, ...], moments: Moments) -> Iterator[dict[str, Any]]:
    """Counts and effects of one cut's buckets that hold units, by outcome and level."""
    means = predicted_mean(moments)
    for (j, outcome), (k, level), (b, bucket) in product(
        enumerate(evaluation.setup.outcomes), enumerate(evaluation.levels), enumerate(buckets)
    ):
        cell = moments[k, :, b, j]
        if cell.n.sum() == 0:
            continue
        found = difference(cell[1], cell[0])
        yield {
            "outcome": outcome, "treatment": level, "cut": cut, "bucket": bucket,
            "n": cell.n.sum(), "n_treated": cell.n[1], "n_control": cell.n[0],
            "mean_treated": float(found.treated), "mean_control": float(found.control),
            "predicted_uplift": means[k, b] if j == 0 else np.nan,
            "uplift": float(found.estimate), "uplift_lower": float(found.lower), "uplift_upper": float(found.upper),
        }  # fmt: skip


def money(row: dict[str, Any], economics: Economics) -> dict[str, float]:
    """Incremental outcomes, revenue, cost, ROI and cost per incremental outcome of one row; NaN is not known."""
    incremental = row["uplift"] * row["n_treated"]
    value = economics.value.get(row["outcome"], np.nan)
    cost = economics.cost.get(row["treatment"], np.nan) * row["n_treated"]
    revenue = incremental * value
    return {
        "incremental_outcomes": incremental,
        "revenue": revenue,
        "cost": cost,
        "roi": (revenue - cost) / cost if cost > 0 else np.nan,
        "cost_per_incremental": cost / incremental if row["uplift_lower"] > 0 else np.nan,
    }


def unclear_metrics(metrics: pd.DataFrame, names: tuple[str, ...] = ("ate", "qini")) -> pd.DataFrame:
    """Rows of a metric table whose interval contains zero or is not known: not distinguishable from zero."""
    shown = metrics[metrics["metric"].isin(names)]
    return shown[~((shown["lower"] > 0) | (shown["upper"] < 0))]


def as_arrow(table: pd.DataFrame, **constants: str) -> pa.Table:
    """Table for Spark with constant columns in front; NaN becomes null."""
    found = pa.Table.from_pandas(table, preserve_index=False)
    for place, (name, value) in enumerate(constants.items()):
        found = found.add_column(place, name, pa.array([value] * len(table), pa.string()))
    return found
