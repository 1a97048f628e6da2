"""One pass from scored rows to mergeable sums: ranks, resamples and cuts, computed in Spark (R4.2).

Functions take a *comparison frame* (`evaluation.comparison`), one row per unit and treated level it is compared for:

    level string, treated int (1 = received that level, 0 = control), unit_hash bigint, predicted double,
    weight double, value_0, value_1, ... double (outcomes), cut_0, cut_1, ... string (buckets of segments)

Sums are integers (`stats.moments.FixedPoint`), hence equal to the last bit for any partitioning. Only sums travel to
the driver: their number depends on levels, bins, buckets and resamples, not on rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from uplift_spark.stats.intervals import poisson_weights
from uplift_spark.stats.moments import POWERS, FixedPoint, Moments
from uplift_spark.stats.qini import rank_bins

KEYS = 1 << 20
"""Distinct rank keys per level: scores closer than 2^-20 of the scores' range count as tied."""

_CHUNK = 1 << 14  # rows: 2^14 terms of 2^31 counted up to 8 times add exactly in float64
_SUM_FIELDS = tuple(POWERS)


@dataclass(frozen=True)
class Grid:
    """Order-preserving whole-number keys of scores between a lowest and a highest value, one pair per level."""

    lowest: tuple[float, ...]
    highest: tuple[float, ...]

    def key(self, score: Column, level: Column, levels: tuple[str, ...]) -> Column:
        """Key of a score, bigint in [0, KEYS); the same for every partitioning."""
        ranges = [high - low for low, high in zip(self.lowest, self.highest, strict=True)]
        scale = [(KEYS - 1) / r if r > 0 else 0.0 for r in ranges]
        return F.floor((score - by_level(level, levels, self.lowest)) * by_level(level, levels, scale)).cast("bigint")


def by_level(level: Column, levels: tuple[str, ...], values: Iterable[float]) -> Column:
    """The value belonging to each row's level."""
    chosen = F.lit(None)
    for name, value in zip(levels, values, strict=True):
        chosen = F.when(level == name, F.lit(value)).otherwise(chosen)
    return chosen


@dataclass(frozen=True)
class Histogram:
    """Units, mass (Σ of what ranks count) and Σ of one value per rank key of one level, highest key first."""

    key: np.ndarray
    n: np.ndarray
    mass: np.ndarray
    value: np.ndarray


def histograms(frame: DataFrame, levels: tuple[str, ...], mass: Column, value: Column) -> list[Histogram]:
    """Count `key` per level: one row per key and level reaches the driver, at most KEYS of them per level.

    `mass` and `value` must be whole numbers (bigint), so that their sums are exact.
    """
    counted = frame.groupBy("level", "key").agg(
        F.count("*").alias("n"), F.sum(mass).alias("mass"), F.sum(value).alias("value")
    )
    table = counted.toArrow()
    names = np.array(table["level"].to_pylist(), dtype=object)
    columns = [table[c].to_numpy() for c in ("key", "n", "mass", "value")]
    order = np.argsort(-columns[0], kind="stable")
    return [Histogram(*(c[order][names[order] == level] for c in columns)) for level in levels]


@dataclass(frozen=True)
class Ranking:
    """Rank bins as thresholds on keys: ascending, int64 [levels, bins - 1]; bin 0 holds the highest keys."""

    thresholds: np.ndarray

    @classmethod
    def of(cls, counted: list[Histogram], bins: int) -> Ranking:
        """Bins of equal mass, ties together."""
        return cls(np.stack([_thresholds(h.key, rank_bins(h.mass, bins), bins) for h in counted]))

    @property
    def bins(self) -> int:
        return self.thresholds.shape[1] + 1

    def bin_of(self, level: np.ndarray, key: np.ndarray) -> np.ndarray:
        """Bin of rows by level code and key, int64 [rows]."""
        out = np.empty(len(key), np.int64)
        for code in np.unique(level):
            rows = level == code
            out[rows] = self.bins - 1 - np.searchsorted(self.thresholds[code], key[rows], side="right")
        return out


def _thresholds(key: np.ndarray, bin_of_key: np.ndarray, bins: int) -> np.ndarray:
    """Lowest key that ranks before bin b, for b = bins-1 … 1; KEYS where nothing ranks before it."""
    last = np.searchsorted(bin_of_key, np.arange(1, bins), side="left") - 1
    return np.where(last >= 0, key[np.maximum(last, 0)], KEYS)[::-1].copy()


@dataclass(frozen=True)
class Plan:
    """What to add up: levels, number of outcomes, fixed points (one per outcome, then one for `predicted`)."""

    levels: tuple[str, ...]
    points: tuple[FixedPoint, ...]
    replicates: int
    seed: int

    @property
    def outcomes(self) -> int:
        return len(self.points) - 1

    @property
    def values(self) -> list[str]:
        """Columns of the comparison frame that are added up."""
        return [f"value_{j}" for j in range(self.outcomes)] + ["predicted"]


@dataclass(frozen=True)
class RankSums:
    """Sums per level, arm (0 control, 1 treated) and rank bin.

    moments      Moments [levels, 2, bins, values], values being the outcomes, then `predicted`
    resampled_w  Σ of weights in each resample [replicates, levels, 2, bins]
    resampled_wy Σ of weight·outcome in each resample [replicates, levels, 2, bins, outcomes]
    """

    moments: Moments
    resampled_w: np.ndarray
    resampled_wy: np.ndarray


def rank_sums(frame: DataFrame, ranking: Ranking, plan: Plan) -> RankSums:
    """Plain and bootstrap sums by level, arm and rank bin in one pass over a comparison frame with `key`.

    Each partition adds up its rows under every resample (weights by hash of the unit) and hands on one array per cell;
    partial arrays of a cell meet in one task, so that the driver receives each cell once.
    """
    level = by_level(F.col("level"), plan.levels, range(len(plan.levels))).cast("int").alias("level")
    rows = frame.select(level, "treated", "key", "unit_hash", "weight", *plan.values)
    cells = rows.mapInArrow(partial(add_rows, ranking=ranking, plan=plan), "cell int, sums binary")
    merged = cells.repartition("cell").mapInArrow(merge_cells, "cell int, sums binary").toArrow()
    return _unpacked(merged, ranking.bins, plan)


def add_rows(batches: Iterable[pa.RecordBatch], ranking: Ranking, plan: Plan) -> Iterator[pa.RecordBatch]:
    """Worker: rows of one partition to one array of integer sums per cell that occurs."""
    cells = 2 * len(plan.levels) * ranking.bins
    plain = np.zeros((cells, 1 + len(_SUM_FIELDS) * len(plan.points)), np.int64)
    resampled = np.zeros((cells, plan.replicates, 1 + plan.outcomes), np.int64)
    for batch in batches:
        for start in range(0, batch.num_rows, _CHUNK):
            _add_chunk(batch.slice(start, _CHUNK), ranking, plan, plain, resampled)
    seen = np.flatnonzero(plain[:, 0])
    yield _cell_batch(seen, (np.concatenate([plain[c], resampled[c].ravel()]) for c in seen))


def _add_chunk(batch: pa.RecordBatch, ranking: Ranking, plan: Plan, plain: np.ndarray, resampled: np.ndarray) -> None:
    level, treated, key, hashes, w = (
        batch[c].to_numpy(zero_copy_only=False) for c in ("level", "treated", "key", "unit_hash", "weight")
    )
    cell = (level.astype(np.int64) * 2 + treated) * ranking.bins + ranking.bin_of(level, key)
    order = np.argsort(cell, kind="stable")
    seen, starts = np.unique(cell[order], return_index=True)
    terms = _terms(batch, w, plan)[order]
    plain[seen] += np.add.reduceat(terms, starts, axis=0)
    # Whole numbers in float64 multiply-add exactly below 2^53 (see _CHUNK), at the speed of matrix products.
    counts = poisson_weights(hashes[order], plan.seed, plan.replicates)
    picked = terms[:, _resampled_columns(plan)].astype(np.float64)
    for c, start, stop in zip(seen, starts, [*starts[1:], len(order)], strict=True):
        resampled[c] += (counts[start:stop].T.astype(np.float64) @ picked[start:stop]).astype(np.int64)


def _terms(batch: pa.RecordBatch, w: np.ndarray, plan: Plan) -> np.ndarray:
    """Integer terms of each row: one for n, then the six sums of each value, int64 [rows, 1 + 6·values]."""
    columns = [np.ones(len(w), np.int64)]
    for name, point in zip(plan.values, plan.points, strict=True):
        y = batch[name].to_numpy(zero_copy_only=False)
        columns += [point.integers(field, w, y) for field in _SUM_FIELDS]
    return np.stack(columns, axis=1)


def _resampled_columns(plan: Plan) -> list[int]:
    """Positions of Σw and of each outcome's Σwy among the terms."""
    size = len(_SUM_FIELDS)
    return [1 + _SUM_FIELDS.index("w")] + [1 + j * size + _SUM_FIELDS.index("wy") for j in range(plan.outcomes)]


def merge_cells(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Worker: arrays of the same cell added."""
    totals: dict[int, np.ndarray] = {}
    for batch in batches:
        for cell, sums in zip(batch["cell"].to_pylist(), batch["sums"], strict=True):
            part = np.frombuffer(sums.as_buffer(), dtype="<i8")
            totals[cell] = totals[cell] + part if cell in totals else part
    yield _cell_batch(list(totals), totals.values())


def _cell_batch(cells: Iterable[int], sums: Iterable[np.ndarray]) -> pa.RecordBatch:
    content = pa.array([s.astype("<i8").tobytes() for s in sums], pa.binary())
    return pa.RecordBatch.from_arrays([pa.array(cells, pa.int32()), content], names=["cell", "sums"])


def _unpacked(merged: pa.Table, bins: int, plan: Plan) -> RankSums:
    size = 1 + len(_SUM_FIELDS) * len(plan.points)
    wide = size + plan.replicates * (1 + plan.outcomes)
    sums = np.zeros((2 * len(plan.levels) * bins, wide), np.int64)
    for cell, content in zip(merged["cell"].to_pylist(), merged["sums"].to_pylist(), strict=True):
        sums[cell] = np.frombuffer(content, dtype="<i8")
    shape = (len(plan.levels), 2, bins)
    plain = sums[:, :size].reshape(*shape, size)
    resampled = np.moveaxis(sums[:, size:].reshape(*shape, plan.replicates, 1 + plan.outcomes), 3, 0)
    outcomes = [p.floats("wy", resampled[..., 1 + j]) for j, p in enumerate(plan.points[:-1])]
    return RankSums(
        moments=_moments(plain, plan),
        resampled_w=plan.points[0].floats("w", resampled[..., 0]),
        resampled_wy=np.stack(outcomes, axis=-1),
    )


def _moments(plain: np.ndarray, plan: Plan) -> Moments:
    """Integer sums [..., 1 + 6·values] as Moments [..., values]."""
    count = np.repeat(plain[..., :1], len(plan.points), axis=-1).astype(np.float64)
    fields = {"n": count}
    for i, field in enumerate(_SUM_FIELDS):
        columns = [p.floats(field, plain[..., 1 + j * len(_SUM_FIELDS) + i]) for j, p in enumerate(plan.points)]
        fields[field] = np.stack(columns, axis=-1)
    return Moments(**fields)


@dataclass(frozen=True)
class CutSums:
    """Sums of one cut: its buckets in order and Moments [levels, 2, buckets, values]."""

    buckets: tuple[str, ...]
    moments: Moments


def cut_sums(frame: DataFrame, cuts: int, plan: Plan) -> list[CutSums]:
    """Sums by level, arm and bucket for each of the frame's columns cut_0 … cut_{cuts-1}, in one grouping pass.

    Bucket columns must not be null: name missing values before.
    """
    if not cuts:
        return []
    names = [f"cut_{c}" for c in range(cuts)]
    grouped = frame.groupingSets([["level", "treated", name] for name in names], "level", "treated", *names)
    table = grouped.agg(F.count("*").alias("n"), *_sql_sums(plan)).toArrow()
    return [_one_cut(table, name, plan) for name in names]


def _sql_sums(plan: Plan) -> list[Column]:
    return [
        F.sum(sql_integers(point, field, F.col("weight"), F.col(value))).alias(f"{value}_{field}")
        for value, point in zip(plan.values, plan.points, strict=True)
        for field in _SUM_FIELDS
    ]


def sql_integers(point: FixedPoint, field: str, w: Column, y: Column) -> Column:
    """`FixedPoint.integers` as a SQL expression: the same bits."""
    a, b = POWERS[field]
    term = w if a == 1 else w * w
    for _ in range(b):
        term = term * y
    return F.rint(term * F.lit(2.0 ** point.shifts[field])).cast("bigint")


def _one_cut(table: pa.Table, name: str, plan: Plan) -> CutSums:
    table = table.filter(table[name].is_valid())
    buckets = tuple(sorted(set(table[name].to_pylist())))
    columns = ["n"] + [f"{value}_{field}" for value in plan.values for field in _SUM_FIELDS]
    sums = np.zeros((len(plan.levels), 2, len(buckets), len(columns)), np.int64)
    content = np.stack([table[c].to_numpy() for c in columns], axis=1)
    keys = zip(table["level"].to_pylist(), table["treated"].to_pylist(), table[name].to_pylist(), strict=True)
    for row, (level, treated, bucket) in enumerate(keys):
        sums[plan.levels.index(level), treated, buckets.index(bucket)] = content[row]
    return CutSums(buckets, _moments(sums, plan))
