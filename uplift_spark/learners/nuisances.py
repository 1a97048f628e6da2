"""Cross-fitted nuisances of observational data, and the sample of rows that they are fitted on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import scipy.stats
from threadpoolctl import threadpool_limits

from uplift_spark.errors import ConfigError, DataError
from uplift_spark.forest.binning import (
    ArrowRows,
    FeatureBins,
    Features,
    NumberColumn,
    TextColumn,
    apply_bins,
    encode_features,
    fit_bins,
)
from uplift_spark.forest.encode import (
    Summary,
    TypedRows,
    check_repeated,
    check_summary,
    encode,
    make_levels,
    repeated_rows,
    summarise,
)
from uplift_spark.forest.estimate import sample_of, thin_outcomes
from uplift_spark.forest.forest import Model
from uplift_spark.forest.overlap import check_level_rows
from uplift_spark.roles import Levels, Roles
from uplift_spark.stats.aipw import averages_of
from uplift_spark.stats.sampling import FOLDS_SALT, SAMPLE_SALT, mix64_all

# --------------------------------------------------------------------------------------------------------------------
# Cross-fitted nuisances of observational data: the outcome expected under every level, and every level's probability.
# A row's values come from models that saw neither the row nor its cluster, so that what learners memorise does not
# pass for an effect (Chernozhukov et al. 2018). Folds are drawn by hash, never by a row's place: any partitioning of
# the same rows has the same folds. `fit_nuisances` is one fold's work, arrays in, arrays out.
#
# Axes: n rows, p features, K levels with the control first, F folds.

Factory: TypeAlias = Callable[[bool], Any]

MIN_ARM_ROWS = 10  # rows of an arm in a training part: fewer say nothing about its outcome
_TREES = {"max_iter": 75, "max_leaf_nodes": 4, "learning_rate": 0.1, "early_stopping": False}
_SHARES = np.linspace(0, 1, 5)  # of the trees in a blend: those tried
_GROUPS = 250  # of a feature, for weighted trees, whose bins are at most 255
_HELD_OUT = 4  # one row in so many decides on the share


@dataclass(frozen=True)
class NuisanceSpec:
    """How nuisances are fitted.

    levels       names of the levels, control first: K of them
    categorical  which features hold codes of categories (below 255), bool [p]; by default none
    folds, seed  how rows are parted, and the seed of the learners
    outcome      makes an unfitted estimator with fit(x, y, sample_weight) and predict, or predict_proba for outcomes of
                 0 and 1, which is what its argument says; by default `Blend`
    propensity   likewise, with predict_proba; its argument is True
    """

    levels: tuple[str, ...]
    categorical: np.ndarray | None = None
    folds: int = 5
    seed: int = 7
    outcome: Factory | None = None
    propensity: Factory | None = None

    def __post_init__(self) -> None:
        if len(self.levels) < 2 or self.folds < 2:
            raise ConfigError(f"{len(self.levels)} levels and {self.folds} folds: give at least two of each")


class Blend:
    """Small boosted trees and a penalised linear model, mixed as predicts best what a quarter of the rows held back.

    A small super learner (van der Laan, Polley & Hubbard 2007), with scikit-learn's fit and predict. Trees miss what is
    straight, and lines what is not: either alone is badly biased in one of the set-ups of Nie & Wager (2021).
    """

    def __init__(self, classifier: bool, categorical: np.ndarray | None = None, seed: int = 0) -> None:
        self.classifier, self.categorical, self.seed = classifier, categorical, seed

    def fit(self, features: np.ndarray, target: np.ndarray, sample_weight: np.ndarray) -> Blend:
        """Fit to features [n, p], NaN allowed, and target [n]."""
        part = np.random.default_rng(self.seed).permutation(len(target)) % _HELD_OUT > 0
        self.share = 0.5
        if not self.classifier or len(np.unique(target[part])) == len(np.unique(target)):
            self._fit_both(features[part], target[part], sample_weight[part])
            held, truth = features[~part], self._wanted(target[~part])
            losses = [sample_weight[~part] @ ((self._mixed(held, s) - truth) ** 2).sum(axis=1) for s in _SHARES]
            self.share = float(_SHARES[int(np.argmin(losses))])
        self._fit_both(features, target, sample_weight)
        return self

    def _wanted(self, target: np.ndarray) -> np.ndarray:
        return (target[:, None] == self.classes_) * 1.0 if self.classifier else target[:, None]

    def _fit_both(self, features: np.ndarray, target: np.ndarray, weight: np.ndarray) -> None:
        from sklearn import ensemble, linear_model

        arguments = {**_TREES, "categorical_features": self.categorical, "random_state": self.seed}
        kind = ensemble.HistGradientBoostingClassifier if self.classifier else ensemble.HistGradientBoostingRegressor
        lines = linear_model.LogisticRegression(max_iter=300) if self.classifier else linear_model.Ridge()
        self.classes_ = np.unique(target)
        self.trees = fit_trees(kind(**arguments), features, target, weight)
        self.prepare = _prepared(features.shape[1], self.categorical).fit(features)
        self.lines = lines.fit(self.prepare.transform(features), target, weight)

    def _mixed(self, features: np.ndarray, share: float) -> np.ndarray:
        name = "predict_proba" if self.classifier else "predict"
        trees, lines = getattr(self.trees, name)(features), getattr(self.lines, name)(self.prepare.transform(features))
        return np.asarray(share * trees + (1 - share) * lines, np.float64).reshape(len(features), -1)

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Expected target, [n]."""
        return self._mixed(features, self.share)[:, 0]

    def predict_proba(self, features: np.ndarray) -> np.ndarray:
        """Probability of every class, [n, classes] in sorted order; rows add to one."""
        return self._mixed(features, self.share)


def fit_trees(trees: Any, features: np.ndarray, target: np.ndarray, weight: np.ndarray) -> Any:
    """Boosted trees of scikit-learn, fitted without its weighted quantiles: those sort every feature 254 times, which
    takes ten times as long as the trees. Equal weights are none, else features are grouped beforehand."""
    if np.all(weight == weight[0]):
        return trees.fit(features, target)
    return trees.fit(np.column_stack([_grouped(column) for column in features.T]), target, weight)


def _grouped(column: np.ndarray) -> np.ndarray:
    """Numbers [n] as means of _GROUPS groups of about as many rows, where there are more different ones."""
    known = np.isfinite(column)
    values = column[known]
    if len(np.unique(values)) <= _GROUPS:
        return column
    group = np.searchsorted(np.quantile(values, np.arange(1, _GROUPS) / _GROUPS), values, side="right")
    means = np.bincount(group, values, _GROUPS) / np.maximum(np.bincount(group, minlength=_GROUPS), 1)
    grouped = column.copy()
    grouped[known] = means[group]
    return grouped


def _prepared(p: int, categorical: np.ndarray | None) -> Any:
    """Columns for a linear model: standardised numbers and indicators of missing ones, an indicator per category."""
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    mask = np.zeros(p, bool) if categorical is None else np.asarray(categorical, bool)
    impute = SimpleImputer(strategy="mean", add_indicator=True, keep_empty_features=True)
    numbers = make_pipeline(impute, StandardScaler())
    categories = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    return ColumnTransformer([("numbers", numbers, ~mask), ("categories", categories, mask)])


def features_of(batch: ArrowRows | Features, bins: Sequence[FeatureBins]) -> np.ndarray:
    """What nuisances are fitted on, float64 [n, p]: numbers as they are (NaN: missing), categories by their bin."""
    columns = encode_features(batch, [one.name for one in bins])
    codes = apply_bins(columns, tuple(bins))
    parts = [(columns[one.name], codes[:, j], one.categorical) for j, one in enumerate(bins)]
    return np.column_stack(
        [one.values if isinstance(one, NumberColumn) and not by_bin else code for one, code, by_bin in parts]
    ).astype(np.float64)


@dataclass(frozen=True)
class NuisanceModels:
    """Models of one training part.

    outcomes         a model per level
    lowest, highest  outcome seen; expectations stay between them
    propensity_model  model of the level received, None if propensities are known
    binary           whether all outcomes are 0 or 1
    """

    outcomes: tuple[Any, ...]
    lowest: float
    highest: float
    propensity_model: Any
    binary: bool

    def outcome_mean(self, features: np.ndarray) -> np.ndarray:
        """Outcome expected under every level, float64 [n, K], from features [n, p]."""
        with threadpool_limits(1):  # workers share the cores already
            means = [_mean(model, features, self.binary) for model in self.outcomes]
        return np.clip(np.column_stack(means), self.lowest, self.highest)

    def propensity(self, features: np.ndarray) -> np.ndarray:
        """Probability of every level, float64 [n, K], from features [n, p]; rows add to one. ConfigError if known."""
        if self.propensity_model is None:
            raise ConfigError("propensities were given, so none were fitted: use those")
        with threadpool_limits(1):
            probability = np.asarray(self.propensity_model.predict_proba(features), np.float64)
        return probability / probability.sum(axis=1, keepdims=True)


def _mean(model: Any, features: np.ndarray, binary: bool) -> np.ndarray:
    if isinstance(model, float):
        return np.full(len(features), model)
    if binary and hasattr(model, "predict_proba"):
        return np.asarray(model.predict_proba(features)[:, 1])
    return np.asarray(model.predict(features))


def fit_nuisances(
    features: np.ndarray,
    level_code: np.ndarray,
    outcome: np.ndarray,
    spec: NuisanceSpec,
    weight: np.ndarray | None = None,
    known: bool = False,
) -> NuisanceModels:
    """Models of one training part: of the outcome in each arm, and, unless they are known, of the levels' chances.

    features [n, p] (bins, or numbers with NaN), place int [n] (0 the control), outcome [n], weight [n]. Raises
    DataError for an arm of fewer than MIN_ARM_ROWS rows.
    """
    w = np.ones(len(level_code)) if weight is None else np.asarray(weight, np.float64)
    counts = check_arms(level_code, spec)
    binary = set(np.unique(outcome)) <= {0.0, 1.0}
    make_outcome = spec.outcome or partial(Blend, categorical=spec.categorical, seed=spec.seed)
    make_propensity = spec.propensity or partial(Blend, categorical=spec.categorical, seed=spec.seed)
    with threadpool_limits(1):
        outcomes = tuple(
            _of_arm(make_outcome(binary), features[arm], outcome[arm], w[arm])
            for arm in (level_code == k for k in range(len(counts)))
        )
        propensity_model = None if known else make_propensity(True).fit(features, level_code, w)
    return NuisanceModels(outcomes, float(outcome.min()), float(outcome.max()), propensity_model, binary)


def check_arms(level_code: np.ndarray, spec: NuisanceSpec) -> np.ndarray:
    """Rows of every level in a training part, int [K], by level code [n]; DataError for fewer than MIN_ARM_ROWS."""
    counts = np.bincount(level_code, minlength=len(spec.levels))
    _enough(counts, spec, "the training part", MIN_ARM_ROWS)
    return counts


def _of_arm(model: Any, features: np.ndarray, outcome: np.ndarray, weight: np.ndarray) -> Any:
    """A number for an arm whose outcomes are all the same: classifiers refuse those."""
    same = outcome.min() == outcome.max()
    return float(outcome[0]) if same else model.fit(features, outcome, sample_weight=weight)


def _enough(counts: np.ndarray, spec: NuisanceSpec, where: str, least: int) -> None:
    if len(counts) > len(spec.levels):
        raise DataError(
            f"place is {len(counts) - 1} in some rows, but there are {len(spec.levels)} levels: name them all"
        )
    for name, count in zip(spec.levels, counts.tolist(), strict=True):
        if count < least:
            raise DataError(
                f"level {name!r} has {count} rows in {where}, of at least {least}: "
                "take fewer folds, merge it with another level, or leave it out"
            )


@dataclass(frozen=True)
class NuisanceEstimates:
    """Of every row, from models that did not see its fold: expected [n, K], propensity [n, K], fold int64 [n]."""

    outcome_mean: np.ndarray
    propensity: np.ndarray
    fold: np.ndarray


def crossfit_folds(key: np.ndarray, spec: NuisanceSpec) -> np.ndarray:
    """Fold of each row by its unit's or cluster's hash, uint64 [n] -> int64 [n] in 0 .. F-1."""
    return (mix64_all(key, np.uint64(spec.seed), FOLDS_SALT) % np.uint64(spec.folds)).astype(np.int64)


def crossfit(
    features: np.ndarray,
    level_code: np.ndarray,
    outcome: np.ndarray,
    key: np.ndarray,
    spec: NuisanceSpec,
    weight: np.ndarray | None = None,
    known: np.ndarray | None = None,
) -> NuisanceEstimates:
    """Nuisances of every row; arrays as in `fit_nuisances`. Where keys are unique, the order of rows does not matter.

    key    hashes uint64 [n] of the units, or of their clusters, which then share a fold
    known  logged propensities [n, K], passed on as they are; by default they are fitted

    Raises DataError naming arm, fold and count where a fold lacks an arm, or the other folds have too few rows of it.
    """
    fold = crossfit_folds(key, spec)
    w = np.ones(len(level_code)) if weight is None else np.asarray(weight, np.float64)
    outcome_mean = np.empty((len(level_code), len(spec.levels)))
    propensity = np.empty_like(outcome_mean) if known is None else np.array(known, np.float64)
    order = np.argsort(key, kind="stable")
    for f in range(spec.folds):
        _enough(np.bincount(level_code[fold == f], minlength=len(spec.levels)), spec, f"fold {f} of {spec.folds}", 1)
        rest = order[fold[order] != f]
        counts = np.bincount(level_code[rest], minlength=len(spec.levels))
        _enough(counts, spec, f"the {spec.folds - 1} folds besides fold {f}", MIN_ARM_ROWS)
        models = fit_nuisances(features[rest], level_code[rest], outcome[rest], spec, w[rest], known is not None)
        outcome_mean[fold == f] = models.outcome_mean(features[fold == f])
        if known is None:
            propensity[fold == f] = models.propensity(features[fold == f])
    return NuisanceEstimates(outcome_mean, propensity, fold)


def crossfit_residuals(features: np.ndarray, target: np.ndarray, key: np.ndarray, spec: NuisanceSpec) -> np.ndarray:
    """What the features do not tell of a number, such as a dose or an outcome, [n]: less its cross-fitted expectation.

    An effect of a dose that nobody assigned at random is that of its residual on the outcome's residual (Robinson
    1988; Nie & Wager 2021): train a forest on the two, `Roles(..., control="0", grid=...)`. Arrays as in `crossfit`.
    """
    fold, left, order = crossfit_folds(key, spec), np.empty(len(target)), np.argsort(key, kind="stable")
    make = spec.outcome or partial(Blend, categorical=spec.categorical, seed=spec.seed)
    with threadpool_limits(1):
        for f in range(spec.folds):
            rest, mine = order[fold[order] != f], fold == f
            model = make(False).fit(features[rest], target[rest], sample_weight=np.ones(len(rest)))
            left[mine] = target[mine] - model.predict(features[mine])
    return left


@dataclass(frozen=True)
class Placebo:
    """Effects that must be zero: estimate, error [R, L]; p_value [L] of all R of them being zero."""

    estimate: np.ndarray
    error: np.ndarray
    p_value: np.ndarray

    @classmethod
    def from_draws(cls, estimate: np.ndarray, error: np.ndarray) -> Placebo:
        """With the p-value that refers the sum of squared t statistics to chi-square."""
        return cls(estimate, error, scipy.stats.chi2.sf(((estimate / error) ** 2).sum(axis=0), len(estimate)))

    def of(self, draw: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Estimate, error and p-value of one draw alone, [L] each."""
        alone = Placebo.from_draws(self.estimate[draw : draw + 1], self.error[draw : draw + 1])
        return alone.estimate[0], alone.error[0], alone.p_value


def placebo(
    features: np.ndarray,
    level_code: np.ndarray,
    outcome: np.ndarray,
    key: np.ndarray,
    spec: NuisanceSpec,
    draws: int = 3,
) -> Placebo:
    """The whole analysis again with levels permuted within folds, `draws` times: average effects should be near zero.

    Each draw fits all nuisances anew. A small p-value says that estimates or errors are off (leaks between folds, too
    few rows); a large one says nothing of hidden confounders, which a permutation removes. Keys must be those of units:
    permuting units breaks clusters up.
    """
    fold, results = crossfit_folds(key, spec), []
    order = np.lexsort((key, fold))
    for draw in range(draws):
        lots = np.lexsort((mix64_all(key, np.uint64(spec.seed + draw), SAMPLE_SALT), fold))
        dealt = np.empty_like(level_code)
        dealt[order] = level_code[lots]
        fitted = crossfit(features, dealt, outcome, key, spec)
        results.append(averages_of(outcome, dealt, fitted.outcome_mean, fitted.propensity))
    estimate, error = (np.stack([getattr(one, name)[:, 0] for one in results]) for name in ("estimate", "error"))
    return Placebo.from_draws(estimate, error)


def placebo_outcome(
    features: np.ndarray,
    level_code: np.ndarray,
    key: np.ndarray,
    spec: NuisanceSpec,
    column: int,
    clustered: bool = False,
) -> Placebo:
    """The whole analysis again with one feature [n, p] as the outcome, and not among the features: a negative control
    (Lipsitch, Tchetgen Tchetgen & Cohen 2010). What the treatment came too late to change it has no effect on; where
    one shows, what decided the treatment is not wholly in the other features. Rows without the feature are left out.
    """
    known = np.isfinite(features[:, column])
    others = np.delete(features[known], column, axis=1)
    categorical = None if spec.categorical is None else np.delete(spec.categorical, column)
    arrays = (others, level_code[known], features[known, column], key[known])
    fitted = crossfit(*arrays, replace(spec, categorical=categorical))
    hashes = key[known].view(np.int64) if clustered else None
    one = averages_of(arrays[2], arrays[1], fitted.outcome_mean, fitted.propensity, hashes)
    return Placebo.from_draws(one.estimate[None, :, 0], one.error[None, :, 0])


# --------------------------------------------------------------------------------------------------------------------
# What a campaign's models are valued with: the outcome expected under every level, from models on a forest's bins.
# `Effects` are those of rows in Arrow, float64 [n, K-1] in the order of the campaign's treated levels.

Effects: TypeAlias = Callable[[ArrowRows], np.ndarray]

_MOST_CATEGORIES = 255  # of scikit-learn's boosted trees; features with more are split in the order of their bins


def model_effects(model: Model, rows: ArrowRows) -> np.ndarray:
    """Effects of a model, without errors."""
    return model.effect_arrays(rows, errors=False)[0]


@dataclass(frozen=True)
class OutcomeModel:
    """One outcome model per level, control first: boosted trees on the bins of a forest.

    A nuisance, for the outcome means of doubly robust rewards; the learner that is built alike is the T-learner of
    `learners.metalearners`.

    lowest, highest  outcome seen in training; expectations stay between them
    """

    bins: tuple[FeatureBins, ...]
    models: tuple[Any, ...]
    lowest: float
    highest: float

    def outcome_mean(self, bins: np.ndarray) -> np.ndarray:
        """Expected outcome under every level, float64 [n, K], from bins uint8 [n, p]."""
        with threadpool_limits(1):  # workers share the cores already
            means = [_predict_from_bins(model, bins) for model in self.models]
        return np.clip(np.column_stack(means), self.lowest, self.highest)


def fit_arm(bins: np.ndarray, outcome: np.ndarray, categorical: np.ndarray, seed: int) -> Any:
    """Outcome model of the rows of one arm: bins uint8 [n, p], outcome [n]; a classifier if that is 0 or 1."""
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    binary = set(np.unique(outcome)) == {0.0, 1.0}
    kind = HistGradientBoostingClassifier if binary else HistGradientBoostingRegressor
    return kind(categorical_features=categorical, random_state=seed).fit(bins, outcome)


def categorical_of(bins: Sequence[FeatureBins]) -> np.ndarray:
    """Which features boosted trees take as categorical, bool [p]."""
    return np.array([one.categorical and one.n_bins <= _MOST_CATEGORIES for one in bins])


def _predict_from_bins(model: Any, bins: np.ndarray) -> np.ndarray:
    return model.predict_proba(bins)[:, 1] if hasattr(model, "predict_proba") else model.predict(bins)


# --------------------------------------------------------------------------------------------------------------------
# Training rows in memory, in one order whatever partitions they came from: what meta-learners and nuisances are
# fitted on. At most so many of each arm, chosen by hash of the unit.

MOST_BINS = 254
_OTHER_ROWS = np.uint64(0x51)  # drawn apart from the rows that fix bins


@dataclass(frozen=True)
class Coding:
    """How rows become numbers.

    spec    levels, categories, folds and seed
    limits  hash bound of each level below which its rows are taken, uint64 [K]
    total   training rows there are
    confounded  whether the propensities of levels differ between units
    thin    levels with few rows or events (`forest.estimate.thin_outcomes`)
    """

    roles: Roles
    levels: Levels
    bins: tuple[FeatureBins, ...]
    spec: NuisanceSpec
    limits: np.ndarray
    total: int
    confounded: bool
    thin: Mapping[str, Mapping[str, Mapping[str, Any]]]


def coding_of(
    summary: Summary, sample: Features | ArrowRows, roles: Roles, folds_and_seed: tuple[int, int], rows: int
) -> Coding:
    """From the summary of all rows and a sample of them (`estimate.sample_mask`); `folds_and_seed` are both.

    rows  of each arm to take, at most about; raises DataError when rows break the rules, ConfigError for roles with
          scores or with doses that take any value
    """
    if roles.grid or roles.scores:
        raise ConfigError("learners of arms take neither roles.grid nor roles.scores: train a CausalForest on those")
    check_summary(summary, roles)
    levels = make_levels(summary, roles)[0]
    check_level_rows(summary.levels)
    bins = fit_bins(sample, roles.features, MOST_BINS)
    counts = [summary.levels[name] for name in levels.names]
    limits = np.array([2**64 - 1 if n <= rows else int(rows / n * 2.0**64) for n in counts], np.uint64)
    folds, seed = folds_and_seed
    nuisance_spec = NuisanceSpec(levels.names, categorical_of(bins), folds, seed)
    thin = thin_outcomes(summary, roles, levels)
    return Coding(roles, levels, bins, nuisance_spec, limits, summary.rows, summary.weighted_by_propensity, thin)


def code_rows(rows: TypedRows, coding: Coding) -> pa.RecordBatch:
    """The rows taken, as the columns unit_hash, key bigint, level_code int, outcome, weight double, features binary."""
    level_code = level_codes_of(rows.level, coding.levels.names)
    draw = mix64_all(rows.unit, np.uint64(coding.spec.seed) ^ _OTHER_ROWS, SAMPLE_SALT)
    taken = draw <= coding.limits[level_code]
    some = rows.take(taken)
    return pa.record_batch(
        {
            "unit_hash": pa.array(some.unit.view(np.int64)),
            "key": pa.array(some.key.view(np.int64)),
            "level_code": level_code[taken].astype(np.int32),
            "outcome": some.outcomes[rows.roles.outcome],
            "weight": np.ones(len(some)) if some.weight is None else some.weight,
            "features": packed_rows(features_of(some.features, coding.bins)),
        }
    )


def level_codes_of(treatment: TextColumn, levels: Sequence[str]) -> np.ndarray:
    """Code of each row's level among the levels, int64 [n]. DataError where a row has none of them."""
    codes = treatment.coded_by(levels)
    if unknown := int((codes < 0).sum()):
        raise DataError(f"{unknown} of {codes.size} rows have none of the levels {', '.join(levels)}: drop them")
    return codes


def packed_rows(values: np.ndarray) -> pa.Array:
    """An array [n, p] of up to 2 GiB as one binary value a row."""
    n, size = len(values), values.shape[1] * values.itemsize
    offsets = pa.py_buffer((np.arange(n + 1, dtype=np.int64) * size).astype(np.int32))
    return pa.BinaryArray.from_buffers(pa.binary(), n, [None, offsets, pa.py_buffer(np.ascontiguousarray(values))])


def unpacked_rows(column: pa.ChunkedArray | pa.Array, p: int) -> np.ndarray:
    """float64 [n, p] from `packed_rows`."""
    return np.frombuffer(b"".join(column.to_pylist()), np.float64).reshape(-1, p)


@dataclass(frozen=True)
class Sample:
    """Rows taken, in order of their hashes.

    features  float64 [n, p] as `features_of`; key uint64 [n] of units or clusters; level_code int [n]
    outcome, weight  float64 [n]
    """

    coding: Coding
    features: np.ndarray
    key: np.ndarray
    level_code: np.ndarray
    outcome: np.ndarray
    weight: np.ndarray

    @classmethod
    def of(cls, table: pa.Table, coding: Coding) -> Sample:
        """From all batches of `code_rows`."""
        table = table.sort_by("unit_hash")
        check_repeated(repeated_rows(table["unit_hash"].to_numpy()), coding.roles.unit)
        level_code, outcome, key, weight = (
            table[name].to_numpy() for name in ("level_code", "outcome", "key", "weight")
        )
        features = unpacked_rows(table["features"], len(coding.bins))
        return cls(coding, features, key.view(np.uint64), level_code, outcome, weight)

    @property
    def roles(self) -> Roles:
        """Columns the rows came from."""
        return self.coding.roles

    @property
    def spec(self) -> NuisanceSpec:
        """Levels, categories, folds and seed."""
        return self.coding.spec


def sample_table(table: pa.Table, roles: Roles, folds_and_seed: tuple[int, int], rows: int) -> Sample:
    """The sample of a table in memory; see `coding_of`."""
    typed = encode(table, roles)
    summary = summarise(typed)
    check_repeated(repeated_rows(typed.unit), roles.unit)
    some = sample_of(typed, summary.rows, folds_and_seed[1])
    coding = coding_of(summary, some.features, roles, folds_and_seed, rows)
    return Sample.of(pa.Table.from_batches([code_rows(typed, coding)]), coding)
