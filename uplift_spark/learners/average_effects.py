"""Average partial effects of doses, and average effects for units outside the trial."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pyarrow as pa
from threadpoolctl import threadpool_limits

from uplift_spark.errors import ConfigError, DataError
from uplift_spark.forest.binning import NumberColumn, encode_features, fit_bins
from uplift_spark.forest.effects import Z95
from uplift_spark.forest.encode import (
    check_columns,
    check_repeated,
    check_summary,
    encode,
    keys_of,
    make_levels,
    repeated_rows,
    summarise,
)
from uplift_spark.forest.overlap import thin_errors
from uplift_spark.learners.metalearners import rows_of, sample_overlap, trial_roles
from uplift_spark.learners.nuisances import (
    MOST_BINS,
    Blend,
    NuisanceSpec,
    categorical_of,
    crossfit,
    crossfit_folds,
    features_of,
    fit_nuisances,
    level_codes_of,
    sample_table,
)
from uplift_spark.roles import TREATMENT, Roles
from uplift_spark.stats.aipw import ESTIMANDS, averages_of

# --------------------------------------------------------------------------------------------------------------------
# Average partial effects of doses that nobody assigned at random: what one unit more of it would have brought.
# The average of dE[Y | W, X] / dW, as the mean of doubly robust scores
#
#     τ(X) + r(W, X) (Y - m(X) - τ(X) (W - e(X))),    r = - d/dw log p(w | X),
#
# with m, e and τ the expected outcome, the expected dose and its slope, and r what tells the density of doses at w
# from that just beside it (Powell, Stock & Stoker 1989; Hirshberg & Wager 2021; for Gaussian doses r is (W - e) /
# Var(W | X)). Unbiased if the slope or the density is right. Doses are taken to be their expectation plus a noise of
# one shape whose size depends on X: r comes from a smoothed density of the standardised residuals. All is cross-
# fitted.

_GRID = 400  # points that the density of residuals is smoothed on
_WIDEST = 5.0  # standardised residuals beyond are taken to be there
_LEAST_SPREAD = 0.05  # of the doses' spread given the features, in its average: below, doses do not differ


def average_partial_effect(
    features: np.ndarray,
    dose: np.ndarray,
    outcome: np.ndarray,
    key: np.ndarray,
    spec: NuisanceSpec,
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
    estimate, influence = float(score.mean()), score - score.mean()
    if cluster is not None:
        influence = np.bincount(np.unique(cluster, return_inverse=True)[1], influence)
    groups = len(influence)
    return estimate, float(np.sqrt((influence**2).sum() * groups / (groups - 1)) / len(score))


def _scores(
    data: tuple[np.ndarray, np.ndarray, np.ndarray], rest: np.ndarray, mine: np.ndarray, spec: NuisanceSpec
) -> np.ndarray:
    features, dose, outcome = data
    make = partial(Blend, False, spec.categorical, spec.seed) if spec.outcome is None else partial(spec.outcome, False)
    ones = np.ones(len(rest))
    outcome_model = make().fit(features[rest], outcome[rest], sample_weight=ones)
    usual = make().fit(features[rest], dose[rest], sample_weight=ones)
    left, gained = dose[rest] - usual.predict(features[rest]), outcome[rest] - outcome_model.predict(features[rest])
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
    representer = -np.interp(standard, at, slope_of) / np.interp(standard, at, density) / scale
    representer /= float((representer * apart).mean())  # r is 1 on average along with a dose one unit higher
    slope = slopes.predict(features[mine])
    return np.asarray(slope + representer * (outcome[mine] - outcome_model.predict(features[mine]) - slope * apart))


def _density(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(points, density, its slope) of standardised residuals [n]: a Gaussian kernel of Silverman's width."""
    held = np.clip(values, -_WIDEST, _WIDEST)
    at = np.linspace(held.min(), held.max(), _GRID)
    width = 1.06 * min(held.std(), float(np.subtract(*np.percentile(held, [75, 25]))) / 1.34) * len(held) ** -0.2
    counts, edges = np.histogram(held, bins=4 * _GRID)
    apart = (at[:, None] - (edges[:-1] + edges[1:]) / 2) / width
    kernel = np.exp(-(apart**2) / 2) * counts
    return at, kernel.sum(axis=1), -(apart * kernel).sum(axis=1) / width


# --------------------------------------------------------------------------------------------------------------------
# Average effects for units that were not in the trial: what a campaign tested here would bring there.
# With s whether a unit took part, p(X) its probability, and m_k and e_k a level's expected outcome and propensity, the
# average effect of level k among units that did not take part is the mean over all units, divided by P(s = 0), of
#
#     (1 - s) (m_k(X) - m_0(X)) + s (1 - p) / p ([w = k] (Y - m_k) / e_k - [w = 0] (Y - m_0) / e_0)
#
# (Dahabreh et al. 2020, equation 4): unbiased if the outcome or the part taken is modelled right. All is cross-fitted.
#
# Assumed: effects depend on the features alone, wherever a unit is, and none is sure to be outside.

_MIN_TRIAL_PROPENSITY = 0.02  # of taking part, as it is fitted: those less likely stand for no more than fifty others


def transported_average(
    data: tuple[np.ndarray, np.ndarray, np.ndarray],
    inside: np.ndarray,
    key: np.ndarray,
    spec: NuisanceSpec,
    propensity: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """(average effect of each treated level among the units outside, standard error), float64 [L] each.

    data    features float64 [n, p] with NaN where missing, place int [n] with 0 the control, outcome float64 [n]; the
            last two are not looked at outside
    inside  whether a unit was in the trial, bool [n]
    key     uint64 [n] as in `crossfit`; units of one key, such as a household's, may depend on each other
    propensity  probability of every level, float64 [n, K], where they are known

    The average is over the very units given as outside: that these are a sample themselves is not in the error. Raises
    DataError for outcomes inside that are not finite, and where all units, or none, are inside.
    """
    outcome, inside = data[2], np.asarray(inside, bool)
    if count := int(np.count_nonzero(~np.isfinite(outcome[inside]))):
        raise DataError(f"the outcome is missing or infinite in {count} of {inside.sum()} rows inside: drop or fill it")
    if inside.all() or not inside.any():
        raise DataError(f"{inside.sum()} of {len(inside)} rows are inside: give some inside and some outside")
    fold, order = crossfit_folds(key, spec), np.argsort(key, kind="stable")
    predicted, influence = np.zeros((len(key), len(spec.levels) - 1)), np.zeros((len(key), len(spec.levels) - 1))
    for f in range(spec.folds):
        rest, mine = order[fold[order] != f], np.flatnonzero(fold == f)
        predicted[mine], influence[mine] = _parts(data, inside, (rest, mine), spec, propensity)
    outside = (~inside).sum()
    shared = np.stack([np.bincount(np.unique(key, return_inverse=True)[1], one) for one in influence.T])
    return (predicted + influence).sum(axis=0) / outside, np.sqrt((shared**2).sum(axis=1)) / outside


def _parts(
    data: tuple[np.ndarray, np.ndarray, np.ndarray],
    inside: np.ndarray,
    parts: tuple[np.ndarray, np.ndarray],
    spec: NuisanceSpec,
    propensity: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Expected effects of units outside, and what those inside have beyond expectation, [rows, L], 0 for the others."""
    features, level_code, outcome = data
    rest, mine = parts
    trial = rest[inside[rest]]
    fitted = fit_nuisances(features[trial], level_code[trial], outcome[trial], spec, known=propensity is not None)
    make = spec.propensity or partial(Blend, categorical=spec.categorical, seed=spec.seed)
    with threadpool_limits(1):
        part = make(True).fit(features[rest], inside[rest].astype(np.int64), sample_weight=np.ones(len(rest)))
        trial_propensity = np.maximum(part.predict_proba(features[mine])[:, 1], _MIN_TRIAL_PROPENSITY)
    outcome_mean, took = fitted.outcome_mean(features[mine]), inside[mine]
    own = fitted.propensity(features[mine]) if propensity is None else propensity[mine]
    left = np.where(took, (1 - trial_propensity) / trial_propensity, 0.0)[:, None] * (
        level_code[mine][:, None] == np.arange(len(spec.levels))
    )
    left *= (np.where(took, outcome[mine], 0.0)[:, None] - outcome_mean) / own
    return np.where(took[:, None], 0.0, outcome_mean[:, 1:] - outcome_mean[:, :1]), left[:, 1:] - left[:, :1]


# --------------------------------------------------------------------------------------------------------------------
# The averages of a table's rows, by their roles.


def average_effects_table(table: pa.Table, roles: Roles, outside: pa.Table | None, folds: int, seed: int) -> pa.Table:
    """A row per treated level and estimand: those of `stats.aipw`, of units `outside` the trial, or of a dose.

    Raises ConfigError for roles with weights, and for units outside where the treatment is a number.
    """
    if roles.weight is not None:
        raise ConfigError("average effects are those of the units as they are: drop roles.weight")
    roles, confounded = trial_roles(replace(roles, more_outcomes=()))
    if outside is not None and roles.grid:
        raise ConfigError("units outside the trial have no average partial effect: drop `outside` or roles.grid")
    if outside is not None:
        return _outside_average(table, outside, roles, confounded, (folds, seed))
    if roles.grid:
        return _dose_average(table, roles, (folds, seed))
    sample = sample_table(table, roles, (folds, seed), len(table))
    rows = rows_of(sample, confounded or sample_overlap(sample)[0] is not None)
    fitted = crossfit(
        *(rows.features, rows.level_code, rows.outcome, rows.key, sample.spec, rows.weight, rows.propensity)
    )
    hashes = None if roles.cluster is None else rows.key.view(np.int64)
    averages = averages_of(rows.outcome, rows.level_code, fitted.outcome_mean, rows.propensity, hashes)
    treated = sample.spec.levels[1:]
    names = np.repeat(treated, len(ESTIMANDS)).tolist()
    least, _ = thin_errors(sample.coding.thin.get(roles.outcome, {}), treated)
    error = np.maximum(averages.error, least[:, None])
    return _estimates(names, list(ESTIMANDS) * len(treated), averages.estimate.ravel(), error.ravel())


def _dose_average(table: pa.Table, roles: Roles, folds_and_seed: tuple[int, int]) -> pa.Table:
    rows = encode(table, roles)
    check_summary(summarise(rows), roles)
    check_repeated(repeated_rows(rows.unit), roles.unit)
    bins = fit_bins(rows.features, roles.features, MOST_BINS)
    spec = NuisanceSpec(("0", "1"), categorical_of(bins), *folds_and_seed)
    assert isinstance(rows.treatment, NumberColumn)  # as roles.grid is set
    data = features_of(rows.features, bins), rows.treatment.values, rows.outcomes[roles.outcome]
    estimate, error = average_partial_effect(*data, rows.key, spec, rows.cluster)
    return _estimates([roles.treatment], ["one unit more"], np.array([estimate]), np.array([error]))


def _outside_average(
    table: pa.Table, outside: pa.Table, roles: Roles, confounded: bool, folds_and_seed: tuple[int, int]
) -> pa.Table:
    rows = encode(table, roles)
    summary = summarise(rows)
    check_summary(summary, roles)
    check_repeated(repeated_rows(rows.unit), roles.unit)
    levels = make_levels(summary, roles)[0]
    shared = [column for column in (roles.unit, roles.cluster, *roles.features) if column]
    check_columns(dict.fromkeys(outside.column_names, pa.null()), shared, ())
    units = pa.concat_tables([table.select(shared), outside.select(shared)], promote_options="permissive")
    features = encode_features(units, roles.features)
    bins = fit_bins(features, roles.features, MOST_BINS)
    spec = NuisanceSpec(levels.names, categorical_of(bins), *folds_and_seed)
    inside = np.arange(len(units)) < len(table)
    level_code, outcome = np.zeros(len(units), np.int64), np.full(len(units), np.nan)
    level_code[inside] = level_codes_of(rows.level, levels.names)
    outcome[inside] = rows.outcomes[roles.outcome]
    known = None
    if not confounded and roles.propensity is None:
        known = np.tile(np.bincount(level_code[inside], minlength=len(levels)) / len(table), (len(units), 1))
    data = features_of(features, bins), level_code, outcome
    unit, key = keys_of(units, roles)
    check_repeated(repeated_rows(unit[~inside]), roles.unit)
    estimate, error = transported_average(data, inside, key, spec, known)
    return _estimates(list(levels.treated), ["outside"] * len(estimate), estimate, error)


def _estimates(levels: list[str], estimands: list[str], estimate: np.ndarray, error: np.ndarray) -> pa.Table:
    bounds = {"lower": estimate - Z95 * error, "upper": estimate + Z95 * error}
    return pa.table({TREATMENT: levels, "estimand": estimands, "estimate": estimate, "error": error, **bounds})
