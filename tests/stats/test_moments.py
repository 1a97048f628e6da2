"""Sums of cells: by hand, merged, exact in fixed point; differences against scipy's Welch test."""

import numpy as np
import pytest
from scipy import stats

from uplift_spark.stats.moments import FIELDS, POWERS, FixedPoint, Moments, difference, normal_quantile, ratio


def test_sums_by_hand():
    m = Moments.of(np.array([1.0, 3.0]), np.array([2.0, 4.0]))
    assert [float(getattr(m, f)) for f in FIELDS] == [2, 6, 20, 14, 38, 52, 148]
    assert float(m.mean) == pytest.approx(14 / 6)


def test_parts_add_to_the_whole():
    rng = np.random.default_rng(0)
    y, w = rng.normal(size=(90, 3)), rng.uniform(0.5, 2, size=(90, 3))
    whole = Moments.of(y, w)
    merged = Moments.of(y[:10], w[:10]) + Moments.of(y[10:], w[10:])
    for f in FIELDS:
        np.testing.assert_allclose(getattr(merged, f), getattr(whole, f), rtol=1e-12)
    cells = Moments(*(np.stack([getattr(whole, f), getattr(merged, f)]) for f in FIELDS))
    assert cells.sum(axis=0).n.tolist() == [180, 180, 180]
    assert cells[1].n.tolist() == [90, 90, 90]


def test_difference_is_welchs():
    rng = np.random.default_rng(1)
    treated, control = rng.normal(1, 2, 60), rng.normal(0.5, 1, 45)
    result = difference(Moments.of(treated), Moments.of(control))
    error = np.sqrt(stats.sem(treated) ** 2 + stats.sem(control) ** 2)
    assert float(result.estimate) == pytest.approx(treated.mean() - control.mean(), abs=1e-12)
    assert float(result.error) == pytest.approx(error, rel=1e-12)
    assert float(result.upper - result.lower) == pytest.approx(2 * 1.959963984540054 * error, rel=1e-12)


def test_weighted_error_is_the_linearised_one():
    rng = np.random.default_rng(2)
    y, w = rng.normal(size=50), rng.uniform(1, 5, 50)
    mean = np.sum(w * y) / np.sum(w)
    expected = np.sum((w * (y - mean) / w.sum()) ** 2) * 50 / 49
    assert float(Moments.of(y, w).squared_error) == pytest.approx(expected, rel=1e-12)
    # The scale of weights is arbitrary.
    assert float(Moments.of(y, 7 * w).squared_error) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("weighted", [False, True])
def test_intervals_cover(weighted):
    rng = np.random.default_rng(3)
    reps, n = 2000, 200
    x = rng.random((reps, n, 2)) < 0.3
    chance = np.where(x, 0.8, 0.25) if weighted else np.full(x.shape, 0.5)
    kept = rng.random(x.shape) < chance
    y = (rng.random(x.shape) < np.where(x, 0.5, 0.2) + np.array([0.1, 0.0])).astype(float)
    w = kept / chance
    arm = [_masked(y[..., a], w[..., a], kept[..., a]) for a in (0, 1)]
    result = difference(*arm)
    covered = np.mean((result.lower <= 0.1) & (result.upper >= 0.1))
    assert abs(covered - 0.95) < 0.02  # four standard errors of 2,000 trials at .95


def _masked(y, w, kept):
    terms = {f: (w**a * y**b).sum(axis=1) for f, (a, b) in POWERS.items()}
    return Moments(n=kept.sum(axis=1), **terms)


def test_few_units_give_no_mean_and_no_spread_gives_no_interval():
    few = difference(Moments.of(np.arange(29.0)), Moments.of(np.arange(40.0)))
    assert np.isnan(few.treated) and np.isnan(few.estimate) and np.isnan(few.lower)
    assert float(few.control) == 19.5
    silent = difference(Moments.of(np.zeros(100)), Moments.of(np.zeros(100)))
    assert float(silent.estimate) == 0 and np.isnan(silent.error) and np.isnan(silent.upper)
    # A constant far from zero leaves only rounding in the spread.
    assert np.isnan(difference(Moments.of(np.full(100, 0.1)), Moments.of(np.full(100, 0.1))).error)
    empty = difference(Moments.zeros(()), Moments.of(np.arange(40.0)))
    assert np.isnan(empty.estimate)


def test_fixed_point_is_exact_for_whole_numbers_and_close_for_others():
    rng = np.random.default_rng(4)
    counts = rng.integers(-1000, 1000, 5000).astype(float)
    point = FixedPoint.of(1.0, np.abs(counts).max())
    w = np.ones(5000)
    assert float(point.floats("wy", point.integers("wy", w, counts).sum())) == counts.sum()
    assert float(point.floats("wyy", point.integers("wyy", w, counts).sum())) == (counts**2).sum()
    spend, w = rng.lognormal(3, 1, 5000), rng.uniform(1, 9, 5000)
    point = FixedPoint.of(w.max(), spend.max())
    for field, (a, b) in POWERS.items():
        terms = point.integers(field, w, spend)
        assert np.abs(terms).max() <= 2**31
        assert float(point.floats(field, terms.sum())) == pytest.approx((w**a * spend**b).sum(), rel=1e-8)
        assert terms.sum() == terms[rng.permutation(5000)].sum()


@pytest.mark.parametrize("largest", [0.0, float("nan"), 1e-70, 1e69, 1e-300])
def test_fixed_point_survives_extreme_ranges(largest):
    point = FixedPoint.of(1.0, largest)
    y = np.array([largest if np.isfinite(largest) else 0.0])
    value = point.floats("wy", point.integers("wy", np.ones(1), y))
    assert float(value[0]) == pytest.approx(float(y[0]), rel=1e-9, abs=1e-78)


def test_ratio_and_quantile():
    assert ratio(np.array([1.0, 1.0]), np.array([2.0, 0.0])).tolist()[0] == 0.5
    assert np.isnan(ratio(np.array(1.0), np.array(0.0)))
    assert normal_quantile(0.95) == pytest.approx(1.959963984540054)
