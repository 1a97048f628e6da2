"""How strong a confounder that nobody measured would have to be to explain an average effect away.

Bounds of the average effect by Chernozhukov, Cinelli, Newey, Sharma & Syrgkanis 2022 ("Long story short: omitted
variable bias in causal machine learning"), for any outcome and any learner; E-values by VanderWeele & Ding 2017. All
of it follows from the means of a few terms of each unit and their covariance, so it adds up.

Axes: n units, K levels with the control first, L = K - 1 treated levels, C = 3L + K terms.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.optimize

from uplift_spark.stats.moments import normal_quantile
from uplift_spark.stats.offpolicy import doubly_robust
from uplift_spark.vocabulary import ConfigError

_Z95 = normal_quantile(0.95)


def confounder_terms(outcome: np.ndarray, received: np.ndarray, expected: np.ndarray, odds: np.ndarray) -> np.ndarray:
    """Terms of every unit, float64 [n, C]: of each level its effect's score, the squared residual, and how much its
    weights could take a confounder in; then the scores of every level's mean.

    outcome, received (level's place) [n]; expected, odds (outcome and probability under every level) [n, K].
    """
    rows, levels = np.arange(len(outcome)), expected.shape[1]
    scores = doubly_robust(outcome, received, 1 / odds[rows, received], expected)
    squares = (outcome - expected[rows, received]) ** 2
    columns = []
    for k in range(1, levels):
        either = (received == k) | (received == 0)
        # 2 m(alpha) - alpha^2, whose mean errors of the propensities move in the second order only.
        both = 2 / odds[:, k] + 2 / odds[:, 0] - np.where(either, 1 / odds[rows, received], 0.0) ** 2
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
        place, toward, found = 0 if self.mean[0] > 0 else 1, np.sign(self.mean[0]), []
        for end in (place, place + 2):
            if not np.isfinite(self.mean[0]):
                found.append(float("nan"))
            elif toward * self.bounds(0, 0)[end] <= 0:
                found.append(0.0)
            elif toward * self.bounds(1 - 1e-9, 1 - 1e-9)[end] > 0:
                found.append(1.0)
            else:
                found.append(scipy.optimize.brentq(lambda r, e=end: self.bounds(r, r)[e], 0, 1 - 1e-9))
        return found[0], found[1]


def sensitivity(mean: np.ndarray, covariance: np.ndarray, levels: int) -> list[Sensitivity]:
    """Of each treated level, from the means [C] of `confounder_terms` and the covariance [C, C] of these means."""
    parts = [slice(3 * k, 3 * k + 3) for k in range(levels - 1)]
    return [Sensitivity(mean[part], covariance[part, part]) for part in parts]


def e_values(mean: np.ndarray, covariance: np.ndarray, levels: int) -> np.ndarray:
    """Of each treated level, [L, 2]: risk ratio that a confounder would need with treatment and with an outcome of 0
    and 1 to explain away the estimate, or its interval's nearer end (1: that spans none). Arguments as `sensitivity`.
    """
    of_means, found = 3 * (levels - 1), []
    for k in range(1, levels):
        pair = [of_means, of_means + k]
        zero, one = mean[pair]
        if not (zero > 0 and one > 0):
            found.append([np.nan, np.nan])
            continue
        slope = np.array([-1 / zero, 1 / one])
        error = np.sqrt(slope @ covariance[np.ix_(pair, pair)] @ slope)
        size = abs(float(np.log(one / zero)))
        ends = (size, max(size - _Z95 * error, 0.0))
        found.append([float(np.exp(x) + np.sqrt(np.exp(x) * np.expm1(x))) for x in ends])
    return np.array(found)
