"""Bootstrap weights by hash, and whether the intervals they give are true."""

import numpy as np
import pytest
from scipy import stats

from uplift_spark.stats.curves import rank_bins, uplift_curve
from uplift_spark.stats.intervals import (
    bootstrap_interval,
    cluster_effects,
    effective_clusters,
    poisson_weights,
    wilson_interval,
)
from uplift_spark.stats.moments import Moments

HASHES = np.random.default_rng(0).integers(-(2**63), 2**63, 200_000, dtype=np.int64)


def test_weights_are_poisson():
    weights = poisson_weights(HASHES, 7, 8)
    assert weights.shape == (200_000, 8) and weights.dtype == np.uint8
    counts = np.bincount(weights.ravel(), minlength=6)[:6]
    expected = stats.poisson(1).pmf(np.arange(6)) * weights.size
    assert np.abs(counts - expected).max() < 5 * np.sqrt(weights.size)
    assert stats.chisquare(counts, expected * counts.sum() / expected.sum()).pvalue > 1e-3


def test_weights_depend_on_unit_seed_and_replicate_only():
    weights = poisson_weights(HASHES[:1000], 7, 21)
    order = np.random.default_rng(1).permutation(1000)
    np.testing.assert_array_equal(poisson_weights(HASHES[:1000][order], 7, 21), weights[order])
    np.testing.assert_array_equal(poisson_weights(HASHES[:1000], 7, 5), weights[:, :5])
    np.testing.assert_array_equal(poisson_weights(HASHES[:1000].view(np.uint64), 7, 21), weights)
    assert (poisson_weights(HASHES[:1000], 8, 21) != weights).mean() > 0.5
    assert poisson_weights(HASHES[:0], 7, 21).shape == (0, 21)


def test_weights_are_the_ones_written_down():
    """Golden values: bootstrap intervals of stored runs must be reproducible by later versions."""
    assert poisson_weights(np.array([0, 1, -1]), 7, 6).tolist() == [
        [3, 0, 3, 4, 1, 2],
        [1, 0, 0, 1, 2, 1],
        [2, 3, 0, 0, 0, 1],
    ]


def test_replicates_and_neighbours_are_independent():
    weights = poisson_weights(np.arange(20_000), 7, 40).astype(float)  # consecutive hashes are the hardest case
    between = np.corrcoef(weights.T)
    assert np.abs(between - np.eye(40)).max() < 5 / np.sqrt(20_000)
    lagged = [np.corrcoef(weights[:-1, r], weights[1:, r])[0, 1] for r in range(40)]
    assert np.abs(lagged).max() < 5 / np.sqrt(20_000)
    # Means over units vary as those of independent draws would.
    assert stats.kstest((weights.mean(axis=0) - 1) * np.sqrt(20_000), "norm").pvalue > 1e-3


def test_bounds_by_hand():
    draws = np.array([[1.0], [2.0], [3.0], [4.0], [5.0]])
    lower, upper = bootstrap_interval(np.array([3.5]), draws)
    assert upper[0] - 3.5 == pytest.approx(1.959963984540054 * np.std(draws, ddof=1))
    assert 3.5 - lower[0] == pytest.approx(upper[0] - 3.5)
    lower, upper = bootstrap_interval(np.array([3.5]), draws, level=0.5, kind="percentile")
    assert (lower[0], upper[0]) == (2.0, 4.0)


@pytest.mark.parametrize("kind", ["normal", "percentile"])
def test_unknown_resamples_are_left_out(kind):
    draws = np.tile(np.arange(10.0)[:, None], (1, 4))
    draws[0, 0] = np.nan
    draws[4:, 1] = np.nan
    draws[:, 2] = 1.0
    lower, upper = bootstrap_interval(np.array([5.0, 5.0, 1.0, np.nan]), draws, kind=kind)
    assert np.isfinite(lower[0]) and upper[0] > lower[0]
    assert np.isnan(lower[1:]).all() and np.isnan(upper[1:]).all()


@pytest.mark.parametrize("tau", [0.0, 1.0])
def test_qini_intervals_cover(tau):
    """300 campaigns of 1,500 units: the interval holds the true Qini of the ranking about 95 times in 100."""
    rng = np.random.default_rng(2)
    campaigns, covered = 300, 0
    for seed in range(campaigns):
        score, treated, y = _campaign(rng, 1500, tau)
        value, draws = _qini(score, treated, y, rng.integers(-(2**63), 2**63, 1500, dtype=np.int64), seed)
        lower, upper = bootstrap_interval(value, draws)
        covered += bool(lower <= tau / 12 <= upper)
    # Central 99.9 % of a binomial at .95.
    low, high = stats.binom(campaigns, 0.95).ppf([0.0005, 0.9995])
    assert low <= covered <= high


def _campaign(rng, n, tau):
    x = rng.random(n)
    treated = (rng.random(n) < 0.4).astype(int)
    return x, treated, rng.normal(size=n) + x + treated * tau * x  # true Qini of the ranking by x: tau / 12


def _qini(score, treated, y, hashes, seed, bins=50):
    order = np.argsort(-score)
    cell = np.empty(len(y), int)
    cell[order] = rank_bins(np.ones(len(y)), bins)
    weights = np.concatenate([np.ones((len(y), 1)), poisson_weights(hashes, seed, 100)], axis=1)
    sums = []
    for arm in (1, 0):
        onto = ((cell == np.arange(bins)[:, None]) & (treated == arm)).astype(float)
        sums += [(onto @ weights).T, ((onto * y) @ weights).T]
    qini = uplift_curve(*sums).qini
    return qini[0], qini[1:]


def test_effective_clusters_are_those_of_one_size():
    sizes = np.array([30.0] * 50 + [0.001] * 50)
    alike, uneven = (poisson_weights(HASHES[:100], 7, 4000).T @ w for w in (np.ones(100), sizes))
    assert effective_clusters(alike) == pytest.approx(100, rel=0.1)
    assert effective_clusters(uneven) == pytest.approx(50, rel=0.1)
    assert effective_clusters(np.full(5, 3.0)) == 0  # nothing was drawn


@pytest.mark.parametrize("clusters", [9, 60])
def test_effects_of_clusters_have_the_error_of_their_means(clusters):
    """Ten units a cluster, all alike: what is known is the mean of the clusters."""
    rng = np.random.default_rng(3)
    means, size, replicates = rng.normal(size=(2, clusters)), 10, 4000
    cells = [Moments.of(np.repeat(m, size)[:, None]) for m in means]
    arms = Moments(*(np.stack([getattr(c, f) for c in cells])[None, :, None] for f in Moments.__dataclass_fields__))
    counts = [poisson_weights(HASHES[k * clusters : (k + 1) * clusters], 7, replicates) * size for k in (0, 1)]
    w = np.stack([c.sum(axis=1) for c in (x.T for x in counts)], axis=1)[:, None, :, None].astype(float)
    wy = np.stack([x.T @ m for x, m in zip(counts, means, strict=True)], axis=1)[:, None, :, None, None]
    result = cluster_effects(arms, w, wy)
    assert result.difference.estimate.item() == pytest.approx(means[1].mean() - means[0].mean())
    assert result.clusters.item() == pytest.approx(clusters, rel=0.15)
    expected = np.sqrt((means.var(axis=1) / clusters).sum())
    if clusters < 10:
        assert np.isnan([result.difference.error.item(), result.difference.lower.item()]).all()
    else:
        assert result.difference.error.item() == pytest.approx(expected, rel=0.1)


def test_wilson_s_interval_of_a_share() -> None:
    """Statsmodels' `proportion_confint(…, method="wilson")`: 7 of 20 is .1812 to .5671; none of 10 is 0 to .2775."""
    assert wilson_interval(7 / 20, 20) == pytest.approx((0.18119, 0.56715), abs=1e-5)
    assert wilson_interval(0.0, 10) == pytest.approx((0.0, 0.27753), abs=1e-5)
    assert wilson_interval(1.0, 10) == pytest.approx((0.72247, 1.0), abs=1e-5)
