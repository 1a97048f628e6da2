"""Intervals from resampled sums, and many groups' effects side by side."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal, NamedTuple

import numpy as np
import scipy.stats

from uplift_spark.stats.moments import Difference, Moments, difference, normal_quantile, ratio
from uplift_spark.stats.tests import holm

# --------------------------------------------------------------------------------------------------------------------
# Bootstrap weights that depend on the unit alone, and intervals from resampled figures.
# A resample is a weight per unit, not a new table: unit i counts k times in resample r with k ~ Poisson(1), drawn by a
# counter-based hash of (seed, unit, r). Any partition of the rows, in any order, draws the same weights, and sums over
# rows stay mergeable (Chamandy et al. 2012).

Kind = Literal["normal", "percentile"]

MIN_CLUSTERS = 10  # of an arm: from fewer no interval is known

_GOLDEN = 0x9E3779B97F4A7C15
_SALT = np.uint64(0xD1B54A32D192ED03)
_LANES = 4
_CHUNK = 1 << 14  # rows: 2^14 terms of 2^31 counted up to 8 times add exactly in float64


def _poisson_bounds() -> np.ndarray:
    """P(k ≤ 0), P(k ≤ 1), … in units of 2^-16, uint16 [8]; rounded so, the mean is 1 and the variance .99997."""
    probabilities = [math.exp(-1) / math.factorial(k) for k in range(8)]
    return np.rint(np.cumsum(probabilities) * 65536).astype(np.uint16)


_BOUNDS = _poisson_bounds()


def poisson_weights(unit_hashes: np.ndarray, seed: int, replicates: int) -> np.ndarray:
    """Times each unit counts in each resample, uint8 [units, replicates].

    `unit_hashes` are 64-bit hashes of the units' or their clusters' ids (Spark's `xxhash64`), int64 or uint64 [units].
    The first r columns do not depend on how many replicates are requested.
    """
    hashes = np.ascontiguousarray(unit_hashes).view(np.uint64)[:, None]
    blocks = np.arange(-(-replicates // _LANES), dtype=np.uint64)[None, :]
    words = _mix64(hashes ^ np.uint64(seed * _GOLDEN % 2**64), blocks)
    # Little-endian lanes, so that the draws are the same on every machine.
    lanes = words.astype("<u8", copy=False).view("<u2")[:, :replicates]
    counts = np.zeros(lanes.shape, np.uint8)
    for bound in _BOUNDS:
        counts += lanes >= bound
    return counts


class Draws(NamedTuple):
    """Which resamples."""

    seed: int
    replicates: int


def resampled_sums(unit_hashes: np.ndarray, terms: np.ndarray, draws: Draws) -> np.ndarray:
    """Sums of terms under every resample, int64 [replicates, T], exact: from hashes [units] as in `poisson_weights` and
    whole terms [units, T] of at most 2^31 in size."""
    total = np.zeros((draws.replicates, terms.shape[1]), np.int64)
    for low in range(0, len(terms), _CHUNK):
        part = slice(low, low + _CHUNK)
        counts = poisson_weights(unit_hashes[part], *draws).T.astype(np.float64)
        total += (counts @ terms[part].astype(np.float64)).astype(np.int64)
    return total


def _mix64(x: np.ndarray, counter: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser (Steele et al. 2014) of every hash at every counter, uint64 [units, counters]."""
    z = x ^ ((counter + np.uint64(1)) * _SALT)
    z += np.uint64(_GOLDEN)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def bootstrap_interval(
    value: np.ndarray, resampled: np.ndarray, level: float = 0.95, kind: Kind = "normal"
) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper bound of `value` [...] from its resamples [replicates, ...].

    `normal` is value ± z·sd(resamples): steadier than percentiles with a few hundred resamples, and what the reports
    use. `percentile` takes the resamples' own quantiles. Resamples that could not be computed (NaN) are left out; with
    fewer than half of them left, or no spread at all, the interval is not known (NaN).
    """
    value, resampled = np.asarray(value, np.float64), np.asarray(resampled, np.float64)
    error = resampled_error(resampled)
    # No spread beyond rounding means that nothing varied (no event in any resample), not that the value is certain.
    usable = np.isfinite(value) & (error > 1e-12 * np.abs(value)) & (error > 0)
    lower, upper = _bounds(value, np.where(np.isfinite(resampled), resampled, np.nan), error, usable, level, kind)
    return np.where(usable, lower, np.nan), np.where(usable, upper, np.nan)


def _bounds(value, resampled, error, usable, level, kind) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[no-untyped-def]
    if kind == "normal":
        half = normal_quantile(level) * error
        return value - half, value + half
    safe = np.where(usable, resampled, 0.0)
    lower, upper = np.nanquantile(safe, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return lower, upper


def resampled_error(resampled: np.ndarray) -> np.ndarray:
    """Standard deviation over resamples, [replicates, ...] -> [...]; those that are not known are left out, NaN where
    fewer than half, or fewer than two, are."""
    known = np.isfinite(resampled)
    count = known.sum(axis=0)
    mean = np.where(known, resampled, 0.0).sum(axis=0) / np.maximum(count, 1)
    squares = np.where(known, resampled - mean, 0.0) ** 2
    enough = (count > 1) & (2 * count >= len(resampled))
    return np.sqrt(np.where(enough, squares.sum(axis=0) / np.maximum(count - 1, 1), np.nan))


def paired_error(value: np.ndarray, replicates: np.ndarray) -> np.ndarray:
    """Standard errors of `value` [...] from pairs of replicates that share no unit, [replicates, ...]; an odd one is
    left out. A mean square: half that of the pairs' differences, and that of the replicates' mean from the value.

    Wide enough for normal 95 % intervals to hold their level: differences count times the quantile of Student's t over
    that of the normal distribution, as they are known from as few degrees of freedom as there are pairs.
    """
    pairs = len(replicates) // 2
    apart = replicates[0 : 2 * pairs : 2] - replicates[1 : 2 * pairs : 2]
    wider = scipy.stats.t.ppf(0.975, pairs) / normal_quantile(0.95)
    shift = replicates.mean(axis=0) - value
    return np.asarray(np.sqrt(wider**2 * (apart**2).mean(axis=0) / 2 + shift**2))


@dataclass(frozen=True)
class ClusterEffects:
    """Effects [levels, buckets, outcomes] with errors from resampled clusters, the effects of every resample
    [replicates, ...], and how many clusters the smaller arm is worth [levels, buckets]."""

    difference: Difference
    resampled: np.ndarray
    clusters: np.ndarray


def cluster_effects(arms: Moments, w: np.ndarray, wy: np.ndarray) -> ClusterEffects:
    """Effects of cells [levels, 2, buckets, outcomes], control first, whose units come in clusters.

    w   Σ of weights under resamples that draw clusters, [replicates, levels, 2, buckets]
    wy  Σ of weight·outcome, [replicates, levels, 2, buckets, outcomes]
    """
    means = ratio(wy, w[..., None])
    bootstrap = means[:, :, 1] - means[:, :, 0]
    clusters = effective_clusters(w).min(axis=1)
    error = np.where((clusters >= MIN_CLUSTERS)[..., None], resampled_error(bootstrap), np.nan)
    return ClusterEffects(difference(arms[:, 1], arms[:, 0], error=error), bootstrap, clusters)


def effective_clusters(resampled_weights: np.ndarray) -> np.ndarray:
    """Clusters that would vary as much if all had one weight (Kish), [replicates, ...] sums of weights -> [...].

    Under Poisson(1) weights the variance of a sum of weights is the sum of the clusters' squared weights.
    """
    error = resampled_error(resampled_weights)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(error > 0, (resampled_weights.mean(axis=0) / error) ** 2, 0.0)


# --------------------------------------------------------------------------------------------------------------------
# Many groups' effects side by side: shrunk towards their mean, and tests of which differ.
# Arrays hold one effect and its standard error a group, [groups]; groups without an error take no part and stay NaN.


def spread_of(estimate: np.ndarray, error: np.ndarray) -> float:
    """Variance of the true effects over groups: what their errors do not explain (DerSimonian and Laird 1986)."""
    known = np.isfinite(estimate) & np.isfinite(error)
    if known.sum() < 2:
        return 0.0
    y, w = estimate[known], 1 / error[known] ** 2
    mean = (w * y).sum() / w.sum()
    beyond = (w * (y - mean) ** 2).sum() - (known.sum() - 1)
    return float(max(0.0, beyond / (w.sum() - (w**2).sum() / w.sum())))


def shrunk(estimate: np.ndarray, error: np.ndarray) -> np.ndarray:
    """Empirical Bayes estimates: each drawn to the groups' mean as far as its error is large beside their spread.

    Their mean squared error over groups is below that of the effects themselves; a group nobody knows gets the mean.
    """
    known = np.isfinite(estimate) & np.isfinite(error)
    if not known.any():
        return np.full(len(estimate), np.nan)
    spread = spread_of(estimate, error)
    w = 1 / (error[known] ** 2 + spread)
    mean = (w * estimate[known]).sum() / w.sum()
    trust = np.where(known, spread / np.where(known, error**2 + spread, 1.0), 0.0)
    return trust * np.where(known, estimate, 0.0) + (1 - trust) * mean


def wilson_interval(share: float, count: float, level: float = 0.95) -> tuple[float, float]:
    """Interval of a probability from the share of `count` draws in which it came true (Wilson 1927)."""
    z = normal_quantile(level) ** 2 / count
    middle = (share + z / 2) / (1 + z)
    half = float(np.sqrt(share * (1 - share) * z + z**2 / 4) / (1 + z))
    return max(0.0, middle - half), min(1.0, middle + half)


def different(estimate: np.ndarray, error: np.ndarray, resampled: np.ndarray | None = None) -> np.ndarray:
    """p-values, adjusted by Holm (1979), of "this group's effect is that of the others", [groups].

    The others' effect is their mean weighted by precision. The probability of any false alarm among the groups is at
    most the level at which these p-values are read, whatever is true of the other groups. Effects of groups that
    share clusters are not independent; their differences' errors are then those of `resampled` effects [R, groups].
    """
    known = np.flatnonzero(np.isfinite(estimate) & np.isfinite(error))
    out = np.full(len(estimate), np.nan)
    if len(known) < 2:
        return out
    y, w = estimate[known], 1 / error[known] ** 2

    def apart(effects: np.ndarray) -> np.ndarray:
        weighted = w * effects
        return np.asarray(effects - (weighted.sum(axis=-1, keepdims=True) - weighted) / (w.sum() - w))

    apart_error = np.sqrt(1 / w + 1 / (w.sum() - w))
    if resampled is not None:
        apart_error = resampled_error(apart(resampled[:, known]))
    z = apart(y) / apart_error
    out[known] = holm(np.array([2 * NormalDist().cdf(-abs(x)) for x in z]))
    return out
