"""From how little bags differ to variances of effects and of their averages (Athey, Tibshirani & Wager 2019, s. 4)."""

from __future__ import annotations

import math

import numpy as np

from uplift_spark.causal.kernels import debiased_variance
from uplift_spark.causal.rows import Plan
from uplift_spark.stats.moments import normal_quantile

Z95 = normal_quantile(0.95)
CORRECTED_VARIANCE, _SHARED_GROWTH = 0.6, 0.8  # see `variance_factor`


def bag_covariance(pulls: np.ndarray, design: tuple[int, int, int]) -> np.ndarray:
    """Little-bag covariance of averages from their trees' pulls [T, K-1]: [K-1, K-1], positive semidefinite.

    As in the kernel a bag speaks through those of its trees that do, and a bucket's only tree is not centred.
    """
    bag, n_buckets, _ = design
    speaks = (pulls != 0).sum(axis=1) > 0
    for b in range(n_buckets):
        mine = b + n_buckets * np.flatnonzero(speaks[b::n_buckets])
        if mine.size > 1:
            pulls[mine] = (pulls[mine] - pulls[mine].mean(axis=0)) * math.sqrt(mine.size / (mine.size - 1))
    count = speaks.reshape(-1, bag).sum(axis=1)
    bags, there = pulls.reshape(-1, bag, pulls.shape[1])[count > 1], speaks.reshape(-1, bag)[count > 1]
    if not len(bags):
        return np.zeros((pulls.shape[1], pulls.shape[1]))
    count = count[count > 1]
    means = bags.sum(axis=1) / count[:, None]
    apart = (bags - means[:, None]) * there[:, :, None]
    between = means.T @ means / len(means)
    noise = np.einsum("gtk,gtl,g->kl", apart, apart, 1.0 / (count * (count - 1))) / len(means)
    if not np.isfinite(between - noise).all():  # no row has effects
        return np.full_like(between, np.nan)
    values, vectors = np.linalg.eigh(between - noise)
    found = (vectors * np.maximum(values, 0.0)) @ vectors.T
    # Where bags differ no more than the trees in them, nothing was found, not certainty: as for single effects.
    least = [debiased_variance(between[k, k], noise[k, k], len(means)) for k in range(len(found))]
    return np.asarray(found + np.diag(np.maximum(least - np.diag(found), 0.0)))


def few_bags(bags: int) -> float:
    """What a variance that is known from that many bags is multiplied by, so that normal intervals hold their level.

    A t quantile in place of the normal one (its first term, Cornish & Fisher 1938), squared. Degrees of freedom are
    half the bags: about as much as the bags vary is taken off for the trees in them. In simulations averages were
    covered .935 of the time without it, the mean of ten designs of 500 draws each (`make simulations`).
    """
    return (1.0 + (Z95**2 + 1.0) / (2.0 * max(bags, 2))) ** 2


def left_out(plan: Plan) -> float:
    """What the little-bag variance is multiplied by because trees of one bag are estimated on different buckets.

    That looks like noise between them. With each bucket's part in a half-sample's deviation of variance 1, the bags
    show `between - within / (bag - 1)` where the forest, which leaves out every bucket in turn, has 1 / B.
    """
    b, g, bag = plan.n_buckets, plan.growth_buckets, plan.bag_size
    # The first bag stands for all: the next ones leave out the same pattern of buckets, turned around.
    weights = ((np.arange(b) - np.arange(bag)[:, None]) % b >= g) / (b - g)
    between, each = float((weights.mean(axis=0) ** 2).sum()), 1.0 / (b - g)
    return 1.0 / b / max(between - (each - between) / max(bag - 1, 1), 0.25 / b)


def variance_factor(plan: Plan, corrected: float) -> float:
    """What the little-bag variance of single effects is multiplied by, for what all bags share and so cannot show.

    Left-out buckets: see there. Where several buckets grow a tree, trees share growing rows across buckets, too;
    simulations asked for .8 of that.

    Bias correction: with S the forest's smoother the estimate is (2S - S²)y, but what S² takes away is the same in
    every bag, so the bags show the variance of 2Sy. Over the true one that is 4 / (2 - s)², s the smoother's eigenvalue
    where the noise is; simulated designs of 2,000 to 100,000 rows, 2 to 5 levels, strong, weak and no effects gave 1.6
    to 2. A correction by other rows than the estimate's hides less of its noise (`refresh.forest_of`): `corrected`.
    """
    shared = _SHARED_GROWTH if plan.growth_buckets > 1 else 1.0
    return left_out(plan) * shared * (corrected if plan.debias else 1.0)
