"""Average partial effects of doses that nobody assigned at random: what one unit more of it would have brought (R3.5).

The average of dE[Y | W, X] / dW, as the mean of doubly robust scores

    τ(X) + r(W, X) (Y - m(X) - τ(X) (W - e(X))),    r = - d/dw log p(w | X),

with m, e and τ the expected outcome, the expected dose and its slope, and r what tells the density of doses at w from
that just beside it (Powell, Stock & Stoker 1989; Hirshberg & Wager 2021; for Gaussian doses r is (W - e) / Var(W | X)).
Unbiased if the slope or the density is right. Doses are taken to be their expectation plus a noise of one shape whose
size depends on X: r comes from a smoothed density of the standardised residuals. All is cross-fitted.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from threadpoolctl import threadpool_limits

from uplift_spark.causal.crossfit import Blend, Spec, crossfit_folds
from uplift_spark.vocabulary import DataError

_GRID = 400  # points that the density of residuals is smoothed on
_WIDEST = 5.0  # standardised residuals beyond are taken to be there
_LEAST_SPREAD = 0.05  # of the doses' spread given the features, in its average: below nothing is told apart


def average_partial_effect(
    features: np.ndarray,
    dose: np.ndarray,
    outcome: np.ndarray,
    key: np.ndarray,
    spec: Spec,
    cluster: np.ndarray | None = None,
) -> tuple[float, float]:
    """(estimate, standard error), in outcome units for one unit more of the dose.

    features float64 [n, p] with NaN where missing, dose and outcome float64 [n], key uint64 [n] as in `crossfit`, whose
    folds are `spec`'s; cluster int [n]: units of one are not independent, and key is then the cluster's. Raises
    DataError for values that are not finite, and where the features tell the dose.
    """
    for name, values in (("dose", dose), ("outcome", outcome)):
        if count := int(np.count_nonzero(~np.isfinite(values))):
            raise DataError(f"the {name} is missing or infinite in {count} of {len(values)} rows: drop or fill it")
    fold, order = crossfit_folds(key, spec), np.argsort(key, kind="stable")
    score = np.empty(len(dose))
    with threadpool_limits(1):
        for f in range(spec.folds):
            rest, mine = order[fold[order] != f], np.flatnonzero(fold == f)
            score[mine] = _scores((features, dose, outcome), rest, mine, spec)
    estimate, pull = float(score.mean()), score - score.mean()
    if cluster is not None:
        pull = np.bincount(np.unique(cluster, return_inverse=True)[1], pull)
    groups = len(pull)
    return estimate, float(np.sqrt((pull**2).sum() * groups / (groups - 1)) / len(score))


def _scores(
    data: tuple[np.ndarray, np.ndarray, np.ndarray], rest: np.ndarray, mine: np.ndarray, spec: Spec
) -> np.ndarray:
    features, dose, outcome = data
    make = partial(Blend, False, spec.categorical, spec.seed) if spec.outcome is None else partial(spec.outcome, False)
    ones = np.ones(len(rest))
    expected = make().fit(features[rest], outcome[rest], sample_weight=ones)
    usual = make().fit(features[rest], dose[rest], sample_weight=ones)
    left, gained = dose[rest] - usual.predict(features[rest]), outcome[rest] - expected.predict(features[rest])
    wide = float((left**2).mean())
    if not wide > 1e-9 * float(dose[rest].var()) or wide == 0.0:
        raise DataError(f"the features tell the dose of {len(rest)} rows: there is none to compare like units by")
    spread = make().fit(features[rest], left**2, sample_weight=ones)
    # A row without a dose of its own says nothing of the slope; weights make the quotient harmless.
    safe = np.where(np.abs(left) > 1e-6 * np.sqrt(wide), left, np.inf)
    slopes = make().fit(features[rest], gained / safe, sample_weight=left**2)

    def size(rows: np.ndarray) -> np.ndarray:
        return np.sqrt(np.maximum(spread.predict(features[rows]), _LEAST_SPREAD * wide))

    at, density, slope_of = _density(left / size(rest))
    apart = dose[mine] - usual.predict(features[mine])
    scale = size(mine)
    standard = np.clip(apart / scale, at[0], at[-1])
    pull = -np.interp(standard, at, slope_of) / np.interp(standard, at, density) / scale
    pull /= float((pull * apart).mean())  # r is 1 on average along with a dose one unit higher
    slope = slopes.predict(features[mine])
    return np.asarray(slope + pull * (outcome[mine] - expected.predict(features[mine]) - slope * apart))


def _density(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(points, density, its slope) of standardised residuals [n]: a Gaussian kernel of Silverman's width."""
    held = np.clip(values, -_WIDEST, _WIDEST)
    at = np.linspace(held.min(), held.max(), _GRID)
    width = 1.06 * min(held.std(), float(np.subtract(*np.percentile(held, [75, 25]))) / 1.34) * len(held) ** -0.2
    counts, edges = np.histogram(held, bins=4 * _GRID)
    apart = (at[:, None] - (edges[:-1] + edges[1:]) / 2) / width
    kernel = np.exp(-(apart**2) / 2) * counts
    return at, kernel.sum(axis=1), -(apart * kernel).sum(axis=1) / width
