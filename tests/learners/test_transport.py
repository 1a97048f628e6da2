"""Average effects for units outside the trial: coverage with known truth, hand sums, groups, what is refused."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from sklearn.linear_model import LinearRegression, LogisticRegression

from uplift_spark.errors import DataError
from uplift_spark.learners.average_effects import transported_average
from uplift_spark.learners.nuisances import NuisanceSpec
from uplift_spark.stats.sampling import unit_hashes


def lines(binary):
    """Right for what `simulated` draws, and quick."""
    return LogisticRegression() if binary else LinearRegression()


QUICK = NuisanceSpec(("0", "1", "2"), outcome=lines, propensity=lines)


def simulated(n, seed, size=1):
    """Those in the trial have more of x0, with which the first level's effect rises; (data, inside, key, truth)."""
    rng = np.random.default_rng(seed)
    house = np.repeat(np.arange(n // size), size)
    x = rng.normal(size=(n // size, 3))[house]
    inside = (rng.random(n // size) < 1 / (1 + np.exp(-x[::size, 0] / 2)))[house]
    level_code = rng.integers(0, 3, n // size)[house]
    gain = np.column_stack([np.zeros(n), 1 + x[:, 0], np.full(n, -0.5)])
    outcome = x[:, 1] + gain[np.arange(n), level_code] + rng.normal(size=n // size)[house]
    outcome[~inside] = np.nan
    key = unit_hashes(pa.array(house), "unit")
    return (x, level_code, outcome), inside, key, gain[~inside, 1:].mean(axis=0)


def coverage(replications, spec, known, n=1000):
    results = []
    for seed in range(replications):
        data, inside, key, truth = simulated(n, seed)
        estimate, error = transported_average(data, inside, key, spec, np.full((n, 3), 1 / 3) if known else None)
        results.append([estimate - truth, np.abs(estimate - truth) < 1.96 * error])
    bias, covered = np.mean(results, axis=0)
    print(f"odds known: {known}: bias {bias.round(4)}, covered {covered.round(3)}, of {replications}")
    return bias, covered


@pytest.mark.parametrize("known", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_average_is_that_of_those_outside(known):
    bias, covered = coverage(60, QUICK, known)
    assert (np.abs(bias) < 0.06).all() and (covered >= 0.85).all()
    _, inside, _, truth = simulated(50_000, 99)
    assert truth[0] < 0.8 and inside.mean() == pytest.approx(0.5, abs=0.02)


@pytest.mark.simulation
@pytest.mark.parametrize("known", [True, False])
def test_intervals_cover(known):
    bias, covered = coverage(500, QUICK, known)
    assert (np.abs(bias) < 0.02).all() and (covered > 0.925).all() and (covered < 0.975).all()


@pytest.mark.simulation
@pytest.mark.parametrize("wrong", ["outcome", "propensity"])
def test_either_model_may_be_wrong(wrong):
    class Constant:
        def __init__(self, binary):
            self.binary = binary

        def fit(self, features, target, sample_weight):
            self.mean = target.mean()
            return self

        def predict(self, features):
            return np.full(len(features), self.mean)

        def predict_proba(self, features):
            return np.column_stack([1 - self.predict(features), self.predict(features)])

    models = {"outcome": lines, "propensity": lines, wrong: Constant}
    bias, covered = coverage(300, NuisanceSpec(("0", "1", "2"), **models), True)
    assert (np.abs(bias) < 0.03).all() and (covered > 0.9).all()


def test_units_of_one_house_count_once():
    one, many = simulated(2000, 3), simulated(8000, 3, size=4)
    propensity = np.full((8000, 3), 1 / 3)
    alone = transported_average(*one[:3], QUICK, propensity[:2000])[1]
    assert transported_average(*many[:3], QUICK, propensity)[1] == pytest.approx(alone, rel=0.15)


def test_what_cannot_be_estimated_is_refused():
    (x, level_code, outcome), inside, key, _ = simulated(600, 1)
    everybody = np.ones(600, bool)
    with pytest.raises(DataError, match="600 of 600 rows are inside"):
        transported_average((x, level_code, np.zeros(600)), everybody, key, QUICK)
    spoilt = np.where(np.cumsum(inside) <= 3, np.nan, outcome)
    with pytest.raises(DataError, match=r"outcome is missing or infinite in 3 of \d+ rows inside"):
        transported_average((x, level_code, spoilt), inside, key, QUICK)
