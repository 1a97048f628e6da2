"""Lift without labels under covariate shift, and drops that are found as often as promised; truth is simulated."""

from __future__ import annotations

import math

import numpy as np
import pytest

from uplift_spark.monitoring.lift import (
    LiftEstimate,
    ScoreSums,
    estimated_lift,
    lift_drop,
    losing_units,
    observed_lift,
)

EDGES = np.linspace(-0.02, 0.12, 19)


def effect_of(x: np.ndarray) -> np.ndarray:
    return 0.05 + 0.03 * np.tanh(x) + 0.01 * np.sin(3 * x)


def predicted_of(x: np.ndarray) -> np.ndarray:
    return 0.01 + 0.6 * (0.05 + 0.03 * np.tanh(x))  # too flat, shifted, and blind for a part


def units(rng: np.random.Generator, n: int, mean: float, spread: float) -> tuple[ScoreSums, float]:
    x = rng.normal(mean, spread, n)
    share = 0.3 + 0.4 * (x > 0)
    arm = (rng.random(n) < share).astype(int)
    outcome = (rng.random(n) < 0.2 + 0.02 * np.tanh(x) + arm * effect_of(x)).astype(float)
    weight = 1 / np.where(arm == 1, share, 1 - share)
    sums = ScoreSums.of(EDGES, predicted_of(x), np.full(n, 0.02), arm, outcome, weight)
    return sums, float(effect_of(x).mean())


def test_sums_of_parts_are_those_of_all() -> None:
    x = np.linspace(-0.1, 0.2, 101)
    parts = (x, np.full(101, 0.5), np.arange(101) % 3 - 1, np.where(x > 0.15, np.nan, x), np.full(101, 2.0))
    whole = ScoreSums.of(EDGES, *parts)
    halves = ScoreSums.of(EDGES, *(p[:40] for p in parts)) + ScoreSums.of(EDGES, *(p[40:] for p in parts))
    np.testing.assert_allclose(halves.arms, whole.arms)
    np.testing.assert_array_equal(halves.units, whole.units)
    assert whole.mean_width == pytest.approx(0.5)
    assert whole.arms[:, :, 0].sum() == ((np.arange(101) % 3 - 1 >= 0) & (x <= 0.15)).sum()


def test_observed_lift_is_the_difference_of_means() -> None:
    rng = np.random.default_rng(2)
    arm, outcome = rng.integers(0, 2, 4000), rng.normal(size=4000)
    lift = observed_lift(ScoreSums.of(EDGES, rng.normal(size=4000), outcome, arm, outcome, np.full(4000, 2.0)))
    sides = [outcome[arm == code] for code in (1, 0)]
    assert lift.value == pytest.approx(sides[0].mean() - sides[1].mean())
    assert lift.error == pytest.approx(math.sqrt(sum(s.var() / len(s) for s in sides)))


@pytest.mark.parametrize(("mean", "spread"), [(0.0, 1.0), (0.8, 1.0), (-0.6, 1.3)])
def test_truth_is_inside_the_interval_of_the_lift_expected_from_covariates_alone(mean: float, spread: float) -> None:
    rng = np.random.default_rng(7)
    inside, errors, replications = 0, [], 100
    for _ in range(replications):
        reference, _ = units(rng, 10_000, 0.0, 1.0)
        window, truth = units(rng, 5_000, mean, spread)
        lift = estimated_lift(reference, window).lift
        inside += lift.lower <= truth <= lift.upper
        errors.append(lift.value - truth)
    assert inside / replications >= 0.93 - 0.04  # below by what chance makes of 100; the simulation holds the claim
    assert abs(np.mean(errors)) < 0.005


@pytest.mark.simulation
def test_truth_is_inside_in_93_of_100_windows() -> None:
    rng = np.random.default_rng(8)
    inside = []
    for _ in range(2000):
        reference, _ = units(rng, 10_000, 0.0, 1.0)
        window, truth = units(rng, 5_000, rng.uniform(-0.8, 0.8), rng.uniform(0.8, 1.3))
        lift = estimated_lift(reference, window).lift
        inside.append(lift.lower <= truth <= lift.upper)
    assert np.mean(inside) >= 0.93


def test_estimated_qini_is_that_of_the_true_effects() -> None:
    rng = np.random.default_rng(9)
    x = rng.normal(size=200_000)
    order = np.argsort(-predicted_of(x))
    gain = np.cumsum(effect_of(x)[order]) / len(x)
    truth = gain.mean() - gain[-1] / 2
    estimates = []
    for _ in range(12):
        reference, _ = units(rng, 60_000, 0.0, 1.0)
        window, _ = units(rng, 20_000, 0.0, 1.0)
        estimates.append(estimated_lift(reference, window).qini)
    assert np.mean([q.value for q in estimates]) == pytest.approx(truth, abs=0.0008)
    assert 0.6 < np.std([q.value for q in estimates]) / np.mean([q.error for q in estimates]) < 1.5
    turned = estimated_lift(reference, window, "decrease").qini
    assert turned.value == pytest.approx(estimates[-1].value)  # the least uplift first, counted as what falls


def test_units_that_the_reference_does_not_know_are_reported() -> None:
    rng = np.random.default_rng(10)
    reference, _ = units(rng, 20_000, -3.0, 0.1)
    window, _ = units(rng, 20_000, 3.0, 0.1)
    assert estimated_lift(reference, window).lift.outside > 0.99
    empty = ScoreSums.of(EDGES, *[np.zeros(0)] * 5)
    for nothing in (estimated_lift(reference, empty), estimated_lift(empty, window)):
        assert math.isnan(nothing.lift.value) and math.isnan(nothing.qini.error) and nothing.lift.outside == 1


# --------------------------------------------------------------------------------------------------------------------
# Drops, as drawn: 5 % conversion and half a point of lift.

BASE, LIFT = 0.05, 0.005


def lift_drawn(rng: np.random.Generator, n: int, lift: float) -> LiftEstimate:
    rates = rng.binomial(n, BASE + lift) / n, rng.binomial(n, BASE) / n
    error = math.sqrt(sum(rate * (1 - rate) / n for rate in rates))
    return LiftEstimate(rates[0] - rates[1], error, n)


def test_the_point_alone_calls_a_drop_what_is_none() -> None:
    rng = np.random.default_rng(11)
    drops = [lift_drop(lift_drawn(rng, 300_000, LIFT), lift_drawn(rng, 100_000, LIFT)) for _ in range(800)]
    assert np.mean([one.drop > 0.05 for one in drops]) > 0.35
    assert np.mean([one.p_value < 0.01 for one in drops]) <= 0.01 + 0.01


def test_the_units_needed_find_a_drop_of_the_limit_four_times_in_five() -> None:
    expected = LiftEstimate(LIFT, 1e-5, 10**8)
    rng, error = np.random.default_rng(13), math.sqrt((0.055 * 0.945 + 0.05 * 0.95) / 850_000)
    needed = lift_drop(expected, LiftEstimate(LIFT, error, 850_000), limit=0.3).n_needed
    small = error * math.sqrt(850_000 / needed)
    values = LIFT * 0.7 + small * rng.normal(size=1500)
    p_values = [lift_drop(expected, LiftEstimate(v, small, int(needed))).p_value for v in values]
    assert np.mean(np.array(p_values) < 0.01) == pytest.approx(0.8, abs=0.04)
    assert lift_drop(LiftEstimate(LIFT, 2e-3, 1000), LiftEstimate(LIFT, 1e-3, 1000)).n_needed == math.inf


def test_a_lift_that_was_nothing_cannot_drop() -> None:
    drop = lift_drop(LiftEstimate(0.001, 0.001, 1000), LiftEstimate(-0.001, 0.001, 1000))
    assert math.isnan(drop.drop) and math.isnan(drop.p_value)
    less = lift_drop(LiftEstimate(-0.005, 1e-4, 1000), LiftEstimate(-0.002, 1e-4, 1000), "decrease")
    assert less.p_value < 1e-6 and less.drop == pytest.approx(0.6)


def test_bins_in_which_treating_does_not_pay() -> None:
    rng = np.random.default_rng(14)
    n = 40_000
    uplift, arm = rng.uniform(-0.02, 0.12, n), rng.integers(0, 2, n)
    outcome = (rng.random(n) < 0.2 + arm * np.where(uplift < 0.03, 0.0, 0.3)).astype(float)
    sums = ScoreSums.of(EDGES, uplift, uplift, arm, outcome, np.full(n, 2.0))
    losing = losing_units(sums, value=10.0, cost=1.0)
    assert losing is not None
    assert losing.share == pytest.approx(0.05 / 0.14, abs=0.06)  # predictions below .03
    assert 0 < losing.lost < losing.units * 1.0
    assert losing_units(sums, value=10.0, cost=0.0) is None


def test_with_less_being_better_the_highest_predictions_lose() -> None:
    rng = np.random.default_rng(15)
    n = 40_000
    uplift, arm = rng.uniform(-0.12, 0.02, n), rng.integers(0, 2, n)
    outcome = (rng.random(n) < 0.5 - arm * np.where(uplift > -0.03, 0.0, 0.3)).astype(float)
    sums = ScoreSums.of(np.linspace(-0.12, 0.02, 19), uplift, uplift, arm, outcome, np.full(n, 2.0))
    losing = losing_units(sums, value=-10.0, cost=1.0)
    assert losing is not None and losing.share == pytest.approx(0.05 / 0.14, abs=0.06)
