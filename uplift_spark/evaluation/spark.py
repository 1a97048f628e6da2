"""Evaluation of Spark frames: a hold-out and its scores to the sums that metrics, curves and lift tables follow from.

`evaluate` sums up a hold-out in Spark; `evaluation.metrics` does it for rows in memory, and has what follows from both.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import NumericType

from uplift_spark.errors import DataError
from uplift_spark.evaluation.drivers import (
    DRIVER_CUT,
    DRIVER_UNITS,
    DRIVER_VALUES,
    MEETS,
    MISSES,
    NEITHER,
    DriverCondition,
    LiftDriver,
    driver_cuts,
    lift_drivers,
)
from uplift_spark.evaluation.metrics import (
    FEW_VALUES,
    MISSING_BUCKET,
    MOST_VALUES,
    SEGMENT_STEPS,
    TRUTH_UNITS,
    Arms,
    Cut,
    Evaluation,
    EvaluationSpec,
    Truth,
    check_holdout_columns,
    check_matched,
    checked_arms,
    evaluate_rows,
    grid_cuts,
    ordered_levels,
    quarter_labels,
    truth_of,
    truth_of_rows,
)
from uplift_spark.evaluation.report import PROFILE_COLUMNS, profile_rows
from uplift_spark.evaluation.sums import (
    KEYED,
    Grid,
    Ranking,
    Sums,
    SumsPlan,
    add_cells,
    added_sums,
    merge_cells,
    merge_keys,
    thresholds,
    unpacked,
)
from uplift_spark.forest.binning import apply_bins
from uplift_spark.forest.forest import Model
from uplift_spark.roles import CROSSING, DOSE, PROPENSITY, TREATMENT, UNIT, Direction, benefit, crossed
from uplift_spark.spark_versions import Worker, few_rows, mapped, quoted
from uplift_spark.stats.moments import LARGEST, FixedPoint

_CELLS = "cut int, cell int, bucket string, sums binary"
_REFUSED = 1.1 * MOST_VALUES  # counts are within a few per cent

# --------------------------------------------------------------------------------------------------------------------
# Sums.


def by_level(level: Column, levels: tuple[str, ...], values: Iterable[float]) -> Column:
    """The value belonging to each row's level."""
    chosen = F.lit(None)
    for name, value in zip(levels, values, strict=True):
        chosen = F.when(level == name, F.lit(value)).otherwise(chosen)
    return chosen


def rank_keys(grid: Grid, score: Column, level: Column, levels: tuple[str, ...]) -> Column:
    """Key of a score on a grid, bigint in [0, keys); the same for every partitioning."""
    lowest, scale = grid.lowest, grid.scales
    return F.floor((score - by_level(level, levels, lowest)) * by_level(level, levels, scale)).cast("bigint")


def all_sums(frame: DataFrame, ranking: Ranking, plan: SumsPlan) -> Sums:
    """Every sum an evaluation needs in one pass over a comparison frame with `key`.

    Each partition adds up its rows under every resample (weights by hash of the unit) and hands on one array per cell;
    partial arrays of a cell meet in one task, so that the driver receives each cell once.
    """
    level = by_level(F.col("level"), plan.levels, range(len(plan.levels))).cast("int").alias("level")
    rows = frame.select(level, "treated", "key", "unit_hash", "weight", *plan.values, *plan.cut_names)
    add = partial(add_cells, ranking=ranking, plan=plan)
    if few_rows(rows.sparkSession):
        merged = mapped(rows, add, _CELLS)  # of one partition
    else:
        cells = rows.mapInArrow(add, _CELLS).repartition("cut", "cell", "bucket")
        merged = cells.mapInArrow(merge_cells, _CELLS).toArrow()
    return unpacked(merged, ranking.bins, plan)


def sums_by_key(rows: DataFrame | pa.Table, worker: Worker) -> dict[int, np.ndarray]:
    """Partial sums (KEYED) that a worker makes of rows added up, each key's in one task: {key: int64, flat}."""
    if isinstance(rows, pa.Table) or few_rows(rows.sparkSession):
        return added_sums([mapped(rows, worker, KEYED)])
    return added_sums([rows.mapInArrow(worker, KEYED).repartition("key").mapInArrow(merge_keys, KEYED).toArrow()])


# --------------------------------------------------------------------------------------------------------------------
# Segments as readable buckets, see `evaluation.metrics`.


def segment_buckets(frame: DataFrame, segments: tuple[str, ...], table: str) -> tuple[Column, ...]:
    """Make a string column of buckets per segment (a feature or a crossing), never null; at most three passes.

    Text and few-valued numbers keep their values; other numbers become `1: <= a`, `2: a to b` (above a, up to b), …
    with distinct quartiles rounded to four digits, so that the label is the rule. DataError when text has too many
    values, a crossing too many buckets, or text of a crossing holds what stands between its buckets.
    """
    if not segments:
        return ()
    parts = {segment: crossed(segment) for segment in segments}
    features = tuple(dict.fromkeys(feature for of_segment in parts.values() for feature in of_segment))
    numeric = {c for c in features if isinstance(frame.schema[c].dataType, NumericType)}
    profile = frame.agg(*[e for c in features for e in _profile(c, c in numeric)]).first()
    assert profile is not None
    counts = {c: profile[f"{c}_distinct"] for c in features}
    for c in features:
        if c not in numeric and counts[c] > _REFUSED:
            raise DataError(f"segment {c!r} of {table} has about {counts[c]} values: at most {MOST_VALUES} make sense")
    many = [c for c in features if c in numeric and counts[c] > FEW_VALUES]
    quartiles = _quartiles(frame, {c: (profile[f"{c}_low"], profile[f"{c}_high"]) for c in many})
    single = {c: _quarters(c, quartiles[c]) if c in quartiles else _as_is(c, c in numeric) for c in features}
    buckets = {s: F.concat_ws(CROSSING, *(single[c] for c in of_segment)) for s, of_segment in parts.items()}
    crossings = {s: of_segment for s, of_segment in parts.items() if len(of_segment) > 1}
    _check_parted({c: profile[f"{c}_clashes"] for cs in crossings.values() for c in cs if c not in numeric}, table)
    most = {c: 1 + (len(quartiles[c]) + 1 if c in quartiles else counts[c]) for c in features}  # with missing values
    large = [s for s, of_segment in crossings.items() if math.prod(most[c] for c in of_segment) > MOST_VALUES]
    _check_large(frame, {s: buckets[s] for s in large}, table)
    return tuple(buckets.values())


def _check_parted(clashes: dict[str, int], table: str) -> None:
    for feature, rows in clashes.items():
        if rows:
            raise DataError(
                f"{rows} rows of {table} have {CROSSING!r} in {feature!r}, which parts the buckets of a crossing: "
                "replace it there, or do not cross this feature"
            )


def _check_large(frame: DataFrame, crossings: dict[str, Column], table: str) -> None:
    """Count the buckets that occur of crossings that could have too many."""
    if not crossings:
        return
    bucket_counts = frame.agg(*[F.approx_count_distinct(b, rsd=0.02).alias(s) for s, b in crossings.items()]).first()
    assert bucket_counts is not None
    for segment in crossings:
        if bucket_counts[segment] > _REFUSED:
            raise DataError(
                f"crossing {segment!r} of {table} has about {bucket_counts[segment]} buckets: "
                f"at most {MOST_VALUES} make "
                "sense, so cross fewer features, or such with fewer values"
            )


def _profile(name: str, numeric: bool) -> list[Column]:
    distinct = F.approx_count_distinct(F.col(name), rsd=0.02).alias(f"{name}_distinct")
    if not numeric:
        return [distinct, F.count_if(F.col(name).cast("string").contains(CROSSING)).alias(f"{name}_clashes")]
    finite = _finite(name)
    return [distinct, F.min(finite).alias(f"{name}_low"), F.max(finite).alias(f"{name}_high")]


def _finite(name: str) -> Column:
    number = F.col(name).cast("double")
    return F.when(~F.isnan(number) & (F.abs(number) < float("inf")), number)


def _quartiles(frame: DataFrame, ranges: dict[str, tuple[float, float]]) -> dict[str, list[float]]:
    """Distinct quartiles per column, rounded to four digits; the same for any partitioning."""
    if not ranges:
        return {}
    steps = {c: (high - low) / SEGMENT_STEPS for c, (low, high) in ranges.items()}
    keys = {c: F.ceil((_finite(c) - F.lit(low)) / F.lit(steps[c])) for c, (low, _) in ranges.items()}
    three = F.array(F.lit(0.25), F.lit(0.5), F.lit(0.75))
    quartiles = frame.agg(*[F.percentile(key, three).alias(c) for c, key in keys.items()]).first()
    assert quartiles is not None
    return {c: grid_cuts(quartiles[c], *limits) for c, limits in ranges.items()}


def _quarters(name: str, cuts: list[float]) -> Column:
    number = _finite(name)
    labels = quarter_labels(cuts)
    column = F.when(number.isNull(), F.lit(MISSING_BUCKET))
    for cut, label in zip(cuts, labels, strict=False):
        column = column.when(number <= F.lit(cut), F.lit(label))
    return column.otherwise(F.lit(labels[-1]))


def _as_is(name: str, numeric: bool) -> Column:
    text = F.col(name).cast("string")
    if numeric:
        number = _finite(name)
        text = F.when(number == F.floor(number), number.cast("bigint").cast("string")).otherwise(number.cast("string"))
    return F.coalesce(text, F.lit(MISSING_BUCKET))


# --------------------------------------------------------------------------------------------------------------------
# Evaluation of scores on a hold-out.


def evaluate(holdout: DataFrame, scores: DataFrame, spec: EvaluationSpec, arms: Arms | None = None) -> Evaluation:
    """Sum up a hold-out under one model's scores; every metric follows from these sums.

    holdout  unit_id, treatment (received), propensity (of the arm received), outcome and segment columns
    scores   unit_id, treatment (level scored), uplift: one row per unit and treated level
    arms     result of `describe_arms` for this hold-out; without it the hold-out is read once more

    Raises DataError when the hold-out is empty or lacks columns or the control arm, or when units lack scores.
    """
    columns = [part for segment in spec.segments for part in crossed(segment)]
    needed = (UNIT, TREATMENT, PROPENSITY, *spec.outcomes, *columns)
    check_holdout_columns(holdout, needed, spec.table)
    if few_rows(holdout.sparkSession):
        wanted = dict.fromkeys([*needed, *([spec.cluster] if spec.cluster in holdout.columns else [])])
        rows, predicted = (
            frame.select(*map(quoted, names)).toArrow().to_pandas()
            for frame, names in ((holdout, wanted), (scores, (UNIT, TREATMENT, "uplift")))
        )
        with suppress(DataError):  # Spark's way says it in the words of jobs
            return evaluate_rows(rows, predicted, spec)
    arms = arms or describe_arms(holdout, spec)
    levels = ordered_levels(arms, spec)
    grid = _score_grid(scores, levels, arms, spec)
    buckets = segment_buckets(holdout, spec.segments, spec.table)
    rows = comparison(holdout, scores, spec, arms, buckets)
    rows = rows.withColumn("key", rank_keys(grid, benefit(F.col("predicted"), spec.direction), F.col("level"), levels))
    largest = (*arms.largest_outcomes, max(map(abs, (*grid.lowest, *grid.highest))))
    points = tuple(FixedPoint.of(arms.largest_weight, y) for y in largest)
    ranking = _ranking(rows, points[0], levels, arms, spec)
    plan = SumsPlan(levels, points, spec.replicates, spec.seed, len(spec.segments), spec.cluster is not None)
    return Evaluation(levels, spec, arms, all_sums(rows, ranking, plan))


def describe_arms(holdout: DataFrame, spec: EvaluationSpec) -> Arms:
    """Counts and ranges per arm in one pass; DataError on an empty hold-out, no control, bad propensity or outcome.

    A propensity that is null throughout was not logged; null in some rows only, it is an error. A cluster must be a
    column, and known of every unit.
    """
    if spec.cluster:
        check_holdout_columns(holdout, (spec.cluster,), spec.table)
    bad_propensity = F.expr(f"not coalesce({PROPENSITY} > 0 and {PROPENSITY} <= 1, false)")
    bad = [_bad_number(F.col(c)) for c in spec.outcomes]
    largest = [F.max(F.abs(F.col(c).cast("double"))).alias(f"largest_{j}") for j, c in enumerate(spec.outcomes)]
    clusters = [F.count_distinct(spec.cluster).alias("clusters")] if spec.cluster else []
    clusters += [F.count_if(F.col(spec.cluster).isNull()).alias("strays")] if spec.cluster else []
    by_arm = holdout.groupBy(F.col(TREATMENT).cast("string").alias("arm")).agg(
        F.count("*").alias("n"),
        F.min(PROPENSITY).alias("low"),
        F.max(PROPENSITY).alias("high"),
        F.count_if(bad_propensity).alias("bad_propensity"),
        F.count(PROPENSITY).alias("logged"),
        *[F.count_if(b).alias(f"bad_{j}") for j, b in enumerate(bad)],
        *largest,
        *clusters,
    )
    # Put in order here: a few rows, for which Spark would run two more jobs.
    table = by_arm.toPandas().sort_values("arm", na_position="first", ignore_index=True)
    return checked_arms(table, spec)


def score_columns(levels: tuple[str, ...], outcome: str, arms: Arms) -> tuple[Column, ...]:
    """Select the columns that doubly robust scores need: `level_code` int (0 is the control),
    `outcome` double, and `weight` double, 1 / probability of the level received."""
    treatment = F.col(TREATMENT).cast("string")
    weight = F.lit(1.0) / F.col(PROPENSITY)
    if not arms.logged:
        weight = by_level(treatment, tuple(arms.units), [arms.max_inverse_propensity[arm] for arm in arms.units])
    level_code = F.array_position(F.lit(list(levels)), treatment).cast("int") - 1
    return level_code.alias("level_code"), F.col(outcome).cast("double").alias("outcome"), weight.alias("weight")


def mean_doses(holdout: DataFrame, levels: Sequence[str]) -> dict[str, float]:
    """Mean dose of the hold-out's units that count as each level, to ten digits; of those that any unit counts as."""
    rows = holdout.groupBy(TREATMENT).agg(F.avg(DOSE).alias("mean")).collect()
    means = {row[TREATMENT]: float(f"{row['mean']:.10g}") for row in rows}
    return {level: means[level] for level in levels if level in means}


def winsorised(holdout: DataFrame, shares: Mapping[str, float], table: str) -> tuple[DataFrame, dict[str, Cut]]:
    """Cut off the largest outcomes of a hold-out: at the size that `shares` of their values do not exceed.

    All arms are cut at one size, found without looking at the arms. What is no finite number stays as it is. Raises
    DataError for an outcome whose values would all be 0.
    """
    if not shares:
        return holdout, {}
    check_holdout_columns(holdout, tuple(shares), table)
    sizes = {name: F.when(~_bad_number(F.col(name)), F.abs(F.col(name).cast("double"))) for name in shares}
    aggregates = [F.percentile(size, F.lit(shares[name])).alias(name) for name, size in sizes.items()]
    cutoffs = holdout.agg(*aggregates).collect()[0].asDict()
    if empty := [name for name, at in cutoffs.items() if at == 0]:
        raise DataError(
            f"{table}: {shares[empty[0]]:g} of the hold-out's values of {empty[0]!r} are 0, so all would be cut off: "
            f"raise lift.winsorise.{empty[0]}, or leave it out"
        )
    above = {name: F.coalesce(sizes[name] > at, F.lit(False)) for name, at in cutoffs.items() if at is not None}
    counts = holdout.agg(*[F.count_if(mask).alias(name) for name, mask in above.items()]).collect()[0]
    kept = {
        name: F.when(mask, F.signum(F.col(name)) * cutoffs[name]).otherwise(F.col(name).cast("double"))
        for name, mask in above.items()
    }
    return holdout.withColumns(kept), {name: Cut(cutoffs[name], counts[name]) for name in above}


def _bad_number(column: Column) -> Column:
    number = column.cast("double")
    return number.isNull() | F.isnan(number) | (F.abs(number) >= LARGEST)


def _score_grid(scores: DataFrame, levels: tuple[str, ...], arms: Arms, spec: EvaluationSpec) -> Grid:
    """Range of the benefit of each level's scores; DataError when a level has none, or scores are not finite."""
    uplift = benefit(F.col("uplift").cast("double"), spec.direction)
    ranges: dict[Any, dict[Any, Any]] = (
        scores.groupBy(F.col(TREATMENT).cast("string").alias("level"))
        .agg(F.min(uplift).alias("low"), F.max(uplift).alias("high"), F.count_if(_bad_number(uplift)).alias("bad"))
        .toPandas()
        .set_index("level")
        .to_dict("index")
    )
    for level in levels:
        if level not in ranges:
            raise DataError(f"the scores have no row for treatment {level!r} of {spec.table}: run the score job again")
        if ranges[level]["bad"]:
            raise DataError(f"{ranges[level]['bad']} scores of treatment {level!r} are missing or not finite")
    low, high = ([float(ranges[level][c]) for level in levels] for c in ("low", "high"))
    return Grid.of(low, high, sum(arms.units.values()))


def comparison(
    holdout: DataFrame, scores: DataFrame, spec: EvaluationSpec, arms: Arms, buckets: tuple[Column, ...] = ()
) -> DataFrame:
    """One row per unit and treated level it is compared for (see `evaluation.sums`): its own, or all for controls."""
    treatment = F.col(TREATMENT).cast("string")
    units = holdout.select(
        F.col(UNIT).cast("string").alias("unit"),
        treatment.alias("arm"),
        resampling_hash(spec).alias("unit_hash"),
        (F.lit(1.0) / F.col(PROPENSITY) if arms.weighted else F.lit(1.0)).alias("weight"),
        *[F.col(c).cast("double").alias(f"value_{j}") for j, c in enumerate(spec.outcomes)],
        *[bucket.alias(f"cut_{j}") for j, bucket in enumerate(buckets)],
    )
    predictions = scores.select(
        F.col(UNIT).cast("string").alias("unit"),
        treatment.alias("level"),
        F.col("uplift").cast("double").alias("predicted"),
    )
    rows = units.join(predictions, "unit").where((F.col("arm") == F.col("level")) | (F.col("arm") == spec.control))
    rows = rows.where(F.col("level").isin([level for level in arms.units if level != spec.control]))
    treated = (F.col("arm") == F.col("level")).cast("int").alias("treated")
    numbers = [c for c in units.columns if c.startswith(("value_", "cut_"))]
    return rows.select("level", treated, "unit_hash", "predicted", "weight", *numbers)


def resampling_hash(spec: EvaluationSpec) -> Column:
    """Hash units, or their clusters, for the resamples: the hash decides how often a unit counts in each."""
    return F.xxhash64(F.col(spec.cluster or UNIT).cast("string"))


def _ranking(rows: DataFrame, point: FixedPoint, levels: tuple[str, ...], arms: Arms, spec: EvaluationSpec) -> Ranking:
    """Rank bins from counts per key, which are whole numbers: the same for any partitioning."""
    mass = F.rint(F.col("weight") * F.lit(2.0 ** point.shifts["w"])).cast("bigint")
    counted = rows.groupBy("level", "key").agg(F.count("*").alias("n"), F.sum(mass).alias("mass")).toPandas()
    parts = []
    for level in levels:
        mine = counted[counted["level"] == level].sort_values("key", ascending=False)
        check_matched(int(mine["n"].sum()), level, arms, spec)
        parts.append(thresholds(mine["key"].to_numpy(), mine["mass"].to_numpy(), spec.bins))
    return Ranking(np.stack(parts))


# --------------------------------------------------------------------------------------------------------------------
# What drives lift, see `evaluation.drivers`.


def drivers_of(
    holdout: DataFrame, model: Model, segments: Sequence[str], direction: Direction = "increase"
) -> tuple[list[LiftDriver], tuple[str, ...]]:
    """Choose what to measure as drivers of lift, from the features of `DRIVER_UNITS` units: no outcome is read.

    Args:
        holdout: Units with the model's features and the segments' columns.
        model: Of one outcome.
        segments: As configured; crossings, and those with many values, are not crossed with drivers.
        direction: Which way the outcome should go.

    Returns:
        The drivers, and the names of cuts for `EvaluationSpec.segments`.
    """
    single = [segment for segment in segments if len(crossed(segment)) == 1]
    columns = dict.fromkeys([*model.roles.features, *single])
    some = holdout.orderBy(F.xxhash64(F.col(UNIT).cast("string")), UNIT).limit(DRIVER_UNITS)
    rows = some.select(*map(quoted, columns)).toArrow()
    drivers = lift_drivers(model, apply_bins(rows, model.bins), direction)
    return drivers, driver_cuts(drivers, [name for name in single if _can_be_crossed(rows.column(name))])


def _can_be_crossed(column: pa.ChunkedArray) -> bool:
    values = column.unique()
    if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
        return True  # at most `FEW_VALUES` or quarters
    return len(values) <= DRIVER_VALUES and not any(CROSSING in (text or "") for text in values.to_pylist())


def with_drivers(holdout: DataFrame, drivers: Sequence[LiftDriver]) -> DataFrame:
    """Add the column of every driver's buckets to a hold-out, as `driver_cuts` names them."""
    texts = {name for name, kind in holdout.dtypes if kind == "string"}
    columns = {
        f"{DRIVER_CUT}{i}": _driver_buckets(one.condition, one.feature in texts) for i, one in enumerate(drivers)
    }
    return holdout.withColumns(columns)


def _driver_buckets(condition: DriverCondition, text: bool) -> Column:
    column = F.col(quoted(condition.feature))
    number = F.lit(None).cast("double") if text else column.cast("double")
    missing = column.isNull() | F.coalesce(F.isnan(number), F.lit(False))
    if condition.kind == "categories":
        fulfilled = column.cast("string").isin(list(condition.categories))
    else:
        fulfilled = missing if condition.kind == "missing" else number <= F.lit(condition.cut)
    sides = (MISSES, MEETS) if condition.negated else (MEETS, MISSES)
    parted = F.when(fulfilled, F.lit(sides[0])).otherwise(F.lit(sides[1]))
    return parted if condition.kind == "missing" else F.when(missing, F.lit(NEITHER)).otherwise(parted)


# --------------------------------------------------------------------------------------------------------------------
# Predictions against the true effects of a simulated campaign.


def against_truth(
    holdout: DataFrame,
    scores: DataFrame,
    truth: DataFrame,
    levels: tuple[str, ...],
    direction: Direction = "increase",
) -> dict[str, Truth]:
    """Compare predictions with true effects, by level; `truth`: unit_id, treatment, effect on the predicted outcome.

    All hold-out units count, whatever they received: the true effect is known for each of them. Levels without a true
    effect are left out.
    """
    predicted, effect = (_long(frame, c) for frame, c in ((scores, "uplift"), (truth, "effect")))
    if few_rows(holdout.sparkSession):
        long = [frame.toArrow().to_pandas() for frame in (predicted, effect)]
        if not any(rows["value"].isna().any() for rows in long):
            units = holdout.select(F.col(UNIT).cast("string").alias("unit")).toArrow().to_pandas()
            return truth_of_rows(units, long[0], long[1], levels, direction)
    ranges = [_ranges(frame, direction) for frame in (predicted, effect)]
    levels = tuple(level for level in levels if all(level in by_level for by_level in ranges))
    if not levels:
        return {}
    units = holdout.select(F.col(UNIT).cast("string").alias("unit"))
    rows = units.join(predicted, "unit").join(effect.withColumnRenamed("value", "effect"), ["unit", "level"])
    rows = rows.where(F.col("level").isin(list(levels))).withColumnRenamed("value", "predicted")
    counted = _counted(rows, levels, ranges, direction)
    return {level: truth_of(counted[counted["level"] == level], direction) for level in levels}


def _long(frame: DataFrame, value: str) -> DataFrame:
    names = (F.col(UNIT).cast("string").alias("unit"), F.col(TREATMENT).cast("string").alias("level"))
    return frame.select(*names, F.col(value).cast("double").alias("value"))


def _ranges(frame: DataFrame, direction: Direction) -> dict[str, tuple[float, float, int]]:
    """Lowest and highest benefit and number of rows per level."""
    value = benefit(F.col("value"), direction)
    rows = frame.groupBy("level").agg(F.min(value), F.max(value), F.count("*")).collect()
    return {row[0]: (row[1], row[2], row[3]) for row in rows}


def _counted(
    rows: DataFrame, levels: tuple[str, ...], ranges: list[dict[str, tuple[float, float, int]]], direction: Direction
) -> pd.DataFrame:
    """Units and Σ of true effects by key of the prediction and by key of the effect, and errors per level: one pass."""
    for name, limits in zip(("predicted", "effect"), ranges, strict=True):
        low, high, units = zip(*(limits[level] for level in levels), strict=True)
        grid = Grid.of(low, high, max(units))
        rows = rows.withColumn(f"by_{name}", rank_keys(grid, benefit(F.col(name), direction), F.col("level"), levels))
    sets = [["level"], ["level", "by_predicted"], ["level", "by_effect"]]
    p, e = F.col("predicted"), F.col("effect")
    products = {"p": p, "e": e, "pp": p * p, "ee": e * e, "pe": p * e}
    return (
        rows.groupingSets(sets, "level", "by_predicted", "by_effect")
        .agg(
            F.count("*").alias("n"),
            F.sum(F.rint(F.col("effect") * F.lit(TRUTH_UNITS)).cast("bigint")).alias("total"),
            F.sqrt(F.avg((p - e) * (p - e))).alias("rmse"),
            *[F.avg(value).alias(name) for name, value in products.items()],
        )
        .toPandas()
    )


def profile_of(
    holdout: DataFrame, scores: DataFrame, level: str, features: Sequence[str], direction: Direction = "increase"
) -> pd.DataFrame:
    """What the first and the last tenth of a level's ranking and all units are like.

    Args:
        holdout: Units with their features.
        scores: unit_id, treatment (level scored) and uplift.
        level: The level whose ranking counts.
        features: Columns to describe: of numbers the mean, of others the share of each value.
        direction: Which way the outcome should go: the first tenth has the largest benefit.

    Returns:
        Rows of PROFILE_COLUMNS; `bucket` is 1, 10 or all; `spread` is the standard deviation over all units.
    """
    mine = scores.where(F.col(TREATMENT) == level).select(UNIT, benefit(F.col("uplift"), direction).alias("_uplift"))
    rows = holdout.select(UNIT, *features).join(mine, UNIT)
    cuts = rows.agg(F.percentile("_uplift", F.array(F.lit(0.1), F.lit(0.9))).alias("cuts")).collect()[0]["cuts"]
    if not cuts or cuts[0] == cuts[1]:
        return pd.DataFrame(columns=list(PROFILE_COLUMNS))
    tenth = F.when(F.col("_uplift") >= cuts[1], "1").when(F.col("_uplift") <= cuts[0], "10").otherwise("rest")
    rows = rows.withColumn("_bucket", tenth)
    numbers = [name for name in features if isinstance(holdout.schema[name].dataType, NumericType)]
    finite = {name: F.when(~F.isnan(F.col(name).cast("double")), F.col(name).cast("double")) for name in numbers}
    sums = [
        one.alias(f"{kind}{i}")
        for i, name in enumerate(numbers)
        for kind, one in (("n", F.count(finite[name])), ("s", F.sum(finite[name])), ("q", F.sum(finite[name] ** 2)))
    ]
    counts = rows.groupBy("_bucket").agg(F.count("*").alias("n"), *sums).toPandas().set_index("_bucket")
    words = [name for name in features if name not in numbers]
    long = None
    if words:
        pairs = F.array(*(F.struct(F.lit(c).alias("f"), F.col(c).cast("string").alias("c")) for c in words))
        long = rows.select("_bucket", F.explode(pairs).alias("p")).groupBy("_bucket", "p.f", "p.c").count().toPandas()
    return profile_rows(counts, numbers, long, level)
