"""Lift tables (`lift_table`): uplift by decile and segment, with intervals and money.

`incremental_outcomes` is uplift times units treated in the bucket: the outcomes that the treatment of these units
added. `revenue` is that times the value of one outcome, `cost` is units treated times the cost of treating one, and
`roi` is (revenue - cost) / cost. Costs are known exactly, so the 95 % intervals of ROI and of the cost per incremental
outcome follow from those of uplift. `cost_per_incremental` is given only where the uplift's interval lies above zero: a
quotient by a number that may be zero has no finite interval. Where less of the outcome is better
(`roles.direction: decrease`), uplift and incremental outcomes stay effects on it, so that what helps is negative;
money counts outcomes prevented, and cost per incremental outcome is that of one prevented.

Buckets of a segment are compared with each other. `shrunk_uplift` moves each bucket towards their mean, the further the
larger its error is beside their differences. `different_p` is the p-value of a difference from the other buckets,
adjusted for their number (`stats.intervals`). `low_sample` marks rows where an arm has fewer than LOW_SAMPLE units or,
of an outcome of 0 and 1, fewer than LOW_EVENTS of either: their normal intervals are rough, the shrunk figure is the
one to go by. Where units come in clusters, intervals are those of resampled clusters, and rows are marked, too, where
an arm is worth fewer than LOW_CLUSTERS of them.

Null are: money that the configuration does not name, anything whose denominator is zero, means of fewer than MIN_UNITS
units and all that follows from them, and the interval where no outcome varies.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from uplift_spark.config import Economics
from uplift_spark.evaluation.metrics import DECILES, Evaluation, predicted_mean
from uplift_spark.roles import Direction, benefit, benefit_interval
from uplift_spark.stats.intervals import cluster_effects, different, shrunk
from uplift_spark.stats.moments import Moments, difference

LIFT_COLUMNS = (
    "outcome", "treatment", "cut", "bucket", "n", "n_treated", "n_control", "mean_treated", "mean_control",
    "predicted_uplift", "uplift", "uplift_lower", "uplift_upper", "incremental_outcomes", "revenue", "cost", "roi",
    "cost_per_incremental", "roi_lower", "roi_upper", "cost_per_incremental_lower", "cost_per_incremental_upper",
    "low_sample", "shrunk_uplift", "different_p",
)  # fmt: skip
LOW_SAMPLE, LOW_EVENTS, LOW_CLUSTERS = 100, 10, 40
_COUNTS = ("n", "n_treated", "n_control")
SEGMENT, _ERROR, _BOOTSTRAP = "segment:", "_error", "_bootstrap"


@dataclass(frozen=True)
class _Cut:
    """Name, buckets, Moments [levels, 2, buckets, values] and resampled sums (Σw, Σw·outcome) of one cut."""

    name: str
    buckets: tuple[str, ...]
    moments: Moments
    resampled: tuple[np.ndarray, np.ndarray] | None


def lift_table(evaluation: Evaluation, economics: Economics) -> pd.DataFrame:
    """Make the lift table of an evaluation, with the cuts `all`, `decile` and `segment:<segment>`.

    The columns are those of gold.lift_table without run_id and model_version.

    Decile `1` has the highest predicted uplift, or the lowest where less of the outcome is better. `predicted_uplift`
    is given for the outcome the model predicts, and is the mean over the bucket's treated and control units.
    """
    rows = [row for cut in _cuts(evaluation) for row in _cut_rows(evaluation, cut)]
    priced = [row | money(row, economics, evaluation.spec.direction_of(row["outcome"])) for row in rows]
    table = pd.DataFrame(priced, columns=[*LIFT_COLUMNS, _ERROR, _BOOTSTRAP])
    for _, mine in table[table["cut"].str.startswith(SEGMENT)].groupby(["outcome", "treatment", "cut"], sort=False):
        effects = mine["uplift"].to_numpy(np.float64), mine[_ERROR].to_numpy(np.float64)
        bootstrap = np.column_stack(list(mine[_BOOTSTRAP])) if evaluation.spec.cluster else None
        table.loc[mine.index, "shrunk_uplift"] = shrunk(*effects)
        table.loc[mine.index, "different_p"] = different(*effects, bootstrap)
    table = table.drop(columns=[_ERROR, _BOOTSTRAP]).astype({"shrunk_uplift": "float64", "different_p": "float64"})
    return table.astype({**dict.fromkeys(_COUNTS, "int64"), "low_sample": "bool"})


def _cuts(evaluation: Evaluation) -> Iterator[_Cut]:
    deciles, (w, wy) = evaluation.deciles(), evaluation.resampled_deciles
    whole = w.sum(axis=3, keepdims=True), wy.sum(axis=3, keepdims=True)
    yield _Cut("all", ("all",), deciles.sum(axis=2)[:, :, None], whole)
    yield _Cut("decile", tuple(str(d + 1) for d in range(DECILES)), deciles, (w, wy))
    for segment, sums in evaluation.cuts.items():
        yield _Cut(f"{SEGMENT}{segment}", sums.buckets, sums.moments, sums.resampled)


def _cut_rows(evaluation: Evaluation, cut: _Cut) -> Iterator[dict[str, Any]]:
    """Counts and effects of one cut's buckets that hold units, by outcome and level."""
    means, arms = predicted_mean(cut.moments), cut.moments[..., :-1]
    clustered = cluster_effects(arms, *cut.resampled) if evaluation.spec.cluster and cut.resampled else None
    effects = clustered.difference if clustered else difference(arms[:, 1], arms[:, 0])
    for (j, outcome), (k, level), (b, bucket) in product(
        enumerate(evaluation.spec.outcomes), enumerate(evaluation.levels), enumerate(cut.buckets)
    ):
        cell, at = arms[k, :, b, j], (k, b, j)
        if cell.n.sum() == 0:
            continue
        few = clustered is not None and clustered.clusters[k, b] < LOW_CLUSTERS
        yield {
            "outcome": outcome, "treatment": level, "cut": cut.name, "bucket": bucket,
            "n": cell.n.sum(), "n_treated": cell.n[1], "n_control": cell.n[0],
            "mean_treated": effects.treated[at], "mean_control": effects.control[at],
            "predicted_uplift": means[k, b] if j == 0 else np.nan,
            "uplift": effects.estimate[at], "uplift_lower": effects.lower[at], "uplift_upper": effects.upper[at],
            "low_sample": bool(few) or is_low_sample(cell, outcome in evaluation.rates),
            _ERROR: effects.error[at], _BOOTSTRAP: clustered.resampled[:, k, b, j] if clustered else None,
        }  # fmt: skip


def is_low_sample(arms: Moments, rate: bool) -> bool:
    """Tell whether one of two arms has few units or, of an outcome of 0 and 1, few of either."""
    events = np.minimum(arms.mean, 1 - arms.mean) * arms.n
    return bool((arms.n < LOW_SAMPLE).any() or (rate and not (events >= LOW_EVENTS).all()))


def money(row: dict[str, Any], economics: Economics, direction: Direction = "increase") -> dict[str, float]:
    """Compute incremental outcomes, revenue, cost, ROI and cost per incremental outcome of a row; NaN where unknown.

    Where less of the outcome is better, money counts the outcomes that treatment prevents.
    """
    incremental = row["uplift"] * row["n_treated"]
    value = economics.value.get(row["outcome"], np.nan)
    cost = economics.cost.get(row["treatment"], np.nan) * row["n_treated"]
    gained = benefit(incremental, direction)
    revenue = gained * value
    each = economics.cost.get(row["treatment"], np.nan)
    low, high = benefit_interval(row["uplift_lower"], row["uplift_upper"], direction)
    worth = [(bound * value - each) / each if each > 0 else np.nan for bound in (low, high)]
    sure = low > 0
    return {
        "incremental_outcomes": incremental,
        "revenue": revenue,
        "cost": cost,
        "roi": (revenue - cost) / cost if cost > 0 else np.nan,
        "cost_per_incremental": cost / gained if sure else np.nan,
        "roi_lower": min(worth),
        "roi_upper": max(worth),
        "cost_per_incremental_lower": each / high if sure else np.nan,
        "cost_per_incremental_upper": each / low if sure else np.nan,
    }


def unclear_metrics(metrics: pd.DataFrame, names: tuple[str, ...] = ("ate", "qini")) -> pd.DataFrame:
    """Select the metrics that are not distinguishable from zero: their interval contains zero or is unknown."""
    shown = metrics[metrics["metric"].isin(names)]
    return shown[~((shown["lower"] > 0) | (shown["upper"] < 0))]


def as_arrow(table: pd.DataFrame, **constants: str) -> pa.Table:
    """Convert a table for Spark, with constant columns in front; NaN becomes null."""
    result = pa.Table.from_pandas(table, preserve_index=False)
    for position, (name, value) in enumerate(constants.items()):
        result = result.add_column(position, name, pa.array([value] * len(table), pa.string()))
    return result
