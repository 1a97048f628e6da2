"""What a rule that picks a level for every unit would bring, from a trial that did not follow it.

Each unit was assigned one level with a known probability. Its doubly robust scores stand in for the outcomes it would
have had under every level (Robins, Rotnitzky and Zhao 1994): their expectation is right if the probabilities are, and
what was expected of the outcome only makes them less noisy. A rule's value is a mean of scores, so all of this adds up.

Axes: n units, K levels with the control first, L = K - 1 treated levels, B prices, R resamples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr

from uplift_spark.stats.moments import ratio

CONTROL, NONE = 0, -1  # a level's place, the control's among all levels or none of the treated ones
_SMALLEST, _TAIL = 1e-12, 8.0  # an error that counts as none; errors from the mean behind which nothing lies
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(64)
_CANDIDATES = 512  # prices looked at to find those that part the cost evenly


def doubly_robust(
    outcome: np.ndarray, level_code: np.ndarray, weight: np.ndarray, outcome_mean: np.ndarray
) -> np.ndarray:
    """Scores [n, K]: expected_k + 1[received = k] · weight · (outcome - expected_k).

    outcome, received (level's place), weight (1 / probability of the level received), all [n]; expected [n, K] must
    come from other units. With `outcome_mean` zero these are the scores of inverse probability weighting.
    """
    scores = np.array(outcome_mean, np.float64)
    rows = np.arange(len(outcome))
    scores[rows, level_code] += weight * (outcome - scores[rows, level_code])
    return scores


def best_levels(value: np.ndarray) -> np.ndarray:
    """The treated level with the largest value [n, L] of each unit, int64 [n], the first of equals; NONE where none is
    above zero."""
    best = np.argmax(value, axis=1)
    return np.where(value[np.arange(len(value)), best] > 0, best, NONE)


def probability_best(mean: np.ndarray, error: np.ndarray) -> np.ndarray:
    """How likely each level is the best, by estimates that err independently of each other and normally.

    This is how likely Thompson sampling (1933) gives a level. Two levels are exact, several by quadrature over each
    level's own value, with 64 nodes of Gauss and Legendre: within .005 even where errors differ by a factor of 100, and
    adding up to 1 in any case.

    Args:
        mean: Estimates [L] of what the treated levels bring against the control; one that is not finite is never best.
        error: Their standard errors [L].

    Returns:
        Probabilities [K], the control's first: that no treated level is above zero.
    """
    result = np.zeros(len(mean) + 1)
    (levels,) = np.nonzero(np.isfinite(mean) & np.isfinite(error))
    m, s = mean[levels], np.maximum(error[levels], _SMALLEST)
    result[0] = np.prod(ndtr(-m / s))
    for one, level in enumerate(levels):
        others = np.arange(len(levels)) != one
        if not others.any():
            result[level + 1] = ndtr(m[one] / s[one])
            continue
        low = min(max(-m[one] / s[one], -_TAIL), _TAIL)  # in errors, from where the level is above zero
        z = low + (_TAIL - low) * (_NODES + 1.0) / 2.0
        density = np.exp(-(z**2) / 2.0) * _WEIGHTS * (_TAIL - low) / math.sqrt(8.0 * math.pi)
        below = ndtr((m[one] + s[one] * z[:, None] - m[others]) / s[others])
        result[level + 1] = density @ np.prod(below, axis=1)
    return np.asarray(result / result.sum())


def choice(effects: np.ndarray, cost: np.ndarray, price: float) -> np.ndarray:
    """Each unit's level at a price of cost, int64 [n]: the largest of effect - price·cost [n, L], the control unless
    that is above zero; the first of equals."""
    return best_levels(effects - price * cost) + 1


def prices(effects: np.ndarray, cost: np.ndarray, points: int) -> np.ndarray:
    """Prices [B] from high to low, ending at 0, between which `choice` spends about equally more; B <= points.

    From a sample of units; whatever it says, every price gives a true point of the cost curve.
    """
    level_effects, level_cost = np.column_stack([np.zeros(len(effects)), effects]), np.r_[0.0, cost]
    steps = level_cost[None, :] - level_cost[:, None]
    lower, higher = np.nonzero(steps > 0)
    rates = ((level_effects[:, higher] - level_effects[:, lower]) / steps[lower, higher]).ravel()
    rates = np.unique(rates[rates > 0])
    if not rates.size:
        return np.zeros(1)
    candidates = np.r_[rates[:: max(1, rates.size // _CANDIDATES)], 0.0]
    candidates = np.unique(candidates)[::-1]
    spent = np.array([level_cost[choice(effects, cost, price)].mean() for price in candidates])
    wanted = spent[-1] * np.arange(1, points) / points
    return candidates[np.unique(np.r_[np.searchsorted(spent, wanted), len(candidates) - 1])]


@dataclass(frozen=True)
class CostCurve:
    """Gain in outcome and cost, per unit of the population, at falling prices: [..., B + 1], from (0, 0)."""

    cost: np.ndarray
    gain: np.ndarray

    def area(self, most: float) -> np.ndarray:
        """Mean gain over all budgets between 0 and `most`, [...]; a budget that is not used up brings what is used."""
        width = np.diff(self.cost, axis=-1)
        middle = (self.gain[..., 1:] + self.gain[..., :-1]) / 2
        beyond = np.maximum(most - self.cost[..., -1], 0.0) * self.gain[..., -1]
        return np.asarray((np.sum(width * middle, axis=-1) + beyond) / most)


def blind_area(average: np.ndarray, cost: np.ndarray, most: float) -> np.ndarray:
    """`CostCurve.area` of the best rules that know no unit, [...], from the average effects [..., L] of levels.

    Budgets go to units at random: gains lie on the upper hull of (0, 0) and each level's cost and average effect.
    """
    budgets = np.unique(np.r_[np.linspace(0.0, most, 201), cost[cost <= most]])
    points = [(0.0, np.zeros(average.shape[:-1])), *((c, average[..., k]) for k, c in enumerate(cost))]
    gain = np.zeros((*average.shape[:-1], len(budgets)))
    for low, y_low in points:
        for high, y_high in points:
            if high > low:
                share = (budgets - low) / (high - low)
                on = y_low[..., None] + share * (y_high - y_low)[..., None]
                gain = np.where((share >= 0) & (share <= 1), np.maximum(gain, on), gain)
        gain = np.where(budgets >= low, np.maximum(gain, y_low[..., None]), gain)
    return np.asarray(np.sum(np.diff(budgets) * (gain[..., 1:] + gain[..., :-1]) / 2, axis=-1) / most)


def weighted_gain(units: np.ndarray, treated: np.ndarray, matched: np.ndarray, control: np.ndarray) -> np.ndarray:
    """Value of a rule per unit by inverse probability weighting, weights adding up to one (Hajek 1971), [...].

    units    [...] in all                              given  [...] units that the rule treats
    matched  [..., 2] Σw and Σw·outcome of those among `treated` that received what the rule gives them
    control  [..., 2] likewise of those that received the control
    """
    effect = ratio(matched[..., 1], matched[..., 0]) - ratio(control[..., 1], control[..., 0])
    return np.asarray(np.where(treated > 0, treated * effect, 0.0) / units)


def r_losses(
    outcome: np.ndarray, level_code: np.ndarray, propensity: np.ndarray, outcome_mean: np.ndarray, effects: np.ndarray
) -> np.ndarray:
    """Squares of what effects leave unexplained of each outcome beside what is expected of its unit, float64 [n].

    On average they are least for the true effects, whatever is expected (Nie & Wager 2021; with several levels,
    (y - m - Σ_k (1{w = k} - e_k) τ_k)²). outcome [n], level_code int [n], effects [n, K-1]; propensity and
    outcome_mean [n, K] of every level, from models that did not see the unit.
    """
    mean = (propensity * outcome_mean).sum(axis=1)
    apart = (level_code[:, None] == np.arange(1, propensity.shape[1])) - propensity[:, 1:]
    return np.asarray((outcome - mean - (apart * effects).sum(axis=1)) ** 2)
