"""Fitting the learners a forest is held against on a Spark frame, and their predictions side by side (R4.2)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from uplift_spark.causal.binning import FeatureBins, apply_bins
from uplift_spark.causal.learners import Effects, TLearner, categorical_of, fit_arm
from uplift_spark.flow.training import packed_bins, unpacked_bins
from uplift_spark.stats.offpolicy import doubly_robust
from uplift_spark.vocabulary import DataError, Levels, Roles

ARM_ROWS = 500_000
"""Rows of an arm a T-learner is fitted on at most, chosen by hash: the driver holds them, a byte a feature."""

EXPECTED = "expected"
_DRAWS = 1 << 30


def pair_of(frame: DataFrame, roles: Roles, pair: tuple[str, str]) -> DataFrame:
    """Rows of two levels alone, or every unit's scores of these."""
    if roles.scores:
        return frame.withColumn(roles.scores, F.map_filter(roles.scores, lambda level, _: level.isin(*pair)))
    return frame.where(F.col(f"`{roles.treatment}`").cast("string").isin(*pair))


def fit_t_learner(frame: DataFrame, roles: Roles, levels: Levels, bins: tuple[FeatureBins, ...], seed: int) -> TLearner:
    """A T-learner of every level on the features' bins: a pass that counts, one for the rows, fitted in the driver.

    Raises DataError when a level has no row.
    """
    arm, outcome = F.col(f"`{roles.treatment}`").cast("string"), F.col(f"`{roles.outcome}`").cast("double")
    counted = frame.groupBy(arm.alias("arm")).agg(F.count("*"), F.min(outcome), F.max(outcome)).collect()
    found = {row[0]: row[1:] for row in counted}
    if missing := [level for level in levels.names if level not in found]:
        raise DataError(f"no training row received {', '.join(missing)}: train on a table that has every level")
    chosen = thinned(frame, roles, {level: found[level][0] for level in levels.names}, seed, ARM_ROWS).select(
        F.array_position(F.lit(list(levels.names)), arm).cast("int").alias("place"),
        F.xxhash64(f"`{roles.unit}`").alias("unit_hash"),
        outcome.alias("outcome"),
        *(f"`{name}`" for name in roles.features),
    )
    binned = chosen.mapInArrow(partial(_binned, bins), "place int, unit_hash bigint, outcome double, bins binary")
    table = binned.toArrow().sort_by("unit_hash")  # the same models for any partitioning
    places, outcomes = (table[name].to_numpy() for name in ("place", "outcome"))
    coded = unpacked_bins(table["bins"], len(bins))
    mine = [places == place + 1 for place in range(len(levels))]
    categorical = categorical_of(bins)
    models = tuple(fit_arm(coded[rows], outcomes[rows], categorical, seed) for rows in mine)
    lowest, highest = (pick(found[level][j] for level in levels.names) for j, pick in ((1, min), (2, max)))
    return TLearner(bins, models, lowest, highest)


def thinned(frame: DataFrame, roles: Roles, counts: Mapping[str, int], seed: int, most: int) -> DataFrame:
    """At most about `most` rows of each arm, chosen by hash of the unit, given how many rows every arm has."""
    arm, keep = F.col(f"`{roles.treatment}`").cast("string"), F.lit(False)
    for level, count in counts.items():
        limit = round(_DRAWS * min(1.0, most / max(count, 1)))
        drawn = F.pmod(F.xxhash64(f"`{roles.unit}`", F.lit(seed)), F.lit(_DRAWS)) < limit
        keep = F.when(arm == level, drawn).otherwise(keep)
    return frame.where(keep)


def effects_column(place: int) -> str:
    """Name of the column with the effects of the learner at that place."""
    return f"effects_{place}"


def predict(frame: DataFrame, unit: str, nuisance: TLearner, learners: Sequence[Effects | None]) -> DataFrame:
    """Unit and, as arrays of doubles, what the T-learner expects under each level (`expected`) and the effects of each
    learner, None being the T-learner itself, under `effects_<its place>`; map only."""
    names = [EXPECTED, *map(effects_column, range(len(learners)))]
    kind = frame.schema[unit].dataType.simpleString()
    columns = ", ".join([f"`{unit}` {kind}", *(f"{name} array<double>" for name in names)])
    needed = [unit, *(one.name for one in nuisance.bins)]
    return frame.select(*(f"`{name}`" for name in needed)).mapInArrow(
        partial(_predict, unit, names, nuisance, learners), columns
    )


def reward_frame(
    frame: DataFrame,
    keep: tuple[str, ...],
    nuisance: TLearner,
    features: Sequence[FeatureBins],
    worth: tuple[float, list[float]],
) -> DataFrame:
    """Doubly robust rewards of every level for every unit, map only: the columns `keep`, `bins` binary (uint8, of
    `features`) and `rewards` array<double> [K].

    frame     the columns to keep, the T-learner's features, `received` int (level's place), `outcome`, `weight` double
    features  some of the T-learner's
    worth     value of one unit of the outcome, and cost of every level [K]
    """
    kept = ", ".join(f"`{name}` {frame.schema[name].dataType.simpleString()}" for name in keep)
    columns = f"{kept}, bins binary, rewards array<double>"
    places = [nuisance.bins.index(one) for one in features]
    return frame.mapInArrow(partial(_reward, keep, nuisance, places, worth), columns)


def _reward(
    keep: tuple[str, ...],
    nuisance: TLearner,
    places: list[int],
    worth: tuple[float, list[float]],
    batches: Iterator[pa.RecordBatch],
) -> Iterator[pa.RecordBatch]:
    value, cost = worth
    for batch in batches:
        outcome, received, weight = (
            batch.column(name).to_numpy(zero_copy_only=False) for name in ("outcome", "received", "weight")
        )
        bins = apply_bins(batch, nuisance.bins)
        rewards = value * doubly_robust(outcome, received, weight, nuisance.expected(bins)) - np.array(cost)
        columns = [*map(batch.column, keep), packed_bins(bins[:, places]), _lists(rewards)]
        yield pa.RecordBatch.from_arrays(columns, [*keep, "bins", "rewards"])


def _binned(bins: tuple[FeatureBins, ...], batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        kept = {name: batch.column(name) for name in ("place", "unit_hash", "outcome")}
        yield pa.record_batch({**kept, "bins": packed_bins(apply_bins(batch, bins))})


def _predict(
    unit: str,
    names: list[str],
    nuisance: TLearner,
    learners: Sequence[Effects | None],
    batches: Iterator[pa.RecordBatch],
) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        expected = nuisance.expected(apply_bins(batch, nuisance.bins))
        own = expected[:, 1:] - expected[:, :1]
        arrays = [_lists(expected), *(_lists(own if effects is None else effects(batch)) for effects in learners)]
        yield pa.RecordBatch.from_arrays([batch.column(unit), *arrays], [unit, *names])


def _lists(values: np.ndarray) -> pa.Array:
    n, width = values.shape
    return pa.ListArray.from_arrays(pa.array(np.arange(n + 1, dtype=np.int32) * width), pa.array(values.ravel()))
