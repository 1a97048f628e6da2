"""Average effects under confounding: by hand on tiny frames, sums that add up, intervals that hold the truth."""

from __future__ import annotations

import numpy as np
import pytest

from uplift_spark.stats.aipw import ESTIMANDS, Scale, averages_of, terms


def drawn(n, rng, levels=3):
    """Levels, outcomes, nuisances a little off, and the truth of every estimand [L, 4] in this population."""
    x = rng.normal(size=n)
    weights = np.exp(np.outer(x, np.linspace(0, 0.8, levels)))
    odds = weights / weights.sum(axis=1, keepdims=True)
    received = (rng.random(n)[:, None] > odds.cumsum(axis=1)).sum(axis=1)
    effects = np.column_stack([np.zeros(n), *(0.3 * k + 0.2 * k * x for k in range(1, levels))])
    outcome = x + effects[np.arange(n), received] + rng.normal(size=n)
    expected = 0.7 * x[:, None] + effects  # a wrong regression: right odds keep the averages right
    return x, received, outcome, expected, odds


def truth(levels=3):
    """Of a large population; naive is what the arms' means tend to."""
    _, received, outcome, expected, odds = drawn(1_000_000, np.random.default_rng(0), levels)
    rows = []
    for k in range(1, levels):
        tau = expected[:, k] - expected[:, 0]
        weight = odds[:, k] * odds[:, 0] / (odds[:, k] + odds[:, 0])
        naive = outcome[received == k].mean() - outcome[received == 0].mean()
        rows.append([tau.mean(), np.average(tau, weights=odds[:, k]), np.average(tau, weights=weight), naive])
    return np.array(rows)


def test_by_hand():
    outcome, received = np.array([3.0, 1.0, 2.0, 0.0] * 20), np.array([1, 0, 1, 0] * 20)
    expected, odds = np.tile([[1.0, 2.0]], (80, 1)), np.tile([[0.6, 0.4]], (80, 1))
    one = averages_of(outcome, received, expected, odds)
    # Scores by unit: 1 + (y - 2) / .4 if treated, 1 - (y - 1) / .6 if not.
    scores = 1 + np.where(received == 1, (outcome - 2) / 0.4, -(outcome - 1) / 0.6)
    assert one.estimate[0, 0] == pytest.approx(scores.mean(), abs=1e-6)
    assert one.error[0, 0] == pytest.approx(scores.std(ddof=1) / 80**0.5, rel=1e-6)
    att = ((received == 1) * (outcome - 1) - (received == 0) * (outcome - 1) * 0.4 / 0.6).sum() / 40
    assert one.estimate[0, 1] == pytest.approx(att, abs=1e-6)
    # Odds that are the same for all leave nothing to weigh: overlap is the ate of these terms, per unit of weight.
    assert one.estimate[0, 2] == pytest.approx(scores.mean(), abs=0.2)
    assert one.estimate[0, 3] == pytest.approx(2.5 - 0.5, abs=1e-6)
    naive = (outcome[received == 1].var(ddof=0) / 40 + outcome[received == 0].var(ddof=0) / 40) ** 0.5
    assert one.error[0, 3] == pytest.approx(naive, rel=0.02)
    assert one.units.tolist() == [40, 40]


def test_sums_of_parts_are_those_of_the_whole():
    _, received, outcome, expected, odds = drawn(3000, np.random.default_rng(1))
    scale = Scale.of(float(np.abs(outcome).max()), 0.01)
    whole = scale.integers(terms(outcome, received, expected, odds))
    order = np.random.default_rng(2).permutation(3000)
    parts = [scale.integers(terms(outcome[p], received[p], expected[p], odds[p])).sum(0) for p in np.split(order, 5)]
    assert np.array_equal(sum(parts), whole.sum(axis=0))


def test_few_units_and_few_clusters_tell_nothing():
    _, received, outcome, expected, odds = drawn(400, np.random.default_rng(3))
    few = np.flatnonzero((received != 2) | (np.cumsum(received == 2) < 30))
    some = averages_of(outcome[few], received[few], expected[few], odds[few])
    assert np.isnan(some.estimate[1]).all() and np.isfinite(some.estimate[0]).all()
    clustered = averages_of(outcome, received, expected, odds, hashes=np.arange(400) % 5)
    assert np.isnan(clustered.error).all()


def covered(draws, n, cluster=1):
    """Share of 95 % intervals that hold the truth, [L, 4], units in clusters of equals if `cluster` is above 1; and the
    errors' mean over the estimates' standard deviation."""
    known, inside, estimates, errors = truth(), [], [], []
    for seed in range(draws):
        parts = drawn(n, np.random.default_rng([4, seed]))[1:]
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
