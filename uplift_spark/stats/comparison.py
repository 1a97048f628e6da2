"""Many groups' effects side by side: shrunk towards their mean, and tests of which differ (R4.3).

Arrays hold one effect and its standard error a group, [groups]; groups without an error take no part and stay NaN.
"""

from __future__ import annotations

from statistics import NormalDist

import numpy as np

from uplift_spark.stats.intervals import resampled_error


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
    p = np.array([2 * NormalDist().cdf(-abs(x)) for x in z])
    order = np.argsort(p)
    adjusted = np.maximum.accumulate((len(p) - np.arange(len(p))) * p[order])
    out[known[order]] = np.minimum(adjusted, 1.0)
    return out
