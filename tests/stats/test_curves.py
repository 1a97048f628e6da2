"""Curves, areas and rank bins: by hand, by brute force, against scikit-uplift's formulas, against known effects."""

import numpy as np
import pytest

from uplift_spark.stats.curves import Curve, rank_bins, true_curve, uplift_curve
from uplift_spark.stats.moments import ratio


def _curve_of_rows(score, treated, y, bins=None, w=None):
    """Curve of rows, each its own bin unless bins are given."""
    order = np.argsort(-score, kind="stable")
    w = np.ones(len(y)) if w is None else w
    cells = rank_bins(w[order], bins) if bins else np.arange(len(y))
    size = bins or len(y)
    sums = [
        np.bincount(cells, weights=(v * (treated == arm))[order], minlength=size) for arm in (1, 0) for v in (w, w * y)
    ]
    return uplift_curve(*sums)


def test_curve_by_hand():
    # Bins: 2 treated with 2 events, 2 control with 1; then 1 treated without, 3 control with 1.
    curve = uplift_curve(np.array([2, 1]), np.array([2, 0]), np.array([2, 3]), np.array([1, 1]))
    assert curve.fraction.tolist() == [0, 0.5, 1]
    np.testing.assert_allclose(curve.gain, [0, 0.5 * (1 - 0.5), 2 / 3 - 2 / 5])
    assert float(curve.average_effect) == pytest.approx(2 / 3 - 2 / 5)
    assert float(curve.auuc) == pytest.approx(0.5 * 0.25 / 2 + 0.5 * (0.25 + 4 / 15) / 2)
    assert float(curve.qini) == pytest.approx(float(curve.auuc) - 2 / 15)
    np.testing.assert_allclose(curve.at(np.array([0.25, 0.75])), [0.125, (0.25 + 4 / 15) / 2])


def test_curve_is_scikit_uplifts_divided_by_n():
    """scikit-uplift 0.5, sklift.metrics.uplift_curve, for untied scores: (Yt/Nt - Yc/Nc)·(Nt + Nc) after each unit."""
    rng = np.random.default_rng(0)
    n = 300
    score, treated = rng.normal(size=n), rng.integers(0, 2, n)
    y = (rng.random(n) < 0.2 + 0.1 * treated).astype(float)
    order = np.argsort(-score)
    t, yy = treated[order], y[order]
    trmnt, all_ = np.cumsum(t), np.arange(1, n + 1)
    ctrl = all_ - trmnt
    y_t, y_c = np.cumsum(yy * t), np.cumsum(yy * (1 - t))
    rate = np.divide(y_t, trmnt, where=trmnt > 0, out=np.zeros(n)) - np.divide(
        y_c, ctrl, where=ctrl > 0, out=np.zeros(n)
    )
    both = (trmnt > 0) & (ctrl > 0)  # before, scikit-uplift takes the absent arm's rate for zero
    curve = _curve_of_rows(score, treated, y)
    np.testing.assert_allclose(curve.gain[1:][both], (rate * all_ / n)[both], atol=1e-12)
    assert float(curve.auuc) == pytest.approx(np.trapezoid(curve.gain, curve.fraction), abs=1e-15)


def test_hundred_bins_are_close_to_one_bin_per_unit():
    rng = np.random.default_rng(1)
    n = 20_000
    score, treated = rng.normal(size=n), rng.integers(0, 2, n)
    y = rng.normal(size=n) + treated * score
    fine, coarse = _curve_of_rows(score, treated, y), _curve_of_rows(score, treated, y, bins=100)
    assert float(coarse.qini) == pytest.approx(float(fine.qini), rel=2e-3)
    np.testing.assert_allclose(coarse.fraction, np.linspace(0, 1, 101), atol=1e-12)


def test_leading_axes_are_curves_of_their_own():
    rng = np.random.default_rng(2)
    tw, cw = rng.integers(0, 5, (3, 2, 20)), rng.integers(0, 5, (3, 2, 20))
    ty, cy = rng.normal(size=tw.shape) * tw, rng.normal(size=cw.shape) * cw
    together = uplift_curve(tw, ty, cw, cy)
    assert together.qini.shape == (3, 2)
    for i in np.ndindex(3, 2):
        alone = uplift_curve(tw[i], ty[i], cw[i], cy[i])
        assert together.qini[i] == alone.qini and together.auuc[i] == alone.auuc
        np.testing.assert_array_equal(together.at(np.array([0.3, 0.9]))[i], alone.at(np.array([0.3, 0.9])))


def test_first_bins_with_one_arm_take_the_first_difference_known():
    curve = uplift_curve(np.array([0, 1, 1]), np.array([0, 1, 0]), np.array([1, 1, 0]), np.array([0, 0, 0]))
    np.testing.assert_allclose(curve.gain, [0, 0.25 * 1, 0.75 * 1, 0.5])
    alone = uplift_curve(np.array([1, 1]), np.array([1, 1]), np.zeros(2), np.zeros(2))
    assert np.isnan(alone.qini)


def test_ties_everywhere_have_no_qini():
    rng = np.random.default_rng(3)
    treated, y = rng.integers(0, 2, 500), rng.normal(size=500)
    sums = [np.array([v.sum()]) for arm in (1, 0) for v in ((treated == arm), y * (treated == arm))]
    curve = uplift_curve(*sums)
    assert curve.fraction.tolist() == [0, 1]
    assert float(curve.qini) == pytest.approx(0, abs=1e-15)


def test_true_curve_and_oracle():
    effect = np.array([3.0, 1.0, -1.0, -2.0])
    oracle = true_curve(np.ones(4), effect)
    np.testing.assert_allclose(oracle.gain, [0, 0.75, 1.0, 0.75, 0.25])
    assert float(oracle.auuc) == pytest.approx((0.75 / 2 + 1.75 / 2 + 1.75 / 2 + 1.0 / 2) / 4)
    rng = np.random.default_rng(4)
    qinis = [float(true_curve(np.ones(4), effect[rng.permutation(4)]).qini) for _ in range(200)]
    assert max(qinis) <= float(oracle.qini) + 1e-15
    assert min(qinis) == pytest.approx(-float(oracle.qini))


def test_estimate_agrees_with_the_truth():
    rng = np.random.default_rng(5)
    n = 400_000
    x = rng.random(n)
    treated = rng.integers(0, 2, n)
    y = rng.normal(size=n) + treated * x  # effect x: gain(f) = f - f²/2, so AUUC 1/3, average 1/2, Qini 1/12
    curve = _curve_of_rows(x, treated, y, bins=100)
    assert float(curve.qini) == pytest.approx(1 / 12, abs=0.005)
    order = np.argsort(-x)
    exact = true_curve(np.ones(n), x[order])
    assert float(exact.qini) == pytest.approx(1 / 12, abs=0.001)
    # Wherever the model ranks by noise, the area is lost.
    assert abs(float(_curve_of_rows(rng.random(n), treated, y, bins=100).qini)) < 0.005


def test_inverse_propensity_weights_undo_selection():
    rng = np.random.default_rng(6)
    n = 400_000
    x = rng.random(n)
    e = 0.2 + 0.6 * x
    treated = (rng.random(n) < e).astype(int)
    y = 3 * x + rng.normal(size=n) + treated * x
    w = 1 / np.where(treated == 1, e, 1 - e)
    weighted = _curve_of_rows(x, treated, y, bins=100, w=w)
    assert float(weighted.average_effect) == pytest.approx(0.5, abs=0.02)
    assert float(weighted.qini) == pytest.approx(1 / 12, abs=0.01)
    assert abs(float(_curve_of_rows(x, treated, y, bins=100).average_effect) - 0.5) > 0.2


def test_rank_bins_are_even_and_ties_stay_together():
    assert rank_bins(np.ones(20), 10).tolist() == [b for b in range(10) for _ in range(2)]
    assert rank_bins(np.array([7.0]), 10).tolist() == [5]  # all tied: the middle
    assert rank_bins(np.array([1, 98, 1]), 10).tolist() == [0, 5, 9]
    bins = rank_bins(np.random.default_rng(7).integers(1, 9, 999), 100)
    assert (np.diff(bins) >= 0).all() and bins[0] == 0 and bins[-1] == 99


def test_points_are_joined_by_straight_lines():
    curve = Curve(np.array([[0.0, 0.5, 1.0]]), np.array([[0.0, 2.0, 1.0]]))
    np.testing.assert_allclose(curve.at(np.array([0.0, 0.25, 0.75, 1.0])), [[0, 1, 1.5, 1]])
    assert np.isnan(ratio(np.ones(1), np.zeros(1)))[0]


def test_autoc_is_the_mean_excess_over_all_tops():
    """Against a fine numerical integral, and by hand over units in the way grf averages tops."""
    rng = np.random.default_rng(8)
    width = rng.dirichlet(np.ones(12), 3)
    fraction = np.concatenate([np.zeros((3, 1)), width.cumsum(axis=1)], axis=1)
    gain = np.concatenate([np.zeros((3, 1)), rng.normal(size=(3, 12)).cumsum(axis=1)], axis=1)
    curve = Curve(fraction, gain)
    middle = (np.arange(2_000_000) + 0.5) / 2_000_000
    numerical = (curve.at(middle) / middle).mean(axis=1) - curve.average_effect
    np.testing.assert_allclose(curve.autoc, numerical, rtol=1e-5)
    effects = np.array([4.0, 1.0, 1.0, 0.0])  # one unit a bin: every top's mean effect, minus all units'
    units = Curve(np.linspace(0, 1, 5), np.concatenate([[0], effects.cumsum()]) / 4)
    start = np.arange(1, 4)
    within = [
        effects[0],
        *(e + (effects[:k].sum() - e * k) * np.log1p(1 / k) for k, e in zip(start, effects[1:], strict=True)),
    ]
    assert float(units.autoc) == pytest.approx(np.mean(within) - effects.mean(), rel=1e-12)


def test_autoc_without_information_is_zero():
    flat = Curve(np.array([0, 0.2, 0.2, 1.0]), np.array([0, 0.6, 0.6, 3.0]))  # the second bin is empty
    assert float(flat.autoc) == pytest.approx(0, abs=1e-12)
