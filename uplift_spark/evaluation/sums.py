"""One pass from scored rows to mergeable sums: ranks, resamples and cuts, by the workers of `evaluation.spark`.

Functions take a *comparison frame* (`evaluation.spark.comparison`), one row per unit and treated level that it is
compared for:

    level string, treated int (1 = received that level, 0 = control), unit_hash bigint (of the unit, or of the cluster
    it belongs to: what resamples draw), predicted double, weight double, value_0, value_1, ... double (outcomes),
    cut_0, cut_1, ... string (buckets of segments, not null)

Sums are integers (`stats.moments.FixedPoint`), hence equal to the last bit for any partitioning. Only sums travel to
the driver: their number depends on levels, bins, buckets and resamples, not on rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from uplift_spark.stats.curves import rank_bins
from uplift_spark.stats.intervals import poisson_weights
from uplift_spark.stats.moments import POWERS, FixedPoint, Moments

_FINE, _COARSE, _MANY_UNITS = 1 << 20, 1 << 16, 1 << 18

_CHUNK = 1 << 14  # rows: 2^14 terms of 2^31 counted up to 8 times add exactly in float64
_SUM_FIELDS = tuple(POWERS)
_RANKS = -1  # `cut` of the rank bins
_Key = tuple[int, int, str]


@dataclass(frozen=True)
class Grid:
    """Order-preserving whole-number keys of scores between a lowest and a highest value, one pair per level.

    Scores closer than a `keys`-th of their range count as tied: a millionth, or a 65,000th where units are so many
    that nobody could tell and one row per key still has to reach the driver.
    """

    lowest: tuple[float, ...]
    highest: tuple[float, ...]
    keys: int

    @classmethod
    def of(cls, lowest: Iterable[float], highest: Iterable[float], units: int) -> Grid:
        """Grid fit for a number of units."""
        return cls(tuple(lowest), tuple(highest), _FINE if units <= _MANY_UNITS else _COARSE)

    @property
    def scales(self) -> tuple[float, ...]:
        """Keys per unit of the score, of each level."""
        ranges = [high - low for low, high in zip(self.lowest, self.highest, strict=True)]
        return tuple((self.keys - 1) / r if r > 0 else 0.0 for r in ranges)

    def keys_of(self, score: np.ndarray, code: int) -> np.ndarray:
        """Keys in [0, keys) of scores [n] of the level with this code, int64 [n]."""
        return np.floor((score - self.lowest[code]) * self.scales[code]).astype(np.int64)


@dataclass(frozen=True)
class Ranking:
    """Rank bins as thresholds on keys: ascending, int64 [levels, bins - 1]; bin 0 holds the highest keys."""

    thresholds: np.ndarray

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


def thresholds(key: np.ndarray, mass: np.ndarray, bins: int) -> np.ndarray:
    """Keys that part ranks into bins of equal mass, ties together, int64 [bins - 1] ascending.

    `key` descending and `mass`, both [keys]: what ranks count of each key.
    """
    bin_of_key = rank_bins(mass, bins)
    # Lowest key that ranks before bin b, for b = 1 ... bins - 1; one above all keys where nothing ranks before it.
    last = np.searchsorted(bin_of_key, np.arange(1, bins), side="left") - 1
    return np.where(last >= 0, key[np.maximum(last, 0)], key[0] + 1)[::-1].copy()


@dataclass(frozen=True)
class SumsPlan:
    """What to add up: levels, fixed points (one per outcome, then one for `predicted`), resamples, number of cuts, and
    whether these are resampled too, as intervals need where units come in clusters."""

    levels: tuple[str, ...]
    points: tuple[FixedPoint, ...]
    replicates: int
    seed: int
    cuts: int = 0
    resampled_cuts: bool = False

    @property
    def outcomes(self) -> int:
        return len(self.points) - 1

    @property
    def values(self) -> list[str]:
        """Columns of the comparison frame that are added up."""
        return [f"value_{j}" for j in range(self.outcomes)] + ["predicted"]

    @property
    def cut_names(self) -> list[str]:
        """Columns of the comparison frame that hold buckets."""
        return [f"cut_{c}" for c in range(self.cuts)]


@dataclass(frozen=True)
class CutSums:
    """Sums of one cut.

    buckets    names in order
    moments    Moments [levels, 2, buckets, values]
    resampled  sums of weights [R, levels, 2, buckets] and of weight·outcome [R, levels, 2, buckets, outcomes] under
               every resample; None without resamples
    """

    buckets: tuple[str, ...]
    moments: Moments
    resampled: tuple[np.ndarray, np.ndarray] | None = None


@dataclass(frozen=True)
class Sums:
    """Sums per level, arm (0 control, 1 treated) and rank bin, and per level, arm and bucket of each cut.

    moments      Moments [levels, 2, bins, values], values being the outcomes, then `predicted`
    resampled_w  Σ of weights in each resample [replicates, levels, 2, bins]
    resampled_wy Σ of weight·outcome in each resample [replicates, levels, 2, bins, outcomes]
    """

    moments: Moments
    resampled_w: np.ndarray
    resampled_wy: np.ndarray
    cuts: tuple[CutSums, ...] = ()


@dataclass
class _Totals:
    """Running sums of one partition: rank bins as arrays, buckets of cuts by (cut, level and arm, bucket)."""

    plain: np.ndarray
    resampled: np.ndarray
    cuts: dict[_Key, np.ndarray] = field(default_factory=dict)

    @classmethod
    def empty(cls, bins: int, plan: SumsPlan) -> _Totals:
        cells, terms = 2 * len(plan.levels) * bins, 1 + len(_SUM_FIELDS) * len(plan.points)
        resampled = np.zeros((cells, plan.replicates, 1 + plan.outcomes), np.int64)
        return cls(np.zeros((cells, terms), np.int64), resampled)

    def packed(self) -> pa.RecordBatch:
        ranks = {
            (_RANKS, int(c), ""): np.concatenate([self.plain[c], self.resampled[c].ravel()])
            for c in np.flatnonzero(self.plain[:, 0])
        }
        return _packed(ranks | self.cuts)


def add_cells(batches: Iterable[pa.RecordBatch], ranking: Ranking, plan: SumsPlan) -> Iterator[pa.RecordBatch]:
    """Worker: rows of one partition to one array of integer sums per cell that occurs."""
    totals = _Totals.empty(ranking.bins, plan)
    for batch in batches:
        for start in range(0, batch.num_rows, _CHUNK):
            _add_chunk(batch.slice(start, _CHUNK), ranking, plan, totals)
    yield totals.packed()


def _add_chunk(batch: pa.RecordBatch, ranking: Ranking, plan: SumsPlan, totals: _Totals) -> None:
    level, treated, key = (_numbers(batch, c) for c in ("level", "treated", "key"))
    arm = level.astype(np.int64) * 2 + treated
    terms = _terms(batch, plan)
    counts = poisson_weights(_numbers(batch, "unit_hash"), plan.seed, plan.replicates)
    cell = arm * ranking.bins + ranking.bin_of(level, key)
    for c, plain, resampled in _by_group(cell, terms, counts, plan):
        totals.plain[c] += plain
        totals.resampled[c] += resampled
    bootstrap = counts if plan.resampled_cuts else counts[:, :0]
    for cut, name in enumerate(plan.cut_names):
        buckets = batch.column(name).dictionary_encode()
        labels = buckets.dictionary.to_pylist()
        for g, plain, resampled in _by_group(arm * len(labels) + buckets.indices.to_numpy(), terms, bootstrap, plan):
            sums, bucket = np.concatenate([plain, resampled.ravel()]), (cut, g // len(labels), labels[g % len(labels)])
            totals.cuts[bucket] = totals.cuts[bucket] + sums if bucket in totals.cuts else sums


def _by_group(
    group: np.ndarray, terms: np.ndarray, counts: np.ndarray, plan: SumsPlan
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Each group's sums of terms, and those of Σw and Σwy under every resample [replicates, 1 + outcomes]."""
    order = np.argsort(group, kind="stable")
    groups, starts = np.unique(group[order], return_index=True)
    terms, counts = terms[order], counts[order]
    plain = np.add.reduceat(terms, starts, axis=0)
    # Whole numbers in float64 multiply-add exactly below 2^53 (see _CHUNK), at the speed of matrix products.
    picked = terms[:, _resampled_columns(plan)].astype(np.float64)
    for i, (start, stop) in enumerate(zip(starts, [*starts[1:], len(order)], strict=True)):
        resampled = (counts[start:stop].T.astype(np.float64) @ picked[start:stop]).astype(np.int64)
        yield int(groups[i]), plain[i], resampled


def _numbers(batch: pa.RecordBatch, name: str) -> np.ndarray:
    return batch.column(name).to_numpy(zero_copy_only=False)


def _terms(batch: pa.RecordBatch, plan: SumsPlan) -> np.ndarray:
    """Integer terms of each row: one for n, then the six sums of each value, int64 [rows, 1 + 6·values]."""
    w = _numbers(batch, "weight")
    columns = [np.ones(len(w), np.int64)]
    for name, point in zip(plan.values, plan.points, strict=True):
        columns += [point.integers(f, w, _numbers(batch, name)) for f in _SUM_FIELDS]
    return np.stack(columns, axis=1)


def _resampled_columns(plan: SumsPlan) -> list[int]:
    """Positions of Σw and of each outcome's Σwy among the terms."""
    size = len(_SUM_FIELDS)
    return [1 + _SUM_FIELDS.index("w")] + [1 + j * size + _SUM_FIELDS.index("wy") for j in range(plan.outcomes)]


def merge_cells(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Worker: arrays of the same cell added."""
    totals: dict[_Key, np.ndarray] = {}
    for batch in batches:
        for key, part in _cells(batch):
            totals[key] = totals[key] + part if key in totals else part
    yield _packed(totals)


def _cells(table: pa.RecordBatch | pa.Table) -> Iterator[tuple[_Key, np.ndarray]]:
    keys = zip(*(table[c].to_pylist() for c in ("cut", "cell", "bucket")), strict=True)
    for key, sums in zip(keys, table["sums"], strict=True):
        yield key, np.frombuffer(sums.as_buffer(), dtype="<i8")


def _packed(totals: dict[_Key, np.ndarray]) -> pa.RecordBatch:
    cut, cell, bucket = zip(*totals, strict=True) if totals else ((), (), ())
    columns = [pa.array(cut, pa.int32()), pa.array(cell, pa.int32()), pa.array(bucket, pa.string())]
    columns.append(pa.array([sums.astype("<i8").tobytes() for sums in totals.values()], pa.binary()))
    return pa.RecordBatch.from_arrays(columns, names=["cut", "cell", "bucket", "sums"])


KEYED = "key int, sums binary"


def keyed(sums: Mapping[int, np.ndarray]) -> pa.RecordBatch:
    """Whole-number sums by key, in the columns KEYED."""
    content = [np.ascontiguousarray(part).astype("<i8").tobytes() for part in sums.values()]
    return pa.record_batch({"key": pa.array(list(sums), pa.int32()), "sums": pa.array(content, pa.binary())})


def merge_keys(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Worker: sums of the same key added; integers, so any order gives the same bits."""
    yield keyed(added_sums(batches))


def added_sums(batches: Iterable[pa.RecordBatch | pa.Table]) -> dict[int, np.ndarray]:
    """Sums of the same key added: {key: int64, flat}."""
    totals: dict[int, np.ndarray] = {}
    for batch in batches:
        for key, sums in zip(batch["key"].to_pylist(), batch["sums"], strict=True):
            part = np.frombuffer(sums.as_buffer(), "<i8")
            totals[key] = totals[key] + part if key in totals else part
    return totals


def unpacked(merged: pa.Table, bins: int, plan: SumsPlan) -> Sums:
    """Cells of `merge_cells` as arrays in the outcomes' units."""
    totals = _Totals.empty(bins, plan)
    for (cut, cell, bucket), sums in _cells(merged):
        if cut == _RANKS:
            plain, resampled = np.split(sums, [totals.plain.shape[1]])
            totals.plain[cell], totals.resampled[cell] = plain, resampled.reshape(totals.resampled.shape[1:])
        else:
            totals.cuts[cut, cell, bucket] = sums
    shape = (len(plan.levels), 2, bins)
    w, wy = _resampled(totals.resampled.reshape(*shape, -1), plan)
    cuts = tuple(_one_cut(c, totals.cuts, plan) for c in range(plan.cuts))
    return Sums(_moments(totals.plain.reshape(*shape, -1), plan), w, wy, cuts)


def _resampled(sums: np.ndarray, plan: SumsPlan) -> tuple[np.ndarray, np.ndarray]:
    """Integer sums [..., replicates·(1 + outcomes)] as Σw [replicates, ...] and Σwy [replicates, ..., outcomes]."""
    parts = np.moveaxis(sums.reshape(*sums.shape[:-1], plan.replicates, 1 + plan.outcomes), -2, 0)
    outcomes = [p.floats("wy", parts[..., 1 + j]) for j, p in enumerate(plan.points[:-1])]
    return plan.points[0].floats("w", parts[..., 0]), np.stack(outcomes, axis=-1)


def _one_cut(cut: int, totals: dict[_Key, np.ndarray], plan: SumsPlan) -> CutSums:
    mine = {(arm, bucket): sums for (c, arm, bucket), sums in totals.items() if c == cut}
    buckets = tuple(sorted({bucket for _, bucket in mine}))
    terms = 1 + len(_SUM_FIELDS) * len(plan.points)
    n_bootstrap = plan.replicates * (1 + plan.outcomes) if plan.resampled_cuts else 0
    sums = np.zeros((2 * len(plan.levels), len(buckets), terms + n_bootstrap), np.int64)
    for (arm, bucket), cell_sums in mine.items():
        sums[arm, buckets.index(bucket)] = cell_sums
    cells = sums.reshape(len(plan.levels), 2, len(buckets), terms + n_bootstrap)
    resampled = _resampled(cells[..., terms:], plan) if plan.resampled_cuts else None
    return CutSums(buckets, _moments(cells[..., :terms], plan), resampled)


def _moments(plain: np.ndarray, plan: SumsPlan) -> Moments:
    """Integer sums [..., 1 + 6·values] as Moments [..., values]."""
    count = np.repeat(plain[..., :1], len(plan.points), axis=-1).astype(np.float64)
    fields = {"n": count}
    for i, name in enumerate(_SUM_FIELDS):
        columns = [p.floats(name, plain[..., 1 + j * len(_SUM_FIELDS) + i]) for j, p in enumerate(plan.points)]
        fields[name] = np.stack(columns, axis=-1)
    return Moments(**fields)
