"""Plans under limits as arrays: what units gain and use, what prices decide, what a look at many units says (R5.1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from uplift_spark.stats.moments import FixedPoint
from uplift_spark.stats.offpolicy import NONE, best_levels
from uplift_spark.vocabulary import ConfigError

_JITTER = 1e-5  # of the largest gain, see `Problem`
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)

Measure = Literal["units", "spend"]


@dataclass(frozen=True, eq=False)
class Constraint:
    """At most `bound` of what a plan's units use, or at least for a floor.

    A unit of bucket b that gets level k uses levels[k] · buckets[b], times its cost at that level if spend is measured.

    name     for messages
    levels   [K]
    cut      column of `Candidates.buckets` that b is read from; None: every unit counts the same
    buckets  [buckets of the cut]; without a cut unused
    """

    name: str
    bound: float
    measure: Measure
    levels: np.ndarray
    cut: int | None = None
    buckets: np.ndarray | None = None
    floor: bool = False


@dataclass(frozen=True, eq=False)
class Candidates:
    """Units and what they may get.

    gain     float64 [n, K], in money or outcomes; NaN: the level is not offered to the unit
    cost     float64 [n, K], not negative
    buckets  int [n, cuts]
    key      uint64 [n], hash of the unit, different for every unit
    """

    gain: np.ndarray
    cost: np.ndarray
    buckets: np.ndarray
    key: np.ndarray

    def __len__(self) -> int:
        return len(self.key)

    def __getitem__(self, rows: np.ndarray) -> Candidates:
        return Candidates(self.gain[rows], self.cost[rows], self.buckets[rows], self.key[rows])


@dataclass(frozen=True, eq=False)
class Problem:
    """Limits, and sizes that fix how sums are kept: as integers, so that they are the same for any partitioning.

    Units that are alike in everything are told apart by a hash: 1e-5 of the largest gain, times a number from 0 to 1,
    is added to each gain where plans are compared, never where gain is counted.
    """

    limits: tuple[Constraint, ...]
    levels: int
    cuts: int
    largest_gain: float
    largest_cost: float

    def __post_init__(self) -> None:
        for limit in self.limits:
            if not np.isfinite(limit.bound):
                raise ConfigError(f"limit {limit.name!r} has no finite bound: give a number")

    @property
    def bounds(self) -> np.ndarray:
        """Bound of each limit as "at most", [R]: a floor's is negative."""
        return np.array([-limit.bound if limit.floor else limit.bound for limit in self.limits], np.float64)

    def use(self, units: Candidates) -> np.ndarray:
        """What each unit would use of each limit at each level, [R, n, K]; of a floor the negative."""
        out = np.empty((len(self.limits), *units.gain.shape))
        for r, limit in enumerate(self.limits):
            share = -limit.levels if limit.floor else limit.levels
            each = share[None, :] * (units.cost if limit.measure == "spend" else 1.0)
            if limit.cut is not None and limit.buckets is not None:
                each = each * limit.buckets[units.buckets[:, limit.cut]][:, None]
            out[r] = each
        return out

    def wanted(self, units: Candidates) -> np.ndarray:
        """Gains by which plans are compared, [n, K]; -inf where a level is not offered."""
        levels = np.arange(1, units.gain.shape[1] + 1, dtype=np.uint64)
        mixed = (units.key[:, None] ^ (levels * _GOLDEN)) * _GOLDEN
        mixed ^= mixed >> np.uint64(32)
        draw = ((mixed * _GOLDEN) >> np.uint64(11)) * 2.0**-53
        return np.where(np.isnan(units.gain), -np.inf, units.gain + _JITTER * self.largest_gain * draw)

    def points(self) -> tuple[FixedPoint, tuple[FixedPoint, ...]]:
        """How gains, and what is used of each limit, are kept as integers."""
        sizes = map(self.largest_use, self.limits)
        return FixedPoint.of(1.0, self.largest_gain), tuple(FixedPoint.of(1.0, size) for size in sizes)

    def largest_use(self, limit: Constraint) -> float:
        """The most that one unit can use of a limit."""
        largest = np.abs(limit.levels).max(initial=0) * (self.largest_cost if limit.measure == "spend" else 1.0)
        return float(largest * (np.abs(limit.buckets).max(initial=0) if limit.buckets is not None else 1.0))


def choose(problem: Problem, units: Candidates, prices: np.ndarray) -> np.ndarray:
    """The best level of each unit at these prices, int [n]; NONE for none."""
    return best_levels(values(problem.wanted(units), problem.use(units), prices))


def values(gain: np.ndarray, use: np.ndarray, prices: np.ndarray) -> np.ndarray:
    """What each unit gains by each level when it pays the prices [R] for what it uses [R, n, K], [n, K]."""
    return gain - np.tensordot(prices, use, 1)


@dataclass(frozen=True, eq=False)
class Seen:
    """What one look at all units says.

    gain, used  integer sums over decided units of gain [] and of what they use of each limit [R], see `Problem.points`
    undecided   how many units have no best level yet
    rows        the undecided with the smallest keys, at most as many as were asked for
    """

    gain: int
    used: np.ndarray
    undecided: int
    rows: Candidates

    def __add__(self, other: Seen) -> Seen:
        return Seen(
            self.gain + other.gain, self.used + other.used, self.undecided + other.undecided,
            joined([self.rows, other.rows]),
        )  # fmt: skip

    def smallest(self, most: int) -> Seen:
        """With no more than `most` rows."""
        return replace(self, rows=self.rows[np.argsort(self.rows.key, kind="stable")[:most]])


Look = Callable[[np.ndarray, np.ndarray, int], Seen]
"""From prices [R], how far off each may be [R], and the most rows wanted: `look_at` of all units."""


def joined(parts: Sequence[Candidates]) -> Candidates:
    """The units of all parts."""
    return Candidates(*(np.concatenate([getattr(p, f) for p in parts]) for f in ("gain", "cost", "buckets", "key")))


def look_at(problem: Problem, units: Candidates, prices: np.ndarray, widths: np.ndarray, most: int) -> Seen:
    """Sums of those units whose best level is the same for all prices within `prices` ± `widths`, and the others."""
    use = problem.use(units)
    best, sure = _decided(problem.wanted(units), use, prices, widths)
    gain_point, use_points = problem.points()
    treated = np.flatnonzero(sure & (best != NONE))
    level, one = best[treated], np.ones(len(treated))
    gain = int(gain_point.integers("wy", one, units.gain[treated, level]).sum())
    # Rounded up, so that no limit is ever passed by what rounding took away.
    used = [
        int(np.ceil(np.ldexp(use[r, treated, level], p.shifts["wy"])).astype(np.int64).sum())
        for r, p in enumerate(use_points)
    ]
    left = np.flatnonzero(~sure)
    return Seen(gain, np.array(used, np.int64), len(left), units[left]).smallest(most)


def _decided(
    wanted: np.ndarray, use: np.ndarray, prices: np.ndarray, widths: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(best level at the prices, whether it is the best within the widths), [n] each."""
    rows = np.arange(len(wanted))
    if not np.isfinite(widths).all():
        return np.full(len(rows), NONE), np.zeros(len(rows), bool)
    value = values(wanted, use, prices)
    best = best_levels(value)
    none = best == NONE
    top = np.where(none, 0.0, value[rows, best])
    mine = np.where(none, 0.0, use[:, rows, best])  # [R, n]
    # Against no treatment, then against each other level.
    sure = none | (top > np.tensordot(widths, np.abs(mine), 1))
    for k in range(wanted.shape[1]):
        ahead = top - value[:, k] > np.tensordot(widths, np.abs(mine - use[:, :, k]), 1)
        sure &= ahead | (best == k)
    return best, sure
