"""Whether predicted effects are those observed, by bucket of the prediction: slope, and tests that hold (R4.2).

Effects of ten buckets make ten tests, each of a tenth of the units, and where outcomes are rare or arms uneven their
chi-square sum rejects true models far too often. These look at two sums over all buckets, which are close to normal
long before a bucket's own difference is: the average effect, and the slope of observed on predicted effects (the two
coefficients of the best linear predictor, Chernozhukov et al. 2018).
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from uplift_spark.stats.moments import Difference, ratio


def calibration_slope(mass: np.ndarray, predicted: np.ndarray, observed: np.ndarray) -> np.ndarray:
    """Slope of observed on mean predicted uplift over buckets, weighted by mass; [..., buckets] -> [...].

    1 is calibrated, 0 says the predictions rank nothing, below 1 they are too extreme. Buckets without an observed
    difference are left out; NaN when the predictions do not vary.
    """
    mass, predicted, observed = np.broadcast_arrays(*(np.asarray(a, np.float64) for a in (mass, predicted, observed)))
    known = np.isfinite(observed) & np.isfinite(predicted)
    mass, predicted, observed = (np.where(known, a, 0.0) for a in (mass, predicted, observed))
    total = mass.sum(axis=-1)
    centred = predicted - ratio((mass * predicted).sum(axis=-1), total)[..., None]
    spread = (mass * centred**2).sum(axis=-1)
    negligible = spread <= 1e-18 * (mass * predicted**2).sum(axis=-1)
    return np.where(negligible, np.nan, ratio((mass * centred * observed).sum(axis=-1), spread))


@dataclass(frozen=True)
class CalibrationTest:
    """p-values [...]; NaN where predictions do not vary or a bucket's effect is not known.

    calibration    of "predictions are the effects": average 0 off and slope 1, a Wald test with two degrees of freedom
    heterogeneity  of "predictions say nothing about who gains more": slope 0, two-sided
    """

    calibration: np.ndarray
    heterogeneity: np.ndarray


def calibration_test(
    mass: np.ndarray, predicted: np.ndarray, observed: Difference, resampled: np.ndarray | None = None
) -> CalibrationTest:
    """Tests from each bucket's mass, mean prediction and observed effect, [..., buckets].

    Predictions must not have seen the units: their errors are not accounted for. Observed effects of buckets that share
    clusters are not independent; their spread is then taken from `resampled` effects [replicates, ..., buckets].
    """
    mass, predicted = (np.asarray(a, np.float64) for a in (mass, predicted))
    share = mass / mass.sum(axis=-1, keepdims=True)
    centred = predicted - (share * predicted).sum(axis=-1, keepdims=True)
    spread = (share * centred**2).sum(axis=-1, keepdims=True)
    varies = spread > 1e-18 * (share * predicted**2).sum(axis=-1, keepdims=True)
    steep = np.where(varies, share * centred / np.where(varies, spread, 1.0), np.nan)
    variance = observed.error**2
    off = (share * (observed.estimate - predicted)).sum(axis=-1)
    slope = (steep * observed.estimate).sum(axis=-1)
    if resampled is None:
        of_off, of_slope, both = ((w * variance).sum(axis=-1) for w in (share**2, steep**2, share * steep))
    else:
        of_off, of_slope, both = _covariance((share * resampled).sum(axis=-1), (steep * resampled).sum(axis=-1))
    missed = slope - 1
    wald = (off**2 * of_slope - 2 * off * missed * both + missed**2 * of_off) / (of_off * of_slope - both**2)
    return CalibrationTest(np.exp(-wald / 2), _two_sided(slope / np.sqrt(of_slope)))


def _covariance(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(variance of a, of b, covariance) over resamples [replicates, ...] in which both are known."""
    known = np.isfinite(a) & np.isfinite(b)
    count = np.where(known.sum(axis=0) > 1, known.sum(axis=0), np.nan)
    a, b = (np.where(known, x - np.where(known, x, 0.0).sum(axis=0) / count, 0.0) for x in (a, b))
    of_a, of_b, both = ((x * y).sum(axis=0) / (count - 1) for x, y in ((a, a), (b, b), (a, b)))
    return of_a, of_b, both


def _two_sided(z: np.ndarray) -> np.ndarray:
    """P(|Z| > |z|) of a standard normal Z."""
    return np.vectorize(lambda x: 2 * NormalDist().cdf(-abs(x)) if np.isfinite(x) else np.nan, otypes=[float])(z)
