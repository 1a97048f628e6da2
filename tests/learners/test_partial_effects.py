"""Average partial effects of confounded doses: coverage with known truth, clusters, what is refused."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures

from uplift_spark.errors import DataError
from uplift_spark.learners.average_effects import average_partial_effect
from uplift_spark.learners.nuisances import NuisanceSpec
from uplift_spark.stats.sampling import unit_hashes


class Quadratic:
    """A ridge of squares and products, as an estimator of the caller's."""

    def __init__(self, _):
        self.model = make_pipeline(PolynomialFeatures(2), Ridge())

    def fit(self, features, target, sample_weight):
        self.model.fit(features, target, ridge__sample_weight=sample_weight)
        return self

    def predict(self, features):
        return self.model.predict(features)


def simulated(n, seed, skewed=False):
    """Units with much x0 or x1 get much, and would do well anyway; a unit of dose brings 1 + x0, 1 on average."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 5))
    noise = (rng.standard_gamma(2, n) - 2) / 2**0.5 if skewed else rng.normal(size=n)
    dose = x[:, 0] + 0.5 * x[:, 1] ** 2 + np.exp(0.3 * x[:, 2]) * noise
    outcome = (1 + x[:, 0]) * dose + 2 * x[:, 0] + x[:, 1] + rng.normal(size=n)
    return x, dose, outcome, unit_hashes(pa.array(np.arange(n)), "unit")


QUICK = NuisanceSpec(("0", "1"), outcome=Quadratic)


def coverage(replications, skewed):
    results = np.array([average_partial_effect(*simulated(1000, seed, skewed), QUICK) for seed in range(replications)])
    covered = float((np.abs(results[:, 0] - 1.0) < 1.96 * results[:, 1]).mean())
    print(
        f"skewed {skewed}: covered {covered:.3f}, bias {results[:, 0].mean() - 1:.4f}, "
        f"spread {results[:, 0].std():.4f}, "
        f"error {results[:, 1].mean():.4f}, of {replications}"
    )
    return covered, results


def test_intervals_cover_where_a_regression_misleads():
    covered, results = coverage(40, False)
    assert covered >= 0.85 and abs(results[:, 0].mean() - 1) < 0.06
    _, dose, outcome, _ = simulated(20_000, 99)
    assert np.polyfit(dose, outcome, 1)[0] > 1.6


@pytest.mark.simulation
@pytest.mark.parametrize("skewed", [False, True])
def test_intervals_cover(skewed):
    assert 0.925 <= coverage(500, skewed)[0] <= 0.975


@pytest.mark.simulation
def test_intervals_cover_with_boosted_trees_and_lines(replications=60):
    results = np.array(
        [average_partial_effect(*simulated(4000, seed), NuisanceSpec(("0", "1"))) for seed in range(replications)]
    )
    covered = (np.abs(results[:, 0] - 1.0) < 1.96 * results[:, 1]).mean()
    print(f"blend: covered {covered:.3f}, bias {results[:, 0].mean() - 1:.4f}, spread {results[:, 0].std():.4f}")
    assert covered >= 0.85


def test_boosted_trees_and_lines_by_default():
    estimate, error = average_partial_effect(*simulated(1500, 5), NuisanceSpec(("0", "1"), folds=2))
    assert abs(estimate - 1.0) < 4 * error < 0.6


def test_clusters_of_equals_change_nothing():
    x, dose, outcome, key = simulated(600, 1)
    once = average_partial_effect(x, dose, outcome, key, QUICK)
    four = [np.repeat(part, 4, axis=0) for part in (x, dose, outcome, key)]
    whole = average_partial_effect(*four, QUICK, cluster=np.repeat(np.arange(600), 4))
    assert whole[1] == pytest.approx(once[1], rel=0.15) and average_partial_effect(*four, QUICK)[1] < 0.6 * once[1]


def test_what_cannot_be_estimated_is_refused():
    x, dose, outcome, key = simulated(300, 1)
    with pytest.raises(DataError, match=r"features tell the dose of .* rows"):
        average_partial_effect(x, np.zeros(300), outcome, key, QUICK)
    spoilt = np.where(np.arange(300) < 3, np.nan, outcome)
    with pytest.raises(DataError, match="outcome is missing or infinite in 3 of 300 rows"):
        average_partial_effect(x, dose, spoilt, key, QUICK)
