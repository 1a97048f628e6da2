"""Average effects where treatment was not randomised, and how strong a hidden confounder would have to be."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy.optimize

from uplift_spark.errors import ConfigError
from uplift_spark.stats.intervals import MIN_CLUSTERS, Draws, effective_clusters, resampled_error, resampled_sums
from uplift_spark.stats.moments import MIN_UNITS, normal_quantile, ratio
from uplift_spark.stats.offpolicy import doubly_robust

# --------------------------------------------------------------------------------------------------------------------
# Average effects where treatment was not randomised: augmented inverse probability weighting, by sums that add up.
# Every estimand is a ratio of means E[A] / E[B] of two terms of a unit, so sums of A, B and their products over units
# give estimate and standard error, whatever the partitions (Robins, Rotnitzky & Zhao 1994). Level k against control 0:
#
# ate      of all units
# att      of those who received the level
# overlap  of units weighed by e_k·e_0 / (e_k + e_0), how open it was which of the two they would receive: the least
#          variance, and little weight where there is no overlap (Li, Morgan & Zaslavsky 2018; Li & Li 2019)
# naive    difference of the arms' means, for comparison
#
# Axes: n units, K levels with the control first, L = K - 1 treated levels, C = 3 L + K columns of terms: ate, att and
# overlap of each treated level, then each arm's mean.

WEIGHTED = ("ate", "att", "overlap")
ESTIMANDS = (*WEIGHTED, "naive")
_BITS = 31


def terms(outcome: np.ndarray, level_code: np.ndarray, outcome_mean: np.ndarray, propensity: np.ndarray) -> np.ndarray:
    """A and B of every column, float64 [n, C, 2].

    outcome, level_code [n]; outcome_mean, propensity (outcome and probability under every level) [n, K], from models
    that never saw the unit.
    """
    arms = level_code[:, None] == np.arange(outcome_mean.shape[1])
    columns = []
    for k in range(1, outcome_mean.shape[1]):
        columns += _compared(outcome, (arms[:, 0], arms[:, k]), outcome_mean[:, [0, k]].T, propensity[:, [0, k]].T)
    return np.stack([*columns, *(np.column_stack([outcome * arm, arm]) for arm in arms.T)], axis=1)


def _compared(
    outcome: np.ndarray, arms: tuple[np.ndarray, np.ndarray], outcome_mean: np.ndarray, propensity: np.ndarray
) -> list[np.ndarray]:
    """Terms [n, 2] of ate, att and overlap of a level against the control; means and propensities are [2, n]."""
    control, treated = arms
    e0, e = propensity
    effect, left = outcome_mean[1] - outcome_mean[0], control * (outcome - outcome_mean[0])
    correction = treated * (outcome - outcome_mean[1]) / e - left / e0
    weight = e * e0 / (e + e0)
    # The weights rest on propensities: what an error in these moves comes on top (Crump et al. 2006).
    weight_term = weight + (e0**2 * (treated - e) + e**2 * (control - e0)) / (e + e0) ** 2
    return [
        np.column_stack([effect + correction, np.ones(len(outcome))]),
        # What the treated would have had under the control is known from the control's units, weighed to be like them.
        np.column_stack([treated * (outcome - outcome_mean[0]) - left * e / e0, treated]),
        np.column_stack([weight_term * effect + weight * correction, weight_term]),
    ]


def averages_of(
    outcome: np.ndarray,
    level_code: np.ndarray,
    outcome_mean: np.ndarray,
    propensity: np.ndarray,
    hashes: np.ndarray | None = None,
    draws: Draws | None = None,
) -> Averages:
    """Averages of rows in memory, arrays as in `terms`; hashes [n] of their clusters where units come in some."""
    scale, levels = (
        Scale.of(
            float(np.abs([outcome.min(), outcome.max(), outcome_mean.min(), outcome_mean.max()]).max()),
            float(propensity.min()),
        ),
        outcome_mean.shape[1],
    )
    whole = scale.integers(terms(outcome, level_code, outcome_mean, propensity))
    bootstrap = None
    if hashes is not None:
        flat = whole[:, :, 1:3].reshape(len(whole), -1)
        resampling = draws or Draws(3, 200)
        bootstrap = resampled_sums(hashes, flat, resampling).reshape(resampling.replicates, -1, 2)
    return averages(whole.sum(axis=0), scale, levels, bootstrap)


@dataclass(frozen=True)
class Scale:
    """Exponents that make terms whole numbers of at most 2^31, whose sums are the same in any order."""

    bits: tuple[int, int]

    @classmethod
    def of(cls, largest_outcome: float, lowest: float) -> Scale:
        """For outcomes of at most that size, and propensities of at least `lowest` > 0."""
        most = max(largest_outcome, 1e-300) * 2 * (1 + 2 / lowest)
        return cls((math.ceil(math.log2(most)), 2))

    def integers(self, values: np.ndarray) -> np.ndarray:
        """n, A, B, A², AB, B² of terms [n, C, 2]: int64 [n, C, 6]."""
        parts = [np.ones(values.shape[:2], np.int64)]
        a, b = (np.ldexp(values[..., j], -bits) for j, bits in enumerate(self.bits))
        parts += [np.rint(np.ldexp(part, _BITS)).astype(np.int64) for part in (a, b, a * a, a * b, b * b)]
        return np.stack(parts, axis=2)


@dataclass(frozen=True)
class Averages:
    """Estimates and standard errors of the effects [..., L, 4] in the order of ESTIMANDS, and units [..., K] by arm."""

    estimate: np.ndarray
    error: np.ndarray
    units: np.ndarray

    @property
    def interval(self) -> tuple[np.ndarray, np.ndarray]:
        """Bounds of the 95 % interval."""
        half = normal_quantile(0.95) * self.error
        return self.estimate - half, self.estimate + half


def averages(sums: np.ndarray, scale: Scale, levels: int, bootstrap: np.ndarray | None = None) -> Averages:
    """From sums of `Scale.integers`, [..., C, 6] for K `levels`; with an arm below MIN_UNITS units nothing is known.

    bootstrap  sums of A and B under resamples of clusters [R, ..., C, 2], if units come in some: errors are theirs, and
           not known where an arm is worth fewer than MIN_CLUSTERS
    """
    a_bits, b_bits = scale.bits
    n, a, b, aa, ab, bb = np.moveaxis(sums.astype(np.float64), -1, 0)
    mean = ratio(a, b)
    # In the fixed point of the sums: Σ(A - θB)² / (ΣB)², and one degree of freedom for θ.
    spread = np.maximum(aa - 2 * mean * ab + mean**2 * bb, 0.0) * 2.0**_BITS
    error = np.sqrt(ratio(spread, b * b) * ratio(n, n - 1))
    treated = levels - 1
    arms = np.rint(np.ldexp(b[..., 3 * treated :], b_bits - _BITS))
    enough = arms >= MIN_UNITS
    if bootstrap is not None:
        means = ratio(bootstrap[..., 0].astype(np.float64), bootstrap[..., 1].astype(np.float64))
        error = resampled_error(_effects(means, treated))
        enough &= effective_clusters(bootstrap[..., 3 * treated :, 1].astype(np.float64)) >= MIN_CLUSTERS
    else:
        error = np.concatenate(
            [error[..., : 3 * treated].reshape(*n.shape[:-1], treated, 3), _naive(error, treated)], -1
        )
    known = (enough[..., :1] & enough[..., 1:])[..., None]
    back = 2.0 ** (a_bits - b_bits)
    return Averages(
        np.where(known, back * _effects(mean, treated), np.nan), np.where(known, back * error, np.nan), arms
    )


def _effects(means: np.ndarray, treated: int) -> np.ndarray:
    arms = means[..., 3 * treated :]
    naive = (arms[..., 1:] - arms[..., :1])[..., None]
    return np.concatenate([means[..., : 3 * treated].reshape(*means.shape[:-1], treated, 3), naive], axis=-1)


def _naive(error: np.ndarray, treated: int) -> np.ndarray:
    arms = error[..., 3 * treated :] ** 2
    return np.asarray(np.sqrt(arms[..., 1:] + arms[..., :1])[..., None])


# --------------------------------------------------------------------------------------------------------------------
# How strong a confounder that nobody measured would have to be to explain an average effect away.
# Bounds of the average effect by Chernozhukov, Cinelli, Newey, Sharma & Syrgkanis 2022 ("Long story short: omitted
# variable bias in causal machine learning"), for any outcome and any learner; E-values by VanderWeele & Ding 2017. All
# of it follows from the means of a few terms of each unit and their covariance, so it adds up.
#
# Axes: n units, K levels with the control first, L = K - 1 treated levels, C = 3L + K terms.

_Z95 = normal_quantile(0.95)


def confounder_terms(
    outcome: np.ndarray, level_code: np.ndarray, outcome_mean: np.ndarray, propensity: np.ndarray
) -> np.ndarray:
    """Terms of every unit, float64 [n, C]: of each level its effect's score, the squared residual, and how much its
    weights could take a confounder in; then the scores of every level's mean.

    outcome, level_code [n]; outcome_mean, propensity (outcome and probability under every level) [n, K].
    """
    rows, levels = np.arange(len(outcome)), outcome_mean.shape[1]
    scores = doubly_robust(outcome, level_code, 1 / propensity[rows, level_code], outcome_mean)
    squares = (outcome - outcome_mean[rows, level_code]) ** 2
    columns = []
    for k in range(1, levels):
        either = (level_code == k) | (level_code == 0)
        # 2 m(alpha) - alpha^2, whose mean errors of the propensities move in the second order only.
        both = (
            2 / propensity[:, k] + 2 / propensity[:, 0] - np.where(either, 1 / propensity[rows, level_code], 0.0) ** 2
        )
        # Only units of both arms: elsewhere the level's weights are zero with any confounder.
        columns += [scores[:, k] - scores[:, 0], either * squares, both]
    return np.column_stack([*columns, scores])


@dataclass(frozen=True)
class Sensitivity:
    """What an unmeasured confounder could do to one level's average effect.

    mean, covariance  of the level's three terms, [3] and [3, 3], the latter of the means
    """

    mean: np.ndarray
    covariance: np.ndarray

    def bounds(self, outcome_share: float, treatment_share: float) -> tuple[float, float, float, float]:
        """Lower and upper bound of the effect, then their outer 95 % limits.

        outcome_share    share of the outcome's residual variance that the confounder explains, in [0, 1)
        treatment_share  1 - R2 of the weights 1[W = k] / e_k - 1[W = 0] / e_0, with the confounder known, on those
                         without, in [0, 1)
        """
        if not (0 <= outcome_share < 1 and 0 <= treatment_share < 1):
            raise ConfigError(f"shares of {outcome_share} and {treatment_share} are not in [0, 1): give shares")
        strength = float(np.sqrt(outcome_share * treatment_share / (1 - treatment_share)))
        estimate, squares, both = self.mean
        scale = float(np.sqrt(max(squares * both, 0.0)))
        slope = np.array([both, squares]) / (2 * scale) if scale > 0 else np.zeros(2)
        ends = []
        for side in (-1.0, 1.0):
            moved = np.r_[1.0, side * strength * slope]
            error = float(np.sqrt(max(moved @ self.covariance @ moved, 0.0)))
            ends.append((estimate + side * strength * scale, estimate + side * (strength * scale + _Z95 * error)))
        return ends[0][0], ends[1][0], ends[0][1], ends[1][1]

    def robustness(self) -> tuple[float, float]:
        """Strength, the same in outcome and treatment, that would bring the estimate to zero, and that would let the
        95 % interval reach zero (0 if it does already); in [0, 1]."""
        near_end, toward, strengths = 0 if self.mean[0] > 0 else 1, np.sign(self.mean[0]), []
        for end in (near_end, near_end + 2):
            if not np.isfinite(self.mean[0]):
                strengths.append(float("nan"))
            elif toward * self.bounds(0, 0)[end] <= 0:
                strengths.append(0.0)
            elif toward * self.bounds(1 - 1e-9, 1 - 1e-9)[end] > 0:
                strengths.append(1.0)
            else:
                strengths.append(scipy.optimize.brentq(lambda r, e=end: self.bounds(r, r)[e], 0, 1 - 1e-9))
        return strengths[0], strengths[1]


def sensitivity(mean: np.ndarray, covariance: np.ndarray, levels: int) -> list[Sensitivity]:
    """Of each treated level, from the means [C] of `confounder_terms` and the covariance [C, C] of these means."""
    parts = [slice(3 * k, 3 * k + 3) for k in range(levels - 1)]
    return [Sensitivity(mean[part], covariance[part, part]) for part in parts]


def e_values(mean: np.ndarray, covariance: np.ndarray, levels: int) -> np.ndarray:
    """Of each treated level, [L, 2]: risk ratio that a confounder would need with treatment and with an outcome of 0
    and 1 to explain away the estimate, or its interval's nearer end (1: that spans none). Arguments as `sensitivity`.
    """
    of_means, risk_ratios = 3 * (levels - 1), []
    for k in range(1, levels):
        pair = [of_means, of_means + k]
        zero, one = mean[pair]
        if not (zero > 0 and one > 0):
            risk_ratios.append([np.nan, np.nan])
            continue
        slope = np.array([-1 / zero, 1 / one])
        error = np.sqrt(slope @ covariance[np.ix_(pair, pair)] @ slope)
        size = abs(float(np.log(one / zero)))
        ends = (size, max(size - _Z95 * error, 0.0))
        risk_ratios.append([float(np.exp(x) + np.sqrt(np.exp(x) * np.expm1(x))) for x in ends])
    return np.array(risk_ratios)
