"""The field's meta-learners, as models that are saved, registered and scored like a forest; and a forest per level."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import pyarrow as pa
from threadpoolctl import threadpool_limits

from uplift_spark.errors import ConfigError, DataError, hint
from uplift_spark.forest.binning import (
    ArrowRows,
    FeatureBins,
    Features,
    NumberColumn,
    apply_bins,
    encode_features,
)
from uplift_spark.forest.defaults import bins_of
from uplift_spark.forest.forest import Forest, forest_of_parts, model_kind, model_line
from uplift_spark.forest.instrument import Instrumental
from uplift_spark.forest.modelfile import (
    FORMAT,
    check_array_names,
    check_bins,
    check_manifest,
    check_model_levels,
    checked_overlap,
    packed_file,
    read_file,
    reading,
)
from uplift_spark.forest.overlap import Overlap, fit_overlap, thin_errors, thin_sentence
from uplift_spark.learners.estimator_files import restored, stored
from uplift_spark.learners.nuisances import NuisanceSpec, Sample, crossfit, features_of, fit_trees, sample_table
from uplift_spark.roles import Levels, Roles
from uplift_spark.runtime import ProgressCallback
from uplift_spark.stats.intervals import paired_error
from uplift_spark.stats.offpolicy import doubly_robust
from uplift_spark.stats.sampling import SAMPLE_SALT, folds_of, mix64_all

# --------------------------------------------------------------------------------------------------------------------
# The field's meta-learners behind one protocol: any regression library's estimators, put together to predict effects.
# A learner is a function from rows in memory to a fitted object that predicts the effect of every treated level;
# LEARNERS is the catalogue. Base learners are scikit-learn's boosted trees unless others are given. Rows that a
# nuisance is predicted for are never those it was fitted on (`learners.nuisances`). The forest needs none of this: what
# it is held against does.
#
# Axes: n rows, p features, K levels with the control first, L = K - 1 treated levels.

MIN_LEARNER_ROWS = 10  # rows of an arm: fewer say nothing about its outcome
_NOISY = {"max_leaf_nodes": 8, "learning_rate": 0.05, "early_stopping": True}


@dataclass(frozen=True)
class LearnerRows:
    """What a learner is fitted on.

    features  float64 [n, p], NaN where missing; categories as codes below 255
    level_code  level received, int [n], 0 the control; outcome float64 [n]; weight positive [n]
    propensity  probability of every level, float64 [n, K]: of the design, logged or cross-fitted
    key       uint64 [n], hash of the unit, or of its cluster: rows of one key stay together
    """

    features: np.ndarray
    level_code: np.ndarray
    outcome: np.ndarray
    weight: np.ndarray
    propensity: np.ndarray
    key: np.ndarray

    def check(self, fewest: int = MIN_LEARNER_ROWS) -> None:
        """DataError for values that no effect can come from, and for an arm of fewer than so many rows."""
        faults = (
            (self.level_code >= self.propensity.shape[1], "place is no level's", "name all levels"),
            (~np.isfinite(self.outcome), "the outcome is missing or infinite", "drop or fill it"),
            (~(np.isfinite(self.weight) & (self.weight > 0)), "the weight is not positive", "drop them"),
            (
                ~((self.propensity > 0) & (self.propensity < 1)).all(axis=1),
                "a propensity is not between 0 and 1",
                "leave units out that have no choice of level",
            ),
        )
        for bad, what, fix in faults:
            if count := int(np.count_nonzero(bad)):
                raise DataError(f"{what} in {count} of {len(self.level_code)} rows: {fix}")
        counts = np.bincount(self.level_code, minlength=self.propensity.shape[1])
        if counts.min() < fewest:
            raise DataError(
                f"level {int(counts.argmin())} has {counts.min()} of {len(self.level_code)} rows, "
                f"of at least {fewest}: "
                "leave it out, or train on a table that has it"
            )

    def take(self, which: np.ndarray) -> LearnerRows:
        """The rows a mask or an index array picks."""
        return replace(self, **{name: getattr(self, name)[which] for name in self.__dataclass_fields__})

    def pair(self, level: int) -> LearnerRows:
        """Rows of one level and the control, as a trial of two arms."""
        mine = (self.level_code == level) | (self.level_code == 0)
        two = self.propensity[mine][:, [0, level]]
        level_code = (self.level_code[mine] == level).astype(np.int64)
        kept = {name: getattr(self, name)[mine] for name in ("features", "outcome", "weight", "key")}
        return LearnerRows(**kept, level_code=level_code, propensity=two / two.sum(axis=1, keepdims=True))


Make: TypeAlias = Callable[[bool, bool], Any]
"""Make an unfitted estimator. The arguments say whether its target is 0 or 1 (then it has predict_proba), and noisy."""


@dataclass(frozen=True)
class LearnerSpec:
    """How learners are fitted: which features are categories bool [p], the estimators, folds and seed of nuisances.

    half      whether rows are a half of the units: trees get half as many leaves, so that these hold as many rows
    """

    categorical: np.ndarray
    make: Make | None = None
    folds: int = 5
    seed: int = 7
    half: bool = False

    def model(self, target: np.ndarray, noisy: bool = False, more: int = 0) -> Any:
        """An unfitted estimator for a target [n]; `more` columns after the features are numbers."""
        binary = set(np.unique(target)) == {0.0, 1.0}
        if self.make:
            return self.make(binary, noisy)
        from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

        arguments: dict[str, Any] = {"categorical_features": np.r_[self.categorical, np.zeros(more, bool)]}
        kind = HistGradientBoostingClassifier if binary else HistGradientBoostingRegressor
        trees = kind(**arguments, random_state=self.seed, **(_NOISY if noisy else {}))
        return trees.set_params(max_leaf_nodes=-(-trees.max_leaf_nodes // 2)) if self.half else trees


class EffectModel(Protocol):
    """A learner that has seen its rows."""

    def effects(self, features: np.ndarray) -> np.ndarray:
        """Effect of every treated level against the control, float64 [n, L], from features [n, p]."""
        ...


LearnerFunction: TypeAlias = Callable[[LearnerRows, LearnerSpec], EffectModel]


@dataclass(frozen=True)
class Contrast:
    """Effects as differences of what is expected under the levels: a model per level, or one that takes the level."""

    models: tuple[Any, ...]
    levels: int

    def effects(self, features: np.ndarray) -> np.ndarray:
        """See `EffectModel`."""
        if len(self.models) == 1:
            means = [
                _predict_mean(self.models[0], _with_indicators(features, k, self.levels)) for k in range(self.levels)
            ]
        else:
            means = [_predict_mean(model, features) for model in self.models]
        return np.column_stack([one - means[0] for one in means[1:]])


@dataclass(frozen=True)
class Direct:
    """Effects as weighted means of what models of them predict: models [L][m] and their shares [L][m], plus shift."""

    models: tuple[tuple[Any, ...], ...]
    shares: tuple[tuple[float, ...], ...]
    shift: float = 0.0

    def effects(self, features: np.ndarray) -> np.ndarray:
        """See `EffectModel`."""
        columns = [
            sum(share * _predict_mean(model, features) for model, share in zip(models, shares, strict=True))
            + self.shift
            for models, shares in zip(self.models, self.shares, strict=True)
        ]
        return np.column_stack(columns)


def t_learner(rows: LearnerRows, spec: LearnerSpec) -> Contrast:
    """One outcome model per level (Künzel, Sekhon, Bickel & Yu 2019)."""
    arms = [rows.take(rows.level_code == k) for k in range(rows.propensity.shape[1])]
    return Contrast(tuple(_fit(spec, arm.features, arm.outcome, arm.weight) for arm in arms), len(arms))


def s_learner(rows: LearnerRows, spec: LearnerSpec) -> Contrast:
    """One outcome model that takes the level as indicators (Künzel et al. 2019)."""
    levels = rows.propensity.shape[1]
    design = _with_indicators(rows.features, rows.level_code, levels)
    return Contrast((_fit(spec, design, rows.outcome, rows.weight, more=levels - 1),), levels)


def x_learner(rows: LearnerRows, spec: LearnerSpec) -> Direct:
    """Each arm's gains over what the other arm's model expects, regressed and averaged (Künzel et al. 2019).

    The average weighs by the arms' shares: any weights in [0, 1] will do.
    """
    models, shares = [], []
    for k in range(1, rows.propensity.shape[1]):
        pair = rows.pair(k)
        control, treated = (pair.take(pair.level_code == w) for w in (0, 1))
        at_control, at_treated = (_fit(spec, arm.features, arm.outcome, arm.weight) for arm in (control, treated))
        of_treated = treated.outcome - _predict_mean(at_control, treated.features)
        of_control = _predict_mean(at_treated, control.features) - control.outcome
        regressions = ((treated, of_treated), (control, of_control))
        models.append(tuple(_fit(spec, arm.features, gain, arm.weight, noisy=True) for arm, gain in regressions))
        share = float(pair.propensity[:, 1].mean())
        shares.append((1 - share, share))  # a small arm's outcome model is the poorer one
    return Direct(tuple(models), tuple(shares))


def r_learner(rows: LearnerRows, spec: LearnerSpec) -> Direct:
    """Residuals of the outcome on residuals of the treatment (Nie & Wager 2021), a level against the control at a time:
    (y - m(x)) / (w - e(x)) regressed with weights (w - e(x))², m cross-fitted."""
    models = []
    for k in range(1, rows.propensity.shape[1]):
        pair = rows.pair(k)
        outcome_mean, propensity = _nuisances(pair, spec)
        left = pair.level_code - propensity[:, 1]
        mean = (outcome_mean * propensity).sum(axis=1)
        models.append((_fit(spec, pair.features, (pair.outcome - mean) / left, pair.weight * left**2, noisy=True),))
    return Direct(tuple(models), ((1.0,),) * len(models))


def dr_learner(rows: LearnerRows, spec: LearnerSpec) -> Direct:
    """Doubly robust scores of each effect, from cross-fitted nuisances, regressed on the features (Kennedy 2023)."""
    outcome_mean, propensity = _nuisances(rows, spec)
    scores = doubly_robust(
        rows.outcome, rows.level_code, 1 / propensity[np.arange(len(rows.level_code)), rows.level_code], outcome_mean
    )
    gains = scores[:, 1:] - scores[:, :1]
    models = [(_fit(spec, rows.features, gain, rows.weight, noisy=True),) for gain in gains.T]
    return Direct(tuple(models), ((1.0,),) * len(models))


def class_transformation(rows: LearnerRows, spec: LearnerSpec) -> Direct:
    """Predict which units did as an effect would have them do (Jaskowski & Jaroszewicz 2012), weighted by
    the inverse of their propensities; outcomes that are not 0 or 1 are transformed to y (w - e) / (e (1 - e)) (Athey &
    Imbens 2016)."""
    binary = set(np.unique(rows.outcome)) <= {0.0, 1.0}
    models = []
    for k in range(1, rows.propensity.shape[1]):
        pair = rows.pair(k)
        inverse = 1 / pair.propensity[np.arange(len(pair.level_code)), pair.level_code]
        if binary:
            target, weight = (pair.outcome == pair.level_code).astype(np.float64), pair.weight * inverse / 2
        else:
            around = pair.outcome - np.average(pair.outcome, weights=pair.weight)  # any constant: less noise, no bias
            target, weight = around * inverse * np.where(pair.level_code == 1, 1.0, -1.0), pair.weight
        models.append((_fit(spec, pair.features, target, weight, noisy=True),))
    return Direct(tuple(models), ((2.0 if binary else 1.0,),) * len(models), -1.0 if binary else 0.0)


LEARNERS: dict[str, LearnerFunction] = {
    "t_learner": t_learner,
    "s_learner": s_learner,
    "x_learner": x_learner,
    "r_learner": r_learner,
    "dr_learner": dr_learner,
    "class_transformation": class_transformation,
}


def fit_learner(name: str, rows: LearnerRows, spec: LearnerSpec) -> EffectModel:
    """A learner of the catalogue. Order of rows is free where keys are unique. Raises as `LearnerRows.check`."""
    rows.check(1 if spec.half else MIN_LEARNER_ROWS)
    with threadpool_limits(1):
        return LEARNERS[name](rows.take(np.argsort(rows.key, kind="stable")), spec)


# --------------------------------------------------------------------------------------------------------------------
# Errors of a learner are from fits to halves of the units. The two halves of a split are other draws of units, which
# resamples with their shared rows are not: the bootstrap reported of boosted trees, which come close to single
# outcomes, two thirds of their variance (nominal 95 % covered .79). A tree's effect is a mean over a leaf, so fits to
# halves vary as the fit to all rows if leaves hold as many rows, hence half as many leaves. How far the fit to all rows
# is from the mean of those to halves comes in, too: what so many rows change, and what rests on one fit's splits.


def halves_of_keys(rows: LearnerRows, seed: int, replicates: int) -> np.ndarray:
    """Rows of each replicate, bool [n, replicates]: numbers 2r and 2r + 1 are the halves of split r, by hash of the key
    within levels, so that clusters stay whole and each half has half of every level's."""
    keys, first, back = np.unique(rows.key, return_index=True, return_inverse=True)
    masks = np.empty((len(rows.key), replicates), bool)
    for r in range(replicates):
        hashes = mix64_all(keys, np.uint64(seed + r // 2), SAMPLE_SALT)
        half = np.empty(len(keys), np.int64)
        half[np.lexsort((hashes, rows.level_code[first]))] = np.arange(len(keys)) % 2
        masks[:, r] = half[back] == r % 2
    return masks


@dataclass(frozen=True)
class Replicated:
    """A learner and its replicates, each fitted to a half of the keys.

    scale  of errors: estimators of the caller's own are taken to vary with rows, not leaves
    """

    fitted: EffectModel
    replicates: tuple[EffectModel, ...]
    scale: float = 1.0

    def effects(self, features: np.ndarray) -> np.ndarray:
        """See `EffectModel`."""
        return self.fitted.effects(features)

    def errors(self, features: np.ndarray) -> np.ndarray:
        """Standard errors of the effects, float64 [n, L]: how far other draws of units would have moved them. What the
        learner smooths away, its bias, is not in them."""
        replicates = np.stack([one.effects(features) for one in self.replicates])
        return self.scale * paired_error(self.effects(features), replicates)


def fit_replicated(name: str, rows: LearnerRows, spec: LearnerSpec, replicates: int = 20) -> Replicated:
    """A learner with errors from halves of the keys; fits `replicates` more."""
    masks = halves_of_keys(rows, spec.seed, replicates).T
    fits = [fit_replicate(name, spec, rows.take(mask), r + 1) for r, mask in enumerate(masks)]
    return Replicated(fit_replicate(name, spec, rows, 0), tuple(fits), math.sqrt(0.5) if spec.make else 1.0)


def fit_replicate(kind: str, spec: LearnerSpec, rows: LearnerRows, replicate: int) -> EffectModel:
    """The fit of a replicate's rows: number 0 has all of them, the others a half."""
    return fit_learner(kind, rows, replace(spec, half=replicate > 0))


def _fit(
    spec: LearnerSpec, features: np.ndarray, target: np.ndarray, weight: np.ndarray, noisy: bool = False, more: int = 0
) -> Any:
    """A fitted model, or the number that all targets are."""
    if np.all(target == target[0]):
        return float(target[0])
    model = spec.model(target, noisy, more)
    if spec.make:
        return model.fit(features, target, sample_weight=weight)
    return fit_trees(model, features, target, weight)


def _predict_mean(model: Any, features: np.ndarray) -> np.ndarray:
    if isinstance(model, float):
        return np.full(len(features), model)
    with threadpool_limits(1):  # workers share the cores already
        return np.asarray(
            model.predict_proba(features)[:, 1] if hasattr(model, "predict_proba") else model.predict(features)
        )


def _with_indicators(features: np.ndarray, level_code: np.ndarray | int, levels: int) -> np.ndarray:
    codes = np.broadcast_to(np.asarray(level_code), len(features))
    return np.column_stack([features, codes[:, None] == np.arange(1, levels)])


def _nuisances(rows: LearnerRows, spec: LearnerSpec) -> tuple[np.ndarray, np.ndarray]:
    """Cross-fitted outcome means and propensities of every level, [n, K] each."""
    levels = tuple(map(str, range(rows.propensity.shape[1])))
    make = spec.make
    make_outcome = None if make is None else lambda binary: make(binary, False)
    nuisance_spec = NuisanceSpec(levels, spec.categorical, spec.folds, spec.seed, make_outcome)
    fitted = crossfit(
        rows.features, rows.level_code, rows.outcome, rows.key, nuisance_spec, rows.weight, rows.propensity
    )
    return fitted.outcome_mean, fitted.propensity


# --------------------------------------------------------------------------------------------------------------------
# Meta-learners as models that are saved, registered and scored like a forest; and one forest for each level.
# Intervals of a meta-learner are from replicates, each fitted to a half of the units or clusters. They tell how far
# other units would have moved its effects; what it smooths away, its bias, is not in them.

MIN_PROPENSITY = 0.01  # fitted propensities are held above
_CHECKED = 1000  # rows whose effects `facts["effects_sha256"]` is of


@dataclass(frozen=True)
class LearnerParams:
    """How a meta-learner is trained.

    kind        one of `metalearners.LEARNERS`
    replicates  fits to halves of the units behind the intervals; 0: no intervals
    rows        of each arm to learn from, at most, chosen by hash
    folds       of cross-fitted nuisances, for the learners that have any
    seed        same seed and rows: same effects, whatever the partitioning
    """

    kind: str = "dr_learner"
    replicates: int = 20
    rows: int = 200_000
    folds: int = 5
    seed: int = 7

    def __post_init__(self) -> None:
        if self.kind not in LEARNERS:
            raise ConfigError(f"there is no learner {self.kind!r}: {hint(self.kind, LEARNERS)}")
        if self.replicates == 1 or self.replicates < 0 or self.folds < 2 or self.rows < 1:
            raise ConfigError("replicates must be 0 or at least 2, folds at least 2, rows at least 1")


@dataclass(frozen=True)
class Learned:
    """A trained meta-learner: `fits` are that of all rows, then those of halves.

    facts  rows taken and of all, rows per level, SHA-256 of the effects of the first rows taken
    overlap  propensities where the features tell the level received
    """

    params: LearnerParams
    roles: Roles
    levels: Levels
    bins: tuple[FeatureBins, ...]
    fits: tuple[EffectModel, ...]
    facts: Mapping[str, Any]
    overlap: Overlap | None = None

    def __repr__(self) -> str:
        return model_line(self, f"Learned {self.kind}")

    @property
    def kind(self) -> str:
        """See `Model.kind`."""
        return self.params.kind

    def of(self, outcome: str) -> Learned:
        """Itself, of the one outcome it has; ConfigError for others."""
        if outcome != self.roles.outcome:
            raise ConfigError(f"the model has no outcome {outcome!r}: it was trained for {self.roles.outcome!r} alone")
        return self

    @property
    def manifest(self) -> dict[str, Any]:
        """What it is, as plain JSON values."""
        bins, facts = [one.to_dict() for one in self.bins], dict(self.facts)
        parts = {"learner": asdict(self.params), "roles": self.roles.record, "levels": asdict(self.levels)}
        return {"format": FORMAT, **parts, "bins": bins, "facts": facts}

    def effect_arrays(
        self, batch: ArrowRows | Features, threads: int = 1, *, errors: bool = True
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(effect, standard error, low support) of every row and treated level, [n, L] each; NaN errors without
        replicates. Support is low where the level or the control lacks, or has few rows or events (`forest.overlap`).
        """
        columns = encode_features(batch, [one.name for one in self.bins])
        features = features_of(columns, self.bins)
        first, *others = self.fits
        effect = first.effects(features)
        if errors and others:
            with ThreadPoolExecutor(threads) as pool:
                error = paired_error(effect, np.stack(list(pool.map(lambda one: one.effects(features), others))))
        else:
            error = np.full(effect.shape, np.nan)
        least, thin = thin_errors(self.facts.get("thin", {}).get(self.roles.outcome, {}), self.levels.treated)
        low = np.broadcast_to(thin, effect.shape)
        if self.overlap is not None:
            low = low | self.overlap.lacks(apply_bins(columns, self.bins), threads)
        return effect, np.maximum(error, least), low.copy()

    @classmethod
    def from_parts(cls, manifest: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Learned:
        """From what `modelfile.read_file` gives of its file; raises ValueError for parts that do not fit together."""
        check_manifest("learner", manifest)
        bins = tuple(FeatureBins.from_dict(one) for one in manifest["bins"])
        params, roles, levels = LearnerParams(**manifest["learner"]), Roles(**manifest["roles"]), manifest["levels"]
        check_bins(bins, roles.features)
        overlap, theirs = checked_overlap(arrays, manifest["facts"], bins, levels["names"])
        count = len(arrays) - len(theirs)
        check_array_names(arrays, theirs | {f"fit_{r}" for r in range(1 + min(params.replicates, count))})
        fits = tuple(fit_of(restored(arrays[f"fit_{r}"].tobytes())) for r in range(count))
        model = cls(params, roles, _levels_of(levels), bins, fits, manifest["facts"], overlap)
        check_model_levels(model.levels)
        model._check_fits()
        return model

    def _check_fits(self) -> None:
        """Raise ValueError unless every fit predicts the effects of every level from the features."""
        for fit in self.fits:
            same = False
            if isinstance(fit, Contrast):
                same = fit.levels == len(self.levels) and len(fit.models) in (1, fit.levels)
            elif isinstance(fit, Direct):
                counts = [list(map(len, part)) for part in (fit.models, fit.shares)]
                numbers = [fit.shift, *(share for shares in fit.shares for share in shares)]
                same = counts[0] == counts[1] and len(counts[0]) == len(self.levels) - 1 and min(counts[0]) > 0
                same = same and all(isinstance(one, float) and math.isfinite(one) for one in numbers)
            if not same:
                raise ValueError("its estimators are not those of its levels")
            # Whether an estimator's parts fit each other shows when it is used: on a row of zeros and one of unknowns.
            effects = fit.effects(np.array([[0.0], [np.nan]]).repeat(len(self.bins), 1))
            if effects.shape != (2, len(self.levels) - 1) or not np.isfinite(effects).all():
                raise ValueError("its estimators do not predict an effect for every level")

    def to_bytes(self) -> bytes:
        """The model file's content: scikit-learn's models as skops writes them. Equal models have equal effects, but
        not equal bytes."""
        arrays = {f"fit_{r}": stored(parts_of(fit)) for r, fit in enumerate(self.fits)}
        return packed_file(self.manifest, arrays | (self.overlap.arrays() if self.overlap else {}))


@dataclass(frozen=True)
class PerLevel:
    """One binary forest for each treated level, on its units and the control's."""

    forests: tuple[Forest, ...]
    levels: Levels

    def __repr__(self) -> str:
        return model_line(self, f"PerLevel of {len(self.forests)} forests")

    @property
    def kind(self) -> str:
        """See `Model.kind`."""
        return "forest_per_level"

    @property
    def roles(self) -> Roles:
        """Columns the forests were trained on."""
        return self.forests[0].roles

    @property
    def bins(self) -> tuple[FeatureBins, ...]:
        """Features as the first forest bins them."""
        return self.forests[0].bins

    @property
    def manifest(self) -> dict[str, Any]:
        """What it is, as plain JSON values."""
        parts = {level: forest.manifest for level, forest in self.pairs}
        return {"format": FORMAT, "per_level": parts, "levels": asdict(self.levels)}

    @property
    def pairs(self) -> list[tuple[str, Forest]]:
        """Treated levels and their forests."""
        return list(zip(self.levels.treated, self.forests, strict=True))

    def of(self, outcome: str) -> PerLevel:
        """The forests of one outcome alone."""
        return replace(self, forests=tuple(one.of(outcome) for one in self.forests))

    def effect_arrays(
        self, batch: ArrowRows | Features, threads: int = 1, *, errors: bool = True
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """See `Forest.effect_arrays`."""
        features = encode_features(batch, self.roles.features, threads)
        results = [one.effect_arrays(features, threads, errors=errors) for one in self.forests]
        effect, error, low = (np.column_stack(parts) for parts in zip(*results, strict=True))
        return effect, error, low

    @classmethod
    def from_parts(cls, manifest: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> PerLevel:
        """From what `modelfile.read_file` gives of its file; raises ValueError for parts that do not fit together."""
        check_manifest("per_level", manifest)
        levels = _levels_of(manifest["levels"])
        check_model_levels(levels)
        check_array_names(arrays, {f"forest_{k}" for k in range(len(levels) - 1)})
        inner = [read_file(arrays[f"forest_{k}"].tobytes()) for k in range(len(arrays))]
        model = cls(tuple(forest_of_parts(*one) for one in inner), levels)
        if {level: own for level, (own, _) in zip(levels.treated, inner, strict=True)} != manifest["per_level"]:
            raise ValueError("its forests are not those of its manifest")
        for level, forest in model.pairs:
            if forest.levels.names != (levels.control, level) or forest.roles.features != model.roles.features:
                raise ValueError(f"its forest of {level!r:.80} is not of that level and the control")
        return model

    def to_bytes(self) -> bytes:
        """The model file's content; equal forests give equal bytes."""
        files = {f"forest_{k}": np.frombuffer(one.to_bytes(), np.uint8) for k, one in enumerate(self.forests)}
        return packed_file(self.manifest, files)


AnyModel: TypeAlias = Forest | Learned | PerLevel | Instrumental


def load_any(source: str | Path | bytes) -> AnyModel:
    """Read the file of any model; raises ModelFileError as `modelfile.read_file`, and for parts that do not fit
    together or are not known to be harmless."""
    manifest, arrays = read_file(source)
    with reading(source):
        return _READERS.get(model_kind(manifest), Learned.from_parts)(manifest, arrays)


_READERS: dict[str, Callable[[Mapping[str, Any], Mapping[str, np.ndarray]], AnyModel]] = {
    "forest": forest_of_parts,
    "forest_per_level": PerLevel.from_parts,
    "instrumental_forest": Instrumental.from_parts,
}


def _levels_of(raw: Mapping[str, Any]) -> Levels:
    doses = raw["doses"] and tuple(tuple(one) if isinstance(one, list) else one for one in raw["doses"])
    return Levels(tuple(raw["names"]), doses)


def parts_of(fit: EffectModel) -> dict[str, Any]:
    """What a file keeps of a fit. Raises ConfigError for one that is not of the catalogue."""
    if isinstance(fit, Contrast):
        return {"models": [list(fit.models)], "levels": fit.levels}
    if isinstance(fit, Direct):
        return {"models": list(map(list, fit.models)), "shares": list(map(list, fit.shares)), "shift": fit.shift}
    raise ConfigError(f"a {type(fit).__name__} cannot be saved: it is none of the catalogue's")


def fit_of(parts: dict[str, Any]) -> EffectModel:
    """The inverse of `parts_of`."""
    if "levels" in parts:
        return Contrast(tuple(parts["models"][0]), parts["levels"])
    return Direct(tuple(map(tuple, parts["models"])), tuple(map(tuple, parts["shares"])), parts["shift"])


def learner_spec(sample: Sample) -> LearnerSpec:
    """How learners of these rows are fitted."""
    spec = sample.spec
    categorical = np.zeros(len(sample.coding.bins), bool) if spec.categorical is None else spec.categorical
    return LearnerSpec(categorical, None, spec.folds, spec.seed)


def rows_of(sample: Sample, confounded: bool = False) -> LearnerRows:
    """The sample with every level's propensity: shares of the sample, whatever it left out; cross-fitted where they
    differ between units."""
    n, levels = len(sample.level_code), len(sample.spec.levels)
    propensity = np.tile(np.bincount(sample.level_code, minlength=levels) / n, (n, 1))
    if confounded or sample.coding.confounded:
        arrays = (sample.features, sample.level_code, sample.outcome, sample.key, sample.spec, sample.weight)
        propensity = np.clip(crossfit(*arrays).propensity, MIN_PROPENSITY, 1 - MIN_PROPENSITY)
    return LearnerRows(
        sample.features, sample.level_code.astype(np.int64), sample.outcome, sample.weight, propensity, sample.key
    )


def sample_overlap(sample: Sample, progress: ProgressCallback = lambda _: None) -> tuple[Overlap | None, np.ndarray]:
    """`forest.overlap` of the rows taken, and which rows have comparable ones to learn from, bool [n]."""
    bins = sample.coding.bins
    numbers = {one.name: sample.features[:, j] for j, one in enumerate(bins) if not one.categorical}
    columns = {name: NumberColumn(pa.float64(), values) for name, values in numbers.items()}
    categorical, codes = np.array([one.categorical for one in bins]), np.empty(sample.features.shape, np.uint8)
    codes[:, categorical] = sample.features[:, categorical]
    if numbers:
        codes[:, ~categorical] = apply_bins(columns, [one for one in bins if not one.categorical])
    names, n_bins = sample.coding.levels.names, bins_of(bins)
    overlap = fit_overlap((codes, sample.level_code, sample.key), names, n_bins, sample.spec.seed)
    for thin in sample.coding.thin.values():
        progress(thin_sentence(thin))
    if overlap is None:
        return None, np.ones(len(codes), bool)
    progress(overlap.sentence(names))
    fold = folds_of(sample.key, np.uint64(sample.spec.seed))
    return overlap, overlap.weights((codes, fold, sample.level_code), logged=True) > 0


def learned(
    params: LearnerParams, roles: Roles, sample: Sample, fits: Sequence[EffectModel], overlap: Overlap | None = None
) -> Learned:
    """A model from its fits, with the roles of the columns that it predicts from."""
    coding = sample.coding
    effects = fits[0].effects(sample.features[:_CHECKED])
    counts = np.bincount(sample.level_code, minlength=len(coding.levels)).tolist()
    facts = {
        "rows": coding.total,
        "rows_taken": len(sample.level_code),
        "level_rows": dict(zip(coding.levels.names, counts, strict=True)),
        "effects_sha256": hashlib.sha256(effects.tobytes()).hexdigest(),
    }
    if overlap is not None:
        facts["overlap"] = overlap.facts(coding.levels.names)
    if coding.thin:
        facts["thin"] = coding.thin
    return Learned(params, roles, coding.levels, coding.bins, tuple(fits), facts, overlap)


def trial_roles(roles: Roles) -> tuple[Roles, bool]:
    """Roles without scores, as meta-learners fit their own propensities; and whether the campaign is confounded."""
    if roles.more_outcomes:
        raise ConfigError("a meta-learner has one outcome: drop roles.more_outcomes, or train one for each")
    return (replace(roles, scores=None, propensity=None), True) if roles.scores else (roles, False)


def fit_learned(
    table: pa.Table, roles: Roles, params: LearnerParams, progress: ProgressCallback = lambda _: None
) -> Learned:
    """Train from a table in memory. Raises DataError when rows break the rules, ConfigError for roles with several
    outcomes or doses that take any value."""
    plain, confounded = trial_roles(roles)
    sample = sample_table(table, plain, (params.folds, params.seed), params.rows)
    progress(f"fitting a {params.kind} on {len(sample.level_code):,} of {sample.coding.total:,} rows")
    overlap, compared = sample_overlap(sample, progress)
    rows = rows_of(sample, confounded or overlap is not None).take(compared)
    halves, spec = halves_of_keys(rows, params.seed, params.replicates), learner_spec(sample)

    def one(replicate: int) -> EffectModel:
        part = rows if replicate == 0 else rows.take(halves[:, replicate - 1])
        return fit_replicate(params.kind, spec, part, replicate)

    with ThreadPoolExecutor() as pool:
        fits = list(pool.map(one, range(params.replicates + 1)))
    return learned(params, roles, sample, fits, overlap)
