"""What plans bring: predicted over many budgets, and observed on the hold-out, with intervals (R5.2, R4.2)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame

from uplift_spark.policy.allocation import allocate
from uplift_spark.policy.planning import read_candidates
from uplift_spark.policy.problem import NONE, Candidates, Problem, choose, look_at
from uplift_spark.stats.intervals import Draws, cluster_effects, resampled_error, resampled_sums
from uplift_spark.stats.moments import FIELDS, POWERS, FixedPoint, Moments, difference, normal_quantile
from uplift_spark.vocabulary import ConfigError

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
            plan = allocate(small, partial(look_at, small, sample), len(sample))
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

    rows   coded candidates of the hold-out with `received` int (level's place, -1 for the control), `outcome`,
           `weight` double, and where units come in clusters `unit_hash` bigint of these
    worth  value of one unit of the outcome, and whether costs are taken off
    units  candidates that the hold-out stands for
    """
    return told(rows.mapInArrow(partial(add_observed, wanted), _SUMS).toArrow(), wanted, worth, units)


def told(found: pa.Table, wanted: Pass, worth: tuple[float, bool], units: int) -> Observed:
    """`observed` from the sums of its partitions."""
    value, net = worth
    problem, point = wanted.problem, wanted.point
    sums, resampled = (
        _total(found.column(name), like) for name, like in zip(("sums", "resampled"), wanted.empty(), strict=True)
    )
    parts = {f: point.floats(f, sums[..., 2 + j]) for j, f in enumerate(FIELDS)}
    moments = Moments(**parts)
    effect = difference(moments[:, :, 1], moments[:, :, 0])
    scale = units / max(sum(found.column("n").to_pylist()), 1)
    chosen = scale * sums[:, :, 0, 0]
    # A level that the plan gives nobody brings nothing; one that it gives to few is not known.
    cost = problem.largest_cost * np.ldexp(scale * sums[:, :, 0, 1], -_COST_BITS) if net else 0.0
    each = np.where(chosen > 0, chosen * value * effect.estimate, 0.0) - cost
    error = np.sqrt(np.where(chosen > 0, (chosen * value * effect.error) ** 2, 0.0).sum(axis=1))
    if wanted.draws:
        error = value * _cluster_error(moments, resampled, point, chosen)
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
    found = cluster_effects(cells, w, wy[..., None])  # levels, then plans in place of buckets
    given = chosen.T > 0
    each = np.where(given, chosen.T * found.resampled[..., 0], 0.0)
    known = (np.isfinite(found.found.error[..., 0]) | ~given).all(axis=0)
    return np.where(known, np.where(given.any(axis=0), resampled_error(each.sum(axis=1)), 0.0), np.nan)


_COST_BITS = 31
_DRAWN = [FIELDS.index("w"), FIELDS.index("wy")]


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


def add_observed(given: Pass, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Worker: how many rows a partition has, and the sums of `Pass.empty`."""
    n, problem, point = 0, given.problem, given.point
    sums, resampled = given.empty()
    for batch in filter(len, batches):
        units = read_candidates(batch)
        n += len(units)
        received, y, w = (
            batch.column(name).to_numpy(zero_copy_only=False) for name in ("received", "outcome", "weight")
        )
        hashes = batch.column("unit_hash").to_numpy(zero_copy_only=False) if given.draws else np.zeros(len(y), np.int64)
        terms = np.column_stack([np.ones(len(y), np.int64), *(point.integers(f, w, y) for f in POWERS)])
        for b, prices in enumerate(given.plans):
            chosen = choose(problem, units, prices)
            for k in range(problem.levels):
                mine = chosen == k
                cost = units.cost[mine, k] / (problem.largest_cost or 1.0)
                sums[b, k, 0, 0] += mine.sum()
                sums[b, k, 0, 1] += np.rint(np.ldexp(cost, _COST_BITS)).astype(np.int64).sum()
                for arm, level in enumerate((NONE, k)):
                    seen = np.flatnonzero(mine & (received == level))
                    sums[b, k, arm, 2:] += terms[seen].sum(axis=0)
                    if given.draws:
                        resampled[b, k, arm] += resampled_sums(hashes[seen], terms[seen][:, _DRAWN], given.draws)
    arrays = {"sums": sums, "resampled": resampled}
    packed = {name: pa.array([array.tobytes()], pa.binary()) for name, array in arrays.items()}
    yield pa.record_batch({"n": pa.array([n], pa.int64()), **packed})
