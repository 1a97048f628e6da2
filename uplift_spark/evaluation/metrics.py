"""Uplift curves and metrics on a hold-out, by cut and level, from one pass of sums.

`evaluate` sums up a hold-out, `curve_table` and `metric_table` make tables of the sums, `against_truth` compares with
the true effects of a simulated campaign.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import NumericType

from uplift_spark.errors import DataError
from uplift_spark.evaluation.sums import CutSums, Grid, Ranking, Sums, SumsPlan, all_sums, by_level, thresholds
from uplift_spark.roles import CROSSING, PROPENSITY, TREATMENT, UNIT, crossed
from uplift_spark.stats.curves import Curve, true_curve, uplift_curve
from uplift_spark.stats.intervals import MIN_CLUSTERS, Draws, bootstrap_interval
from uplift_spark.stats.moments import LARGEST, MIN_UNITS, FixedPoint, Moments, difference, ratio
from uplift_spark.stats.tests import bucket_calibration, calibration_slope

# --------------------------------------------------------------------------------------------------------------------
# Segments as readable buckets: each value where there are few values, quarters of the units where there are many
# numbers. A bucket of a crossing joins those of its features: `north x mobile`.

FEW_VALUES = 12
"""Numbers with at most so many distinct values are taken as they are."""

MOST_VALUES = 200
"""A text segment with more values is refused: its cells would be too small to say anything."""

MISSING_BUCKET = "missing"

_REFUSED = 1.1 * MOST_VALUES  # counts are within a few per cent

_STEPS = 1 << 16  # quartiles are exact on this grid between the lowest and the highest value, in bounded memory


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
    steps = {c: (high - low) / _STEPS for c, (low, high) in ranges.items()}
    keys = {c: F.ceil((_finite(c) - F.lit(low)) / F.lit(steps[c])) for c, (low, _) in ranges.items()}
    three = F.array(F.lit(0.25), F.lit(0.5), F.lit(0.75))
    quartiles = frame.agg(*[F.percentile(key, three).alias(c) for c, key in keys.items()]).first()
    assert quartiles is not None
    return {
        c: sorted({_rounded(low + math.ceil(p) * steps[c]) for p in quartiles[c]} - {high})
        for c, (low, high) in ranges.items()
    }


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def _quarters(name: str, cuts: list[float]) -> Column:
    number = _finite(name)
    texts = [f"{cut:.4g}" for cut in cuts]
    column = F.when(number.isNull(), F.lit(MISSING_BUCKET))
    for q, cut in enumerate(cuts):
        text = f"<= {texts[0]}" if q == 0 else f"{texts[q - 1]} to {texts[q]}"
        column = column.when(number <= F.lit(cut), F.lit(f"{q + 1}: {text}"))
    return column.otherwise(F.lit(f"{len(cuts) + 1}: > {texts[-1]}" if cuts else "all"))


def _as_is(name: str, numeric: bool) -> Column:
    text = F.col(name).cast("string")
    if numeric:
        number = _finite(name)
        text = F.when(number == F.floor(number), number.cast("bigint").cast("string")).otherwise(number.cast("string"))
    return F.coalesce(text, F.lit(MISSING_BUCKET))


# --------------------------------------------------------------------------------------------------------------------
# Evaluation of scores on a hold-out, by sums that add.
# Each treated level has its own ranking: units that received the level or the control, by the level's predicted uplift.
# Where the logged propensity varies within an arm, units count by its inverse (Hájek means, and ranks by weight). Where
# it does not vary, or was not logged, every unit counts once.

DECILES = 10
_VARIES = 1e-6  # relative: logged probabilities are rarely written with more digits


@dataclass(frozen=True)
class EvaluationSpec:
    """What to evaluate.

    control     the level every other is compared with
    outcomes    outcome columns; the model predicts the first
    segments    feature columns to cut by, and crossings of them (`roles.crossed`)
    bins        rank bins of the curve, a multiple of 10
    order       treated levels in the order to report them; others follow by name
    table       name of the hold-out's table, for messages
    cluster     column that names what units belong to: intervals take clusters, not units, as independent
    """

    control: str
    outcomes: tuple[str, ...]
    segments: tuple[str, ...] = ()
    bins: int = 100
    replicates: int = 200
    seed: int = 7
    order: tuple[str, ...] = ()
    table: str = "the hold-out"
    cluster: str | None = None

    @property
    def cluster_draws(self) -> Draws | None:
        """Resamples of clusters, where units come in some."""
        return Draws(self.seed, self.replicates) if self.cluster else None


@dataclass(frozen=True)
class Cut:
    """Size at which an outcome's values are cut off, and the number of units with larger ones."""

    at: float
    units: int


@dataclass(frozen=True)
class Arms:
    """The hold-out's units per arm, whether propensities were logged and vary in one, largest weight and outcomes.

    lowest    logged propensity of each arm; empty where none was logged
    clusters  in each arm; empty where units are on their own
    """

    units: dict[str, int]
    logged: bool
    weighted: bool
    largest_weight: float
    largest_outcomes: tuple[float, ...]
    lowest: dict[str, float] = field(default_factory=dict)
    clusters: dict[str, int] = field(default_factory=dict)

    @property
    def max_inverse_propensity(self) -> dict[str, float]:
        """1 / lowest probability of each arm: as logged, else its share of the units."""
        shares = self.lowest or {arm: n / sum(self.units.values()) for arm, n in self.units.items()}
        return {arm: 1 / share for arm, share in shares.items()}


@dataclass(frozen=True)
class Evaluation:
    """Sums of one evaluation and what they were taken over."""

    levels: tuple[str, ...]
    spec: EvaluationSpec
    arms: Arms
    sums: Sums

    @property
    def cuts(self) -> dict[str, CutSums]:
        """Sums by bucket of each segment."""
        return dict(zip(self.spec.segments, self.sums.cuts, strict=True))

    @cached_property
    def curves(self) -> list[Curve]:
        """Curve per outcome, points [levels, bins + 1]."""
        m = self.sums.moments
        return [
            uplift_curve(m.w[:, 1, :, j], m.wy[:, 1, :, j], m.w[:, 0, :, j], m.wy[:, 0, :, j])
            for j in range(len(self.spec.outcomes))
        ]

    @cached_property
    def resampled(self) -> list[Curve]:
        """Curve per outcome under each resample, points [replicates, levels, bins + 1]."""
        w, wy = self.sums.resampled_w, self.sums.resampled_wy
        return [
            uplift_curve(w[:, :, 1], wy[:, :, 1, :, j], w[:, :, 0], wy[:, :, 0, :, j])
            for j in range(len(self.spec.outcomes))
        ]

    @cached_property
    def rates(self) -> frozenset[str]:
        """Outcomes that are 0 or 1 throughout."""
        m = self.sums.moments
        same = (m.wy == m.wyy).reshape(-1, m.n.shape[-1]).all(axis=0)
        return frozenset(outcome for outcome, binary in zip(self.spec.outcomes, same[:-1], strict=True) if binary)

    @cached_property
    def enough(self) -> np.ndarray:
        """Levels with enough units in both arms for any figure, bool [levels]."""
        return (self.sums.moments.n[..., 0].sum(axis=2) >= MIN_UNITS).all(axis=1)

    @property
    def effective_units(self) -> dict[str, float]:
        """Units of each arm that would say as much if all counted alike (Kish): squared sum of weights / of squares."""
        sums = self.sums.moments.sum(axis=2)[..., 0]
        effective = ratio(sums.w**2, sums.ww)
        treated = zip(self.levels, map(float, effective[:, 1]), strict=True)
        return {self.spec.control: float(effective[0, 0]), **dict(treated)}

    @property
    def resampled_deciles(self) -> tuple[np.ndarray, np.ndarray]:
        """Resampled Σw [replicates, levels, 2, 10] and Σw·outcome [replicates, levels, 2, 10, outcomes]."""
        w, wy = self.sums.resampled_w, self.sums.resampled_wy
        return _tenths(w), np.moveaxis(_tenths(np.moveaxis(wy, -1, 0)), 0, -1)

    def deciles(self) -> Moments:
        """Moments by tenth of the ranking, [levels, 2, 10, values]; the first tenth has the highest predictions."""
        m = self.sums.moments
        shape = (*m.n.shape[:2], DECILES, -1, m.n.shape[-1])
        return Moments(*(getattr(m, f).reshape(shape) for f in m.__dataclass_fields__)).sum(axis=3)


def evaluate(holdout: DataFrame, scores: DataFrame, spec: EvaluationSpec, arms: Arms | None = None) -> Evaluation:
    """Sum up a hold-out under one model's scores; every metric follows from these sums.

    holdout  unit_id, treatment (received), propensity (of the arm received), outcome and segment columns
    scores   unit_id, treatment (level scored), uplift: one row per unit and treated level
    arms     result of `describe_arms` for this hold-out; without it the hold-out is read once more

    Raises DataError when the hold-out is empty or lacks columns or the control arm, or when units lack scores.
    """
    columns = [part for segment in spec.segments for part in crossed(segment)]
    _check_columns(holdout, (UNIT, TREATMENT, PROPENSITY, *spec.outcomes, *columns), spec.table)
    arms = arms or describe_arms(holdout, spec)
    levels = _levels(arms, spec)
    grid = _score_grid(scores, levels, arms, spec)
    buckets = segment_buckets(holdout, spec.segments, spec.table)
    rows = comparison(holdout, scores, spec, arms, buckets)
    rows = rows.withColumn("key", grid.key(F.col("predicted"), F.col("level"), levels))
    largest = (*arms.largest_outcomes, max(map(abs, (*grid.lowest, *grid.highest))))
    points = tuple(FixedPoint.of(arms.largest_weight, y) for y in largest)
    ranking = _ranking(rows, points[0], levels, arms, spec)
    plan = SumsPlan(levels, points, spec.replicates, spec.seed, len(spec.segments), spec.cluster is not None)
    return Evaluation(levels, spec, arms, all_sums(rows, ranking, plan))


def _levels(arms: Arms, spec: EvaluationSpec) -> tuple[str, ...]:
    order = {level: position for position, level in enumerate(spec.order)}
    treated = [arm for arm in arms.units if arm != spec.control]
    return tuple(sorted(treated, key=lambda level: (order.get(level, len(order)), level)))


def _check_columns(frame: DataFrame, names: tuple[str, ...], table: str) -> None:
    missing = [name for name in dict.fromkeys(names) if name not in frame.columns]
    if missing:
        raise DataError(f"{table} lacks columns {missing}: run the features job, or correct roles and lift in the conf")


def describe_arms(holdout: DataFrame, spec: EvaluationSpec) -> Arms:
    """Counts and ranges per arm in one pass; DataError on an empty hold-out, no control, bad propensity or outcome.

    A propensity that is null throughout was not logged; null in some rows only, it is an error. A cluster must be a
    column, and known of every unit.
    """
    if spec.cluster:
        _check_columns(holdout, (spec.cluster,), spec.table)
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
    _check_arms(table, spec)
    logged = bool(table["logged"].sum())
    weighted = logged and bool((table["high"] - table["low"] > _VARIES * table["high"]).any())
    return Arms(
        units={arm: int(n) for arm, n in zip(table["arm"], table["n"], strict=True)},
        logged=logged,
        weighted=weighted,
        largest_weight=float(1 / table["low"].min()) if weighted else 1.0,
        largest_outcomes=tuple(float(table[f"largest_{j}"].max()) for j in range(len(spec.outcomes))),
        lowest=dict(zip(table["arm"], map(float, table["low"]), strict=True)) if logged else {},
        clusters=dict(zip(table["arm"], map(int, table["clusters"]), strict=True)) if spec.cluster else {},
    )


def score_columns(levels: tuple[str, ...], outcome: str, arms: Arms) -> tuple[Column, ...]:
    """Select the columns that doubly robust scores need: `level_code` int (0 is the control),
    `outcome` double, and `weight` double, 1 / probability of the level received."""
    treatment = F.col(TREATMENT).cast("string")
    weight = F.lit(1.0) / F.col(PROPENSITY)
    if not arms.logged:
        weight = by_level(treatment, tuple(arms.units), [arms.max_inverse_propensity[arm] for arm in arms.units])
    level_code = F.array_position(F.lit(list(levels)), treatment).cast("int") - 1
    return level_code.alias("level_code"), F.col(outcome).cast("double").alias("outcome"), weight.alias("weight")


def winsorised(holdout: DataFrame, shares: Mapping[str, float], table: str) -> tuple[DataFrame, dict[str, Cut]]:
    """Cut off the largest outcomes of a hold-out: at the size that `shares` of their values do not exceed.

    All arms are cut at one size, found without looking at the arms. What is no finite number stays as it is. Raises
    DataError for an outcome whose values would all be 0.
    """
    if not shares:
        return holdout, {}
    _check_columns(holdout, tuple(shares), table)
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


def _check_arms(table: pd.DataFrame, spec: EvaluationSpec) -> None:
    if table.empty:
        raise DataError(f"{spec.table} has no hold-out rows: run the features job, or raise `holdout`")
    if table["arm"].isna().any():
        raise DataError(f"{spec.table} has a null treatment in {table.loc[table.arm.isna(), 'n'].iloc[0]} rows")
    if spec.control not in set(table["arm"]):
        raise DataError(
            f"{spec.table} has no hold-out unit of the control arm {spec.control!r}: "
            f"its arms are {sorted(table['arm'])}; correct roles.control"
        )
    if len(table) < 2:
        raise DataError(f"{spec.table} has only the arm {spec.control!r} in its hold-out: nothing to compare")
    if table["logged"].sum() and (count := int(table["bad_propensity"].sum())):
        raise DataError(f"{spec.table} has {count} hold-out rows whose propensity is not in (0, 1]: correct the log")
    if spec.cluster and (count := int(table["strays"].sum())):
        raise DataError(
            f"{spec.table} column {spec.cluster!r} is null in {count} hold-out rows: name every unit's cluster"
        )
    if spec.cluster and (few := table[table["clusters"] < MIN_CLUSTERS]["arm"].tolist()):
        raise DataError(
            f"{spec.table} has fewer than {MIN_CLUSTERS} clusters ({spec.cluster!r}) among the hold-out's units of "
            f"{', '.join(few)}: no interval is known from so few; raise `holdout`, or name smaller clusters"
        )
    for j, outcome in enumerate(spec.outcomes):
        if count := int(table[f"bad_{j}"].sum()):
            raise DataError(f"{spec.table} column {outcome!r} is missing or not finite in {count} hold-out rows")


def _score_grid(scores: DataFrame, levels: tuple[str, ...], arms: Arms, spec: EvaluationSpec) -> Grid:
    """Range of each level's scores; DataError when a level has none, or scores are not finite."""
    uplift = F.col("uplift").cast("double")
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
        _check_matched(int(mine["n"].sum()), level, arms, spec)
        parts.append(thresholds(mine["key"].to_numpy(), mine["mass"].to_numpy(), spec.bins))
    return Ranking(np.stack(parts))


def _check_matched(matched: int, level: str, arms: Arms, spec: EvaluationSpec) -> None:
    """Every unit of a level and of the control must have met exactly one score."""
    required = arms.units[level] + arms.units[spec.control]
    if matched != required:
        state = "missing" if matched < required else "duplicate"
        raise DataError(
            f"{abs(required - matched)} of {required} hold-out units of {spec.table} have a {state} score for "
            f"treatment {level!r}: run the score job again on this training set"
        )


def _tenths(per_bin: np.ndarray) -> np.ndarray:
    return per_bin.reshape(*per_bin.shape[:-1], DECILES, -1).sum(axis=-1)


# --------------------------------------------------------------------------------------------------------------------
# Tables of uplift curves and metrics with intervals: pure functions of an evaluation's sums.

METRICS: dict[str, Callable[[Curve], np.ndarray]] = {
    "ate": lambda curve: curve.average_effect,
    "auuc": lambda curve: curve.auuc,
    "qini": lambda curve: curve.qini,
    "autoc": lambda curve: curve.autoc,
    "top_30_percent_uplift": lambda curve: curve.at(np.array([0.3]))[..., 0] / 0.3,
    "top_30_percent_minus_average": lambda curve: curve.at(np.array([0.3]))[..., 0] / 0.3 - curve.average_effect,
}
"""Figures of a curve, each [...] from points [..., bins + 1]; the bootstrap takes the same functions."""


def curve_table(evaluation: Evaluation) -> pd.DataFrame:
    """Make a table of uplift curves: the gain at each share of the population, with a pointwise 95 % bootstrap band.

    The columns are those of gold.uplift_curve without run_id.
    """
    fractions = np.linspace(0, 1, evaluation.spec.bins + 1)
    parts = []
    for outcome, curve, resampled in _by_outcome(evaluation):
        gain = np.where(evaluation.enough[:, None], curve.at(fractions), np.nan)
        lower, upper = bootstrap_interval(gain, resampled.at(fractions))
        lower[:, 0], upper[:, 0] = gain[:, 0], gain[:, 0]
        for k, level in enumerate(evaluation.levels):
            parts.append(pd.DataFrame({
                "outcome": outcome, "treatment": level, "fraction": fractions, "gain": gain[k],
                "gain_lower": lower[k], "gain_upper": upper[k], "random_gain": fractions * gain[k, -1],
            }))  # fmt: skip
    return pd.concat(parts, ignore_index=True)


def metric_table(evaluation: Evaluation) -> pd.DataFrame:
    """Make a table of all metrics with 95 % bootstrap intervals: gold.uplift_metrics without run_id and model_version.

    Those of METRICS, in the outcome's units; for the outcome the model predicts also `calibration_slope` (of observed
    on predicted uplift over deciles; 1 is calibrated), `prediction_bias` (mean prediction minus average effect) and, in
    place of an interval, `calibration_p` and `heterogeneity_p`, the p-values of `stats.tests`.
    """
    rows = []
    for outcome, curve, resampled in _by_outcome(evaluation):
        figures = {name: (f(curve), f(resampled)) for name, f in METRICS.items()}
        if outcome == evaluation.spec.outcomes[0]:
            figures |= _calibration(evaluation, curve, resampled)
        values = {name: np.where(evaluation.enough, value, np.nan) for name, (value, _) in figures.items()}
        bounds = {name: bootstrap_interval(values[name], draws) for name, (_, draws) in figures.items()}
        rows += [
            (outcome, level, name, values[name][k], bounds[name][0][k], bounds[name][1][k])
            for k, level in enumerate(evaluation.levels)
            for name in figures
        ]
    return pd.DataFrame(rows, columns=["outcome", "treatment", "metric", "value", "lower", "upper"])


def _by_outcome(evaluation: Evaluation) -> zip[tuple[str, Curve, Curve]]:
    return zip(evaluation.spec.outcomes, evaluation.curves, evaluation.resampled, strict=True)


def predicted_mean(moments: Moments) -> np.ndarray:
    """Mean prediction over both arms' units, [...] from Moments [..., 2, buckets, values]; `predicted` comes last."""
    both = moments.sum(axis=-3)
    return both.mean[..., -1]


def _calibration(evaluation: Evaluation, curve: Curve, resampled: Curve) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    deciles = evaluation.deciles()
    predicted, mass = predicted_mean(deciles), deciles.w[..., 0].sum(axis=1)
    effects = difference(deciles[:, 1, :, 0], deciles[:, 0, :, 0])
    w, wy = evaluation.resampled_deciles
    means = ratio(wy[..., 0], w)
    observed = effects.estimate
    draws = np.where(np.isfinite(observed), means[:, :, 1] - means[:, :, 0], np.nan)
    tests = bucket_calibration(mass, predicted, effects, draws if evaluation.spec.cluster else None)
    average = predicted_mean(evaluation.sums.moments.sum(axis=2)[:, :, None])[:, 0]
    return {
        "calibration_slope": (
            calibration_slope(mass, predicted, observed),
            calibration_slope(w.sum(axis=2), predicted, draws),
        ),
        "prediction_bias": (average - curve.average_effect, average - resampled.average_effect),
        "calibration_p": (tests.calibration, np.full_like(resampled.average_effect, np.nan)),
        "heterogeneity_p": (tests.heterogeneity, np.full_like(resampled.average_effect, np.nan)),
    }


def with_cuts(metrics: pd.DataFrame, cuts: Mapping[str, Cut]) -> pd.DataFrame:
    """A metric table with what was cut off on record: `winsorised_at`, of every treatment (`any`)."""
    rows = [(outcome, "any", "winsorised_at", cut.at, np.nan, np.nan) for outcome, cut in cuts.items()]
    return pd.concat([metrics, pd.DataFrame(rows, columns=metrics.columns)]) if rows else metrics


# --------------------------------------------------------------------------------------------------------------------
# Predictions against the true effects of a simulated campaign: error, correlation, true Qini and the oracle's.

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
    """Compare predictions with true effects, by level; `truth`: unit_id, treatment, effect on the predicted outcome.

    All hold-out units count, whatever they received: the true effect is known for each of them. Levels without a true
    effect are left out.
    """
    predicted, effect = (_long(frame, c) for frame, c in ((scores, "uplift"), (truth, "effect")))
    ranges = [_ranges(frame) for frame in (predicted, effect)]
    levels = tuple(level for level in levels if all(level in by_level for by_level in ranges))
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
    rows = frame.groupBy("level").agg(F.min("value"), F.max("value"), F.count("*")).collect()
    return {row[0]: (row[1], row[2], row[3]) for row in rows}


def _counted(
    rows: DataFrame, levels: tuple[str, ...], ranges: list[dict[str, tuple[float, float, int]]]
) -> pd.DataFrame:
    """Units and Σ of true effects by key of the prediction and by key of the effect, and errors per level: one pass."""
    for name, limits in zip(("predicted", "effect"), ranges, strict=True):
        low, high, units = zip(*(limits[level] for level in levels), strict=True)
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
