"""Calibration: slopes by hand, and tests that reject true models as often as they say, and false ones."""

import numpy as np
import pytest

from uplift_spark.stats.moments import FIELDS, Difference, Moments, difference
from uplift_spark.stats.tests import bucket_calibration, calibration_slope


def test_calibration_slope():
    predicted = np.array([3.0, 2.0, 1.0])
    assert float(calibration_slope(np.ones(3), predicted, 0.5 * predicted + 1)) == pytest.approx(0.5)
    # Weighted least squares by hand, and buckets without an observed difference left out.
    mass, observed = np.array([2.0, 1.0, 1.0]), np.array([1.0, 0.0, 4.0])
    expected = np.polyfit(predicted, observed, 1, w=np.sqrt(mass))[0]
    assert float(calibration_slope(mass, predicted, observed)) == pytest.approx(expected)
    gap = np.array([1.0, np.nan, 4.0])
    assert float(calibration_slope(mass, predicted, gap)) == pytest.approx(-1.5)
    assert np.isnan(calibration_slope(mass, np.full(3, 0.1), observed))
    stacked = calibration_slope(np.ones((5, 3)), predicted, np.broadcast_to(predicted * 2, (5, 3)))
    np.testing.assert_allclose(stacked, 2)


def rejected(reps, n, treated, seed, truth=lambda prediction: prediction, rare=0.1):
    """How often both tests reject at 5 %, [2]; outcomes are 0 or 1, effects `truth` of the prediction."""
    rng = np.random.default_rng(seed)
    x = rng.random((reps, n))
    arm = rng.random((reps, n)) < treated
    prediction = 0.4 * rare * (0.5 + x)
    outcome = (rng.random((reps, n)) < rare * (1 + x) + np.where(arm, truth(prediction), 0)).astype(float)
    bucket = np.minimum((10 * x).astype(int), 9)
    cell = (np.arange(reps)[:, None] * 20 + 2 * bucket + arm).ravel()
    count, total = (np.bincount(cell, w, 20 * reps).reshape(reps, 10, 2) for w in (None, outcome.ravel()))
    fields = dict(zip(FIELDS, (count, count, count, *[total] * 4), strict=True))  # of weights 1 and outcomes 0 or 1
    moments = Moments(**fields)
    mass = count.sum(axis=2)
    mean = np.bincount(cell // 2, prediction.ravel(), 10 * reps).reshape(reps, 10) / mass
    test = bucket_calibration(mass, mean, difference(moments[..., 1], moments[..., 0]))
    return np.array([(test.calibration < 0.05).mean(), (test.heterogeneity < 0.05).mean()])


def same_for_all(prediction):
    return np.full_like(prediction, prediction.mean())


@pytest.mark.parametrize(("n", "treated", "rare"), [(2_000, 0.5, 0.1), (10_000, 0.5, 0.01), (10_000, 0.2, 0.1)])
def test_true_models_are_rejected_as_often_as_said(n, treated, rare):
    """800 trials each: a level of .05 has a standard error of .008."""
    calibration, _ = rejected(800, n, treated, 1, rare=rare)
    _, heterogeneity = rejected(800, n, treated, 2, same_for_all, rare=rare)
    assert 0.026 < calibration < 0.08 and 0.026 < heterogeneity < 0.08


@pytest.mark.simulation
@pytest.mark.parametrize(("n", "treated", "rare"), [(2_000, 0.5, 0.1), (10_000, 0.5, 0.01), (10_000, 0.2, 0.1)])
def test_true_models_are_rejected_as_often_as_said_in_many_trials(n, treated, rare):
    levels = [
        (
            rejected(500, n, treated, seed, rare=rare)[0],
            rejected(500, n, treated, 100 + seed, same_for_all, rare=rare)[1],
        )
        for seed in range(10)
    ]
    assert np.all(np.abs(np.mean(levels, axis=0) - 0.05) < 0.02)


def test_false_models_are_rejected():
    assert rejected(200, 10_000, 0.5, 3, lambda p: 3 * p)[0] > 0.8
    assert rejected(200, 20_000, 0.5, 4, lambda p: 4 * p)[1] > 0.8
    # Ranked the wrong way round, with the right average.
    assert rejected(200, 20_000, 0.5, 5, lambda p: 2 * p.mean() - 2 * p + p.mean())[0] > 0.8


def test_what_cannot_be_tested_is_not_known():
    few = Moments(*(np.full((10,), 20.0) for _ in FIELDS))
    many = Moments(*(np.full((10,), 100.0) for _ in FIELDS))
    varied = np.arange(10.0)
    assert np.isnan(bucket_calibration(np.ones(10), varied, difference(few, many)).calibration)
    effects = difference(Moments(many.n, many.w, many.ww, *(many.n / 2 for _ in range(4))), many)
    constant = bucket_calibration(np.ones(10), np.full(10, 0.3), effects)
    assert np.isnan(constant.calibration) and np.isnan(constant.heterogeneity)


def test_resampled_effects_of_independent_buckets_test_the_same():
    rng = np.random.default_rng(2)
    mass, predicted, estimate, error = (
        np.ones(10),
        np.linspace(0.3, 0, 10),
        np.linspace(0.33, 0.02, 10),
        np.full(10, 0.03),
    )
    observed = Difference(estimate, estimate * 0, estimate, error, estimate - error, estimate + error)
    bootstrap = estimate + rng.normal(0, 0.03, (20_000, 10))
    bootstrap[:100] = np.nan  # a resample without a unit of an arm
    plain, resampled = (
        bucket_calibration(mass, predicted, observed),
        bucket_calibration(mass, predicted, observed, bootstrap),
    )
    assert resampled.calibration == pytest.approx(plain.calibration, rel=0.1)
    assert resampled.heterogeneity == pytest.approx(plain.heterogeneity, rel=0.2, abs=1e-12)
