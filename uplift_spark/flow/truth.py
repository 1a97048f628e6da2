"""Predictions against the true effects of a simulated campaign: error, correlation, true Qini and the oracle's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from uplift_spark.flow.aggregate import Grid, histograms
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

    All hold-out units count, whatever they received: the true effect is known for each of them.
    """
    names = (F.col(UNIT).cast("string").alias("unit"), F.col(TREATMENT).cast("string").alias("level"))
    rows = (
        holdout.select(names[0])
        .join(scores.select(*names, F.col("uplift").cast("double").alias("predicted")), "unit")
        .join(truth.select(*names, F.col("effect").cast("double").alias("effect")), ["unit", "level"])
        .where(F.col("level").isin(list(levels)))
    )
    figures = _truth_figures(rows)
    by_score, by_effect = (_ranked_truth(rows, column, figures, levels) for column in ("predicted", "effect"))
    return {
        level: Truth(
            rmse=float(figures["rmse"][level]),
            correlation=float(figures["correlation"][level]),
            average_effect=float(figures["average"][level]),
            curve=by_score[k],
            oracle=by_effect[k],
        )
        for k, level in enumerate(levels)
        if level in figures.index
    }


def _truth_figures(rows: DataFrame) -> pd.DataFrame:
    error = F.col("predicted") - F.col("effect")
    ranges = [
        function(column).alias(f"{name}_{column}")
        for column in ("predicted", "effect")
        for name, function in (("low", F.min), ("high", F.max))
    ]
    figures = rows.groupBy("level").agg(
        F.sqrt(F.avg(error * error)).alias("rmse"),
        F.corr("predicted", "effect").alias("correlation"),
        F.avg("effect").alias("average"),
        *ranges,
    )
    return figures.toPandas().set_index("level").astype(float)


def _ranked_truth(rows: DataFrame, column: str, figures: pd.DataFrame, levels: tuple[str, ...]) -> list[Curve]:
    grid = Grid(*(tuple(figures[f"{end}_{column}"].reindex(levels, fill_value=0.0)) for end in ("low", "high")))
    keyed = rows.withColumn("key", grid.key(F.col(column), F.col("level"), levels))
    effect = F.rint(F.col("effect") * F.lit(_UNITS)).cast("bigint")
    one = F.lit(1).cast("bigint")
    return [
        true_curve(h.n, h.value / _UNITS) if len(h.n) else Curve(np.zeros(1), np.zeros(1))
        for h in histograms(keyed, levels, one, effect)
    ]
