"""Groups' effects side by side: shrinkage that helps on average, and alarms that are rarely false."""

from statistics import NormalDist

import numpy as np
import pytest

from uplift_spark.stats.intervals import different, shrunk, spread_of


def test_shrinkage_by_hand():
    estimate, error = np.array([1.0, 3.0, 5.0]), np.ones(3)
    # Cochran's Q is 8 with 2 degrees of freedom, weights 1: (8 - 2) / (3 - 1).
    assert spread_of(estimate, error) == pytest.approx(3)
    np.testing.assert_allclose(shrunk(estimate, error), 3 + 0.75 * np.array([-2, 0, 2]))
    np.testing.assert_allclose(shrunk(np.array([1.0, 1.1]), np.ones(2)), 1.05)  # no more spread than errors explain


def test_unknown_groups_get_the_mean_and_take_no_part():
    estimate, error = np.array([1.0, np.nan, 3.0, 5.0]), np.array([1, np.nan, 1, 1])
    np.testing.assert_allclose(shrunk(estimate, error)[[0, 2, 3]], shrunk(estimate[[0, 2, 3]], np.ones(3)))
    assert shrunk(estimate, error)[1] == pytest.approx(3) and np.isnan(different(estimate, error)[1])
    nothing = np.full(2, np.nan)
    assert np.isnan(shrunk(nothing, nothing)).all() and np.isnan(different(nothing, nothing)).all()
    assert np.isnan(different(np.ones(1), np.ones(1))).all()


def test_differences_by_hand():
    # Against the mean of the other two: z = 3 / sqrt(1 + 1/2) for the last.
    p = different(np.array([0.0, 0.0, 3.0]), np.ones(3))
    assert p[2] == pytest.approx(3 * 0.014306, rel=1e-4)
    assert p[0] == p[1] == pytest.approx(min(1, 2 * 0.220671), rel=1e-4)


@pytest.mark.parametrize("spread", [0.0, 0.3, 2.0])
def test_shrunk_effects_are_closer_to_the_truth(spread):
    rng = np.random.default_rng(1)
    raw = better = 0.0
    for _ in range(400):
        error = rng.uniform(0.2, 1.5, 8)
        truth = 1 + spread * rng.normal(size=8)
        estimate = truth + error * rng.normal(size=8)
        raw += ((estimate - truth) ** 2).sum()
        better += ((shrunk(estimate, error) - truth) ** 2).sum()
    assert better < {0.0: 0.3, 0.3: 0.4, 2.0: 0.97}[spread] * raw


def test_false_alarms_are_as_rare_as_said_over_all_groups():
    rng = np.random.default_rng(2)
    error = rng.uniform(0.5, 2, 10)
    alarms = [(different(1 + error * rng.normal(size=10), error) < 0.05).any() for _ in range(2000)]
    assert 0.03 < np.mean(alarms) < 0.06
    # One group differs: the others still raise none more often than said, and it is found.
    truth = np.r_[6.0, np.zeros(9)]
    rejected = np.array([different(truth + error * rng.normal(size=10), error) < 0.05 for _ in range(500)])
    assert rejected[:, 0].mean() > 0.8


def test_groups_that_share_clusters_are_compared_by_clusters():
    """Two halves of every cluster move together: their difference is known better than each of them."""
    rng = np.random.default_rng(5)
    estimate, error = np.array([0.0, 0.1]), np.array([0.1, 0.1])
    bootstrap = estimate + rng.normal(0, 0.098, (4000, 1)) + rng.normal(0, 0.02, (4000, 2))
    assert different(estimate, error)[0] > 0.4
    together = different(estimate, error, bootstrap)
    np.testing.assert_allclose(together, 2 * NormalDist().cdf(-0.1 / (0.02 * np.sqrt(2))) * 2, rtol=0.35)
