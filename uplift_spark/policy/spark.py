"""Plans and policy trees on Spark: candidates, decisions, values of plans, the same tree as in one process.

`candidates` makes the rows to decide about, `spark_scanner` scans them for `allocation.allocate`, `decided` applies the
plan, `observed` values plans on the hold-out, `tree_of` grows a policy tree.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from uplift_spark.config import Limit, Policy
from uplift_spark.errors import ConfigError
from uplift_spark.evaluation.spark import sums_by_key
from uplift_spark.evaluation.sums import keyed
from uplift_spark.forest.binning import FeatureBins
from uplift_spark.policy.allocation import (
    CHOSEN,
    NONE,
    NOT_WORTH,
    Allocation,
    Candidates,
    Constraint,
    Measure,
    PriceScan,
    PriceScanner,
    Problem,
    allocate,
    choose,
    net_gains,
    scan_candidates,
)
from uplift_spark.policy.trees import (
    DEFAULT_GROUPS,
    AnswerPath,
    Overview,
    PolicyTree,
    TreeSearchPlan,
    TreeValue,
    add_pairs,
    best_tree,
    bootstrap_sums,
    difference_point,
    empty_pairs,
    policy_values,
    tree_search_plan,
    value_sums,
)
from uplift_spark.roles import TREATMENT, UNIT
from uplift_spark.spark_versions import held, mapped, mapped_frame
from uplift_spark.stats.intervals import Draws, cluster_effects, resampled_error, resampled_sums
from uplift_spark.stats.moments import (
    FIELDS,
    LARGEST,
    MIN_UNITS,
    POWERS,
    FixedPoint,
    Moments,
    difference,
    normal_quantile,
)

# --------------------------------------------------------------------------------------------------------------------
# Plans: the candidates, scans of all of them, and the decision about each.
# A *frame of candidates* has one row per scored unit:
#
#     unit_id string, key bigint (hash of the unit), excluded string (the rule that bars the unit, null for none),
#     gain array<double>, cost array<double> (by treated level; NaN gain: not offered), bucket_0, bucket_1, ... string
#
# Workers are module-level functions from Arrow to Arrow; sums are integers, so a plan does not depend on partitions.

_SCAN_SCHEMA = "gain bigint, used binary, undecided bigint, gains binary, costs binary, buckets binary, keys binary"
_PARTS = 4  # tasks that merge the sums of the others, before these travel to the driver
_ROUNDING = 1e-9  # 30 % of 10 units are 3
_SHARES = 1_000_000  # the smallest share of units that can be kept out is one in so many


def offers(scores: DataFrame, levels: Sequence[str], column: str) -> DataFrame:
    """One row per unit, `_uplift` being array<double> of the column by level; NaN where a level has no score."""
    each = [F.max(F.when(F.col(TREATMENT) == level, F.col(column))).alias(f"_{k}") for k, level in enumerate(levels)]
    wide = scores.groupBy(UNIT).agg(*each)
    nan = F.lit(float("nan"))
    return wide.select(UNIT, F.array(*(F.coalesce(F.col(f"_{k}"), nan) for k in range(len(levels)))).alias("_uplift"))


def candidates(
    uplifts: DataFrame, training: DataFrame, costs: Sequence[Column], value: float, net: bool, buckets: Sequence[Column]
) -> DataFrame:
    """A frame of candidates without `excluded`, the columns of the training set beside it.

    uplifts  `offers`          costs  of each level, over the training set's columns
    value    of one unit of the outcome; `net`: the cost is taken off the gain
    """
    known = training.select(
        "*",
        F.array(*(cost.cast("double") for cost in costs)).alias("cost"),
        *(bucket.alias(f"bucket_{c}") for c, bucket in enumerate(buckets)),
    )
    rows = known.join(uplifts, UNIT)
    gains = F.zip_with("_uplift", "cost", lambda uplift, cost: uplift * value - (cost if net else F.lit(0.0)))
    return rows.withColumns({"gain": gains, "key": F.xxhash64(UNIT)}).drop("_uplift")


def barred(rows: DataFrame, rules: Mapping[str, Column]) -> DataFrame:
    """`rows` with `excluded`: the first rule that holds for the unit, null for none."""
    if not rules:
        return rows.withColumn("excluded", F.lit(None).cast("string"))
    holds = [F.when(F.coalesce(rule, F.lit(False)), F.lit(name)) for name, rule in rules.items()]
    return rows.withColumn("excluded", F.coalesce(*holds))


def contacted(rows: DataFrame, deliveries: DataFrame, policy: Policy) -> DataFrame:
    """`rows` with `_contacts`, the unit's deliveries in the `contact_days` before the last one known; null for none."""
    went = deliveries.where(F.col("status").isin("sent", "delivered"))
    last = deliveries.agg(F.max("known_at").alias("_last"))
    recent = went.crossJoin(F.broadcast(last)).where(
        F.unix_micros("delivered_at") > F.unix_micros("_last") - F.lit(int(policy.contact_days * 86_400_000_000))
    )
    counts = recent.groupBy(UNIT).agg(F.count_distinct("delivery_id").alias("_contacts"))
    return rows.join(counts, UNIT, "left")


def in_global_holdout(seed: int, share: float) -> Column:
    """Whether a unit belongs to the random share that gets nothing, by hash."""
    draw = F.pmod(F.xxhash64(F.lit(f"keep out {seed}"), F.col(UNIT)), F.lit(_SHARES))
    return draw < F.lit(round(share * _SHARES))


def check_limit_levels(limits: Sequence[Limit], levels: Sequence[str]) -> None:
    """Raise ConfigError when a limit names a level that is not there."""
    for limit in limits:
        if limit.level is not None and limit.level not in levels:
            raise ConfigError(f"limit {limit.name!r}: level {limit.level!r} is none of {', '.join(levels)}")


def constraints(
    limits: Sequence[Limit], levels: Sequence[str], segments: Sequence[str], units: Mapping[str, Mapping[str, int]]
) -> tuple[tuple[Constraint, ...], dict[str, dict[str, int]]]:
    """(the limits as constraints, {segment: {bucket: code}}).

    units  {segment: {bucket: candidates that are not excluded}}, and under "" {"": all of them}
    Raises ConfigError for levels, segments and buckets that are not there, and floors above what there is.
    """
    codes = {s: {bucket: code for code, bucket in enumerate(sorted(units[s]))} for s in segments}
    result: list[Constraint] = []
    check_limit_levels(limits, levels)
    for limit in limits:
        by_level = np.array([float(limit.level in (None, level)) for level in levels])
        cut = None if limit.segment is None else list(segments).index(limit.segment)
        if limit.gap is not None:
            result += _gaps(limit, by_level, units, codes)
        else:
            result.append(_constraint(limit, by_level, cut, units, codes))
    return tuple(result), codes


def _constraint(
    limit: Limit,
    by_level: np.ndarray,
    cut: int | None,
    units: Mapping[str, Mapping[str, int]],
    codes: Mapping[str, Mapping[str, int]],
) -> Constraint:
    segment, bucket = limit.segment or "", limit.bucket or ""
    if bucket and bucket not in units[segment]:
        there = ", ".join(sorted(units[segment])[:12])
        raise ConfigError(f"limit {limit.name!r}: no candidate has {segment} = {bucket!r}; there are {there}")
    there_are = units[segment][bucket]
    bound = limit.spend if limit.spend is not None else limit.units
    if limit.share is not None:
        bound = limit.share * there_are
    assert bound is not None
    if limit.least and limit.spend is None and bound > there_are:
        raise ConfigError(
            f"limit {limit.name!r}: at least {bound:,.6g} of {there_are:,} candidates, {bound - there_are:,.6g} more "
            "than there are: lower it"
        )
    if limit.spend is None:  # units are whole
        bound = math.ceil(bound - _ROUNDING) if limit.least else math.floor(bound + _ROUNDING)
    mine = None if cut is None else np.array([float(b == bucket) for b in sorted(codes[segment])])
    measure: Measure = "spend" if limit.spend is not None else "units"
    return Constraint(limit.name, float(bound), measure, by_level, cut, mine, limit.least)


def _gaps(
    limit: Limit, by_level: np.ndarray, units: Mapping[str, Mapping[str, int]], codes: Mapping[str, Mapping[str, int]]
) -> Iterator[Constraint]:
    """The treated share of each bucket is neither more above nor more below that of all than the gap."""
    assert limit.segment is not None and limit.gap is not None
    counts, total = units[limit.segment], units[""][""]
    buckets, cut = sorted(counts), list(codes).index(limit.segment)
    for code, bucket in enumerate(buckets):
        apart = -np.ones(len(buckets)) / total
        apart[code] += 1 / counts[bucket]
        for sign, word in ((1, "above"), (-1, "below")):
            name = f"{limit.name}: {bucket} {word} all"
            yield Constraint(name, limit.gap, "units", by_level, cut, sign * apart)


def code_buckets(rows: DataFrame, codes: Mapping[str, Mapping[str, int]]) -> DataFrame:
    """Candidates with array<int> `buckets` in place of the buckets' names, as workers take them."""
    each = []
    for c, by_bucket in enumerate(codes.values()):
        pairs = [part for bucket, code in by_bucket.items() for part in (F.lit(bucket), F.lit(code))]
        code = F.element_at(F.create_map(*pairs), F.col(f"bucket_{c}"))
        each.append(F.coalesce(code, F.lit(0)))  # only excluded ones lack it
    return rows.select(UNIT, "key", "excluded", "gain", "cost", F.array(*each).cast("array<int>").alias("buckets"))


def spark_scanner(rows: DataFrame, problem: Problem) -> PriceScanner:
    """Looks at a frame of `code_buckets` candidates that are not excluded, each one pass over it."""
    free = held(rows.where(F.col("excluded").isNull()).select("key", "gain", "cost", "buckets"))

    def scan(prices: np.ndarray, widths: np.ndarray, most: int) -> PriceScan:
        worker = partial(scan_batches, problem, prices, widths, most)
        if isinstance(free, pa.Table):
            merged = mapped(free, worker, _SCAN_SCHEMA)
        else:
            partials = free.mapInArrow(worker, _SCAN_SCHEMA).repartition(_PARTS)
            merged = partials.mapInArrow(partial(merge_batches, problem, most), _SCAN_SCHEMA).toArrow()
        return reduce(PriceScan.__add__, _unpacked(merged, problem)).smallest(most)

    return scan


def decided(rows: DataFrame, levels: Sequence[str], control: str, problem: Problem, plan: Allocation) -> DataFrame:
    """What each candidate of `code_buckets` gets and why, with its gain and cost; excluded ones get the control."""
    schema = "unit_id string, treatment string, reason string, gain double, cost double, value double"
    worker = partial(decide_batches, tuple(levels), control, problem, plan)
    return mapped_frame(rows, worker, schema)


# Workers: Arrow in, Arrow out, no Spark.

_Batches = Iterator[pa.RecordBatch]


def scan_batches(problem: Problem, prices: np.ndarray, widths: np.ndarray, most: int, batches: _Batches) -> _Batches:
    """One row: what a partition's candidates say."""
    result: PriceScan | None = None
    for batch in filter(len, batches):
        one = scan_candidates(problem, read_candidates(batch), prices, widths, most)
        result = one if result is None else (result + one).smallest(most)
    if result is not None:
        yield _packed(result)


def merge_batches(problem: Problem, most: int, batches: _Batches) -> _Batches:
    """One row of several partitions'."""
    parts = [one for batch in batches for one in _unpacked(batch, problem)]
    if parts:
        yield _packed(reduce(PriceScan.__add__, parts).smallest(most))


def decide_batches(
    levels: tuple[str, ...], control: str, problem: Problem, plan: Allocation, batches: _Batches
) -> _Batches:
    """What each candidate gets; see `decided`."""
    names = np.array([*levels, control], object)  # the last is NONE's
    for batch in filter(len, batches):
        units = read_candidates(batch)
        excluded = batch.column("excluded").to_numpy(zero_copy_only=False)
        free = np.array([rule is None for rule in excluded], bool)
        chosen = np.full(len(units), NONE)
        chosen[free] = plan.of(problem, units[free])
        treated, rows = chosen != NONE, np.arange(len(units))
        reason = np.where(free, np.where(treated, CHOSEN, NOT_WORTH), excluded)
        gain, cost = (np.where(treated, a[rows, chosen], 0.0) for a in (units.gain, units.cost))
        offered = np.where(np.isnan(units.gain), -np.inf, units.gain)
        value = net_gains(offered, problem.use(units), plan.prices)
        best = np.where(free, np.maximum(value.max(axis=1), 0.0), 0.0)
        columns = [batch.column("unit_id"), names[chosen], reason, gain, cost, best]
        fields = ("unit_id", "treatment", "reason", "gain", "cost", "value")
        yield pa.record_batch({f: pa.array(c) for f, c in zip(fields, columns, strict=True)})


def read_candidates(batch: pa.RecordBatch) -> Candidates:
    """Rows of a frame of `code_buckets` candidates, of which there are some."""
    n = len(batch)
    columns = (batch.column(name).flatten().to_numpy(zero_copy_only=False) for name in ("gain", "cost", "buckets"))
    gain, cost, buckets = (values.reshape(n, len(values) // n) for values in columns)
    key = batch.column("key").to_numpy(zero_copy_only=False).view(np.uint64)
    return Candidates(gain, cost, buckets.astype(np.int64), key)


def _packed(result: PriceScan) -> pa.RecordBatch:
    rows = result.rows
    blobs = {"used": result.used, "gains": rows.gain, "costs": rows.cost, "buckets": rows.buckets, "keys": rows.key}
    numbers = {"gain": pa.array([result.gain], pa.int64()), "undecided": pa.array([result.undecided], pa.int64())}
    packed = {name: pa.array([np.ascontiguousarray(blob).tobytes()], pa.binary()) for name, blob in blobs.items()}
    order = ("gain", "used", "undecided", "gains", "costs", "buckets", "keys")
    return pa.record_batch({name: (numbers | packed)[name] for name in order})


def _unpacked(table: pa.RecordBatch | pa.Table, problem: Problem) -> Iterator[PriceScan]:
    for row in table.to_pylist():
        keys = np.frombuffer(row["keys"], np.uint64)
        n = len(keys)
        gain, cost = (np.frombuffer(row[name]).reshape(n, problem.levels) for name in ("gains", "costs"))
        buckets = np.frombuffer(row["buckets"], np.int64).reshape(n, -1) if n else np.empty((0, problem.cuts), np.int64)
        used = np.frombuffer(row["used"], np.int64)
        yield PriceScan(row["gain"], used, row["undecided"], Candidates(gain, cost, buckets, keys))


def sizes(rows: DataFrame) -> tuple[int, float, float, int, int]:
    """(candidates, largest gain in size, largest cost, costs that are no numbers or negative, gains too large)."""
    gain = F.array_max(F.transform("gain", lambda g: F.when(F.isnan(g), 0.0).otherwise(F.abs(g))))
    wrong = F.exists("cost", lambda c: c.isNull() | F.isnan(c) | (c < 0) | (c >= LARGEST))
    free = rows.where(F.col("excluded").isNull())
    row = free.agg(
        F.count("*").alias("n"), F.max(gain).alias("gain"), F.max(F.array_max("cost")).alias("cost"),
        F.count_if(wrong).alias("wrong"), F.count_if(gain >= LARGEST).alias("large"),
    ).collect()[0]  # fmt: skip
    return row["n"], row["gain"] or 0.0, row["cost"] or 0.0, row["wrong"], row["large"]


# --------------------------------------------------------------------------------------------------------------------
# Gains of plans: predicted over many budgets, and observed on the hold-out with intervals.

_SUMS = "n bigint, sums binary, resampled binary"


@dataclass(frozen=True, eq=False)
class Point:
    """A plan under one budget, as a sample of candidates predicts it: prices [R], and sums over all candidates."""

    budget: float
    prices: np.ndarray
    gain: float
    spent: float
    treated: float


def curve(problem: Problem, sample: Candidates, share: float, budgets: Sequence[float], budget: int) -> list[Point]:
    """The best plan at each of `budgets`, in place of the bound of limit number `budget`.

    Each unit of the sample stands for `share` candidates. Budgets at which floors cannot be met are left out.
    """
    points = []
    for money in budgets:
        bounds = [money if r == budget else limit.bound for r, limit in enumerate(problem.limits)]
        limits = tuple(replace(limit, bound=b / share) for limit, b in zip(problem.limits, bounds, strict=True))
        small = replace(problem, limits=limits)
        try:
            plan = allocate(small, partial(scan_candidates, small, sample), len(sample))
        except ConfigError:
            continue
        chosen = plan.of(small, sample)
        mine = np.flatnonzero(chosen != NONE)
        spent = sample.cost[mine, chosen[mine]].sum()
        points.append(Point(money, plan.prices, share * plan.gain, share * float(spent), share * len(mine)))
    return points


@dataclass(frozen=True, eq=False)
class Observed:
    """Gain of treating units as chosen, from the hold-out's outcomes, by plan [B]; NaN where too few units tell.

    Sum over levels of the units that get the level times what it brings to the likes of them: the mean of those of the
    hold-out who were assigned the level they are to get, less that of the control's. Where units come in clusters the
    95 % interval is that of resampled clusters, and not known from fewer than MIN_CLUSTERS in an arm.
    """

    gain: np.ndarray
    lower: np.ndarray
    upper: np.ndarray


def observed(rows: DataFrame, wanted: Pass, worth: tuple[float, bool], units: int) -> Observed:
    """What plans bring, in one pass over the hold-out.

    rows   coded candidates of the hold-out with `treated_index` int (-1 for the control), `outcome`,
           `weight` double, and where units come in clusters `unit_hash` bigint of these
    worth  value of one unit of the outcome, and whether costs are taken off
    units  candidates that the hold-out stands for
    """
    return observed_from_sums(mapped(rows, partial(add_observed, wanted), _SUMS), wanted, worth, units)


def observed_from_sums(partials: pa.Table, wanted: Pass, worth: tuple[float, bool], units: int) -> Observed:
    """`observed` from the sums of its partitions."""
    value, net = worth
    problem, point = wanted.problem, wanted.point
    sums, resampled = (
        _total(partials.column(name), like) for name, like in zip(("sums", "resampled"), wanted.empty(), strict=True)
    )
    parts = {f: point.floats(f, sums[..., 2 + j]) for j, f in enumerate(FIELDS)}
    moments = Moments(**parts)
    effect = difference(moments[:, :, 1], moments[:, :, 0])
    scale = units / max(sum(partials.column("n").to_pylist()), 1)
    chosen = scale * sums[:, :, 0, 0]
    # A level that the plan gives nobody brings nothing; one that it gives to few is not known.
    cost = problem.largest_cost * np.ldexp(scale * sums[:, :, 0, 1], -_COST_BITS) if net else 0.0
    each = np.where(chosen > 0, chosen * value * effect.estimate, 0.0) - cost
    error = np.sqrt(np.where(chosen > 0, (chosen * value * effect.error) ** 2, 0.0).sum(axis=1))
    if wanted.draws:
        error = abs(value) * _cluster_error(moments, resampled, point, chosen)
    gain, half = each.sum(axis=1), normal_quantile(0.95) * error
    return Observed(gain, gain - half, gain + half)


def _total(parts: pa.ChunkedArray, like: np.ndarray) -> np.ndarray:
    total = np.zeros(like.size, np.int64)
    for part in parts:
        total += np.frombuffer(part.as_buffer(), np.int64)
    return total.reshape(like.shape)


def _cluster_error(moments: Moments, resampled: np.ndarray, point: FixedPoint, chosen: np.ndarray) -> np.ndarray:
    """Standard error [B] of Σ chosen · effect over levels, whose units may share clusters; from Moments [B, K, 2],
    resampled sums [B, K, 2, R, (w, wy)] and chosen [B, K]."""
    w, wy = (np.moveaxis(point.floats(f, resampled[..., j]), (3, 0), (0, 3)) for j, f in enumerate(("w", "wy")))
    cells = Moments(*(np.moveaxis(getattr(moments, f), 0, 2)[..., None] for f in FIELDS))
    effects = cluster_effects(cells, w, wy[..., None])  # levels, then plans in place of buckets
    treats = chosen.T > 0
    each = np.where(treats, chosen.T * effects.resampled[..., 0], 0.0)
    known = (np.isfinite(effects.difference.error[..., 0]) | ~treats).all(axis=0)
    return np.where(known, np.where(treats.any(axis=0), resampled_error(each.sum(axis=1)), 0.0), np.nan)


_COST_BITS = 31
_BOOTSTRAP_FIELDS = [FIELDS.index("w"), FIELDS.index("wy")]


@dataclass(frozen=True, eq=False)
class Pass:
    """What to add up of the hold-out.

    plans  prices [B, R] of every plan
    point  how weights and outcomes are kept as integers
    draws  of clusters, where units come in some
    """

    problem: Problem
    plans: np.ndarray
    point: FixedPoint
    draws: Draws | None = None

    def empty(self) -> tuple[np.ndarray, np.ndarray]:
        """Sums of no units, int64: [B, K, arm, 2 + 7] of units chosen, their cost, and FIELDS; and [B, K, arm, R, 2] of
        w and wy under every resample."""
        cells = (len(self.plans), self.problem.levels, 2)
        replicates = self.draws.replicates if self.draws else 0
        return np.zeros((*cells, 2 + len(FIELDS)), np.int64), np.zeros((*cells, replicates, 2), np.int64)


def add_observed(wanted: Pass, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Worker: how many rows a partition has, and the sums of `Pass.empty`."""
    n, problem, point = 0, wanted.problem, wanted.point
    sums, resampled = wanted.empty()
    for batch in filter(len, batches):
        units = read_candidates(batch)
        n += len(units)
        treated_index, y, w = (
            batch.column(name).to_numpy(zero_copy_only=False) for name in ("treated_index", "outcome", "weight")
        )
        hashes = (
            batch.column("unit_hash").to_numpy(zero_copy_only=False) if wanted.draws else np.zeros(len(y), np.int64)
        )
        terms = np.column_stack([np.ones(len(y), np.int64), *(point.integers(f, w, y) for f in POWERS)])
        for b, prices in enumerate(wanted.plans):
            chosen = choose(problem, units, prices)
            for k in range(problem.levels):
                mine = chosen == k
                cost = units.cost[mine, k] / (problem.largest_cost or 1.0)
                sums[b, k, 0, 0] += mine.sum()
                sums[b, k, 0, 1] += np.rint(np.ldexp(cost, _COST_BITS)).astype(np.int64).sum()
                for arm, level in enumerate((NONE, k)):
                    matched = np.flatnonzero(mine & (treated_index == level))
                    sums[b, k, arm, 2:] += terms[matched].sum(axis=0)
                    if wanted.draws:
                        resampled[b, k, arm] += resampled_sums(
                            hashes[matched], terms[matched][:, _BOOTSTRAP_FIELDS], wanted.draws
                        )
    arrays = {"sums": sums, "resampled": resampled}
    packed = {name: pa.array([array.tobytes()], pa.binary()) for name, array in arrays.items()}
    yield pa.record_batch({"n": pa.array([n], pa.int64()), **packed})


# --------------------------------------------------------------------------------------------------------------------
# Policy trees: the same bytes as in one process, whatever the partitions.
# A *frame of rewards* has one row per unit: `bins` binary (uint8 [p]) and `rewards` array<double> [K], see
# `policy.trees`.

_OVERVIEW = "counts binary, largest double, wrong bigint"
_VALUES = "sums binary, bootstrap binary"


def tree_of(
    frame: DataFrame,
    features: Sequence[FeatureBins],
    levels: Sequence[str],
    depth: int = 2,
    min_units: int = MIN_UNITS,
    groups: int = DEFAULT_GROUPS,
) -> PolicyTree:
    """`best_tree` of a frame of rewards: two passes, four at depth 3. Levels name the rewards, the control first.

    Raises DataError and ConfigError as `tree_search_plan` and `best_tree`.
    """
    rows = held(frame.select("bins", "rewards"))
    plan = tree_search_plan(_overview_of(rows, len(features), len(levels)), features, levels, groups)
    return best_tree(partial(_pair_sums, rows, plan), plan, depth, min_units)


def values_of(frame: DataFrame, tree: PolicyTree, draws: Draws | None = None) -> list[TreeValue]:
    """`policy_values` of a tree for a frame of rewards of units that had no part in growing it: two passes.

    draws  of clusters, where units come in some; the frame then has `unit_hash` bigint, of the unit's cluster
    """
    rows = held(frame.select("bins", "rewards", *(["unit_hash"] if draws else [])))
    point = difference_point(_overview_of(rows, len(tree.features), len(tree.levels)).checked())
    partials = mapped(rows, partial(value_batches, tree, point, draws), _VALUES)
    sums, bootstrap = (
        np.sum([np.frombuffer(part.as_buffer(), np.int64) for part in partials.column(name)], axis=0)
        for name in ("sums", "bootstrap")
    )
    levels = len(tree.levels)
    return policy_values(tree, sums.reshape(levels, -1), point, bootstrap.reshape(-1, 1 + levels) if draws else None)


def _overview_of(rows: DataFrame | pa.Table, p: int, k: int) -> Overview:
    partials = mapped(rows, partial(overview_batches, p, k), _OVERVIEW).to_pylist()
    each = (Overview(np.frombuffer(r["counts"], np.int64).reshape(p, 256), r["largest"], r["wrong"]) for r in partials)
    return reduce(Overview.__add__, each, Overview.empty(p))


def _pair_sums(rows: DataFrame | pa.Table, plan: TreeSearchPlan, path: AnswerPath) -> np.ndarray:
    total = empty_pairs(plan)
    for first, part in sums_by_key(rows, partial(pair_batches, plan, path)).items():
        total[first] = part.reshape(total[first].shape)
    return total


# Workers: Arrow in, Arrow out, no Spark.


def read_units(batch: pa.RecordBatch, p: int, k: int) -> tuple[np.ndarray, np.ndarray, int]:
    """(bins uint8 [n, p], rewards float64 [n, k]) of a frame of rewards, null as NaN, and rows of another length."""
    packed, lists = pc.cast(batch.column("bins"), pa.binary()), batch.column("rewards")
    lengths = (pc.binary_length(packed), p), (pc.list_value_length(lists), k)
    good = pc.and_(*(pc.fill_null(pc.equal(length, wanted), False) for length, wanted in lengths))
    packed, lists = packed.filter(good), lists.filter(good)
    bins = np.frombuffer(b"".join(packed.to_pylist()), np.uint8).reshape(-1, p)
    rewards = lists.flatten().to_numpy(zero_copy_only=False).astype(np.float64).reshape(-1, k)
    return bins, rewards, len(batch) - len(packed)


def overview_batches(p: int, k: int, batches: _Batches) -> _Batches:
    """One row: the overview of a partition."""
    total = Overview.empty(p)
    for batch in batches:
        bins, rewards, wrong = read_units(batch, p, k)
        total += Overview.of(bins, rewards) + replace(Overview.empty(p), wrong=wrong)
    yield pa.record_batch(
        {
            "counts": pa.array([total.counts.tobytes()], pa.binary()),
            "largest": pa.array([total.largest], pa.float64()),
            "wrong": pa.array([total.wrong], pa.int64()),
        }
    )


def pair_batches(plan: TreeSearchPlan, path: AnswerPath, batches: _Batches) -> _Batches:
    """Pair sums of a partition's units on a path, by the pair's first group."""
    sums = empty_pairs(plan)
    for batch in batches:
        bins, rewards, _ = read_units(batch, len(plan.features), len(plan.levels))
        add_pairs(sums, plan, bins, rewards, path)
    yield keyed({int(first): sums[first] for first in np.flatnonzero(sums[..., 0].any(axis=1))})


def value_batches(tree: PolicyTree, point: FixedPoint, draws: Draws | None, batches: _Batches) -> _Batches:
    """Sums of the tree's value, one row per batch, of units that were looked at before: none of them is wrong."""
    for batch in batches:
        bins, rewards, _ = read_units(batch, len(tree.features), len(tree.levels))
        sums = {"sums": value_sums(tree, bins, rewards, point), "bootstrap": np.zeros(0, np.int64)}
        if draws:
            hashes = batch.column("unit_hash").to_numpy(zero_copy_only=False)
            sums["bootstrap"] = bootstrap_sums(tree, bins, rewards, point, (hashes, draws))
        yield pa.record_batch({name: pa.array([array.tobytes()], pa.binary()) for name, array in sums.items()})
