"""The best plan of treatments within limits (`allocate`), with a certified gap to the optimum."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, linprog, milp, minimize
from scipy.sparse import csr_matrix, hstack, vstack

from uplift_spark.errors import ConfigError
from uplift_spark.stats.moments import FixedPoint
from uplift_spark.stats.offpolicy import NONE, best_levels

# --------------------------------------------------------------------------------------------------------------------
# Plans under limits as arrays: gains and uses of units, the choice at given prices, the sums of a scan.

_JITTER = 1e-5  # of the largest gain, see `Problem`
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)

Measure = Literal["units", "spend"]

GLOBAL_HOLDOUT, TOO_MANY = "kept out at random", "contacted often enough"
CHOSEN, NOT_WORTH = "best within the limits", "not worth it within the limits"
"""Reasons of decisions: rules that bar a unit, then those of units that no rule bars."""


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
    """Limits, and the largest gain and cost, which fix the scale of the sums.

    Sums are integers, so that they are the same for any partitioning. A hash breaks ties between units that are alike
    in everything: 1e-5 of the largest gain, times a number from 0 to 1, is added to each gain where plans are compared,
    never where gain is counted.
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
    return best_levels(net_gains(problem.wanted(units), problem.use(units), prices))


def net_gains(gain: np.ndarray, use: np.ndarray, prices: np.ndarray) -> np.ndarray:
    """What each unit gains by each level when it pays the prices [R] for what it uses [R, n, K], [n, K]."""
    return gain - np.tensordot(prices, use, 1)


@dataclass(frozen=True, eq=False)
class PriceScan:
    """Result of one scan of all units.

    gain, used  integer sums over decided units of gain [] and of what they use of each limit [R], see `Problem.points`
    undecided   how many units have no best level yet
    rows        the undecided units with the smallest keys, up to the requested number
    """

    gain: int
    used: np.ndarray
    undecided: int
    rows: Candidates

    def __add__(self, other: PriceScan) -> PriceScan:
        return PriceScan(
            self.gain + other.gain, self.used + other.used, self.undecided + other.undecided,
            joined([self.rows, other.rows]),
        )  # fmt: skip

    def smallest(self, most: int) -> PriceScan:
        """With no more than `most` rows."""
        return replace(self, rows=self.rows[np.argsort(self.rows.key, kind="stable")[:most]])


PriceScanner = Callable[[np.ndarray, np.ndarray, int], PriceScan]
"""From prices [R], how far off each may be [R], and the most rows wanted: `scan_candidates` of all units."""


def joined(parts: Sequence[Candidates]) -> Candidates:
    """The units of all parts."""
    return Candidates(*(np.concatenate([getattr(p, f) for p in parts]) for f in ("gain", "cost", "buckets", "key")))


def scan_candidates(
    problem: Problem, units: Candidates, prices: np.ndarray, widths: np.ndarray, most: int
) -> PriceScan:
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
    return PriceScan(gain, np.array(used, np.int64), len(left), units[left]).smallest(most)


def _decided(
    wanted: np.ndarray, use: np.ndarray, prices: np.ndarray, widths: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(best level at the prices, whether it is the best within the widths), [n] each."""
    rows = np.arange(len(wanted))
    if not np.isfinite(widths).all():
        return np.full(len(rows), NONE), np.zeros(len(rows), bool)
    value = net_gains(wanted, use, prices)
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


# --------------------------------------------------------------------------------------------------------------------
# Small plans solved exactly by HiGHS: mixed-integer programs, and linear programs whose duals are prices.
# Units come as gains [n, K] (NaN or -inf: not offered) and uses of each limit [R, n, K]; `room` [R] is what is left.

_FEW = 200
_SECONDS = 3.0  # for one mixed-integer program
_TIGHTER = (0.0, 2e-6, 1e-4)  # in largest uses: HiGHS keeps limits to a tolerance of 1e-6, a budget is kept to rounding


def whole_plan(gain: np.ndarray, use: np.ndarray, room: np.ndarray, gap: float) -> np.ndarray | None:
    """Levels [n] of a plan at most `gap` below the best, as far as time allows; None when none is found."""
    unit, level, one = _options(gain)
    if not len(unit):
        return np.full(len(gain), NONE) if np.all(room >= 0) else None
    worth, each = gain[unit, level], use[:, unit, level]
    scale = _largest(each)
    close = float(min(0.1, gap / max(np.maximum(worth, 0).sum(), 1e-300)))
    for margin in _TIGHTER:
        rules = [LinearConstraint(one, -np.inf, 1)]
        if len(room):
            rules.append(LinearConstraint(each / scale[:, None], -np.inf, room / scale - margin))
        with _quiet():
            solution = milp(
                -worth, constraints=rules, integrality=np.ones(len(unit)), bounds=Bounds(0, 1),
                options={"time_limit": _SECONDS, "mip_rel_gap": close},
            )  # fmt: skip
        if solution.x is None:
            return None
        taken = np.flatnonzero(solution.x > 0.5)
        # A sum of 0.3 that comes out as 0.3 + 4e-17 keeps a limit of 0.3: adding up rounds so much.
        rounding = len(taken) * np.finfo(float).eps * np.abs(each[:, taken]).sum(axis=1)
        if np.all(each[:, taken].sum(axis=1) <= room + rounding):
            chosen = np.full(len(gain), NONE)
            chosen[unit[taken]] = level[taken]
            return chosen
    return None


def linear_prices(gain: np.ndarray, use: np.ndarray, room: np.ndarray) -> np.ndarray | None:
    """Prices [R] of the limits when units may be treated in part; None when no plan keeps the limits."""
    unit, level, one = _options(gain)
    each = use[:, unit, level]
    scale = _largest(each)
    solution = linprog(
        -gain[unit, level],
        A_ub=vstack([csr_matrix(each / scale[:, None]), one]),
        b_ub=np.r_[room / scale, np.ones(len(gain))],
        method="highs",
    )
    return None if solution.status != 0 else np.maximum(-solution.ineqlin.marginals[: len(room)], 0) / scale


def shortfalls(gain: np.ndarray, use: np.ndarray, room: np.ndarray, floors: Sequence[int]) -> np.ndarray | None:
    """What each of the limits `floors` lacks when as little as possible is lacking; None when the others are broken.

    Of more than _FEW units parts may be treated.
    """
    unit, level, one = _options(gain)
    n, m = len(unit), len(floors)
    slack = np.zeros((len(room), m))
    slack[list(floors), np.arange(m)] = -1
    each = use[:, unit, level]
    with _quiet():
        solution = milp(
            np.r_[np.zeros(n), np.ones(m)],
            constraints=[
                LinearConstraint(hstack([one, csr_matrix((len(gain), m))]), -np.inf, 1),
                LinearConstraint(np.hstack([each, slack]), -np.inf, room),
            ],
            integrality=np.r_[np.full(n, len(gain) <= _FEW), np.zeros(m)],
            bounds=Bounds(0, np.r_[np.ones(n), np.full(m, np.inf)]),
            options={"time_limit": _SECONDS},
        )
    return None if solution.x is None else solution.x[n:]


def _options(gain: np.ndarray) -> tuple[np.ndarray, np.ndarray, csr_matrix]:
    """(unit, level) of everything on offer, and the matrix that counts a unit's levels."""
    unit, level = np.nonzero(np.isfinite(gain))
    return unit, level, csr_matrix((np.ones(len(unit)), (unit, np.arange(len(unit)))), (len(gain), len(unit)))


def _largest(each: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(each).max(axis=1, initial=0), 1e-300)


@contextmanager
def _quiet() -> Iterator[None]:
    """HiGHS leaves lines of its developers on standard output, past every option: nothing is shown in the body."""
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


# --------------------------------------------------------------------------------------------------------------------
# The search for the best plan under budgets, capacities, caps and floors.
#     maximise Σ gain·x   subject to   Σ coefficient·x ≤ bound for each limit,   at most one level per unit,  x ∈ {0, 1}
#
# A price per limit takes the limits apart: at prices p a unit's best level is the one with the largest gain - Σ
# p·coefficient, or none where all are negative, and
#
#     bound(p) = Σ p·bound + Σ over units of the largest such value (0 for none)
#
# is at least the gain of any feasible plan, fractional ones included, for every p ≥ 0 (Lagrange; Dyer 1980 for one
# limit). A few scans of all units find the best prices. The first one takes a sample, which brackets the prices. A unit
# with the same best level for all prices within the bracket is decided, and only added up. The others are scanned
# again, until so few are undecided that they fit into memory. There the prices are solved for, and a mixed-integer
# program decides the few units that are indifferent at them (the core of Balas and Zemel 1980). The caller gets only
# sums and at most `most` units, however many units there are.

MOST = 20_000  # undecided units to solve for at once

_ROUNDS = 25
_PARTS = 4  # 2 bits, of a sample, whose prices tell how far those of the sample may be off
_ODD = np.uint64(0x9E3779B97F4A7C15)
_WIDER = 4.0
_NARROWEST = 1e-7  # bracket, in prices at which a limit's largest use costs the largest gain
_SMOOTH = (0.1, 0.01, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7)  # of the mean gain, see `_best_prices`
_REFINE, _LINEAR = 4, 500  # linear programs that make the prices exact, and units next to indifferent in each
_CORES = (200, 800)  # units next to indifferent that a mixed-integer program is solved for
_GOOD = 1e-5  # gap at which no larger core is tried
_NOTHING = 1e-6  # of a unit, or of money
_CHECKED = 2000  # units looked at for floors that cannot be met
_MANY, _SLACK = 30, 0.1  # units of a floor in that sample that say anything, and share of it that says nothing
_DEAREST = 1e3  # price of a unit that a floor lacks, in largest gains


@dataclass(frozen=True, eq=False)
class Allocation:
    """A plan: `choose` at `prices`, but for the units in `keys`, which get `levels`.

    prices  [R], gain per unit of each limit's bound (for floors: lost per unit more)
    gain    of the plan          bound  no plan gains more, but for broken ties (see `Problem`)
    used    [R]                  keys   uint64 [m]         levels  int [m], NONE for none
    scans   how often all units were looked at
    """

    prices: np.ndarray
    gain: float
    bound: float
    used: np.ndarray
    keys: np.ndarray
    levels: np.ndarray
    scans: int

    @property
    def gap(self) -> float:
        """How much more than this plan any plan can gain at most, as a share of that."""
        return (self.bound - self.gain) / self.bound if self.bound > 0 else 0.0

    def of(self, problem: Problem, units: Candidates) -> np.ndarray:
        """Level of each unit, int [n]; NONE for none."""
        chosen = choose(problem, units, self.prices)
        order = np.argsort(self.keys)
        index = np.searchsorted(self.keys, units.key, sorter=order)
        index = order[np.minimum(index, len(order) - 1)] if len(order) else index
        listed = (self.keys[index] == units.key) if len(order) else np.zeros(len(units), bool)
        chosen[listed] = self.levels[index[listed]]
        return chosen


def first_scan(problem: Problem, scan: PriceScanner, most: int = MOST) -> PriceScan:
    """A sample of all units, at most so many: what `allocate` begins with."""
    none = np.zeros(len(problem.limits))
    return scan(none, none + np.inf, most)


def allocate(problem: Problem, scan: PriceScanner, most: int = MOST, first: PriceScan | None = None) -> Allocation:
    """The best plan that `scan` at all units leads to; `first` saves the first look.

    Raises ConfigError when a floor cannot be met within the other limits, naming it and what it lacks.
    """
    prices, widths = np.zeros(len(problem.limits)), np.full(len(problem.limits), np.inf)
    before = np.inf
    for scans in range(1, _ROUNDS + 1):
        result = first if first is not None and scans == 1 else scan(prices, widths, most)
        used = _used(problem, result)
        if scans == 1:
            _check_floors(problem, result)
        best, off = _bracket(problem, result, problem.bounds - used, prices)
        inside = np.abs(best - prices) <= widths
        whole = len(result.rows) == result.undecided
        if whole and inside.all():
            plan = _rounded(problem, result, best, (np.maximum(prices - widths, 0), prices + widths), scans)
            if plan is not None:
                return plan
            if not np.isfinite(widths).all():
                raise ConfigError(_lacking(problem, result.rows, problem.bounds, np.full(len(best), _NOTHING)))
            inside[:] = False
        # Outside its bracket a price is only a direction: look there, with room.
        wide = np.maximum(2 * np.abs(best - prices), np.maximum(4 * widths, _NARROWEST * _typical(problem)))
        prices, widths = best, np.where(inside, widths if whole else off, wide)
        most, before = most if result.undecided < before / 2 else 2 * most, result.undecided
    raise ConfigError(f"no plan was found in {_ROUNDS} looks at all units: set fewer or looser limits")


def _typical(problem: Problem) -> np.ndarray:
    """Prices [R] at which a limit's largest use costs the largest gain."""
    return problem.largest_gain / np.array([problem.largest_use(limit) or 1.0 for limit in problem.limits])


def _used(problem: Problem, result: PriceScan) -> np.ndarray:
    """What decided units use of each limit, [R]."""
    _, points = problem.points()
    return np.array([float(p.floats("wy", used)) for p, used in zip(points, result.used, strict=True)])


def _bracket(problem: Problem, result: PriceScan, room: np.ndarray, start: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(best prices for the rows seen, how far off they may be); rows stand for all undecided units."""
    share = result.undecided / max(len(result.rows), 1)
    best = _best_prices(problem, result.rows, share, room, start)
    if len(result.rows) == result.undecided:
        return best, np.zeros_like(best)
    off = np.zeros_like(best)
    # The rows were chosen by the first bits of their keys, so these are mixed again.
    parts = (result.rows.key * _ODD) >> np.uint64(62)
    for part in range(_PARTS):
        rows = result.rows[parts == part]
        if len(rows):
            other = _best_prices(problem, rows, result.undecided / len(rows), room, best)
            off = np.maximum(off, np.abs(other - best))
    return best, _WIDER * off


def _best_prices(problem: Problem, rows: Candidates, share: float, room: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Prices [R] at which the bound is smallest, when each row counts `share` times and `room` is left of each limit.

    The bound has a kink at each unit that is indifferent; a smooth one, max(0, v) replaced by t·log(1 + Σ exp(v/t)),
    is minimised for smaller and smaller t (Nesterov 2005).
    """
    if not len(problem.limits) or not len(rows):
        return np.zeros(len(problem.limits))
    wanted, use = problem.wanted(rows), problem.use(rows)
    size = share * np.maximum(wanted, 0.0).max(axis=1).sum() or 1.0
    # Prices in units of the whole gain a whole bound: all of a size.
    scale = size / np.maximum(np.abs(room), share * np.abs(use).max(axis=(1, 2)) + 1e-300)
    unit = np.abs(np.where(np.isfinite(wanted), wanted, 0.0)).mean() or 1.0
    most = [
        _DEAREST * problem.largest_gain / s if limit.floor else None
        for limit, s in zip(problem.limits, scale, strict=True)
    ]
    point = np.clip(start / scale, 0, [np.inf if m is None else m for m in most])
    for smooth in _SMOOTH:
        step = minimize(
            _smooth_bound, point, (wanted, use, share, room, scale, smooth * unit, size),
            jac=True, method="L-BFGS-B", bounds=[(0, m) for m in most], options={"maxiter": 300, "ftol": 1e-13},
        )  # fmt: skip
        point = step.x
    return point * scale


def _smooth_bound(
    z: np.ndarray, wanted: np.ndarray, use: np.ndarray, share: float, room: np.ndarray, scale: np.ndarray, t: float,
    size: float,
) -> tuple[float, np.ndarray]:  # fmt: skip
    prices = z * scale
    value = net_gains(wanted, use, prices) / t
    top = np.maximum(value.max(axis=1), 0.0)
    exponentials = np.exp(value - top[:, None])
    total = exponentials.sum(axis=1) + np.exp(-top)
    bound = share * t * (top + np.log(total)).sum() + prices @ room
    used = share * np.tensordot(use, exponentials / total[:, None], 2)
    return bound / size, (room - used) * scale / size


def _rounded(
    problem: Problem, result: PriceScan, prices: np.ndarray, within: tuple[np.ndarray, np.ndarray], scans: int
) -> Allocation | None:
    """The plan: undecided units get their best level at the prices, but for those that are next to indifferent.

    within  lowest and highest prices [R] at which the others are decided as they are
    None when no choice for these few keeps the limits.
    """
    gain_point, _ = problem.points()
    gain, used = float(gain_point.floats("wy", np.array(result.gain))), _used(problem, result)
    rows, room = result.rows, problem.bounds - used
    wanted, use = problem.wanted(rows), problem.use(rows)
    prices = _refined(wanted, use, room, prices, within)
    offered = np.where(np.isnan(rows.gain), -np.inf, rows.gain)
    bound = gain + prices @ room + net_gains(offered, use, prices).max(axis=1, initial=0).sum()
    order, chosen = _by_margin(wanted, use, prices), choose(problem, rows, prices)
    best = None
    for size in _CORES:
        core, levels = order[:size], chosen.copy()
        exact = whole_plan(rows.gain[core], use[:, core], room - _spent(use, chosen, order[size:]), 1e-7 * abs(bound))
        if exact is not None:
            levels[core] = exact
            mine = np.flatnonzero(levels != NONE)
            total = gain + rows.gain[mine, levels[mine]].sum()
            plan = Allocation(prices, total, bound, used + _spent(use, levels, order), rows.key, levels, scans)
            best = plan if best is None or plan.gain > best.gain else best
        if size >= len(rows) or (best is not None and best.gap < _GOOD):
            break
    return best


def _by_margin(wanted: np.ndarray, use: np.ndarray, prices: np.ndarray) -> np.ndarray:
    """Units in the order of how much their best choice is ahead of the next, [n]."""
    options = np.sort(np.column_stack([np.zeros(len(wanted)), net_gains(wanted, use, prices)]), axis=1)
    return np.argsort(options[:, -1] - options[:, -2], kind="stable")


def _refined(
    wanted: np.ndarray, use: np.ndarray, room: np.ndarray, prices: np.ndarray, within: tuple[np.ndarray, np.ndarray]
) -> np.ndarray:
    """Prices [R] with a bound as low or lower: those of the linear program for the units next to indifferent."""

    def bound(at: np.ndarray) -> float:
        return float(at @ room + np.maximum(net_gains(wanted, use, at).max(axis=1, initial=0), 0).sum())

    for _ in range(_REFINE if len(room) and len(wanted) else 0):
        order, chosen = _by_margin(wanted, use, prices), best_levels(net_gains(wanted, use, prices))
        core, rest = order[:_LINEAR], order[_LINEAR:]
        lp_prices = linear_prices(wanted[core], use[:, core], room - _spent(use, chosen, rest))
        if lp_prices is None:
            return prices
        candidate = np.clip(lp_prices, *within)
        if bound(candidate) >= bound(prices):
            return prices
        prices = candidate
    return prices


def _spent(use: np.ndarray, chosen: np.ndarray, rows: np.ndarray) -> np.ndarray:
    mine = rows[chosen[rows] != NONE]
    return use[:, mine, chosen[mine]].sum(axis=1)


def _check_floors(problem: Problem, result: PriceScan) -> None:
    """Raise ConfigError for floors that a sample of all units says cannot be met, and not by the sample's accident."""
    rows = result.rows[np.argsort(result.rows.key)[:_CHECKED]]
    if not any(limit.floor for limit in problem.limits) or len(rows) == result.undecided:
        return
    room = problem.bounds * len(rows) / result.undecided
    units = np.abs(room) / np.array([problem.largest_use(limit) or 1.0 for limit in problem.limits])
    accident = np.where(units < _MANY, np.inf, np.abs(room) * (_SLACK + 4 / np.sqrt(np.maximum(units, 1))))
    if text := _lacking(problem, rows, room, accident):
        raise ConfigError(text)


def _lacking(problem: Problem, rows: Candidates, room: np.ndarray, accident: np.ndarray) -> str:
    """Which floors cannot be met within the `room` of these units, and by how much; empty when all can.

    `room` is a part of the bounds when the units are a sample; lacking no more than `accident` [R] says nothing.
    """
    floors = [r for r, limit in enumerate(problem.limits) if limit.floor]
    lacks = shortfalls(rows.gain, problem.use(rows), room, floors)
    if lacks is None:
        return "no plan keeps all limits: loosen those that contradict each other"
    short = [
        f"{problem.limits[r].name} by {lack * abs(problem.bounds[r] / room[r]):,.4g}"
        for r, lack in zip(floors, lacks, strict=True)
        if lack > accident[r]
    ]
    fix = "lower them, or raise budget or caps"
    return f"floors cannot be met within the other limits: {'; '.join(short)}: {fix}" if short else ""
