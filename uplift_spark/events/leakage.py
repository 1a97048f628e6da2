"""Leakage: features that know what happened after the assignment.

`find_leaks` searches the rows of a trial, `guard_training` stops the features job when it finds something.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numba as nb
import numpy as np
import pyarrow as pa
import scipy.stats
from pyspark.sql import Column, DataFrame
from sklearn.ensemble import HistGradientBoostingClassifier
from threadpoolctl import threadpool_limits

from uplift_spark.config import Config
from uplift_spark.errors import DataError
from uplift_spark.events.features import hash_sample
from uplift_spark.forest.binning import NumberColumn, apply_bins, fit_bins
from uplift_spark.forest.encode import TypedRows, encode
from uplift_spark.roles import PROPENSITY, Roles
from uplift_spark.runtime import ProgressCallback

# --------------------------------------------------------------------------------------------------------------------
# Randomisation inference: other assignments that the design could have drawn, and p-values from these.

DRAWS = 999


@dataclass(frozen=True)
class TrialRows:
    """Rows with those of a cluster side by side, smaller clusters first; without clusters each row is its own.

    level  code of the arm received, int64 [n]
    size   rows of each cluster, ascending, [G]
    """

    typed: TypedRows
    level: np.ndarray
    size: np.ndarray

    @classmethod
    def of(cls, typed: TypedRows) -> TrialRows:
        """Rows in any order; DataError for ids or treatments that are null."""
        _, level = typed.level_codes()
        if nulls := int((level < 0).sum()):
            raise DataError(
                f"column {typed.roles.treatment!r} is null in {nulls} rows: every row needs a level; drop them"
            )
        for name, mask in typed.missing_ids.items():
            raise DataError(f"column {name!r} is null in {mask.sum()} rows: every row needs an id; drop them")
        return cls._ordered(typed, level, typed.unit, typed.key)

    @classmethod
    def _ordered(cls, typed: TypedRows, level: np.ndarray, unit: np.ndarray, cluster: np.ndarray) -> TrialRows:
        _, code, size = np.unique(cluster, return_inverse=True, return_counts=True)
        order = np.lexsort((unit, code, size[code]))
        return cls(typed.take(order), level[order], np.sort(size))

    @property
    def n_levels(self) -> int:
        return np.unique(self.level).size

    @property
    def cluster(self) -> np.ndarray:
        """Cluster of each row, 0 .. G-1."""
        return np.repeat(np.arange(self.size.size), self.size)

    @property
    def whole(self) -> bool:
        """Whether every cluster has one arm only."""
        first = self.level[np.cumsum(self.size) - self.size]
        return bool((self.level == first[self.cluster]).all())

    def keep(self, mask: np.ndarray) -> TrialRows:
        """The rows of a mask [n]."""
        rows = np.arange(self.level.size, dtype=np.uint64)
        return self._ordered(self.typed.take(mask), self.level[mask], rows[mask], self.cluster[mask])

    def halves(self, rng: np.random.Generator) -> np.ndarray:
        """Mask of the rows of a random half of the clusters."""
        chosen = rng.permutation(self.size.size) < self.size.size // 2
        return chosen[self.cluster]

    def drawer(self, rng: np.random.Generator) -> Callable[[], np.ndarray]:
        """A function that draws the levels [n] anew, as the design could have.

        Whole clusters change places where each has one arm, else the levels of clusters of a size do, as they are:
        right for units randomised one by one, and for arms that exclude each other in a cluster.
        """
        start, cluster = np.cumsum(self.size) - self.size, self.cluster
        if self.whole:
            levels = self.level[start]
            return lambda: levels[rng.permutation(start.size)][cluster]
        bounds = np.searchsorted(self.size, [*np.unique(self.size), np.inf])
        within = np.arange(cluster.size) - start[cluster]

        def draw() -> np.ndarray:
            source = [low + rng.permutation(high - low) for low, high in pairwise(bounds)]
            return self.level[start[np.concatenate(source)][cluster] + within]

        return draw


def thin_to_equal_shares(rows: TrialRows, rng: np.random.Generator) -> TrialRows:
    """Thin the rows until every unit has the same propensities.

    A row is kept with probability min(e of its arm) / e, its own logged propensity: P(arm, kept | features) is then the
    same whatever the features (rejection sampling, von Neumann 1951). Only the propensity of the arm received is
    needed, and a constant one keeps every row. Clusters with one arm and one propensity are kept or dropped as one.
    """
    e, roles = rows.typed.propensity, rows.typed.roles
    if e is None:
        return rows
    bad = int((~((e > 0) & (e <= 1))).sum())
    if bad:
        raise DataError(f"column {roles.propensity!r} is not in (0, 1] in {bad} of {e.size} rows: correct the log")
    least = np.full(int(rows.level.max(initial=0)) + 1, np.inf)
    np.minimum.at(least, rows.level, e)
    first = e[np.cumsum(rows.size) - rows.size][rows.cluster]
    together = rows.whole and bool((e == first).all())
    draw = rng.random(rows.size.size)[rows.cluster] if together else rng.random(e.size)
    return rows.keep(draw * e < least[rows.level])


def max_p_values(
    statistic: Callable[[np.ndarray], np.ndarray], rows: TrialRows, alpha: float, rng: np.random.Generator
) -> np.ndarray:
    """Single-step max-statistic p-values of `statistic(level)` [p], whatever their dependence; 1 if all exceed alpha.

    Drawing stops once no p-value can be as small as alpha: no decision changes, and clean data take a handful of draws.
    """
    observed, draw = statistic(rows.level), rows.drawer(rng)
    total = max(DRAWS, math.ceil(1 / alpha - 1e-9) - 1)
    above, most = np.zeros(observed.size), alpha * (total + 1) - 1 + 1e-9
    tied = observed - 1e-9 * np.abs(observed)  # sums of the same numbers in another order
    for _ in range(total):
        above += statistic(draw()).max() >= tied
        if above.min() > most:
            return np.ones(observed.size)
    return (1 + above) / (1 + total)


# --------------------------------------------------------------------------------------------------------------------
# The search for leaks: values that were recorded, backfilled or changed after the assignment.
# Two tests run on a sample of a training set. The first: do features predict the treatment, which randomisation rules
# out? The second: does a feature order the units by an outcome as only the outcome itself can? A finding names the
# feature, the reason and the fix.

MIN_ROWS = 100  # below, neither question has an answer worth a blocked job
MIN_EVENTS = 25  # rows outside the outcome's commonest bin, for the second question
IMPLAUSIBLE = 0.9  # Somers' D of outcome and feature, an area under the ROC curve of .95 where the outcome is 0/1
COARSE_BINS, FINE_BINS = 16, 64  # bins per number: few for a feature's own test, more where order inside them matters
PILOT = 50  # draws that scale the chi-squares of clustered features, apart from those of the test


@dataclass(frozen=True)
class LeakFinding:
    """One leak.

    feature    the guilty column; of several that predict the treatment only together the one that counts most
    rule       "predicts_treatment", "predicts_treatment_jointly" or "outcome_like"
    statistic  chi-square; log-likelihood gained over the arms' shares, in nats per row; Somers' D
    p_value    adjusted for the number of features
    sentence   names the feature and says why and the fix
    """

    feature: str
    rule: str
    statistic: float
    p_value: float
    sentence: str


@dataclass(frozen=True)
class Leaks:
    """Findings in `rows` rows, and the number of them in which arms were `compared` (0: in none)."""

    findings: tuple[LeakFinding, ...]
    rows: int
    compared: int


def find_leaks(table: pa.Table, roles: Roles, alpha: float = 0.001, seed: int = 7, randomised: bool = True) -> Leaks:
    """Find the features of a trial's rows that predict the treatment or equal an outcome in all but name.

    *Treatment*, at level alpha over all features together, half for each of two tests that draw the assignment anew:
    each feature alone by the chi-square of its bins (a bin for missing) and the arms, the largest over all features
    being the reference for each (Westfall & Young 1993); the features not named so together by a classifier
    (`_together`). Assignments are drawn by permuting units, or clusters where `roles.cluster` is set: whole clusters
    where each has one arm, else among clusters of a size. Where `roles.propensity` varies, rows are thinned first
    until it does not (`thin_to_equal_shares`), so that a stratified trial is no leak. Without logged propensities
    arms count as assigned with the same propensities for every unit.

    *Outcome*: `roles.outcomes` each against each feature, as `_concordance` says; certain at level alpha that the true
    value is beyond IMPLAUSIBLE. Equality in most rows is no rule: a rare outcome equals any rare count in most rows.

    table       columns of the roles; features numeric or text, missing allowed; rows in any order give the same answer
    randomised  False: an observational campaign, whose features may well predict the treatment: not compared

    With fewer than MIN_ROWS rows, or one arm, arms are not compared; of few clusters no p-value reaches alpha. Raises
    DataError for missing or retyped columns, infinite features or outcomes, ids or treatments that are null and
    propensities outside (0, 1].
    """
    rng = np.random.default_rng(seed)
    rows = TrialRows.of(encode(table, roles))
    compared = thin_to_equal_shares(rows, rng) if randomised else None
    if compared is None or compared.level.size < MIN_ROWS or compared.n_levels < 2:
        return Leaks(tuple(_outcome_like(rows, roles, alpha, rng)), rows.level.size, 0)
    alone = _alone(compared, roles.features, alpha / 2, rng)
    rest = [name for name in roles.features if name not in {finding.feature for finding in alone}]
    together = _together(compared, rest, alpha / 2, rng)
    like = _outcome_like(rows, roles, alpha, rng)
    return Leaks((*alone, *together, *like), rows.level.size, compared.level.size)


# ---------------------------------------------------------------- treatment


def _binned(rows: TrialRows, features: Sequence[str], bins: int) -> np.ndarray:
    return apply_bins(rows.typed.features, fit_bins(rows.typed.features, features, bins))


@nb.njit(cache=True, nogil=True)
def _count(bins, level, table):  # type: ignore[no-untyped-def]
    """Add rows to table [p, bins, K]."""
    for i in range(level.size):
        for j in range(bins.shape[1]):
            table[j, bins[i, j], level[i]] += 1.0


def _residuals(bins: np.ndarray, level: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(terms of each feature's chi-square [p, bins, K], its degrees of freedom [p])."""
    table = np.zeros((bins.shape[1], int(bins.max()) + 1, int(level.max()) + 1))
    _count(bins, level, table)
    table = table[:, :, table.sum(axis=(0, 1)) > 0]
    of_bin, of_level = table.sum(axis=2, keepdims=True), table.sum(axis=1, keepdims=True)
    independent = of_bin * of_level / level.size
    df = ((of_bin > 0).sum(axis=(1, 2)) - 1) * (table.shape[2] - 1)
    return (table - independent) ** 2 / np.where(independent > 0, independent, 1.0), df


def _normal(chi2: np.ndarray, df: np.ndarray) -> np.ndarray:
    """Chi-squares on one scale whatever their degrees of freedom (Wilson & Hilferty 1931); -inf for constants."""
    spread = 2.0 / (9.0 * np.maximum(df, 1))
    z = (np.cbrt(chi2 / np.maximum(df, 1)) - 1.0 + spread) / np.sqrt(spread)
    return np.where(df > 0, z, -np.inf)


def _alone(rows: TrialRows, features: tuple[str, ...], alpha: float, rng: np.random.Generator) -> list[LeakFinding]:
    """Features that predict the treatment by themselves."""
    bins = _binned(rows, features, COARSE_BINS)
    usual = _usual(bins, rows, rng)

    def statistic(level: np.ndarray) -> np.ndarray:
        terms, df = _residuals(bins, level)
        return _normal(terms.sum(axis=(1, 2)) / usual, df)

    p = max_p_values(statistic, rows, alpha, rng)
    terms, df = _residuals(bins, rows.level)
    findings = []
    for j in np.flatnonzero(p <= alpha):
        chi2, missing = float(terms[j].sum()), float(terms[j, 0].sum())
        how = ", mostly by where it is missing" if missing > chi2 / 2 else ""
        test = f"chi-square {chi2:.4g} on {df[j]} degrees of freedom in {rows.level.size:,} rows, p <= {p[j]:.2g}"
        sentence = f"feature {features[j]!r} predicts the treatment{how} ({test}), {_AFTERWARDS}"
        findings.append(LeakFinding(features[j], "predicts_treatment", chi2, float(p[j]), sentence))
    return findings


def _usual(bins: np.ndarray, rows: TrialRows, rng: np.random.Generator) -> np.ndarray:
    """Mean chi-square over df of each feature [p] under drawn assignments: with clusters more than one (Rao & Scott
    1981), most for what members share, which would otherwise hide all other features behind its large maximum."""
    if rows.size.max() == 1:
        return np.ones(bins.shape[1])
    draw, ratio_sum = rows.drawer(rng), np.zeros(bins.shape[1])
    for _ in range(PILOT):
        terms, df = _residuals(bins, draw())
        ratio_sum += terms.sum(axis=(1, 2)) / np.maximum(df, 1)
    return np.where(ratio_sum > 0, ratio_sum / PILOT, 1.0)


_AFTERWARDS = (
    "which nothing known before a randomised assignment can: its values were recorded or changed afterwards, or rows "
    "were lost from one arm; take them as of the assignment, or remove the feature"
)


def _together(rows: TrialRows, features: list[str], alpha: float, rng: np.random.Generator) -> list[LeakFinding]:
    """Features that predict the treatment only with others: classifier two-sample test (Lopez-Paz & Oquab 2017).

    Boosted trees learn the arm on one half of the clusters; on the other the log-likelihood of the arms received is
    compared with that of arms drawn anew (Kim et al. 2021), which is exact without fitting again. Both halves in turn
    would not be: their statistics are nearly the same number, which a reference with fixed classifiers does not know.
    The feature whose shuffling costs most is named, left out, and the rest is tested again.
    """
    findings: list[LeakFinding] = []
    half = rows.halves(rng)
    fit, validation = rows.keep(half), rows.keep(~half)
    while features and fit.n_levels > 1 and validation.n_levels > 1:
        gains, codes = _classifier(fit, validation, features, int(rng.integers(2**31)))
        likelihood = _likelihood(gains(codes[None])[0])
        p = float(max_p_values(likelihood, validation, alpha, rng)[0])
        if p > alpha:
            break
        size = float(likelihood(validation.level)[0])
        name = features[int(np.argmin(_shuffled(gains, codes, validation.level, rng)))]
        test = f"{size:.3g} nats per row in {validation.level.size:,} rows, p <= {p:.2g}"
        sentence = f"feature {name!r} predicts the treatment together with others ({test}), {_AFTERWARDS}"
        findings.append(LeakFinding(name, "predicts_treatment_jointly", size, p, sentence))
        features = [other for other in features if other != name]
    return findings


_Gains = Callable[[np.ndarray], np.ndarray]


def _classifier(fit: TrialRows, validation: TrialRows, features: list[str], seed: int) -> tuple[_Gains, np.ndarray]:
    """A function from copies of bins [c, m, p] to log-probabilities of arms less their means [c, m, K]; bins [m, p] of
    `validation`."""
    bins = fit_bins(fit.typed.features, features, FINE_BINS)
    model = HistGradientBoostingClassifier(
        max_iter=40,
        max_leaf_nodes=15,
        early_stopping=False,
        categorical_features=[one.categorical for one in bins],
        random_state=seed,
    )
    with threadpool_limits(1):  # threads that wait for each other take 60 times as long when cores are busy
        model.fit(apply_bins(fit.typed.features, bins), fit.level)
    n_levels = 1 + int(max(fit.level.max(), validation.level.max()))

    def gains(codes: np.ndarray) -> np.ndarray:
        with threadpool_limits(1):
            log = np.log(np.maximum(model.predict_proba(codes.reshape(-1, codes.shape[2])), 1e-6))
        log = log.reshape(*codes.shape[:2], -1)
        out = np.zeros((*codes.shape[:2], n_levels))  # an arm the classifier never saw tells nothing
        out[:, :, model.classes_] = log - log.mean(axis=1, keepdims=True)
        return out

    return gains, apply_bins(validation.typed.features, bins)


def _likelihood(gain: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Mean gain [1] of the levels given."""
    rows = np.arange(len(gain))
    return lambda level: np.array([gain[rows, level].mean()])


_AT_ONCE = 200_000  # rows that a classifier is given in one call, which costs far more than a row


def _shuffled(gains: _Gains, codes: np.ndarray, level: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Mean gain when a feature is shuffled, of each [p]."""
    (n, p), means = codes.shape, []
    some = max(1, _AT_ONCE // n)
    for first in range(0, p, some):
        features = range(first, min(first + some, p))
        changed = np.repeat(codes[None], len(features), axis=0)
        for copy, j in enumerate(features):
            changed[copy, :, j] = rng.permutation(codes[:, j])
        means += [float(_likelihood(gain)(level)[0]) for gain in gains(changed)]
    return np.array(means)


# ---------------------------------------------------------------- outcome


def _outcome_like(rows: TrialRows, roles: Roles, alpha: float, rng: np.random.Generator) -> list[LeakFinding]:
    """Features that order units by an outcome as only the outcome itself can."""
    half = rows.halves(rng)
    codes = _binned(rows, roles.features, FINE_BINS)
    certain = alpha / (len(roles.features) * len(roles.outcomes))
    findings = []
    for outcome in roles.outcomes:
        numbers = {outcome: NumberColumn(pa.float64(), rows.typed.outcomes[outcome])}
        y = apply_bins(numbers, fit_bins(numbers, (outcome,), FINE_BINS))[:, 0]
        learn, validation = half & (y > 0), ~half & (y > 0)  # bin 0 is an outcome not known
        if not learn.any() or validation.sum() - np.bincount(y[validation], minlength=1).max() < MIN_EVENTS:
            continue
        for j, name in enumerate(roles.features):
            d, error = _concordance(_order(codes[learn, j], y[learn])[codes[validation, j]], y[validation])
            p = float(scipy.stats.norm.sf(d - IMPLAUSIBLE, scale=max(error, 1e-9)))
            if p <= certain:
                test = f"Somers' D {d:.3f} in {validation.sum():,} rows, beyond the plausible {IMPLAUSIBLE}"
                sentence = (
                    f"feature {name!r} orders units by outcome {outcome!r} as only the outcome itself can ({test}): it "
                    "was computed from it or after it; take its values as of the assignment, or remove the feature"
                )
                findings.append(LeakFinding(name, "outcome_like", d, min(p / certain * alpha, 1.0), sentence))
    return findings


def _order(codes: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Score of each of 256 bins: its rows' mean rank of y, the mean of all for bins without rows. No shape is assumed,
    so categories and missing values count like numbers."""
    counts = np.bincount(y)
    rank = (np.cumsum(counts) - counts / 2.0)[y]
    total, n = np.bincount(codes, rank, 256), np.bincount(codes, minlength=256)
    return np.where(n > 0, total / np.maximum(n, 1), rank.mean())


def _concordance(score: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Somers' D of y and score, and its standard error (U-statistic, rows independent).

    Pairs of rows that differ in y: the share ordered alike by score, less that ordered the other way.
    """
    a, b = np.unique(score, return_inverse=True)[1], np.unique(y, return_inverse=True)[1]
    table = np.zeros((a.max() + 1, b.max() + 1))
    np.add.at(table, (a, b), 1.0)
    alike = _below(table) + _below(table[::-1, ::-1])[::-1, ::-1]
    other = _below(table[::-1])[::-1] + _below(table[:, ::-1])[:, ::-1]
    differ = y.size - table.sum(axis=0)
    pairs = float((table * differ).sum())
    d = float((table * (alike - other)).sum()) / pairs
    influence = alike - other - d * differ
    return d, 2.0 * float(np.sqrt((table * influence**2).sum())) / pairs


def _below(table: np.ndarray) -> np.ndarray:
    """Of each cell, the sum of the cells before it in both directions."""
    out = np.zeros_like(table)
    out[1:, 1:] = table.cumsum(axis=0).cumsum(axis=1)[:-1, :-1]
    return out


# --------------------------------------------------------------------------------------------------------------------
# The guard of the features job: a training set with a leak is not written, unless the leak is allowed on record.


def leakage_sample(config: Config, labels: Mapping[str, int]) -> Column:
    """Whether a unit is in the sample for `guard_training`; labels: numbers of `labelled` and of `immature` units."""
    units = max(1.0, (labels["labelled"] - labels["immature"]) * (1.0 - config.holdout))
    return hash_sample(config.seed, min(1.0, config.leakage.rows / units))


def guard_training(sample: DataFrame, config: Config, progress: ProgressCallback) -> dict[str, Any]:
    """Look for leaks in rows of the training split.

    sample    a sample (`leakage_sample`) of the training set, which is not yet written

    Returns {"rows": how many, "compared": how many of these to find features that predict the treatment, "allowed":
    [{"feature", "rule", "statistic", "p_value", "reason"}]}. Raises DataError that names every feature with a finding
    that is not allowed.
    """
    section, roles = config.leakage, config.unit_roles
    rows = sample.filter("split = 'train'").select(*roles.columns).toArrow()
    logged = not rows.num_rows or rows.column(PROPENSITY).null_count < rows.num_rows
    leaks = find_leaks(rows, roles, section.alpha, config.seed, randomised=section.randomised and logged)
    if not section.randomised or not logged:
        why = "no propensity was logged" if section.randomised else "leakage.randomised is false"
        progress(f"leakage: features were not compared between arms, because {why}")
    else:
        progress(f"leakage: features of {leaks.compared:,} of {leaks.rows:,} sampled rows were compared between arms")
    _refuse([one for one in leaks.findings if one.feature not in section.allow], config)
    for one in leaks.findings:
        progress(f"leakage: allowed because {section.allow[one.feature]!r}: {one.sentence}")
    allowed = [_record(one, section.allow[one.feature]) for one in leaks.findings]
    return {"rows": leaks.rows, "compared": leaks.compared, "allowed": allowed}


def _refuse(findings: list[LeakFinding], config: Config) -> None:
    if findings:
        names = sorted({one.feature for one in findings})
        raise DataError(
            f"table silver.training_{config.campaign} was not written, {len(names)} of {len(config.roles.features)} "
            f"features leak: {'; '.join(one.sentence for one in findings)}; to keep one as it is, state the reason on "
            f"record: leakage.allow: {{{names[0]}: <reason>}}"
        )


def _record(one: LeakFinding, reason: str) -> dict[str, Any]:
    figures = {"statistic": round(one.statistic, 6), "p_value": round(one.p_value, 6)}
    return {"feature": one.feature, "rule": one.rule, **figures, "reason": reason}
