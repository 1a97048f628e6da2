"""Who gets which treatment under budgets, capacities, caps and floors: the best plan, with a certified gap (R5.1).

    maximise Σ gain·x   subject to   Σ coefficient·x ≤ bound for each limit,   at most one level per unit,   x ∈ {0, 1}

A price per limit takes the limits apart: at prices p a unit's best level is the one with the largest
gain - Σ p·coefficient, or none where all are negative, and

    bound(p) = Σ p·bound + Σ over units of the largest such value (0 for none)

is at least the gain of any feasible plan, fractional ones included, for every p ≥ 0 (Lagrange; Dyer 1980 for one
limit). The best prices are found by looking at all units a few times (`look`): first at a sample, which brackets the
prices; then every unit that has the same best level for all prices within the bracket is decided and only added up,
and the others are looked at again, until so few are undecided that all of them fit into memory. There the prices are
solved for, the few units that are indifferent at them by a mixed-integer program (the core of Balas and Zemel 1980).
Nothing but sums and at most `most` units reach the caller, however many units there are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from uplift_spark.policy.problem import NONE, Candidates, Look, Problem, Seen, choose, values
from uplift_spark.policy.solver import linear_prices, shortfalls, whole_plan
from uplift_spark.stats.offpolicy import best_levels
from uplift_spark.vocabulary import ConfigError

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
    gain    of the plan          bound  no plan gains more, but for ties told apart (see `Problem`)
    used    [R]                  keys   uint64 [m]         levels  int [m], NONE for none
    looks   how often all units were looked at
    """

    prices: np.ndarray
    gain: float
    bound: float
    used: np.ndarray
    keys: np.ndarray
    levels: np.ndarray
    looks: int

    @property
    def gap(self) -> float:
        """How much more than this plan any plan can gain at most, as a share of that."""
        return (self.bound - self.gain) / self.bound if self.bound > 0 else 0.0

    def of(self, problem: Problem, units: Candidates) -> np.ndarray:
        """Level of each unit, int [n]; NONE for none."""
        chosen = choose(problem, units, self.prices)
        order = np.argsort(self.keys)
        place = np.searchsorted(self.keys, units.key, sorter=order)
        place = order[np.minimum(place, len(order) - 1)] if len(order) else place
        listed = (self.keys[place] == units.key) if len(order) else np.zeros(len(units), bool)
        chosen[listed] = self.levels[place[listed]]
        return chosen


def first_look(problem: Problem, look: Look, most: int = MOST) -> Seen:
    """A sample of all units, at most so many: what `allocate` begins with."""
    none = np.zeros(len(problem.limits))
    return look(none, none + np.inf, most)


def allocate(problem: Problem, look: Look, most: int = MOST, first: Seen | None = None) -> Allocation:
    """The best plan that `look` at all units leads to; `first` saves the first look.

    Raises ConfigError when a floor cannot be met within the other limits, naming it and what it lacks.
    """
    prices, widths = np.zeros(len(problem.limits)), np.full(len(problem.limits), np.inf)
    before = np.inf
    for looks in range(1, _ROUNDS + 1):
        seen = first if first is not None and looks == 1 else look(prices, widths, most)
        used = _used(problem, seen)
        if looks == 1:
            _check_floors(problem, seen)
        found, off = _bracket(problem, seen, problem.bounds - used, prices)
        inside = np.abs(found - prices) <= widths
        whole = len(seen.rows) == seen.undecided
        if whole and inside.all():
            plan = _rounded(problem, seen, found, (np.maximum(prices - widths, 0), prices + widths), looks)
            if plan is not None:
                return plan
            if not np.isfinite(widths).all():
                raise ConfigError(_lacking(problem, seen.rows, problem.bounds, np.full(len(found), _NOTHING)))
            inside[:] = False
        # Outside its bracket a price is only a direction: look there, with room.
        wide = np.maximum(2 * np.abs(found - prices), np.maximum(4 * widths, _NARROWEST * _typical(problem)))
        prices, widths = found, np.where(inside, widths if whole else off, wide)
        most, before = most if seen.undecided < before / 2 else 2 * most, seen.undecided
    raise ConfigError(f"no plan was found in {_ROUNDS} looks at all units: set fewer or looser limits")


def _typical(problem: Problem) -> np.ndarray:
    """Prices [R] at which a limit's largest use costs the largest gain."""
    return problem.largest_gain / np.array([problem.largest_use(limit) or 1.0 for limit in problem.limits])


def _used(problem: Problem, seen: Seen) -> np.ndarray:
    """What decided units use of each limit, [R]."""
    _, points = problem.points()
    return np.array([float(p.floats("wy", used)) for p, used in zip(points, seen.used, strict=True)])


def _bracket(problem: Problem, seen: Seen, room: np.ndarray, start: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(best prices for the rows seen, how far off they may be); rows stand for all undecided units."""
    share = seen.undecided / max(len(seen.rows), 1)
    found = _best_prices(problem, seen.rows, share, room, start)
    if len(seen.rows) == seen.undecided:
        return found, np.zeros_like(found)
    off = np.zeros_like(found)
    # The rows were chosen by the first bits of their keys, so these are mixed again.
    parts = (seen.rows.key * _ODD) >> np.uint64(62)
    for part in range(_PARTS):
        rows = seen.rows[parts == part]
        if len(rows):
            other = _best_prices(problem, rows, seen.undecided / len(rows), room, found)
            off = np.maximum(off, np.abs(other - found))
    return found, _WIDER * off


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
    found = np.clip(start / scale, 0, [np.inf if m is None else m for m in most])
    for smooth in _SMOOTH:
        step = minimize(
            _smooth_bound, found, (wanted, use, share, room, scale, smooth * unit, size),
            jac=True, method="L-BFGS-B", bounds=[(0, m) for m in most], options={"maxiter": 300, "ftol": 1e-13},
        )  # fmt: skip
        found = step.x
    return found * scale


def _smooth_bound(
    z: np.ndarray, wanted: np.ndarray, use: np.ndarray, share: float, room: np.ndarray, scale: np.ndarray, t: float,
    size: float,
) -> tuple[float, np.ndarray]:  # fmt: skip
    prices = z * scale
    value = values(wanted, use, prices) / t
    top = np.maximum(value.max(axis=1), 0.0)
    odds = np.exp(value - top[:, None])
    total = odds.sum(axis=1) + np.exp(-top)
    bound = share * t * (top + np.log(total)).sum() + prices @ room
    used = share * np.tensordot(use, odds / total[:, None], 2)
    return bound / size, (room - used) * scale / size


def _rounded(
    problem: Problem, seen: Seen, prices: np.ndarray, within: tuple[np.ndarray, np.ndarray], looks: int
) -> Allocation | None:
    """The plan: undecided units get their best level at the prices, but for those that are next to indifferent.

    within  lowest and highest prices [R] at which the others are decided as they are
    None when no choice for these few keeps the limits.
    """
    gain_point, _ = problem.points()
    gain, used = float(gain_point.floats("wy", np.array(seen.gain))), _used(problem, seen)
    rows, room = seen.rows, problem.bounds - used
    wanted, use = problem.wanted(rows), problem.use(rows)
    prices = _refined(wanted, use, room, prices, within)
    offered = np.where(np.isnan(rows.gain), -np.inf, rows.gain)
    bound = gain + prices @ room + values(offered, use, prices).max(axis=1, initial=0).sum()
    order, chosen = _by_margin(wanted, use, prices), choose(problem, rows, prices)
    best = None
    for size in _CORES:
        core, levels = order[:size], chosen.copy()
        found = whole_plan(rows.gain[core], use[:, core], room - _spent(use, chosen, order[size:]), 1e-7 * abs(bound))
        if found is not None:
            levels[core] = found
            mine = np.flatnonzero(levels != NONE)
            total = gain + rows.gain[mine, levels[mine]].sum()
            plan = Allocation(prices, total, bound, used + _spent(use, levels, order), rows.key, levels, looks)
            best = plan if best is None or plan.gain > best.gain else best
        if size >= len(rows) or (best is not None and best.gap < _GOOD):
            break
    return best


def _by_margin(wanted: np.ndarray, use: np.ndarray, prices: np.ndarray) -> np.ndarray:
    """Units in the order of how much their best choice is ahead of the next, [n]."""
    options = np.sort(np.column_stack([np.zeros(len(wanted)), values(wanted, use, prices)]), axis=1)
    return np.argsort(options[:, -1] - options[:, -2], kind="stable")


def _refined(
    wanted: np.ndarray, use: np.ndarray, room: np.ndarray, prices: np.ndarray, within: tuple[np.ndarray, np.ndarray]
) -> np.ndarray:
    """Prices [R] with a bound as low or lower: those of the linear program for the units next to indifferent."""

    def bound(at: np.ndarray) -> float:
        return float(at @ room + np.maximum(values(wanted, use, at).max(axis=1, initial=0), 0).sum())

    for _ in range(_REFINE if len(room) and len(wanted) else 0):
        order, chosen = _by_margin(wanted, use, prices), best_levels(values(wanted, use, prices))
        core, rest = order[:_LINEAR], order[_LINEAR:]
        told = linear_prices(wanted[core], use[:, core], room - _spent(use, chosen, rest))
        if told is None:
            return prices
        found = np.clip(told, *within)
        if bound(found) >= bound(prices):
            return prices
        prices = found
    return prices


def _spent(use: np.ndarray, chosen: np.ndarray, rows: np.ndarray) -> np.ndarray:
    mine = rows[chosen[rows] != NONE]
    return use[:, mine, chosen[mine]].sum(axis=1)


def _check_floors(problem: Problem, seen: Seen) -> None:
    """Raise ConfigError for floors that a sample of all units says cannot be met, and not by the sample's accident."""
    rows = seen.rows[np.argsort(seen.rows.key)[:_CHECKED]]
    if not any(limit.floor for limit in problem.limits) or len(rows) == seen.undecided:
        return
    room = problem.bounds * len(rows) / seen.undecided
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
