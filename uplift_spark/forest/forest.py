"""The forest: arrays, effects with errors, and its file; and what every model of effects has in common."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numba as nb
import numpy as np
import pyarrow as pa

from uplift_spark.errors import ConfigError, DataError
from uplift_spark.forest import effects, kernels
from uplift_spark.forest.binning import ArrowRows, FeatureBins, Features, apply_bins
from uplift_spark.forest.effects import (
    CORRECTED_VARIANCE,
    CRITERIA,
    Z95,
    average_responses,
    bag_covariance,
    contrast_matrix,
    dose_matrix,
    few_bags,
    left_out,
    moments,
    predict_responses,
    variance_factor,
)
from uplift_spark.forest.encode import ForestPlan, keys_of, monotone
from uplift_spark.forest.grow import Baseline
from uplift_spark.forest.kernels import average_influence, no_shrinkage, predict_effects
from uplift_spark.forest.modelfile import (
    FORMAT,
    check_array_names,
    check_manifest,
    check_plan,
    checked_baseline,
    checked_overlap,
    checked_shrinkage,
    checked_structure,
    checked_sums,
    packed_file,
    read_file,
    reading,
)
from uplift_spark.forest.overlap import leaf_averages, thin_errors
from uplift_spark.forest.trees import (
    CATEGORICAL,
    Routes,
    Structure,
    frozen,
    goes_right,
    node_child,
    node_feature,
    node_set,
    outside,
)
from uplift_spark.roles import EFFECT_COLUMNS, TREATMENT, Levels, Roles, levels_at_doses
from uplift_spark.stats.sampling import halves_of

# --------------------------------------------------------------------------------------------------------------------
# What a model of effects is, whatever it learnt from: its effects, their table, its file (`forest.modelfile`).

# What a manifest of each kind of forest has that the others lack. Files do not name the kind in any other way: a name
# beside it would change the bytes of every forest, and a version that is registered could not be rebuilt any more.
_SECTION_OF_KIND = {"forest": "plan", "forest_per_level": "per_level", "instrumental_forest": "instrument"}


def model_kind(manifest: Mapping[str, Any]) -> str:
    """Name the kind of model that a manifest describes: a forest's, or that of a meta-learner.

    Raises KeyError for a manifest of no kind that is known.
    """
    kinds = (kind for kind, section in _SECTION_OF_KIND.items() if section in manifest)
    return next(kinds, None) or str(manifest["learner"]["kind"])


class Model(Protocol):
    """A trained model of one or several outcomes."""

    @property
    def kind(self) -> str:
        """What it is called in configurations, registered parameters and logs; see `model_kind`."""
        ...

    @property
    def roles(self) -> Roles:
        """Columns it was trained on."""
        ...

    @property
    def levels(self) -> Levels:
        """Those that effects are of, control first."""
        ...

    @property
    def bins(self) -> tuple[FeatureBins, ...]:
        """Its features, in their order."""
        ...

    @property
    def manifest(self) -> dict[str, Any]:
        """What it is, as plain JSON values."""
        ...

    def of(self, outcome: str) -> Model:
        """The model of one outcome alone. Raises ConfigError if it was not trained for it."""
        ...

    def effect_arrays(
        self, batch: ArrowRows | Features, threads: int = 1, *, errors: bool = True
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(effect, standard error, low support) of every row and treated level, each [n, K-1]."""
        ...

    def to_bytes(self) -> bytes:
        """The model file's content."""
        ...


def effect_table(model: Model, batch: ArrowRows, threads: int = 1) -> pa.Table:
    """One row per unit and treated level, unit-major, in the columns of `roles.EFFECT_COLUMNS`."""
    effect, se, low = model.effect_arrays(batch, threads)
    k = effect.shape[1]
    units = batch.column(model.roles.unit)
    flat = units.combine_chunks() if isinstance(units, pa.ChunkedArray) else units
    names = pa.array(np.tile(np.arange(k, dtype=np.int32), batch.num_rows))
    columns = {
        model.roles.unit: flat.take(pa.array(np.repeat(np.arange(batch.num_rows), k))),
        TREATMENT: pa.DictionaryArray.from_arrays(names, list(model.levels.treated)).cast(pa.string()),
        "uplift": effect.ravel(),
        "uplift_se": se.ravel(),
        "uplift_lower": (effect - Z95 * se).ravel(),
        "uplift_upper": (effect + Z95 * se).ravel(),
        "low_support": low.ravel(),
    }
    return pa.table(columns)


def check_beside(columns: Iterable[str]) -> None:
    """Raise DataError where a frame's own columns have names of the effects' columns that are to stand beside them."""
    names = {name.lower(): name for name in (TREATMENT, *EFFECT_COLUMNS)}
    for column in columns:
        if (name := names.get(column.lower())) is not None:
            raise DataError(
                f"the frame has a column {column!r}, and effects come with one named {name!r}: rename or drop yours"
            )


# --------------------------------------------------------------------------------------------------------------------
# The forest: structure and leaf sums as flat arrays, one Arrow file with a SHA-256 at its end, effects with errors.

_ROWS_PER_CALL = 1 << 14
# A level is thinly supported at a unit when fewer than half of its leaves hold five units of level and control each:
# with less, one unit more or less decides, and the error is no better known than the effect.
LOW_SUPPORT, SUPPORTING = 0.5, 5


def model_line(model: Model, name: str) -> str:
    """A model in one line: what it is, its levels, outcomes and features."""
    levels, roles = model.levels, model.roles
    effects = f"effects of {', '.join(levels.treated)} against {levels.control} on {', '.join(roles.outcomes)}"
    return f"<{name}: {effects}, by {len(roles.features)} features>"


@dataclass(frozen=True)
class Forest:
    """A trained forest.

    sums      int64 [leaves, K, 1 + 2m]: fixed-point Σw and, per outcome, Σwy and Σwy corrected for bias
              (`estimate.correct`) of the rows that estimate a leaf, per level, y being the outcome less its baseline
    facts     what training found: rows, rows per level, range of each outcome, bucket statuses
    baseline  what the outcome was centred by, if at all
    level_shrinkage  float64 [6, K]: how levels learn from each other; average and variance of a unit's effect
              that stand in where a level has low support (`forest.estimate`); where effects come from a response,
              average and covariance of a unit's θ, [1 + q, q]; None: neither
    more      (baseline, mix) of every further outcome

    Everything but `of` and the file is about the first outcome, which shaped the trees.
    """

    plan: ForestPlan
    structure: Structure
    sums: np.ndarray
    facts: Mapping[str, Any]
    baseline: Baseline | None = None
    level_shrinkage: np.ndarray | None = None
    more: tuple[tuple[Baseline | None, np.ndarray | None], ...] = ()

    def __repr__(self) -> str:
        return model_line(self, f"Forest of {self.structure.n_trees} trees")

    def of(self, outcome: str) -> Forest:
        """The forest of one outcome alone: the same trees with its leaf sums, baseline and mix.

        Of the first outcome it is what training without the further ones gives, byte for byte. Raises ConfigError if
        the forest was not trained for the outcome.
        """
        if outcome not in self.roles.outcomes:
            raise ConfigError(f"the model has no outcome {outcome!r}: choose from {', '.join(self.roles.outcomes)}")
        if not self.more:
            return self
        j = self.roles.outcomes.index(outcome)
        baseline, shrinkage = ((self.baseline, self.level_shrinkage), *self.more)[j]
        sums = np.concatenate([self.sums[:, :, :1], self.sums[:, :, 1 + 2 * j : 3 + 2 * j]], axis=2)
        facts = {**self.facts, "outcome_range": {outcome: self.facts["outcome_range"][outcome]}}
        for key in ("thin", "few"):
            if outcome in facts.pop(key, {}):
                facts[key] = {outcome: self.facts[key][outcome]}
        return Forest(self.plan.of(outcome), self.structure, sums, facts, baseline, shrinkage)

    @property
    def kind(self) -> str:
        """See `Model.kind`."""
        return "forest"

    @property
    def levels(self) -> Levels:
        """Those that effects are of, control first."""
        return self.plan.reported or self.plan.levels

    @property
    def roles(self) -> Roles:
        return self.plan.roles

    @property
    def bins(self) -> tuple[FeatureBins, ...]:
        """Its features, in their order."""
        return self.plan.bins

    @property
    def manifest(self) -> dict[str, Any]:
        """Plan and facts as plain JSON values."""
        return {"format": FORMAT, "plan": self.plan.to_dict(), "facts": dict(self.facts)}

    @cached_property
    def _shares(self) -> np.ndarray:
        w_bits, y_bits, *_ = self.plan.exponents
        outcomes = self.sums[:, :, 2 if self.plan.debias else 1]
        values = shares(self.sums[:, :, 0], outcomes, SUPPORTING * self._row_weight)
        values[:, :, 1] = np.ldexp(values[:, :, 1], w_bits - y_bits)
        if self.plan.reported:
            basis = CRITERIA[self.plan.criterion].basis(self.plan.levels)
            enough = self.sums[:, :, 0].sum(axis=1) >= SUPPORTING * (1 + len(basis)) * self._row_weight
            values = moments(values, basis, enough)
        return frozen([values])[0]

    @property
    def _row_weight(self) -> float:
        """Fixed-point weight of a row, on average: every tree is estimated on half of the other buckets' rows."""
        if self.roles.weight is None and not self.plan.weighted:
            return math.ldexp(1.0, self.plan.exponents[0])
        grown = np.count_nonzero(np.diff(self.structure.leaf_start))
        part = 0.5 * (1.0 - self.plan.growth_buckets / self.plan.n_buckets)
        return float(self.sums[:, :, 0].sum()) / max(grown * part * self.facts["rows"], 1.0)

    @cached_property
    def _routes(self) -> Routes:
        return self.structure.routes

    def effect_arrays(
        self, batch: ArrowRows | Features, threads: int = 1, *, errors: bool = True, out_of_bag: bool = False
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(effect, standard error, low support) of every row and treated level, each [n, K-1].

        Effects are on the outcome's scale against the control level. Where support is low, the level's average effect
        stands in for the unit's as far as support lacks, with the spread of effects in its error; NaN if not even that
        is known. Without `errors` the standard errors are NaN and it takes half the time. `out_of_bag` is for rows of
        the training data, as a frame: only trees of bags that do not hold the row speak.
        """
        bins = apply_bins(batch, self.plan.bins, threads)
        key = keys_of(batch, self.roles)[1] if out_of_bag and not isinstance(batch, Mapping) else None
        return self.effects_of(bins, threads, errors=errors, key=key)

    @cached_property
    def _contrasts(self) -> np.ndarray:
        return contrast_matrix(self.plan)

    def at(self, doses: Sequence[float], partial: bool = False) -> Forest:
        """The forest telling effects of these doses against the control's or, partial, of one unit more of each.

        Raises ConfigError unless it was trained with `roles.grid`.
        """
        if not self.roles.grid or self.plan.reported is None:
            raise ConfigError("this forest knows the effects of its levels only: train it with roles.grid")
        reported = levels_at_doses(self.roles.control, doses)
        return replace(self, plan=replace(self.plan, reported=reported, partial=partial))

    def effects_of(
        self,
        bins: np.ndarray,
        threads: int = 1,
        *,
        errors: bool = True,
        key: np.ndarray | None = None,
        contrasts: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`effect_arrays` of rows given by their bins, uint8 [n, p]; out of bag given their keys, uint64 [n].

        contrasts  float64 [L, q]: effects contrasts @ θ in place of the plan's, where those come from a response
        """
        requested, contrasts = contrasts, frozen([self._contrasts if contrasts is None else contrasts])[0]
        n_bags = 0 if key is None else self.plan.n_trees // self.plan.bag_size
        key = np.zeros(len(bins), np.uint64) if key is None else key
        bins, halves = frozen((bins, halves_of(key, np.uint64(self.plan.seed), n_bags)))
        shape = (bins.shape[0], len(contrasts) or len(self.levels) - 1)
        effect, variance, support = np.empty(shape), np.full(shape, np.nan), np.empty(shape)
        shrinkage = frozen([self._shrinkage(contrasts)])[0]

        step = max(1, min(_ROWS_PER_CALL, -(-len(bins) // threads)))

        def some_rows(low: int) -> None:
            part = np.s_[low : low + step]
            out = (effect[part], variance[part], support[part])
            rows = (bins[part], halves[part])
            if len(contrasts):
                predict_responses(self._routes, self._shares, self._design, rows, contrasts, errors, out)
            else:
                predict_effects(self._routes, self._shares, self._design, rows, shrinkage, errors, out)

        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(some_rows, range(0, len(bins), step)))
        return self._finished(bins, (effect, variance, support), shrinkage, threads, plain=requested is None)

    def unit_effects(self, bins: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`effects_of` of one unit, bins uint8 [1, p], to the same bits and without the buffers of blocks."""
        contrasts, shrinkage = self._unit_parts
        shape = (1, len(contrasts) or len(self.levels) - 1)
        out = (np.empty(shape), np.empty(shape), np.empty(shape))
        (row,) = frozen((bins[0],))
        if len(contrasts):
            predict_unit_responses(self._routes, self._shares, self._design, row, contrasts, out)
        else:
            predict_unit_effects(self._routes, self._shares, self._design, row, shrinkage, out)
        return self._finished(bins, out, shrinkage, 1, plain=True)

    @cached_property
    def _unit_parts(self) -> tuple[np.ndarray, ...]:
        contrasts = self._contrasts
        return frozen([contrasts, self._shrinkage(contrasts)])

    def _finished(
        self,
        bins: np.ndarray,
        sums: tuple[np.ndarray, np.ndarray, np.ndarray],
        shrinkage: np.ndarray,
        threads: int,
        plain: bool,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(effect, standard error, low support) from what kernels give: effect, variance, support, [n, L] each.

        plain  effects are the plan's own, not those of other contrasts
        """
        effect, variance, support = sums
        variance *= self._variance_factor
        if "private" in self.facts:
            variance = np.add(*self.private_variance(bins))
        _stand_in(shrinkage[4:, 1:], support, effect, variance)
        low = support < LOW_SUPPORT
        if self.plan.overlap is not None:
            lacks = self.plan.overlap.lacks(bins, threads)
            low |= lacks
            variance += np.where(lacks & np.isfinite(shrinkage[5, 1:]), shrinkage[5, 1:], 0.0)
        if plain and not self.plan.partial:
            least, thin = self._thin
            low |= thin
            share, usual = self._few
            variance += share * np.maximum(usual - variance, 0.0)
            variance = np.maximum(variance, least**2)
        if self.plan.monotone and plain and not self.plan.partial:
            effect = monotone(effect, dose_matrix(self.levels)[:, 0], self.plan.monotone)
        return effect, np.sqrt(variance), low

    @cached_property
    def _variance_factor(self) -> float:
        return variance_factor(self.plan, self.facts.get("corrected_variance", CORRECTED_VARIANCE))

    def _shrinkage(self, contrasts: np.ndarray) -> np.ndarray:
        """The mix of these effects, float64 [6, 1 + L]."""
        shrinkage = no_shrinkage(1 + len(contrasts)) if len(contrasts) else no_shrinkage(len(self.levels))
        if self.level_shrinkage is None or not len(contrasts):
            return shrinkage if self.level_shrinkage is None else self.level_shrinkage
        shrinkage[4, 1:], shrinkage[5, 1:] = (
            contrasts @ self.level_shrinkage[0],
            np.einsum("la,ab,lb->l", contrasts, self.level_shrinkage[1:], contrasts),
        )
        return shrinkage

    @cached_property
    def _thin(self) -> tuple[np.ndarray, np.ndarray]:
        """See `overlap.thin_errors`."""
        return thin_errors(self.facts.get("thin", {}).get(self.roles.outcome, {}), self.levels.treated)

    @cached_property
    def _few(self) -> tuple[np.ndarray, np.ndarray]:
        """(share by which the variance is drawn up to what is usual, that variance), [L]; see `overlap.few_share`."""
        few = self.facts.get("few", {}).get(self.roles.outcome, {})
        parts = [few.get(name, {}) for name in self.levels.treated]
        known = [(part["share"], part["variance"]) if "variance" in part else (0.0, 0.0) for part in parts]
        return np.array([share for share, _ in known]), np.array([variance for _, variance in known])

    def private_variance(self, bins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Variances of a private forest's effects [n, K-1]: of the rows that were drawn, and of the noise on sums.

        Little bags know neither: the noise in their trees is many times what averages over. An arm's mean is the sum of
        its leaves' outcomes over that of their rows, each as shares of the leaf's; to first order its noise is that of
        the sums. Rows vary by a share of what the outcome's ends allow about their mean (Bhatia & Davis 2000): of
        conversions by all of it, of others by what all rows of their level do. A leaf's mean varies by that over its
        rows in both half-samples.
        """
        sds, half = self.facts["private"], 0.5 * float(np.ptp(self.facts["outcome_range"][self.roles.outcome]))
        rows, n_levels = self.sums[:, :, 0].astype(np.float64), self.sums.shape[1]
        outcomes = np.ldexp(self.sums[:, :, 1].astype(np.float64), -self.plan.exponents[1])
        inverse, inverses = (
            np.divide(1.0, one, out=np.zeros_like(one), where=one > 0) for one in (rows.sum(axis=1), rows)
        )
        part = 0.5 * (1.0 - self.plan.growth_buckets / self.plan.n_buckets)
        columns = [inverse**2, *(inverse[:, None] * rows).T, *(inverse[:, None] * outcomes).T]
        columns += [*(part * inverses).T, *(inverses > 0).T.astype(np.float64)]
        sums = np.empty((len(columns), len(bins)))
        (bins,) = frozen((bins,))
        for column, out in zip(columns, sums, strict=True):
            leaf_averages(self._routes, np.ascontiguousarray(column), bins, out)
        squares, (n, y, each, speaking) = self.structure.n_trees * sums[0], sums[1:].reshape(4, n_levels, -1)
        with np.errstate(divide="ignore", invalid="ignore"):
            mean = np.clip(y / n, -half, half)
            noise = (
                squares * (sds["outcome_sd"] ** 2 + mean**2 * sds["rows_sd"] ** 2) / (self.structure.n_trees * n) ** 2
            )
            sampling = np.array(sds["variance_shares"])[:, None] * (half - mean) * (half + mean) * each / speaking
        corrected = 4.0 * CORRECTED_VARIANCE if self.plan.debias else 1.0
        # Without rows of an arm the average stands in, whose error is known.
        parts = [np.nan_to_num((one[1:] + one[:1]).T, posinf=0.0) for one in (sampling, noise)]
        return corrected * parts[0], corrected * parts[1]

    @property
    def _design(self) -> tuple[int, int, int]:
        return self.plan.bag_size, self.plan.n_buckets, self.plan.growth_buckets

    def averages(
        self, bins: np.ndarray, segment: np.ndarray | None = None, contrasts: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """(average effects [S, K-1], their covariances [S, K-1, K-1]) over the rows of each segment.

        bins uint8 [n, p]; segment int64 [n] in 0..S-1, by default one of all rows; contrasts as in `effects_of`.
        Differences between levels have the variance that follows from the covariance. Without correction for bias,
        which an average hardly has.
        """
        segment = np.zeros(len(bins), np.int64) if segment is None else segment
        means, influence = self._influence(bins, segment, contrasts)
        effects, requested = means.shape[1], contrasts
        factor = left_out(self.plan) * few_bags(self.plan.n_trees // self.plan.bag_size)
        covariance = (
            np.stack([bag_covariance(one, self._design) for one in influence]) if len(influence) else influence[:, :0]
        )
        covariance = factor * covariance
        if requested is None and not self.plan.partial:
            own = np.arange(effects)
            covariance[:, own, own] = np.maximum(covariance[:, own, own], self._thin[0] ** 2)
            if "private" in self.facts:  # at most what it is of a unit's effect
                covariance[:, own, own] += self.private_variance(bins)[1].mean(axis=0)
        return means, covariance

    def contrast(self, bins: np.ndarray, side: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(difference, its standard error), [K-1] each: the average effect over rows of side 1 less that of side 0.

        bins uint8 [n, p]; side int64 [n], 0 or 1. As of `averages`, whose rows the two sides are: NaN without any.
        """
        means, influence = self._influence(bins, side, None)
        if len(means) < 2:
            return np.full(means.shape[1], np.nan), np.full(means.shape[1], np.nan)
        factor = left_out(self.plan) * few_bags(self.plan.n_trees // self.plan.bag_size)
        covariance = factor * bag_covariance(influence[1] - influence[0], self._design)
        return means[1] - means[0], np.sqrt(np.diag(covariance))

    def _influence(
        self, bins: np.ndarray, segment: np.ndarray, contrasts: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Average effects of segments [S, L], and what each tree adds to them [S, T, L]."""
        contrasts = frozen([self._contrasts if contrasts is None else contrasts])[0]
        n_segments, effects = int(segment.max(initial=-1)) + 1, len(contrasts) or len(self.levels) - 1
        influence = np.zeros((n_segments, self.plan.n_trees, effects))
        totals, counts = np.zeros((n_segments, effects)), np.zeros(n_segments)
        values = replace(self, plan=replace(self.plan, debias=False))._shares
        rows, out = frozen((bins, segment)), (influence, totals, counts)
        if len(contrasts):
            average_responses(self._routes, values, self._design, rows, contrasts, *out)
        else:
            average_influence(self._routes, values, self._design, rows, *out)
        n_rows = np.where(counts > 0, counts, np.nan)
        influence /= n_rows[:, None, None]
        return totals / n_rows[:, None], influence

    def to_bytes(self) -> bytes:
        """The model file's content; equal forests give equal bytes."""
        weights = self.sums[:, :, 0]
        small = weights.max(initial=0) < 2**31
        arrays = {**self.structure._asdict(), "weights": weights.astype(np.int32) if small else weights}
        arrays["outcomes"] = self.sums[:, :, 1:]
        if self.plan.overlap is not None:
            arrays |= self.plan.overlap.arrays()
        for mark, (baseline, shrinkage) in zip(
            _marks(self.plan), ((self.baseline, self.level_shrinkage), *self.more), strict=True
        ):
            if shrinkage is not None:
                arrays[f"mix{mark}"] = shrinkage
            if baseline is not None:
                arrays |= {f"baseline{mark}_{name}": array for name, array in baseline.structure._asdict().items()}
                arrays[f"baseline{mark}_values"] = baseline.values
        return packed_file(self.manifest, arrays)


def shares(weights: np.ndarray, outcomes: np.ndarray, least: float) -> np.ndarray:
    """What kernels sum over trees, float64 [leaves, K, 3]: Σw_k / Σw, Σwy_k / Σw in fixed point, and 1 where both
    level k and the control weigh `least`. A leaf without any rows has -1 in its first place.

    Effects are solved once from these, summed over trees: divide last.
    """
    total = weights.sum(axis=1).astype(np.float64)
    weight = np.where(total > 0, total, 1.0)[:, None]
    values = np.stack([weights / weight, outcomes / weight, (weights >= least) & (weights[:, :1] >= least)], axis=2)
    values[total == 0, 0, 0] = -1.0
    return values


def _stand_in(average: np.ndarray, support: np.ndarray, effect: np.ndarray, variance: np.ndarray) -> None:
    """Draw effects [n, K-1] with low support towards `average` [2, K-1], a level's mean effect and its variance over
    units, in place: not at all where half of the leaves support them, wholly where none does.

    Effects of a handful of units scatter by more than their errors say, which rest on as few.
    """
    at = np.nonzero((support < LOW_SUPPORT) & np.isfinite(average).all(axis=0))
    own = np.where(np.isnan(effect[at]), 0.0, support[at] / LOW_SUPPORT)
    mean, spread = average[0, at[1]], average[1, at[1]]
    effect[at] = mean + own * (np.where(own > 0.0, effect[at], mean) - mean)
    variance[at] = own * np.where(own > 0.0, variance[at], 0.0) + (1.0 - own) * spread


# --------------------------------------------------------------------------------------------------------------------
# Effects of one unit: the arithmetic of `kernels.predict_effects` and `effects.predict_responses`, to the same bits.
# Those take rows in blocks, whose buffers alone cost more than one row, and by vectors of rows. Here a row walks down
# the trees by itself, what is solved for a block is solved for a block of one, and errors are added up level by level.
# The operations on each number, and their order, are the same.

_solve_levels, _debiased = kernels._solve, kernels.debiased_variance
_solve_response, _spread_response = effects._solve, effects._spread


@nb.njit(cache=True, nogil=True)
def _leaf_of(routes, t, bins):
    """Global leaf index of a row, bins uint8 [p], in tree t."""
    first, at = routes.root[t], np.int64(0)
    while routes.leaf[first + at] < 0:
        word = routes.words[first + at]
        bin_ = np.int64(bins[node_feature(word)])
        if word & np.uint64(CATEGORICAL):
            right = outside(routes.sets, routes.set_start[t] + node_set(word), bin_)
        else:
            right = goes_right(word, bin_)
        at = node_child(word) + right
    return routes.leaf[first + at]


@nb.njit(cache=True, nogil=True)
def _sum_row(routes, values, bins, leaves, totals, counts):
    """`kernels.sum_shares` of one row whose trees all speak: leaves [T, .], totals [B, 1, .], counts [B, .]."""
    flat, n_buckets = values.reshape(values.shape[0], -1), totals.shape[0]
    for t in range(leaves.shape[0]):
        if routes.root[t] == routes.root[t + 1]:
            continue
        leaf = _leaf_of(routes, t, bins)
        if flat[leaf, 0] < 0.0:
            continue
        leaves[t, 0] = leaf
        b = t % n_buckets
        counts[b, 0] += 1.0
        for column in range(flat.shape[1]):
            totals[b, 0, column] += flat[leaf, column]


@nb.njit(cache=True, nogil=True)
def _spread_row(leaves, values, design, shrinkage, block, variance):
    """`kernels._spread` of one row: see there, and `kernels._influence` and `kernels._add_influence`."""
    stretch, measure, centre, theta = block
    bag, n_buckets, _ = design
    levels, groups, learns = values.shape[1], 0.0, shrinkage[2].any()
    influence, sums, squares = np.empty(levels), np.empty(levels), np.empty(levels)
    between, within = np.zeros(levels), np.zeros(levels)
    for first in range(0, leaves.shape[0], bag):
        trees = 0.0
        sums[:], squares[:] = 0.0, 0.0
        for t in range(first, first + bag):
            leaf, b = leaves[t, 0], t % n_buckets
            if leaf < 0:
                continue
            trees += 1.0
            for k in range(levels):
                value = values[leaf, k, 1] - measure[1, k, 0] * values[leaf, k, 0]
                influence[k] = value * measure[0, k, 0] - centre[b, k, 0]
            common = 0.0
            for k in range(1, levels):
                influence[k] -= influence[0]
                if learns and measure[2, k, 0] != 0.0:
                    common += measure[2, k, 0] * influence[k]
            for k in range(1, levels):
                part = (shrinkage[1, k] * influence[k] + shrinkage[2, k] * common) * stretch[b, 0]
                sums[k] += part
                squares[k] += part * part
        if trees < 2.0:
            continue
        groups += 1.0
        for k in range(1, levels):
            mean = sums[k] / trees
            between[k] += mean * mean
            within[k] += (squares[k] / trees - mean * mean) / (trees - 1.0)
    for k in range(1, levels):
        debiased = np.nan
        if groups >= 2.0:
            debiased = _debiased(between[k] / groups, within[k] / groups, groups)
        variance[0, k - 1] = debiased + shrinkage[3, k] * theta[0] * theta[0]


@nb.njit(cache=True, nogil=True)
def predict_unit_effects(routes, values, design, bins, shrinkage, out):
    """`kernels.predict_effects` with errors of one row, bins uint8 [p]; out are three arrays [1, K - 1]."""
    effect, variance, support = out
    levels, n_buckets = values.shape[1], min(design[1], len(routes.rounds))
    design = (design[0], n_buckets, design[2])
    leaves = np.full((len(routes.rounds), 1), -1, np.int32)
    totals, counts = np.zeros((n_buckets, 1, levels * 3)), np.zeros((n_buckets, 1))
    measure, centre, theta = np.zeros((3, levels, 1)), np.zeros((n_buckets, levels, 1)), np.zeros(1)
    _sum_row(routes, values, bins, leaves, totals, counts)
    _solve_levels(totals, counts, shrinkage, (measure, centre), effect, support, theta)
    _spread_row(leaves, values, design, shrinkage, (counts, measure, centre, theta), variance)


@nb.njit(cache=True, nogil=True)
def predict_unit_responses(routes, values, design, bins, contrasts, out):
    """`effects.predict_responses` with errors of one row, bins uint8 [p]; out are three arrays [1, L]."""
    effect, variance, support = out
    (width, q), n_buckets = contrasts.shape, min(design[1], len(routes.rounds))
    design = (design[0], n_buckets, design[2])
    leaves = np.full((len(routes.rounds), 1), -1, np.int32)
    totals, counts = np.zeros((n_buckets, 1, values.shape[1])), np.zeros((n_buckets, 1))
    state = np.zeros((1, 1 + 2 * q)), np.zeros((1, width, q)), np.empty((n_buckets, 1, width))
    _sum_row(routes, values, bins, leaves, totals, counts)
    _solve_response(totals, counts, contrasts, state, effect, support)
    _spread_response(leaves, values, design, (counts, *state), variance)
    if np.isnan(effect[0, 0]):
        variance[0] = np.nan


# --------------------------------------------------------------------------------------------------------------------
# Its file.


def load_forest(source: str | Path | bytes) -> Forest:
    """Read a forest's file (memory-mapped) or its bytes; raises ModelFileError as `modelfile.read_file`, and for parts
    that do not fit together."""
    manifest, arrays = read_file(source)
    with reading(source):
        return forest_of_parts(manifest, arrays)


def forest_of_parts(manifest: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Forest:
    """From what `modelfile.read_file` gives of its file; raises ValueError for parts that do not fit together."""
    check_manifest("forest", manifest)
    plan, facts = ForestPlan.from_dict(manifest["plan"]), manifest["facts"]
    check_plan(plan, facts)
    structure = checked_structure(arrays, "", plan.bins)
    sums = checked_sums(arrays, structure, plan, facts)
    width = 0 if plan.reported is None else len(CRITERIA[plan.criterion].basis(plan.levels))
    shape, names = (6, len(plan.levels)) if plan.reported is None else (1 + width, width), {"weights", "outcomes"}

    def part(mark: str) -> tuple[Baseline | None, np.ndarray | None]:
        baseline = shrinkage = None
        if f"mix{mark}" in arrays:
            names.add(f"mix{mark}")
            shrinkage = checked_shrinkage(arrays, f"mix{mark}", shape)
        if f"baseline{mark}_values" in arrays:
            names.update(f"baseline{mark}_{name}" for name in ("values", *Structure._fields))
            trees = checked_structure(arrays, f"baseline{mark}_", plan.bins)
            baseline = Baseline(trees, checked_baseline(arrays, f"baseline{mark}_values", trees))
        return baseline, shrinkage

    first, *more = map(part, _marks(plan))
    overlap, theirs = checked_overlap(arrays, facts, plan.bins, plan.levels.names)
    check_array_names(arrays, names | theirs | set(Structure._fields))
    return Forest(replace(plan, overlap=overlap), structure, sums, facts, *first, tuple(more))


def _marks(plan: ForestPlan) -> list[str]:
    """What tells the outcomes' arrays apart in the file; nothing marks the first."""
    return ["", *map(str, range(1, len(plan.roles.outcomes)))]


def average_effect(forest: Forest) -> dict[str, float]:
    """Average effect of each treated level over the training rows, from the leaf sums of all trees; NaN if absent."""
    totals = forest.sums.sum(axis=0).astype(np.float64)
    w_bits, y_bits, *_ = forest.plan.exponents
    means = [math.ldexp(s / n, w_bits - y_bits) if n else math.nan for n, s, *_ in totals]
    return {name: means[k + 1] - means[0] for k, name in enumerate(forest.levels.treated)}
