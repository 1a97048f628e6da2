"""Meta-learners and nuisances fitted on Spark frames, and predictions of several models side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from uplift_spark.errors import DataError
from uplift_spark.forest.binning import FeatureBins, apply_bins
from uplift_spark.forest.effects import Z95
from uplift_spark.forest.encode import check_columns, encode, encode_numbers, encode_treatment, keys_of, make_levels
from uplift_spark.forest.forest import Forest, Model
from uplift_spark.forest.instrument import Instrumental
from uplift_spark.forest.spark import (
    check_ids,
    check_spelling,
    check_units,
    estimate_frame,
    explain,
    fit_frame,
    fit_instrumental_frame,
    level_column,
    packed_bins,
    planning_sample,
    refreshed_frame,
    score,
    summary_of,
    unpacked_bins,
)
from uplift_spark.forest.training import Params
from uplift_spark.learners.estimator_files import restored, stored
from uplift_spark.learners.metalearners import (
    Learned,
    LearnerParams,
    LearnerRows,
    LearnerSpec,
    fit_learned,
    fit_of,
    fit_replicate,
    halves_of_keys,
    learned,
    learner_spec,
    parts_of,
    rows_of,
    sample_overlap,
    trial_roles,
)
from uplift_spark.learners.nuisances import (
    Coding,
    Effects,
    NuisanceModels,
    NuisanceSpec,
    OutcomeModel,
    Sample,
    categorical_of,
    check_arms,
    code_rows,
    coding_of,
    crossfit_folds,
    features_of,
    fit_arm,
    fit_nuisances,
    level_codes_of,
    packed_rows,
    placebo,
    placebo_outcome,
    unpacked_rows,
)
from uplift_spark.roles import LEFT, PROPENSITY, TREATMENT, Levels, Roles
from uplift_spark.runtime import ProgressCallback
from uplift_spark.spark_versions import few_rows, held, local_frame, map_groups, mapped, mapped_frame, quoted
from uplift_spark.stats.offpolicy import doubly_robust

# --------------------------------------------------------------------------------------------------------------------
# Meta-learners and nuisances fitted on Spark: a bounded sample of rows, a task for every model, no row in two places.
# The driver holds the sample, as a table of numbers; each replicate, or fold, is a group of one shuffle of it.

_CODED = "unit_hash bigint, key bigint, level_code int, outcome double, weight double, features binary"
_ROWS_PER_BATCH = 100_000

Fit: TypeAlias = Callable[[int, np.ndarray, np.ndarray], Any]  # of a part's number, its keys and numbers


def sampled_rows(train: DataFrame, roles: Roles, folds_and_seed: tuple[int, int], rows: int) -> Sample:
    """At most about `rows` training rows of each arm, by hash; `folds_and_seed` are both. Raises as `coding_of`."""
    needed = held(train.select(*(quoted(column) for column in roles.columns)))
    summary = summary_of(needed, roles)
    if not isinstance(needed, pa.Table) and summary.rows > rows:  # the sample may hold one row of a unit alone
        check_units(needed, roles)
    coding = coding_of(
        summary, planning_sample(needed, roles, folds_and_seed[1], summary.rows), roles, folds_and_seed, rows
    )
    return Sample.of(mapped(needed, partial(coded_batches, coding), _CODED), coding)


def fit_learned_frame(
    frame: DataFrame, roles: Roles, params: LearnerParams, progress: ProgressCallback = lambda _: None
) -> Learned:
    """Train on a Spark frame of one row per unit: the same effects as `learners.metalearners.fit_learned`."""
    plain, confounded = trial_roles(roles)
    check_ids(frame, roles.unit, plain.columns)
    if few_rows(frame.sparkSession):
        needed = dict.fromkeys((*plain.columns, *roles.columns))
        return fit_learned(frame.select(*(quoted(column) for column in needed)).toArrow(), roles, params, progress)
    sample = sampled_rows(frame, plain, (params.folds, params.seed), params.rows)
    progress(f"fitting a {params.kind} on {len(sample.level_code):,} of {sample.coding.total:,} rows")
    overlap, compared = sample_overlap(sample, progress)
    rows = rows_of(sample, confounded or overlap is not None).take(compared)
    halves = halves_of_keys(rows, params.seed, params.replicates)
    membership = np.column_stack([np.ones(len(halves), bool), halves])
    numbers = np.column_stack([rows.level_code, rows.outcome, rows.weight, rows.propensity, rows.features])
    fit = partial(_fit_replicate, params.kind, learner_spec(sample), rows.propensity.shape[1])
    fits = list(map(fit_of, fit_parts(frame.sparkSession, rows.key, numbers, membership, fit)))
    return learned(params, roles, sample, fits, overlap)


def fit_parts(spark: SparkSession, key: np.ndarray, numbers: np.ndarray, membership: np.ndarray, fit: Fit) -> list[Any]:
    """What `fit` makes of each part of the rows, a task for every part: key uint64 [n], numbers float64 [n, q], and
    which parts draw a row, bool [n, R] -> R results, of the kinds that `estimator_files.stored` takes."""

    def some(low: int) -> pa.RecordBatch:
        high = min(low + _ROWS_PER_BATCH, len(key))
        columns = {"at": np.arange(low, high), "key": key[low:high].view(np.int64)}
        packed = {
            "numbers": packed_rows(numbers[low:high]),
            "membership": packed_rows(membership[low:high].astype(np.uint8)),
        }
        return pa.record_batch({**columns, **packed})

    table = local_frame(spark, pa.Table.from_batches(map(some, range(0, len(key), _ROWS_PER_BATCH))))
    parts, width = membership.shape[1], numbers.shape[1]
    copies = table.withColumn("part", F.explode(F.sequence(F.lit(0), F.lit(parts - 1))))
    copies = copies.where(F.expr("substring(membership, part + 1, 1) <> X'00'")).drop("membership")
    fits = map_groups(copies, ("part",), fit_group, (fit, width), "part int, fit binary", tasks=parts).toArrow()
    results = dict(zip(fits["part"].to_pylist(), fits["fit"].to_pylist(), strict=True))
    return [restored(results[part]) for part in range(parts)]


# Workers: Arrow in, Arrow out, no Spark.


def coded_batches(coding: Coding, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The sample's rows of one partition."""
    for batch in filter(len, batches):
        yield code_rows(encode(batch, coding.roles), coding)


def fit_group(fit: Fit, width: int, group: pa.Table) -> pa.Table:
    """One part's result, from its rows in the order of the sample."""
    group, part = group.sort_by("at"), group.column("part")[0].as_py()
    numbers = unpacked_rows(group.column("numbers"), width)
    blob = stored(fit(part, group.column("key").to_numpy().view(np.uint64), numbers))
    return pa.table({"part": pa.array([part], pa.int32()), "fit": pa.array([blob.tobytes()], pa.binary())})


def _fit_replicate(
    kind: str, spec: LearnerSpec, levels: int, replicate: int, key: np.ndarray, numbers: np.ndarray
) -> dict[str, Any]:
    level_code, outcome, weight = numbers[:, 0].astype(np.int64), numbers[:, 1], numbers[:, 2]
    rows = LearnerRows(numbers[:, 3 + levels :], level_code, outcome, weight, numbers[:, 3 : 3 + levels], key)
    return parts_of(fit_replicate(kind, spec, rows, replicate))


# --------------------------------------------------------------------------------------------------------------------
# What observational campaigns need before a forest: nuisances of every unit, cross-fitted, and its scores.
# Units fall into folds by hash of the unit or its cluster. Models of a fold's nuisances are fitted by a task of its
# own, on a bounded sample of the other folds' training rows; a map over all units applies them.

OUTCOME_MEAN, PROPENSITIES, SCORES = "outcome_mean", "propensities", "scores"
FOLD, SPLIT, TRIMMED = "fold", "split", "trimmed"
REFUTED = 10_000  # rows that `refutations` fits nuisances on anew, every time


@dataclass(frozen=True)
class Folds:
    """Models of every fold, fitted on the rows of the others.

    lowest  probability of a level below which a unit is trimmed
    logged  whether the probability of the level received is as the campaign logged it
    """

    roles: Roles
    bins: tuple[FeatureBins, ...]
    spec: NuisanceSpec
    models: tuple[NuisanceModels, ...]
    lowest: float
    logged: bool


def fit_folds(spark: SparkSession, sample: Sample, lowest: float, logged: bool, progress: ProgressCallback) -> Folds:
    """Models of every fold, a task for each. Raises DataError when an arm has too few rows outside some fold."""
    fold, spec = crossfit_folds(sample.key, sample.spec), sample.spec
    others = fold[:, None] != np.arange(spec.folds)
    for mine in others.T:
        check_arms(sample.level_code[mine], spec)
    numbers = np.column_stack([sample.level_code, sample.outcome, sample.features])
    progress(f"fitting nuisances of {spec.folds} folds on {len(fold):,} of {sample.coding.total:,} training rows")
    models = fit_parts(spark, sample.key, numbers, others, partial(_fit_fold, spec))
    return Folds(sample.roles, sample.coding.bins, spec, tuple(models), lowest, logged)


def refutations(
    sample: Sample, draws: int, placebo_outcomes: Sequence[str], progress: ProgressCallback
) -> pd.DataFrame:
    """Effects that must be nought, re-estimated from at most REFUTED of the sample's rows: of levels dealt out at
    random, `draws` times, and on features that the treatment came too late to change.

    Columns as gold.sensitivity but for run_id and campaign. Clusters are not dealt out: their units are not alike.
    """
    some = (
        slice(None) if len(sample.level_code) <= REFUTED else np.sort(np.argsort(sample.key, kind="stable")[:REFUTED])
    )
    key, level_code, outcome, features = (
        part[some] for part in (sample.key, sample.level_code, sample.outcome, sample.features)
    )
    checks = []
    if draws and sample.roles.cluster is None:
        progress(f"dealing out treatments at random, {draws} times, among {len(level_code):,} units")
        dealt = placebo(features, level_code, outcome, key, sample.spec, draws)
        checks += [("permuted treatment", f"draw {r + 1}", *dealt.of(r)) for r in range(draws)]
    names = [one.name for one in sample.coding.bins]
    for name in placebo_outcomes:
        progress(f"looking for effects on {name}, which there cannot be")
        at = placebo_outcome(
            features, level_code, key, sample.spec, names.index(name), sample.roles.cluster is not None
        )
        checks.append(("placebo outcome", name, *at.of(0)))
    lines = [
        (level, check, setting, value[k], value[k] - Z95 * error[k], value[k] + Z95 * error[k], p_value[k])
        for check, setting, value, error, p_value in checks
        for k, level in enumerate(sample.spec.levels[1:])
    ]
    return pd.DataFrame(lines, columns=[TREATMENT, "check", "setting", "value", "lower", "upper", "p_value"])


def with_scores(frame: DataFrame, folds: Folds) -> DataFrame:
    """The frame with, map only, `fold` bigint, `outcome_mean` and `propensities` array<double> [K] under every level,
    `scores` map<string,double>, `propensity` of the level received; `split` of units without overlap is `trimmed`."""
    kept = [name for name in frame.columns if name not in (PROPENSITY, SPLIT)]
    head = [f"{quoted(name)} {frame.schema[name].dataType.simpleString()}" for name in kept]
    added = "fold bigint, outcome_mean array<double>, propensities array<double>, scores map<string,double>"
    columns = f"{', '.join(head)}, {added}, {PROPENSITY} double, {SPLIT} string"
    rows = frame.select(*(quoted(n) for n in kept), PROPENSITY, SPLIT)
    return mapped_frame(rows, partial(_scored, folds, kept), columns)


# Workers: Arrow in, Arrow out, no Spark.

_Batches = Iterator[pa.RecordBatch]


def _fit_fold(spec: NuisanceSpec, _: int, __: np.ndarray, numbers: np.ndarray) -> NuisanceModels:
    return fit_nuisances(numbers[:, 2:], numbers[:, 0].astype(np.int64), numbers[:, 1], spec)


def _scored(folds: Folds, kept: list[str], batches: _Batches) -> _Batches:
    roles, levels = folds.roles, folds.spec.levels
    for batch in filter(len, batches):
        fold = crossfit_folds(keys_of(batch, roles)[1], folds.spec)
        features, shape = features_of(batch, folds.bins), (len(batch), len(levels))
        outcome_mean, propensity = np.empty(shape), np.empty(shape)
        for f in np.unique(fold):
            mine, models = fold == f, folds.models[f]
            outcome_mean[mine], propensity[mine] = (
                models.outcome_mean(features[mine]),
                models.propensity(features[mine]),
            )
        level_code = level_codes_of(encode_treatment(batch, roles.treatment), levels)
        numbers = encode_numbers(batch, (roles.outcome, PROPENSITY))
        outcome = numbers[roles.outcome]
        own = np.arange(len(batch)), level_code
        if folds.logged:
            propensity[own] = numbers[PROPENSITY]
        weight = 1.0 / np.maximum(propensity[own], folds.lowest)
        apart = (propensity < folds.lowest).any(axis=1)
        added = {
            FOLD: pa.array(fold),
            OUTCOME_MEAN: _list_array(outcome_mean),
            PROPENSITIES: _list_array(propensity),
            SCORES: _maps(levels, doubly_robust(outcome, level_code, weight, outcome_mean)),
            PROPENSITY: pa.array(propensity[own]),
            SPLIT: pc.if_else(pa.array(apart), TRIMMED, batch.column(SPLIT)),
        }
        yield pa.RecordBatch.from_arrays([*map(batch.column, kept), *added.values()], [*kept, *added])


def _ends(values: np.ndarray) -> pa.Array:
    return pa.array(np.arange(0, values.size + 1, values.shape[1], dtype=np.int32))


def _list_array(values: np.ndarray) -> pa.Array:
    return pa.ListArray.from_arrays(_ends(values), pa.array(values.ravel()))


def _maps(levels: tuple[str, ...], values: np.ndarray) -> pa.Array:
    return pa.MapArray.from_arrays(_ends(values), pa.array(levels * len(values)), pa.array(values.ravel()))


# --------------------------------------------------------------------------------------------------------------------
# What models are valued with on a Spark frame: outcome means, rewards, and the predictions of models side by side.

ARM_ROWS = 500_000
"""Rows of an arm that outcome models are fitted on at most, chosen by hash: the driver holds them, a byte a feature."""

_DRAWS = 1 << 30


def fit_outcome_model(
    frame: DataFrame, roles: Roles, levels: Levels, bins: tuple[FeatureBins, ...], seed: int
) -> OutcomeModel:
    """Outcome models of every level on the features' bins: a pass that counts, one for the rows, fitted in the driver.

    Raises DataError when a level has no row.
    """
    arm, outcome = F.col(quoted(roles.treatment)).cast("string"), F.col(quoted(roles.outcome)).cast("double")
    counted = frame.groupBy(arm.alias("arm")).agg(F.count("*"), F.min(outcome), F.max(outcome)).collect()
    by_level = {row[0]: row[1:] for row in counted}
    if missing := [level for level in levels.names if level not in by_level]:
        raise DataError(f"no training row received {', '.join(missing)}: train on a table that has every level")
    chosen = thin_arms(frame, roles, {level: by_level[level][0] for level in levels.names}, seed, ARM_ROWS).select(
        (F.array_position(F.lit(list(levels.names)), arm).cast("int") - 1).alias("level_code"),
        F.xxhash64(quoted(roles.unit)).alias("unit_hash"),
        outcome.alias("outcome"),
        *(quoted(name) for name in roles.features),
    )
    binned = mapped(chosen, partial(_binned, bins), "level_code int, unit_hash bigint, outcome double, bins binary")
    table = binned.sort_by("unit_hash")  # the same models for any partitioning
    level_codes, outcomes = (table[name].to_numpy() for name in ("level_code", "outcome"))
    coded = unpacked_bins(table["bins"], len(bins))
    mine = [level_codes == code for code in range(len(levels))]
    categorical = categorical_of(bins)
    models = tuple(fit_arm(coded[rows], outcomes[rows], categorical, seed) for rows in mine)
    lowest, highest = (pick(by_level[level][j] for level in levels.names) for j, pick in ((1, min), (2, max)))
    return OutcomeModel(bins, models, lowest, highest)


def thin_arms(frame: DataFrame, roles: Roles, counts: Mapping[str, int], seed: int, most: int) -> DataFrame:
    """At most about `most` rows of each arm, chosen by hash of the unit, given how many rows every arm has."""
    arm, keep = F.col(quoted(roles.treatment)).cast("string"), F.lit(False)
    for level, count in counts.items():
        limit = round(_DRAWS * min(1.0, most / max(count, 1)))
        in_sample = F.pmod(F.xxhash64(quoted(roles.unit), F.lit(seed)), F.lit(_DRAWS)) < limit
        keep = F.when(arm == level, in_sample).otherwise(keep)
    return frame.where(keep)


def effects_column(number: int) -> str:
    """Name of the column with the effects of the learner at that place."""
    return f"effects_{number}"


def predict_frame(frame: DataFrame, unit: str, nuisance: OutcomeModel, learners: Sequence[Effects]) -> DataFrame:
    """Unit and, as arrays of doubles, the outcome mean under each level (`outcome_mean`) and the effects of each
    learner, under `effects_<its number>`; map only."""
    names = [OUTCOME_MEAN, *map(effects_column, range(len(learners)))]
    kind = frame.schema[unit].dataType.simpleString()
    columns = ", ".join([f"{quoted(unit)} {kind}", *(f"{name} array<double>" for name in names)])
    needed = [unit, *(one.name for one in nuisance.bins)]
    rows = frame.select(*(quoted(name) for name in needed))
    return mapped_frame(rows, partial(_predict, unit, names, nuisance, learners), columns)


def reward_frame(
    frame: DataFrame,
    keep: tuple[str, ...],
    nuisance: OutcomeModel,
    features: Sequence[FeatureBins],
    worth: tuple[float, list[float]],
) -> DataFrame:
    """Doubly robust rewards of every level for every unit, map only: the columns `keep`, `bins` binary (uint8, of
    `features`) and `rewards` array<double> [K].

    frame     the columns to keep, the outcome model's features, `level_code` int, `outcome`, `weight` double
    features  some of the outcome model's
    worth     value of one unit of the outcome, and cost of every level [K]
    """
    kept = ", ".join(f"{quoted(name)} {frame.schema[name].dataType.simpleString()}" for name in keep)
    columns = f"{kept}, bins binary, rewards array<double>"
    feature_index = [nuisance.bins.index(one) for one in features]
    return mapped_frame(frame, partial(_reward, keep, nuisance, feature_index, worth), columns)


def _reward(
    keep: tuple[str, ...],
    nuisance: OutcomeModel,
    feature_index: list[int],
    worth: tuple[float, list[float]],
    batches: Iterator[pa.RecordBatch],
) -> Iterator[pa.RecordBatch]:
    value, cost = worth
    for batch in batches:
        outcome, level_code, weight = (
            batch.column(name).to_numpy(zero_copy_only=False) for name in ("outcome", "level_code", "weight")
        )
        bins = apply_bins(batch, nuisance.bins)
        rewards = value * doubly_robust(outcome, level_code, weight, nuisance.outcome_mean(bins)) - np.array(cost)
        columns = [*map(batch.column, keep), packed_bins(bins[:, feature_index]), _list_array(rewards)]
        yield pa.RecordBatch.from_arrays(columns, [*keep, "bins", "rewards"])


def _binned(bins: tuple[FeatureBins, ...], batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        kept = {name: batch.column(name) for name in ("level_code", "unit_hash", "outcome")}
        yield pa.record_batch({**kept, "bins": packed_bins(apply_bins(batch, bins))})


def _predict(
    unit: str,
    names: list[str],
    nuisance: OutcomeModel,
    learners: Sequence[Effects],
    batches: Iterator[pa.RecordBatch],
) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        outcome_mean = nuisance.outcome_mean(apply_bins(batch, nuisance.bins))
        arrays = [_list_array(outcome_mean), *(_list_array(effects(batch)) for effects in learners)]
        yield pa.RecordBatch.from_arrays([batch.column(unit), *arrays], [unit, *names])


# --------------------------------------------------------------------------------------------------------------------
# What estimators do with the rows of a Spark frame.


@dataclass(frozen=True)
class SparkRows:
    """Rows of a Spark frame; see `learners.frames.FrameRows`."""

    frame: DataFrame

    def fit_forest(self, roles: Roles, params: Params, progress: ProgressCallback) -> Forest:
        """See `forest.spark.fit_frame`."""
        return fit_frame(self.frame, roles, params, progress)

    def fit_instrumental(
        self, roles: Roles, delivered: str, params: Params, progress: ProgressCallback
    ) -> Instrumental:
        """See `forest.spark.fit_instrumental_frame`."""
        return fit_instrumental_frame(self.frame, roles, delivered, params, progress)

    def fit_learned(self, roles: Roles, params: LearnerParams, progress: ProgressCallback) -> Learned:
        """See `fit_learned_frame`."""
        return fit_learned_frame(self.frame, roles, params, progress)

    def estimate(self, forest: Forest, progress: ProgressCallback) -> Forest:
        """See `forest.spark.estimate_frame`."""
        return estimate_frame(self.frame, forest, progress)

    def refresh(self, forest: Forest, half_life: float | None, day: str | None, progress: ProgressCallback) -> Forest:
        """See `forest.spark.refreshed_frame`."""
        return refreshed_frame(self.frame, forest, half_life, day, progress)

    def effects(self, model: Model, keep: bool = False) -> DataFrame:
        """See `forest.spark.score`."""
        return score(self.frame, model, keep)

    def shapley(self, forest: Forest) -> DataFrame:
        """See `forest.spark.explain`."""
        return explain(self.frame, forest)

    def levels(self, roles: Roles) -> Levels:
        """See `forest.encode.make_levels`."""
        rows = self._checked(roles.columns)
        levels = make_levels(summary_of(rows, roles), roles)[0]
        check_units(rows, roles)
        return levels

    def pair(self, roles: Roles, level: str) -> SparkRows:
        """See `FrameRows.pair`."""
        names = (roles.control, level)
        if roles.scores:
            kept = F.map_filter(roles.scores, lambda name, _: name.isin(*names))
            return SparkRows(self.frame.withColumn(roles.scores, kept))
        return SparkRows(self.frame.where(level_column(self.frame, roles.treatment).isin(*names)))

    def without_delivery(self, model: Instrumental) -> SparkRows:
        """See `FrameRows.without_delivery`."""
        outcome, delivered = model.roles.outcome, model.delivered
        frame = self.frame
        check_columns(dict.fromkeys(frame.columns, pa.null()), (outcome, delivered), ())
        return SparkRows(frame.withColumn(LEFT, frame[outcome].cast("double") - model.overall * frame[delivered]))

    def in_memory(self, columns: Sequence[str]) -> pa.Table:
        """The columns as Arrow, of all rows. Raises DataError for columns that are missing."""
        return self._checked(columns).toArrow()

    def _checked(self, columns: Sequence[str]) -> DataFrame:
        check_columns(dict.fromkeys(self.frame.columns, pa.null()), tuple(columns), ())
        check_spelling(self.frame, columns)
        return self.frame.select(*(quoted(column) for column in columns))
