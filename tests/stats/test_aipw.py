"""Average effects under confounding: by hand on tiny frames, sums that add up, intervals that hold the truth."""

from __future__ import annotations

import numpy as np
import pytest

from uplift_spark.stats.aipw import ESTIMANDS, Scale, averages_of, terms


def simulated(n, rng, levels=3):
    """Levels, outcomes, nuisances a little off, and the truth of every estimand [L, 4] in this population."""
    x = rng.normal(size=n)
    weights = np.exp(np.outer(x, np.linspace(0, 0.8, levels)))
    propensity = weights / weights.sum(axis=1, keepdims=True)
    level_code = (rng.random(n)[:, None] > propensity.cumsum(axis=1)).sum(axis=1)
    effects = np.column_stack([np.zeros(n), *(0.3 * k + 0.2 * k * x for k in range(1, levels))])
    outcome = x + effects[np.arange(n), level_code] + rng.normal(size=n)
    outcome_mean = 0.7 * x[:, None] + effects  # a wrong regression: right odds keep the averages right
    return x, level_code, outcome, outcome_mean, propensity


def truth(levels=3):
    """Of a large population; naive is what the arms' means tend to."""
    _, level_code, outcome, outcome_mean, propensity = simulated(1_000_000, np.random.default_rng(0), levels)
    rows = []
    for k in range(1, levels):
        tau = outcome_mean[:, k] - outcome_mean[:, 0]
        weight = propensity[:, k] * propensity[:, 0] / (propensity[:, k] + propensity[:, 0])
        naive = outcome[level_code == k].mean() - outcome[level_code == 0].mean()
        rows.append([tau.mean(), np.average(tau, weights=propensity[:, k]), np.average(tau, weights=weight), naive])
    return np.array(rows)


def test_by_hand():
    outcome, level_code = np.array([3.0, 1.0, 2.0, 0.0] * 20), np.array([1, 0, 1, 0] * 20)
    outcome_mean, propensity = np.tile([[1.0, 2.0]], (80, 1)), np.tile([[0.6, 0.4]], (80, 1))
    one = averages_of(outcome, level_code, outcome_mean, propensity)
    # Scores by unit: 1 + (y - 2) / .4 if treated, 1 - (y - 1) / .6 if not.
    scores = 1 + np.where(level_code == 1, (outcome - 2) / 0.4, -(outcome - 1) / 0.6)
    assert one.estimate[0, 0] == pytest.approx(scores.mean(), abs=1e-6)
    assert one.error[0, 0] == pytest.approx(scores.std(ddof=1) / 80**0.5, rel=1e-6)
    att = ((level_code == 1) * (outcome - 1) - (level_code == 0) * (outcome - 1) * 0.4 / 0.6).sum() / 40
    assert one.estimate[0, 1] == pytest.approx(att, abs=1e-6)
    # Odds that are the same for all leave nothing to weigh: overlap is the ate of these terms, per unit of weight.
    assert one.estimate[0, 2] == pytest.approx(scores.mean(), abs=0.2)
    assert one.estimate[0, 3] == pytest.approx(2.5 - 0.5, abs=1e-6)
    naive = (outcome[level_code == 1].var(ddof=0) / 40 + outcome[level_code == 0].var(ddof=0) / 40) ** 0.5
    assert one.error[0, 3] == pytest.approx(naive, rel=0.02)
    assert one.units.tolist() == [40, 40]


def test_sums_of_parts_are_those_of_the_whole():
    _, level_code, outcome, outcome_mean, propensity = simulated(3000, np.random.default_rng(1))
    scale = Scale.of(float(np.abs(outcome).max()), 0.01)
    whole = scale.integers(terms(outcome, level_code, outcome_mean, propensity))
    order = np.random.default_rng(2).permutation(3000)
    parts = [
        scale.integers(terms(outcome[p], level_code[p], outcome_mean[p], propensity[p])).sum(0)
        for p in np.split(order, 5)
    ]
    assert np.array_equal(sum(parts), whole.sum(axis=0))


def test_few_units_and_few_clusters_tell_nothing():
    _, level_code, outcome, outcome_mean, propensity = simulated(400, np.random.default_rng(3))
    few = np.flatnonzero((level_code != 2) | (np.cumsum(level_code == 2) < 30))
    some = averages_of(outcome[few], level_code[few], outcome_mean[few], propensity[few])
    assert np.isnan(some.estimate[1]).all() and np.isfinite(some.estimate[0]).all()
    clustered = averages_of(outcome, level_code, outcome_mean, propensity, hashes=np.arange(400) % 5)
    assert np.isnan(clustered.error).all()


def covered(draws, n, cluster=1):
    """Share of 95 % intervals that hold the truth, [L, 4], units in clusters of equals if `cluster` is above 1; and the
    errors' mean over the estimates' standard deviation."""
    known, inside, estimates, errors = truth(), [], [], []
    for seed in range(draws):
        parts = simulated(n, np.random.default_rng([4, seed]))[1:]
        parts = [np.repeat(part, cluster, axis=0) for part in parts]
        hashes = (
            np.repeat(np.random.default_rng(seed).integers(-(2**63), 2**63 - 1, n), cluster) if cluster > 1 else None
        )
        one = averages_of(parts[1], parts[0], *parts[2:], hashes=hashes)
        lower, upper = one.interval
        inside.append((lower <= known) & (known <= upper))
        estimates.append(one.estimate)
        errors.append(one.error)
    ratio = np.mean(errors, axis=0) / np.std(estimates, axis=0)
    for j, name in enumerate(ESTIMANDS):
        bias = np.mean(estimates, axis=0)[:, j] - known[:, j]
        print(
            f"{name}: bias {bias.round(4)}, error / sd {ratio[:, j].round(3)}, covered {np.mean(inside, axis=0)[:, j]}"
        )
    return np.mean(inside, axis=0), ratio


@pytest.mark.parametrize("cluster", [1, 3])
def test_intervals_hold(cluster):
    share, ratio = covered(80, 800, cluster)
    assert share.min() > 0.87 and ratio.min() > 0.8 and ratio.max() < 1.25


@pytest.mark.simulation
@pytest.mark.parametrize("cluster", [1, 3])
def test_intervals_hold_closely(cluster):
    share, _ = covered(500, 1000, cluster)
    assert share.min() >= 0.925 and share.max() <= 0.975


def test_the_difference_of_means_misses_the_effect():
    known = truth()
    assert np.all(np.abs(known[:, 3] - known[:, 0]) > 0.2)
