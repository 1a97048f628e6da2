"""Average effects for units that were not in the trial: what a campaign tested here would bring there (R3.5).

With s whether a unit took part, p(X) the chance of it, and m_k and e_k a level's expected outcome and odds, the average
effect of level k among units that did not take part is the mean over all units, divided by P(s = 0), of

    (1 - s) (m_k(X) - m_0(X)) + s (1 - p) / p ([w = k] (Y - m_k) / e_k - [w = 0] (Y - m_0) / e_0)

(Dahabreh et al. 2020, equation 4): unbiased if the outcome or the part taken is modelled right. All is cross-fitted.

Assumed: effects depend on the features alone, wherever a unit is, and none is sure to be outside.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from threadpoolctl import threadpool_limits

from uplift_spark.causal.crossfit import Blend, Spec, crossfit_folds, fit_nuisances
from uplift_spark.vocabulary import DataError

_LEAST_CHANCE = 0.02  # of taking part, as it is fitted: those less likely stand for no more than fifty others


def transported_average(
    data: tuple[np.ndarray, np.ndarray, np.ndarray],
    inside: np.ndarray,
    key: np.ndarray,
    spec: Spec,
    odds: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """(average effect of each treated level among the units outside, standard error), float64 [L] each.

    data    features float64 [n, p] with NaN where missing, place int [n] with 0 the control, outcome float64 [n]; the
            last two are not looked at outside
    inside  whether a unit was in the trial, bool [n]
    key     uint64 [n] as in `crossfit`; units of one key, such as a household's, may depend on each other
    odds    probability of every level, float64 [n, K], where they are known

    The average is over the very units given as outside: that these are a sample themselves is not in the error. Raises
    DataError for outcomes inside that are not finite, and where all units, or none, are inside.
    """
    outcome, inside = data[2], np.asarray(inside, bool)
    if count := int(np.count_nonzero(~np.isfinite(outcome[inside]))):
        raise DataError(f"the outcome is missing or infinite in {count} of {inside.sum()} rows inside: drop or fill it")
    if inside.all() or not inside.any():
        raise DataError(f"{inside.sum()} of {len(inside)} rows are inside: give some inside and some outside")
    fold, order = crossfit_folds(key, spec), np.argsort(key, kind="stable")
    told, pull = np.zeros((len(key), len(spec.levels) - 1)), np.zeros((len(key), len(spec.levels) - 1))
    for f in range(spec.folds):
        rest, mine = order[fold[order] != f], np.flatnonzero(fold == f)
        told[mine], pull[mine] = _parts(data, inside, (rest, mine), spec, odds)
    outside = (~inside).sum()
    shared = np.stack([np.bincount(np.unique(key, return_inverse=True)[1], one) for one in pull.T])
    return (told + pull).sum(axis=0) / outside, np.sqrt((shared**2).sum(axis=1)) / outside


def _parts(
    data: tuple[np.ndarray, np.ndarray, np.ndarray],
    inside: np.ndarray,
    parts: tuple[np.ndarray, np.ndarray],
    spec: Spec,
    odds: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Expected effects of units outside, and what those inside have beyond expectation, [rows, L], 0 for the others."""
    features, place, outcome = data
    rest, mine = parts
    trial = rest[inside[rest]]
    fitted = fit_nuisances(features[trial], place[trial], outcome[trial], spec, known=odds is not None)
    make = spec.propensity or partial(Blend, categorical=spec.categorical, seed=spec.seed)
    with threadpool_limits(1):
        part = make(True).fit(features[rest], inside[rest].astype(np.int64), sample_weight=np.ones(len(rest)))
        chance = np.maximum(part.predict_proba(features[mine])[:, 1], _LEAST_CHANCE)
    expected, took = fitted.expected(features[mine]), inside[mine]
    own = fitted.propensity(features[mine]) if odds is None else odds[mine]
    left = np.where(took, (1 - chance) / chance, 0.0)[:, None] * (place[mine][:, None] == np.arange(len(spec.levels)))
    left *= (np.where(took, outcome[mine], 0.0)[:, None] - expected) / own
    return np.where(took[:, None], 0.0, expected[:, 1:] - expected[:, :1]), left[:, 1:] - left[:, :1]
