"""Weights for units whose labels are mature, so that they stand for all that were assigned (R3.7).

Labels mature by the calendar: where the first to be assigned were other people than the last, a model of the mature
ones is a model of the first. Each counts by the inverse of the probability that a unit like it is mature by now
(inverse probability of censoring; Robins & Rotnitzky 1992), which the features tell. Assumed: among units alike in
these, effects do not depend on when a unit was assigned.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from uplift_spark.causal.binning import FeatureBins
from uplift_spark.causal.crossfit import Blend, features_of
from uplift_spark.causal.training import Say
from uplift_spark.flow.learned import sampled_rows
from uplift_spark.vocabulary import MATURITY_WEIGHT, UNIT, DataError, Roles

LEAST = 0.05  # probabilities of being mature are held above: no unit counts more than 20 times as much as another
ROWS = 100_000  # of the mature and of the others to learn from, at most
_STATES = ("false", "true")


@dataclass(frozen=True)
class Maturity:
    """How probable maturity is: `model` of the sampled rows, which are so large a share of all, [2], of either state.

    mature  share of the units that are mature
    """

    bins: tuple[FeatureBins, ...]
    model: Blend
    shares: np.ndarray
    mature: float

    def weights(self, batch: pa.RecordBatch | pa.Table) -> np.ndarray:
        """Weight of each row if it is mature, float64 [n]: about 1 on average over the mature."""
        odds = self.model.predict_proba(features_of(batch, self.bins)) / self.shares
        chance = odds[:, 1] / odds.sum(axis=1)
        return self.mature / np.maximum(chance, LEAST)


def fit_maturity(units: DataFrame, features: tuple[str, ...], seed: int, say: Say) -> Maturity:
    """From a frame of unit_id, mature boolean and the features, one row per assigned unit.

    Raises DataError when all units, or hardly any, are mature.
    """
    state, nothing = F.col("mature").cast("string").alias("state"), F.lit(0.0).alias("nothing")
    frame = units.select(UNIT, state, nothing, *(f"`{name}`" for name in features))
    roles = Roles(UNIT, "state", "nothing", features, _STATES[0])
    counted: dict[str, int] = {row[0]: row[1] for row in frame.groupBy("state").count().collect()}
    few = [name for name in _STATES if counted.get(name, 0) < 100]
    if few:
        raise DataError(
            f"{counted.get('true', 0):,} of {sum(counted.values()):,} labels are mature: for labels.maturity_weights "
            "at least 100 must be, and 100 must not; drop the option, or wait"
        )
    sample = sampled_rows(frame, roles, (2, seed), ROWS)
    taken = np.bincount(sample.place, minlength=2)
    say(f"how probable maturity is, from {len(sample.place):,} of {sample.coding.total:,} units")
    model = Blend(True, sample.spec.categorical, seed).fit(sample.features, sample.place, sample.weight)
    total = np.array([counted[name] for name in _STATES])
    return Maturity(sample.coding.bins, model, taken / total, float(total[1] / total.sum()))


def with_maturity_weights(training: DataFrame, maturity: Maturity) -> DataFrame:
    """The training set with the column `maturity_weight`, map only."""
    fields = ", ".join(f"`{f.name}` {f.dataType.simpleString()}" for f in training.schema.fields)
    return training.mapInArrow(partial(weighted, maturity), f"{fields}, {MATURITY_WEIGHT} double")


# Workers: Arrow in, Arrow out, no Spark.


def weighted(maturity: Maturity, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The rows with their weights."""
    for batch in batches:
        yield batch.append_column(MATURITY_WEIGHT, pa.array(maturity.weights(batch), pa.float64()))
