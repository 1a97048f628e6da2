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
from uplift_spark.stats.moments import FIELDS, POWERS, FixedPoint, Moments, difference, normal_quantile
from uplift_spark.vocabulary import ConfigError

_SUMS = "n bigint, sums binary"


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
    hold-out who were assigned the level they are to get, less that of the control's.
    """

    gain: np.ndarray
    lower: np.ndarray
    upper: np.ndarray


def observed(
    rows: DataFrame, problem: Problem, plans: np.ndarray, point: FixedPoint, value: float, net: bool, units: int
) -> Observed:
    """What plans with prices `plans` [B, R] bring, one pass over the hold-out.

    rows   coded candidates of the hold-out with `received` int (level's place, -1 for the control), `outcome`, `weight`
    point  how weights and outcomes are kept as integers
    value  of one unit of the outcome; `net`: costs are taken off
    units  candidates that the hold-out stands for
    """
    found = rows.mapInArrow(partial(add_observed, problem, plans, point), _SUMS).toArrow()
    shape = (len(plans), problem.levels, 2, 2 + len(FIELDS))
    total = sum((np.frombuffer(s.as_buffer(), np.int64) for s in found.column("sums")), np.zeros(np.prod(shape), int))
    sums = np.asarray(total).reshape(shape)
    parts = {f: point.floats(f, sums[..., 2 + j]) for j, f in enumerate(FIELDS)}
    moments = Moments(**parts)
    told = difference(moments[:, :, 1], moments[:, :, 0])
    scale = units / max(sum(found.column("n").to_pylist()), 1)
    chosen = scale * sums[:, :, 0, 0]
    # A level that the plan gives nobody brings nothing; one that it gives to few is not known.
    cost = problem.largest_cost * np.ldexp(scale * sums[:, :, 0, 1], -_COST_BITS) if net else 0.0
    each = np.where(chosen > 0, chosen * value * told.estimate, 0.0) - cost
    error = np.sqrt(np.where(chosen > 0, (chosen * value * told.error) ** 2, 0.0).sum(axis=1))
    gain, half = each.sum(axis=1), normal_quantile(0.95) * error
    return Observed(gain, gain - half, gain + half)


_COST_BITS = 31


def add_observed(
    problem: Problem, plans: np.ndarray, point: FixedPoint, batches: Iterator[pa.RecordBatch]
) -> Iterator[pa.RecordBatch]:
    """Worker: rows of a partition, and their integer sums [B, K, arm, 2 + 7]: units chosen, their cost, and FIELDS."""
    n = 0
    sums = np.zeros((len(plans), problem.levels, 2, 2 + len(FIELDS)), np.int64)
    for batch in filter(len, batches):
        units = read_candidates(batch)
        n += len(units)
        received, y, w = (
            batch.column(name).to_numpy(zero_copy_only=False) for name in ("received", "outcome", "weight")
        )
        terms = np.column_stack([np.ones(len(y), np.int64), *(point.integers(f, w, y) for f in POWERS)])
        for b, prices in enumerate(plans):
            chosen = choose(problem, units, prices)
            for k in range(problem.levels):
                mine = chosen == k
                cost = units.cost[mine, k] / (problem.largest_cost or 1.0)
                sums[b, k, 0, 0] += mine.sum()
                sums[b, k, 0, 1] += np.rint(np.ldexp(cost, _COST_BITS)).astype(np.int64).sum()
                for arm, level in enumerate((NONE, k)):
                    sums[b, k, arm, 2:] += terms[mine & (received == level)].sum(axis=0)
    yield pa.record_batch({"n": pa.array([n], pa.int64()), "sums": pa.array([sums.tobytes()], pa.binary())})
