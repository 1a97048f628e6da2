"""Plans on Spark: who is a candidate for what, looks at all candidates, and the decision about each (R5.1, R5.2).

A *frame of candidates* has one row per scored unit:

    unit_id string, key bigint (hash of the unit), excluded string (the rule that bars the unit, null for none),
    gain array<double>, cost array<double> (by treated level; NaN gain: not offered), bucket_0, bucket_1, ... string

Workers are module-level functions from Arrow to Arrow; sums are integers, so a plan does not depend on partitions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial, reduce

import numpy as np
import pyarrow as pa
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from uplift_spark.config import Limit, Policy
from uplift_spark.policy.allocation import Allocation
from uplift_spark.policy.problem import NONE, Candidates, Constraint, Look, Measure, Problem, Seen, look_at, values
from uplift_spark.stats.moments import LARGEST
from uplift_spark.vocabulary import TREATMENT, UNIT, ConfigError

KEPT_OUT, TOO_MANY = "kept out at random", "contacted often enough"
CHOSEN, NOT_WORTH = "best within the limits", "not worth it within the limits"

_SEEN = "gain bigint, used binary, undecided bigint, gains binary, costs binary, buckets binary, keys binary"
_PARTS = 4  # tasks that put together what the others saw, before it travels to the driver
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
    """`rows` with `_contacts`: the unit's deliveries in the `contact_days` before the last one known of any unit."""
    went = deliveries.where(F.col("status").isin("sent", "delivered"))
    last = deliveries.agg(F.max("known_at").alias("_last"))
    recent = went.crossJoin(F.broadcast(last)).where(
        F.unix_micros("delivered_at") > F.unix_micros("_last") - F.lit(int(policy.contact_days * 86_400_000_000))
    )
    counts = recent.groupBy(UNIT).agg(F.count_distinct("delivery_id").alias("_contacts"))
    return rows.join(counts, UNIT, "left")


def kept_out(seed: int, share: float) -> Column:
    """Whether a unit belongs to the random share that gets nothing, by hash."""
    draw = F.pmod(F.xxhash64(F.lit(f"keep out {seed}"), F.col(UNIT)), F.lit(_SHARES))
    return draw < F.lit(round(share * _SHARES))


def constraints(
    limits: Sequence[Limit], levels: Sequence[str], segments: Sequence[str], units: Mapping[str, Mapping[str, int]]
) -> tuple[tuple[Constraint, ...], dict[str, dict[str, int]]]:
    """(the limits as constraints, {segment: {bucket: code}}).

    units  {segment: {bucket: candidates that are not excluded}}, and under "" {"": all of them}
    Raises ConfigError for levels, segments and buckets that are not there, and floors above what there is.
    """
    codes = {s: {bucket: code for code, bucket in enumerate(sorted(units[s]))} for s in segments}
    found: list[Constraint] = []
    for limit in limits:
        if limit.level is not None and limit.level not in levels:
            raise ConfigError(f"limit {limit.name!r}: level {limit.level!r} is none of {', '.join(levels)}")
        by_level = np.array([float(limit.level in (None, level)) for level in levels])
        cut = None if limit.segment is None else list(segments).index(limit.segment)
        if limit.gap is not None:
            found += _gaps(limit, by_level, units, codes)
        else:
            found.append(_constraint(limit, by_level, cut, units, codes))
    return tuple(found), codes


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


def coded(rows: DataFrame, codes: Mapping[str, Mapping[str, int]]) -> DataFrame:
    """Candidates with array<int> `buckets` in place of the buckets' names, as workers take them."""
    each = []
    for c, by_bucket in enumerate(codes.values()):
        pairs = [part for bucket, code in by_bucket.items() for part in (F.lit(bucket), F.lit(code))]
        each.append(F.coalesce(F.create_map(*pairs)[F.col(f"bucket_{c}")], F.lit(0)))  # only excluded ones lack it
    return rows.select(UNIT, "key", "excluded", "gain", "cost", F.array(*each).cast("array<int>").alias("buckets"))


def look_of(rows: DataFrame, problem: Problem) -> Look:
    """Looks at a frame of `coded` candidates that are not excluded, each one pass over it."""
    rows = rows.where(F.col("excluded").isNull()).select("key", "gain", "cost", "buckets")

    def look(prices: np.ndarray, widths: np.ndarray, most: int) -> Seen:
        seen = rows.mapInArrow(partial(look_batches, problem, prices, widths, most), _SEEN)
        merged = seen.repartition(_PARTS).mapInArrow(partial(merge_batches, problem, most), _SEEN).toArrow()
        return reduce(Seen.__add__, _unpacked(merged, problem)).smallest(most)

    return look


def decided(rows: DataFrame, levels: Sequence[str], control: str, problem: Problem, plan: Allocation) -> DataFrame:
    """What each of the `coded` candidates gets and why, with its gain and cost; excluded ones get the control."""
    schema = "unit_id string, treatment string, reason string, gain double, cost double, value double"
    worker = partial(decide_batches, tuple(levels), control, problem, plan)
    return rows.mapInArrow(worker, schema)


# Workers: Arrow in, Arrow out, no Spark.

Batches = Iterator[pa.RecordBatch]


def look_batches(problem: Problem, prices: np.ndarray, widths: np.ndarray, most: int, batches: Batches) -> Batches:
    """One row: what a partition's candidates say."""
    seen: Seen | None = None
    for batch in filter(len, batches):
        one = look_at(problem, read_candidates(batch), prices, widths, most)
        seen = one if seen is None else (seen + one).smallest(most)
    if seen is not None:
        yield _packed(seen)


def merge_batches(problem: Problem, most: int, batches: Batches) -> Batches:
    """One row of several partitions'."""
    parts = [one for batch in batches for one in _unpacked(batch, problem)]
    if parts:
        yield _packed(reduce(Seen.__add__, parts).smallest(most))


def decide_batches(
    levels: tuple[str, ...], control: str, problem: Problem, plan: Allocation, batches: Batches
) -> Batches:
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
        value = values(offered, problem.use(units), plan.prices)
        best = np.where(free, np.maximum(value.max(axis=1), 0.0), 0.0)
        columns = [batch.column("unit_id"), names[chosen], reason, gain, cost, best]
        fields = ("unit_id", "treatment", "reason", "gain", "cost", "value")
        yield pa.record_batch({f: pa.array(c) for f, c in zip(fields, columns, strict=True)})


def read_candidates(batch: pa.RecordBatch) -> Candidates:
    """Rows of a frame of `coded` candidates, of which there are some."""
    n = len(batch)
    columns = (batch.column(name).flatten().to_numpy(zero_copy_only=False) for name in ("gain", "cost", "buckets"))
    gain, cost, buckets = (values.reshape(n, len(values) // n) for values in columns)
    key = batch.column("key").to_numpy(zero_copy_only=False).view(np.uint64)
    return Candidates(gain, cost, buckets.astype(np.int64), key)


def _packed(seen: Seen) -> pa.RecordBatch:
    rows = seen.rows
    blobs = {"used": seen.used, "gains": rows.gain, "costs": rows.cost, "buckets": rows.buckets, "keys": rows.key}
    numbers = {"gain": pa.array([seen.gain], pa.int64()), "undecided": pa.array([seen.undecided], pa.int64())}
    packed = {name: pa.array([np.ascontiguousarray(blob).tobytes()], pa.binary()) for name, blob in blobs.items()}
    order = ("gain", "used", "undecided", "gains", "costs", "buckets", "keys")
    return pa.record_batch({name: (numbers | packed)[name] for name in order})


def _unpacked(table: pa.RecordBatch | pa.Table, problem: Problem) -> Iterator[Seen]:
    for row in table.to_pylist():
        keys = np.frombuffer(row["keys"], np.uint64)
        n = len(keys)
        gain, cost = (np.frombuffer(row[name]).reshape(n, problem.levels) for name in ("gains", "costs"))
        buckets = np.frombuffer(row["buckets"], np.int64).reshape(n, -1) if n else np.empty((0, problem.cuts), np.int64)
        used = np.frombuffer(row["used"], np.int64)
        yield Seen(row["gain"], used, row["undecided"], Candidates(gain, cost, buckets, keys))


def sizes(rows: DataFrame) -> tuple[int, float, float, int, int]:
    """(candidates, largest gain in size, largest cost, costs that are no numbers or negative, gains too large)."""
    gain = F.array_max(F.transform("gain", lambda g: F.when(F.isnan(g), 0.0).otherwise(F.abs(g))))
    wrong = F.exists("cost", lambda c: c.isNull() | F.isnan(c) | (c < 0) | (c >= LARGEST))
    free = rows.where(F.col("excluded").isNull())
    found = free.agg(
        F.count("*").alias("n"), F.max(gain).alias("gain"), F.max(F.array_max("cost")).alias("cost"),
        F.count_if(wrong).alias("wrong"), F.count_if(gain >= LARGEST).alias("large"),
    ).collect()[0]  # fmt: skip
    return found["n"], found["gain"] or 0.0, found["cost"] or 0.0, found["wrong"], found["large"]
