"""Whether an outcome's means by level follow a treatment basis, such as a line in the dose; where not, what it costs.

With randomised treatment a response that is linear for every unit is linear on average, in any part of the units that
the treatment had no hand in, however much units differ in how steep it is. So cells' means are held against their
weighted regression on the basis; what scatters about it by more than the errors say is curvature (R3.4). Welch's (1951)
test, whose level does not rest on equal variances, in its form for a regression in place of one mean.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.stats

from uplift_spark.stats.moments import MIN_UNITS


@dataclass(frozen=True)
class Linearity:
    """Result of `linearity`, arrays over segments [S].

    p_value  of each segment by itself; NaN where nothing is known: too few cells with MIN_UNITS units
    holm     the same, holding the level over all segments together (Holm 1979): where the basis fails
    missed   root mean square of what the basis misses of a cell's mean, by the units' shares and less what chance
             shows, in the outcome's units: what going on with the basis costs
    overall  p-value that it fails in no segment
    """

    p_value: np.ndarray
    holm: np.ndarray
    missed: np.ndarray
    overall: float


def linearity(units: np.ndarray, mean: np.ndarray, variance: np.ndarray, basis: np.ndarray) -> Linearity:
    """Test of a basis from cells of levels or doses by segment.

    units [S, C] (units received a level), mean [S, C] of their outcomes, variance [S, C] of an outcome (of one, not of
    the mean), basis float64 [q, C]. Outcomes less a prediction from features make the test sharper.
    """
    known = [np.flatnonzero((n >= MIN_UNITS) & (v > 0)) for n, v in zip(units, variance, strict=True)]
    found = [
        _of_segment(units[s, c].astype(np.float64), mean[s, c], variance[s, c], basis[:, c])
        for s, c in enumerate(known)
    ]
    p_value, missed = np.array(found, np.float64).reshape(-1, 2).T
    told = p_value[~np.isnan(p_value)]
    # Fisher's combination: segments have no units in common, so their p-values are independent.
    overall = float(scipy.stats.combine_pvalues(told).pvalue) if told.size else np.nan
    return Linearity(p_value, _holm(p_value), missed, overall)


def _of_segment(n: np.ndarray, mean: np.ndarray, variance: np.ndarray, basis: np.ndarray) -> tuple[float, float]:
    design = np.column_stack([np.ones(n.size), basis.T])
    freedom = n.size - int(np.linalg.matrix_rank(design)) if n.size else 0
    if freedom < 1:
        return np.nan, np.nan
    root = np.sqrt(n / variance)
    q, _ = np.linalg.qr(design * root[:, None])
    standard = mean * root
    residual = standard - q @ (q.T @ standard)
    free = 1.0 - (q**2).sum(axis=1)
    spread = float((free**2 / (n - 1)).sum())
    scale = 1.0 + 2.0 * (freedom - 1) / (freedom * (freedom + 2)) * spread
    statistic = float(residual @ residual) / freedom / scale
    p_value = float(scipy.stats.f.sf(statistic, freedom, freedom * (freedom + 2) / (3.0 * spread)))
    square = float((n / n.sum()) @ ((residual / root) ** 2 - free * variance / n))
    return p_value, np.sqrt(max(square, 0.0))


def _holm(p_value: np.ndarray) -> np.ndarray:
    adjusted = p_value.copy()
    known = np.flatnonzero(~np.isnan(p_value))
    order = known[np.argsort(p_value[known], kind="stable")]
    steps = (order.size - np.arange(order.size)) * p_value[order]
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted
