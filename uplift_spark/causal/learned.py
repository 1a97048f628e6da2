"""Meta-learners as models that are saved, registered and asked like a forest; and one forest for each level (R3.3).

Intervals of a meta-learner are from the bootstrap: so many replicates, each fitted to a resample of the units or
clusters. They tell how far other units would have moved its effects; what it smooths away, its bias, is not in them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from uplift_spark.causal.binning import FeatureBins
from uplift_spark.causal.crossfit import crossfit, features_of
from uplift_spark.causal.forest import Forest, load_forest
from uplift_spark.causal.instrument import Instrumental
from uplift_spark.causal.metalearners import LEARNERS, Contrast, Direct, Fitted, Rows, Setting, fit_learner
from uplift_spark.causal.models import FORMAT, named, packed_file, read_file, restored, stored, unreadable
from uplift_spark.causal.samples import Sample, sample_table
from uplift_spark.causal.training import Say
from uplift_spark.stats.intervals import poisson_weights, resampled_error
from uplift_spark.vocabulary import ConfigError, Levels, Roles, hint

LEAST_ODDS = 0.01  # fitted odds of a level are held above
_CHECKED = 1000  # rows whose effects `facts["effects_sha256"]` is of


@dataclass(frozen=True)
class LearnerParams:
    """How a meta-learner is trained.

    kind        one of `metalearners.LEARNERS`
    replicates  resamples behind the intervals; 0: no intervals
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
    """A trained meta-learner: `fits` are that of all rows, then those of resamples.

    facts  rows taken and of all, rows per level, SHA-256 of the effects of the first rows taken
    """

    params: LearnerParams
    roles: Roles
    levels: Levels
    bins: tuple[FeatureBins, ...]
    fits: tuple[Fitted, ...]
    facts: Mapping[str, Any]

    def of(self, outcome: str) -> Learned:
        """Itself, of the one outcome it has; ConfigError for others."""
        if outcome != self.roles.outcome:
            raise ConfigError(f"the model has no outcome {outcome!r}: it was trained for {self.roles.outcome!r} alone")
        return self

    @property
    def manifest(self) -> dict[str, Any]:
        """What it is, as plain JSON values."""
        bins, facts = [one.to_dict() for one in self.bins], dict(self.facts)
        parts = {"learner": asdict(self.params), "roles": asdict(self.roles), "levels": asdict(self.levels)}
        return {"format": FORMAT, **parts, "bins": bins, "facts": facts}

    def effect_arrays(
        self, batch: pa.RecordBatch | pa.Table, threads: int = 1, *, errors: bool = True
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(effect, standard error, low support) of every row and treated level, [n, L] each; NaN errors without
        replicates. A meta-learner knows nothing of support: the last is False everywhere."""
        features = features_of(batch, self.bins)
        first, *others = self.fits
        effect = first.effects(features)
        if errors and others:
            with ThreadPoolExecutor(threads) as pool:
                error = resampled_error(np.stack(list(pool.map(lambda one: one.effects(features), others))))
        else:
            error = np.full(effect.shape, np.nan)
        return effect, error, np.zeros(effect.shape, bool)

    def to_bytes(self) -> bytes:
        """The model file's content: scikit-learn's models as skops writes them. Equal models have equal effects, but
        not equal bytes."""
        return packed_file(self.manifest, {f"fit_{r}": stored(parts_of(fit)) for r, fit in enumerate(self.fits)})


@dataclass(frozen=True)
class PerLevel:
    """One binary forest for each treated level, on its units and the control's."""

    forests: tuple[Forest, ...]
    levels: Levels

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
        self, batch: pa.RecordBatch | pa.Table, threads: int = 1, *, errors: bool = True
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """See `Forest.effect_arrays`."""
        found = [one.effect_arrays(batch, threads, errors=errors) for one in self.forests]
        effect, error, low = (np.column_stack(parts) for parts in zip(*found, strict=True))
        return effect, error, low

    def to_bytes(self) -> bytes:
        """The model file's content; equal forests give equal bytes."""
        files = {f"forest_{k}": np.frombuffer(one.to_bytes(), np.uint8) for k, one in enumerate(self.forests)}
        return packed_file(self.manifest, files)


AnyModel: TypeAlias = Forest | Learned | PerLevel | Instrumental


def kind_of(model: AnyModel) -> str:
    """What a model is called."""
    if isinstance(model, Learned):
        return model.params.kind
    return {Forest: "forest", PerLevel: "forest_per_level", Instrumental: "instrumental_forest"}[type(model)]


def load_any(source: str | Path | bytes) -> AnyModel:
    """Read the file of any model; raises ModelFileError as `models.read_file`, also for a part that is not known to be
    harmless."""
    manifest, arrays = read_file(source)
    try:
        if "plan" in manifest:
            return load_forest(source)
        if "instrument" in manifest:
            return Instrumental.from_parts(manifest, arrays)
        levels = _levels_of(manifest["levels"])
        if "per_level" in manifest:
            return PerLevel(tuple(load_forest(arrays[f"forest_{k}"].tobytes()) for k in range(len(arrays))), levels)
        fits = tuple(fit_of(restored(arrays[f"fit_{r}"].tobytes())) for r in range(len(arrays)))
        bins = tuple(FeatureBins.from_dict(one) for one in manifest["bins"])
        params, roles = LearnerParams(**manifest["learner"]), Roles(**manifest["roles"])
        return Learned(params, roles, levels, bins, fits, manifest["facts"])
    except (KeyError, IndexError, AttributeError, ValueError, TypeError) as error:
        raise unreadable(named(source), error) from error


def _levels_of(raw: Mapping[str, Any]) -> Levels:
    doses = raw["doses"] and tuple(tuple(one) if isinstance(one, list) else one for one in raw["doses"])
    return Levels(tuple(raw["names"]), doses)


def parts_of(fit: Fitted) -> dict[str, Any]:
    """What a file keeps of a fit. Raises ConfigError for one that is not of the catalogue."""
    if isinstance(fit, Contrast):
        return {"models": [list(fit.models)], "levels": fit.levels}
    if isinstance(fit, Direct):
        return {"models": list(map(list, fit.models)), "shares": list(map(list, fit.shares)), "shift": fit.shift}
    raise ConfigError(f"a {type(fit).__name__} cannot be saved: it is none of the catalogue's")


def fit_of(parts: dict[str, Any]) -> Fitted:
    """The inverse of `parts_of`."""
    if "levels" in parts:
        return Contrast(tuple(parts["models"][0]), parts["levels"])
    return Direct(tuple(map(tuple, parts["models"])), tuple(map(tuple, parts["shares"])), parts["shift"])


def setting_of(sample: Sample) -> Setting:
    """How learners of these rows are fitted."""
    spec = sample.spec
    categorical = np.zeros(len(sample.coding.bins), bool) if spec.categorical is None else spec.categorical
    return Setting(categorical, None, spec.folds, spec.seed)


def rows_of(sample: Sample, confounded: bool = False) -> Rows:
    """The sample with every level's odds: shares of the sample, whatever it left out; where they differ between units,
    cross-fitted."""
    n, levels = len(sample.place), len(sample.spec.levels)
    odds = np.tile(np.bincount(sample.place, minlength=levels) / n, (n, 1))
    if confounded or sample.coding.confounded:
        given = (sample.features, sample.place, sample.outcome, sample.key, sample.spec, sample.weight)
        odds = np.clip(crossfit(*given).propensity, LEAST_ODDS, 1 - LEAST_ODDS)
    return Rows(sample.features, sample.place.astype(np.int64), sample.outcome, sample.weight, odds, sample.key)


def fit_replicate(kind: str, setting: Setting, rows: Rows, replicate: int) -> Fitted:
    """Number 0 is fitted to all rows, the others to resamples by key."""
    if replicate == 0:
        return fit_learner(kind, rows, setting)
    counts = poisson_weights(rows.key.view(np.int64), setting.seed, replicate)[:, -1]
    part = rows.take(counts > 0)
    return fit_learner(kind, replace(part, weight=part.weight * counts[counts > 0]), setting)


def learned(params: LearnerParams, roles: Roles, sample: Sample, fits: Sequence[Fitted]) -> Learned:
    """A model from its fits, with the roles of the columns that units are asked by."""
    coding = sample.coding
    effects = fits[0].effects(sample.features[:_CHECKED])
    counts = np.bincount(sample.place, minlength=len(coding.levels)).tolist()
    facts = {
        "rows": coding.total,
        "rows_taken": len(sample.place),
        "level_rows": dict(zip(coding.levels.names, counts, strict=True)),
        "effects_sha256": hashlib.sha256(effects.tobytes()).hexdigest(),
    }
    return Learned(params, roles, coding.levels, coding.bins, tuple(fits), facts)


def trial_roles(roles: Roles) -> tuple[Roles, bool]:
    """Roles without a confounded campaign's scores, as meta-learners fit their own odds; whether it was one."""
    if roles.more_outcomes:
        raise ConfigError("a meta-learner has one outcome: drop roles.more_outcomes, or train one for each")
    return (replace(roles, scores=None, propensity=None), True) if roles.scores else (roles, False)


def fit_learned(table: pa.Table, roles: Roles, params: LearnerParams, say: Say = lambda _: None) -> Learned:
    """Train from a table in memory. Raises DataError when rows break the rules, ConfigError for roles with several
    outcomes or doses that take any value."""
    plain, confounded = trial_roles(roles)
    sample = sample_table(table, plain, (params.folds, params.seed), params.rows)
    say(f"fitting a {params.kind} on {len(sample.place):,} of {sample.coding.total:,} rows")
    one = partial(fit_replicate, params.kind, setting_of(sample), rows_of(sample, confounded))
    with ThreadPoolExecutor() as pool:
        fits = list(pool.map(one, range(params.replicates + 1)))
    return learned(params, roles, sample, fits)
