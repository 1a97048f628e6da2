"""Average effects where treatment was not randomised: augmented inverse probability weighting, by sums that add up.

Every estimand is a ratio of means E[A] / E[B] of two terms of a unit, so sums of A, B and their products over units
give estimate and standard error, whatever the partitions (Robins, Rotnitzky & Zhao 1994). Level k against control 0:

ate      of all units
att      of those who received the level
overlap  of units weighed by e_k·e_0 / (e_k + e_0), how open it was which of the two they would receive: the least
         variance, and little weight where there is no overlap (Li, Morgan & Zaslavsky 2018; Li & Li 2019)
naive    difference of the arms' means, for comparison

Axes: n units, K levels with the control first, L = K - 1 treated levels, C = 3 L + K columns of terms: ate, att and
overlap of each treated level, then each arm's mean.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from uplift_spark.stats.intervals import MIN_CLUSTERS, Draws, effective_clusters, resampled_error, resampled_sums
from uplift_spark.stats.moments import MIN_UNITS, normal_quantile, ratio

WEIGHTED = ("ate", "att", "overlap")
ESTIMANDS = (*WEIGHTED, "naive")
_BITS = 31


def terms(outcome: np.ndarray, received: np.ndarray, expected: np.ndarray, odds: np.ndarray) -> np.ndarray:
    """A and B of every column, float64 [n, C, 2].

    outcome, received (level's place) [n]; expected, odds (outcome and probability under every level) [n, K], from
    models that never saw the unit.
    """
    arms = received[:, None] == np.arange(expected.shape[1])
    found = []
    for k in range(1, expected.shape[1]):
        found += _compared(outcome, (arms[:, 0], arms[:, k]), expected[:, [0, k]].T, odds[:, [0, k]].T)
    return np.stack([*found, *(np.column_stack([outcome * arm, arm]) for arm in arms.T)], axis=1)


def _compared(
    outcome: np.ndarray, arms: tuple[np.ndarray, np.ndarray], expected: np.ndarray, odds: np.ndarray
) -> list[np.ndarray]:
    """Terms [n, 2] of ate, att and overlap of a level against the control; `expected` and `odds` of the two, [2, n]."""
    control, treated = arms
    e0, e = odds
    effect, left = expected[1] - expected[0], control * (outcome - expected[0])
    pulled = treated * (outcome - expected[1]) / e - left / e0
    weight = e * e0 / (e + e0)
    # The weights rest on the odds: what an error in these moves comes on top (Crump et al. 2006).
    weight_seen = weight + (e0**2 * (treated - e) + e**2 * (control - e0)) / (e + e0) ** 2
    return [
        np.column_stack([effect + pulled, np.ones(len(outcome))]),
        # What the treated would have had under the control is known from the control's units, weighed to be like them.
        np.column_stack([treated * (outcome - expected[0]) - left * e / e0, treated]),
        np.column_stack([weight_seen * effect + weight * pulled, weight_seen]),
    ]


def averages_of(
    outcome: np.ndarray,
    received: np.ndarray,
    expected: np.ndarray,
    odds: np.ndarray,
    hashes: np.ndarray | None = None,
    draws: Draws | None = None,
) -> Averages:
    """Averages of rows in memory, arrays as in `terms`; hashes [n] of their clusters where units come in some."""
    scale, levels = (
        Scale.of(
            float(np.abs([outcome.min(), outcome.max(), expected.min(), expected.max()]).max()), float(odds.min())
        ),
        expected.shape[1],
    )
    whole = scale.integers(terms(outcome, received, expected, odds))
    drawn = None
    if hashes is not None:
        flat = whole[:, :, 1:3].reshape(len(whole), -1)
        asked = draws or Draws(3, 200)
        drawn = resampled_sums(hashes, flat, asked).reshape(asked.replicates, -1, 2)
    return averages(whole.sum(axis=0), scale, levels, drawn)


@dataclass(frozen=True)
class Scale:
    """Exponents that make terms whole numbers of at most 2^31, whose sums are the same in any order."""

    bits: tuple[int, int]

    @classmethod
    def of(cls, largest_outcome: float, lowest: float) -> Scale:
        """For outcomes of at most that size, and odds of at least `lowest` > 0."""
        most = max(largest_outcome, 1e-300) * 2 * (1 + 2 / lowest)
        return cls((math.ceil(math.log2(most)), 2))

    def integers(self, found: np.ndarray) -> np.ndarray:
        """n, A, B, A², AB, B² of terms [n, C, 2]: int64 [n, C, 6]."""
        parts = [np.ones(found.shape[:2], np.int64)]
        a, b = (np.ldexp(found[..., j], -bits) for j, bits in enumerate(self.bits))
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


def averages(sums: np.ndarray, scale: Scale, levels: int, drawn: np.ndarray | None = None) -> Averages:
    """From sums of `Scale.integers`, [..., C, 6] for K `levels`; with an arm below MIN_UNITS units nothing is known.

    drawn  sums of A and B under resamples of clusters [R, ..., C, 2], where units come in some: errors are theirs, and
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
    if drawn is not None:
        means = ratio(drawn[..., 0].astype(np.float64), drawn[..., 1].astype(np.float64))
        error = resampled_error(_effects(means, treated))
        enough &= effective_clusters(drawn[..., 3 * treated :, 1].astype(np.float64)) >= MIN_CLUSTERS
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
