"""Predictions against the true effects of a simulated campaign: error, correlation, true Qini and the oracle's."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pandas as pd
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from uplift_spark.flow.aggregate import Grid
from uplift_spark.stats.qini import Curve, true_curve
from uplift_spark.vocabulary import TREATMENT, UNIT

_UNITS = 2.0**30  # fixed point of true effects, which are of the size of the outcome


@dataclass(frozen=True)
class Truth:
    """One level's predictions against the true effects over the whole hold-out (simulations).

    rmse, correlation, average_effect over units; curve of the model's ranking, and of the ranking by the true effect,
    exact up to ties of rank keys.
    """

    rmse: float
    correlation: float
    average_effect: float
    curve: Curve
    oracle: Curve

    def details(self) -> dict[str, float]:
        """Figures for the job's result."""
        return {
            "rmse": self.rmse, "correlation": self.correlation, "average_effect": self.average_effect,
            "true_qini": float(self.curve.qini), "true_auuc": float(self.curve.auuc),
            "oracle_qini": float(self.oracle.qini), "oracle_auuc": float(self.oracle.auuc),
        }  # fmt: skip


def against_truth(holdout: DataFrame, scores: DataFrame, truth: DataFrame, levels: tuple[str, ...]) -> dict[str, Truth]:
    """Truth per level, from `truth` (unit_id, treatment, effect of the predicted outcome against control).

    All hold-out units count, whatever they received: the true effect is known for each of them. Levels without a true
    effect are left out.
    """
    predicted, effect = (_long(frame, c) for frame, c in ((scores, "uplift"), (truth, "effect")))
    ranges = [_ranges(frame) for frame in (predicted, effect)]
    levels = tuple(level for level in levels if all(level in found for found in ranges))
    if not levels:
        return {}
    units = holdout.select(F.col(UNIT).cast("string").alias("unit"))
    rows = units.join(predicted, "unit").join(effect.withColumnRenamed("value", "effect"), ["unit", "level"])
    rows = rows.where(F.col("level").isin(list(levels))).withColumnRenamed("value", "predicted")
    counted = _counted(rows, levels, ranges)
    return {level: _truth(counted[counted["level"] == level]) for level in levels}


def _long(frame: DataFrame, value: str) -> DataFrame:
    names = (F.col(UNIT).cast("string").alias("unit"), F.col(TREATMENT).cast("string").alias("level"))
    return frame.select(*names, F.col(value).cast("double").alias("value"))


def _ranges(frame: DataFrame) -> dict[str, tuple[float, float, int]]:
    """Lowest and highest value and number of rows per level."""
    found = frame.groupBy("level").agg(F.min("value"), F.max("value"), F.count("*")).collect()
    return {row[0]: (row[1], row[2], row[3]) for row in found}


def _counted(
    rows: DataFrame, levels: tuple[str, ...], ranges: list[dict[str, tuple[float, float, int]]]
) -> pd.DataFrame:
    """Units and Σ of true effects by key of the prediction and by key of the effect, and errors per level: one pass."""
    for name, found in zip(("predicted", "effect"), ranges, strict=True):
        low, high, units = zip(*(found[level] for level in levels), strict=True)
        grid = Grid.of(low, high, max(units))
        rows = rows.withColumn(f"by_{name}", grid.key(F.col(name), F.col("level"), levels))
    sets = [["level"], ["level", "by_predicted"], ["level", "by_effect"]]
    p, e = F.col("predicted"), F.col("effect")
    products = {"p": p, "e": e, "pp": p * p, "ee": e * e, "pe": p * e}
    return (
        rows.groupingSets(sets, "level", "by_predicted", "by_effect")
        .agg(
            F.count("*").alias("n"),
            F.sum(F.rint(F.col("effect") * F.lit(_UNITS)).cast("bigint")).alias("total"),
            F.sqrt(F.avg((p - e) * (p - e))).alias("rmse"),
            *[F.avg(value).alias(name) for name, value in products.items()],
        )
        .toPandas()
    )


def _truth(counted: pd.DataFrame) -> Truth:
    """Truth from one level's counts: the row without any key is the whole level."""
    whole = counted[counted["by_predicted"].isna() & counted["by_effect"].isna()].iloc[0]
    curves = []
    for key in ("by_predicted", "by_effect"):
        ranked = counted[counted[key].notna()].sort_values(key, ascending=False)
        curves.append(true_curve(ranked["n"].to_numpy(), ranked["total"].to_numpy() / _UNITS))
    return Truth(
        rmse=float(whole["rmse"]),
        correlation=_correlation(whole),
        average_effect=float(whole["total"] / _UNITS / whole["n"]),
        curve=curves[0],
        oracle=curves[1],
    )


def _correlation(means: pd.Series) -> float:
    """Pearson's correlation from the means of both values and their products; NaN where one of them does not vary."""
    spreads = [means["pp"] - means["p"] ** 2, means["ee"] - means["e"] ** 2]
    sizes = [means["pp"], means["ee"]]
    if any(spread <= 1e-12 * size for spread, size in zip(spreads, sizes, strict=True)):
        return float("nan")
    return float((means["pe"] - means["p"] * means["e"]) / math.sqrt(spreads[0] * spreads[1]))
