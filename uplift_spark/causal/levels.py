"""Ordered levels learn from each other: one response shape, and own effects as far as the data tell them apart (R3.2).

A level's effect from its own units is unbiased and noisy; most of what it holds is common to all levels. With c the
shape of the response over levels, θ(x) the common effect in that direction and D_k(x) = τ_k(x) - c_k θ(x),

    c_k θ(x) + r_k D_k(x),   r_k = 1 - noise of D_k / mean square of D_k, at least 0,

is the empirical Bayes estimate for departures from the shape (Efron & Morris 1973). Both terms are smoothed alike by
the forest, so where responses have one shape D is pure noise however biased the forest is. The shape is the fixed point
of regressing the levels' effects on θ; it is itself drawn towards a parabola through the control, a quadratic dose
response, as far as its noise demands.

Where too few units of a level are near, its average effect over all units stands in (`Forest.effect_arrays`).
"""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np

from uplift_spark.causal.criteria import CRITERIA
from uplift_spark.causal.forest import Forest
from uplift_spark.causal.kernels import plain_mix

ROWS = 4000  # rows the shape is learnt from: averages over them, nothing per row
LEAST = 100  # of these rows must tell of a level for it to be learnt from
ROUNDS = 20


def share_levels(forest: Forest, bins: np.ndarray) -> Forest:
    """The forest with its `mix` learnt from rows like those it was trained on, bins uint8 [n, p]; n is cut to 4,000."""
    bins = bins[:ROWS]
    if forest.plan.told:
        return replace(forest, mix=_spread_of_responses(forest, bins))
    average, covariance = (part[0] for part in forest.averages(bins))
    mix = plain_mix(len(forest.levels))
    threads = os.cpu_count() or 1
    effect, error, low = forest.effects_of(bins, threads)
    doses, whole = forest.levels.doses, ~np.isnan(effect).any(axis=1)
    if doses is not None and np.ndim(doses) == 1 and len(doses) > 2 and whole.sum() >= LEAST:
        mix = _shared(forest, bins[whole], effect[whole], covariance)
        effect, error, low = replace(forest, mix=mix).effects_of(bins, threads)
    mix[4, 1:] = average
    mix[5, 1:] = np.diag(covariance) + _heterogeneity(np.where(low, np.nan, effect - average), error)
    return replace(forest, mix=mix)


def _spread_of_responses(forest: Forest, bins: np.ndarray) -> np.ndarray:
    """Average and covariance of θ over units, [1 + q, q], with the uncertainty of the average."""
    own = np.eye(len(CRITERIA[forest.plan.criterion].basis(forest.plan.levels)))
    average, covariance = (part[0] for part in forest.averages(bins, told=own))
    theta, error, low = forest.effects_of(bins, os.cpu_count() or 1, told=own)
    apart = np.where(low, np.nan, theta - average)
    size = np.nan_to_num(np.sqrt(_heterogeneity(apart, error)))
    whole = apart[~np.isnan(apart).any(axis=1)]
    together = np.corrcoef(whole.T).reshape(len(own), len(own)) if len(whole) >= LEAST else own
    return np.vstack([average, covariance + np.nan_to_num(together) * np.outer(size, size)])


def _heterogeneity(apart: np.ndarray, error: np.ndarray) -> np.ndarray:
    """Variance of each level's effects over units [K-1] from their distances to the average [n, K-1], NaN where support
    is low; of a level that hardly has any, the largest of the others'. NaN if no level has support."""
    squares = apart**2 - error**2
    known = np.isfinite(squares).sum(axis=0) >= LEAST
    found = np.full(known.size, np.nan)
    if known.any():
        squares = np.nanmean(squares[:, known], axis=0)
        found[:] = max(squares.max(), 0.0)
        found[known] = np.maximum(squares, 0.0)
    return found


def _shared(forest: Forest, bins: np.ndarray, effect: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """The `mix` of ordered levels at rows where all their effects [n, K-1] are known; covariance of their averages."""
    doses = np.asarray(forest.levels.doses)
    scale = (doses - doses[0]) / (doses.max() - doses[0])
    weight = forest.sums[:, :, 0].sum(axis=0).astype(float)
    shape, variance = _shape(effect, scale, weight, covariance)
    mix = plain_mix(len(doses))
    mix[0] = shape
    mix[2, 1:] = -shape[1:]
    departure, error, _ = replace(forest, mix=mix).effects_of(bins)
    if np.isnan(error).all(axis=0).any():  # too few trees to tell noise from signal: every level stands alone
        return plain_mix(len(doses))
    own = np.maximum(0.0, 1.0 - np.nanmean(error**2, axis=0) / np.maximum((departure**2).mean(axis=0), 1e-300))
    mix[1, 1:], mix[2, 1:] = own, (1.0 - own) * shape[1:]
    mix[3, 1:] = (1.0 - own) ** 2 * variance[1:]
    return mix


def _common(effect: np.ndarray, shape: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """θ [n] by weighted least squares of the levels' means on `shape`, as in the kernel but with average weights."""
    counts = weight * (shape - (weight @ shape) / weight.sum())
    return np.asarray(effect @ counts[1:] / (counts @ shape))


def _shape(
    effect: np.ndarray, scale: np.ndarray, weight: np.ndarray, covariance: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(shape [K] with control 0, its variance [K]) from effects [n, K-1] and the covariance of their averages."""
    shape, variance = scale, np.zeros(scale.size)
    for _ in range(ROUNDS):
        theta = _common(effect, shape, weight)
        size = float(np.mean(theta**2))
        if size <= 0.0:
            return scale, np.zeros(scale.size)
        found = theta @ effect / theta.size / size
        # The part of the averages' noise that is not along the shape, seen in units of the common effect.
        counts = weight * (shape - (weight @ shape) / weight.sum())
        apart = np.eye(found.size) - np.outer(shape[1:], counts[1:] / (counts @ shape))
        noise = np.diag(apart @ covariance @ apart.T) / size
        smooth, kept = _parabola(found, scale[1:], noise)
        shape, variance = np.r_[0.0, smooth], np.r_[0.0, kept]
    return shape, variance


def _parabola(found: np.ndarray, scale: np.ndarray, noise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`found` [K-1] drawn to its best parabola through 0 as its noise [K-1] demands, and the variance that is left."""
    if found.size < 3 or not (noise > 0).all():
        return found, noise
    design = np.column_stack([scale, scale**2]) / np.sqrt(noise)[:, None]
    hat = design @ np.linalg.pinv(design)
    standard = found / np.sqrt(noise)
    fitted = hat @ standard
    misfit = float(((standard - fitted) ** 2).sum())
    kept = max(0.0, 1.0 - (found.size - 2) / misfit) if misfit > 0 else 0.0
    share = np.diag(hat) + kept**2 * (1.0 - np.diag(hat))
    return (fitted + kept * (standard - fitted)) * np.sqrt(noise), noise * share
