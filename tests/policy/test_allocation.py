"""Plans against a solver of the whole problem: never more than the best, within the certified gap, no limit passed."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_matrix

from uplift_spark.errors import ConfigError
from uplift_spark.policy import allocation
from uplift_spark.policy.allocation import (
    NONE,
    Candidates,
    Constraint,
    Problem,
    allocate,
    choose,
    joined,
    scan_candidates,
)

KINDS = ("budget", "capacity", "cap", "spend", "floor", "gap")


def units_of(rng, n, levels, buckets, alike=False):
    gain = rng.gamma(2, 1, (n, levels)) * np.sqrt(np.arange(1, levels + 1)) - rng.uniform(0, 1.5)
    gain[rng.random((n, levels)) < 0.1] = np.nan
    each = rng.uniform(0.5, 1.5, (n, 1)) if rng.random() < 0.5 else np.ones((n, 1))
    if alike:
        gain = np.round(gain)
    return Candidates(gain, each * np.arange(1, levels + 1), rng.integers(0, buckets, (n, 1)), keys(rng, n))


def keys(rng, n):
    return rng.integers(0, 2**63, n).astype(np.uint64)


def all_the_same(n):
    return Candidates(np.ones((n, 1)), np.ones((n, 1)), np.zeros((n, 1), int), keys(np.random.default_rng(0), n))


def problem_of(rng, units, buckets, kinds):
    n, levels = units.gain.shape
    every, here = np.ones(levels), np.eye(buckets)
    size = np.bincount(units.buckets[:, 0], minlength=buckets)
    constraints = []
    if "budget" in kinds:
        constraints.append(Constraint("budget", n * rng.uniform(0.2, 1), "spend", every))
    if "capacity" in kinds:
        constraints += [
            Constraint(f"level {k}", float(rng.integers(n // 10, n // 3 + 1)), "units", np.eye(levels)[k])
            for k in range(levels)
        ]
    if "cap" in kinds:
        constraints.append(Constraint("cap", float(size[0] // 2), "units", every, 0, here[0]))
    if "spend" in kinds:
        constraints.append(Constraint("spend there", 0.4 * size[2 % buckets], "spend", every, 0, here[2 % buckets]))
    if "floor" in kinds:
        constraints.append(Constraint("floor", float(size[1] // 6), "units", every, 0, here[1], floor=True))
    if "gap" in kinds:
        for b in np.flatnonzero(size):
            apart = here[b] / size[b] - 1 / n
            constraints += [Constraint(f"gap {b} {s}", 0.2, "units", every, 0, s * apart) for s in (1, -1)]
    return Problem(tuple(constraints), levels, 1, float(np.nanmax(np.abs(units.gain))), float(units.cost.max()))


def best_of(problem, units):
    """The largest gain of any plan, by a mixed-integer program over everything; None when no plan keeps the limits."""
    unit, level = np.nonzero(~np.isnan(units.gain))
    one = csr_matrix((np.ones(len(unit)), (unit, np.arange(len(unit)))), (len(units), len(unit)))
    rules = [LinearConstraint(one, -np.inf, 1)]
    if problem.limits:
        rules.append(LinearConstraint(problem.use(units)[:, unit, level], -np.inf, problem.bounds))
    worth = -units.gain[unit, level]
    whole, exact = np.ones(len(unit)), {"mip_rel_gap": 0}
    solution = milp(worth, constraints=rules, integrality=whole, bounds=Bounds(0, 1), options=exact)
    return None if solution.x is None else -solution.fun


def totals(problem, units, levels):
    """(gain, what is used of each limit) of a plan."""
    mine = np.flatnonzero(levels != NONE)
    return units.gain[mine, levels[mine]].sum(), problem.use(units)[:, mine, levels[mine]].sum(axis=1)


def compare(seed, count):
    """Random instances; in half of them looks are narrow and cores small, so that every step of the search is taken."""
    rng = np.random.default_rng(seed)
    impossible = 0
    for _ in range(count):
        n, levels, buckets = rng.integers(6, 60), rng.integers(1, 4), rng.integers(2, 5)
        units = units_of(rng, n, levels, buckets, alike=rng.random() < 0.3)
        problem = problem_of(rng, units, buckets, [kind for kind in KINDS if rng.random() < 0.5])
        best, narrow = best_of(problem, units), rng.random() < 0.5
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(allocation, "_CORES", (8, 32, 128) if narrow else allocation._CORES)
            if best is None:
                impossible += 1
                with pytest.raises(ConfigError):
                    allocate(problem, partial(scan_candidates, problem, units), 10 if narrow else 1000)
                continue
            plan = allocate(problem, partial(scan_candidates, problem, units), 10 if narrow else 1000)
        gain, used = totals(problem, units, plan.of(problem, units))
        assert np.all(used <= problem.bounds + 1e-12 * np.abs(problem.bounds))
        assert gain == pytest.approx(plan.gain, abs=1e-6) and used == pytest.approx(plan.used, abs=1e-6)
        assert gain <= best + 1e-6 <= plan.bound + 2e-6
        assert best - gain <= plan.bound - plan.gain + 1e-6
        if not narrow:
            assert gain == pytest.approx(best, abs=1e-5 * plan.bound + 1e-9)
    return impossible


@pytest.mark.slow
def test_plans_equal_the_solver_within_the_gap():
    assert compare(1, 80) < 20


@pytest.mark.simulation
def test_a_thousand_plans_equal_the_solver_within_the_gap():
    assert compare(2, 1000) < 200


@pytest.mark.slow
@pytest.mark.parametrize("alike", [False, True])
def test_many_units_leave_a_small_gap_in_few_scans(alike):
    rng = np.random.default_rng(3)
    units = units_of(rng, 100_000, 4, 5, alike)
    problem = problem_of(rng, units, 5, KINDS)
    plan = allocate(problem, partial(scan_candidates, problem, units), 5_000)
    gain, used = totals(problem, units, plan.of(problem, units))
    assert np.all(used <= problem.bounds) and gain == pytest.approx(plan.gain, rel=1e-6)
    assert 0 <= plan.gap < 1e-4 and plan.scans <= 12


def test_units_that_are_all_the_same_share_a_budget():
    units = all_the_same(30_000)
    problem = Problem((Constraint("budget", 10_000.0, "spend", np.ones(1)),), 1, 1, 1.0, 1.0)
    plan = allocate(problem, partial(scan_candidates, problem, units), 1_000)
    assert (plan.of(problem, units) == 0).sum() == 10_000 and plan.gap < 1e-5


def test_scans_of_parts_add_up_to_a_scan_of_all():
    rng = np.random.default_rng(4)
    units = units_of(rng, 5_000, 3, 4)
    problem = problem_of(rng, units, 4, KINDS)
    prices = rng.uniform(0, 0.5, len(problem.limits))
    whole = scan_candidates(problem, units, prices, prices / 2, 300)
    order = rng.permutation(5_000)
    parts = [scan_candidates(problem, units[rows], prices, prices / 2, 300) for rows in np.array_split(order, 7)]
    merged = sum(parts[1:], parts[0]).smallest(300)
    assert (merged.gain, merged.undecided, merged.used.tolist()) == (whole.gain, whole.undecided, whole.used.tolist())
    assert merged.rows.key.tolist() == whole.rows.key.tolist() and 300 < whole.undecided < 5_000


def test_decided_units_have_one_best_level_for_all_prices_within_the_widths():
    rng = np.random.default_rng(5)
    units = units_of(rng, 3_000, 3, 4)
    problem = problem_of(rng, units, 4, KINDS)
    prices, widths = rng.uniform(0, 0.5, (2, len(problem.limits)))
    widths = widths / 20
    unsure = set(scan_candidates(problem, units, prices, widths, 3_000).rows.key.tolist())
    sure = units[np.array([key not in unsure for key in units.key.tolist()])]
    first = choose(problem, sure, prices)
    assert 0 < len(sure) < 3_000
    for _ in range(50):
        assert np.array_equal(choose(problem, sure, prices + rng.uniform(-1, 1, len(prices)) * widths), first)


@pytest.mark.parametrize("n", [50, 5_000])
def test_impossible_floors_are_named_with_what_they_lack(n):
    units, every = all_the_same(n), np.ones(1)
    floor = Constraint("least of all", 0.6 * n, "units", every, floor=True)
    problem = Problem((Constraint("budget", 0.2 * n, "spend", every), floor), 1, 1, 1.0, 1.0)
    with pytest.raises(ConfigError, match=f"least of all by {0.4 * n:,.0f}"):
        allocate(problem, partial(scan_candidates, problem, units), 500)


def test_without_limits_everybody_gets_the_best_level():
    rng = np.random.default_rng(6)
    units = joined([units_of(rng, 50, 3, 2), replace(units_of(rng, 1, 3, 2), gain=np.full((1, 3), np.nan))])
    problem = Problem((), 3, 1, float(np.nanmax(np.abs(units.gain))), 1.0)
    plan = allocate(problem, partial(scan_candidates, problem, units), 10)
    best = np.nanmax(np.column_stack([np.zeros(51), units.gain]), axis=1)
    assert plan.gain == pytest.approx(best.sum()) and plan.gap == pytest.approx(0, abs=1e-9)
