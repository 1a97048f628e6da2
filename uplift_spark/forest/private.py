"""Leaf sums with differential privacy: trees that no private row shaped, noise on integers, errors that know of it.

Everything in the model file that rests on the private rows comes from one release of noisy integers: the rows of each
leaf and level, and the sum of their outcomes; of outcomes that are no conversions also the sum of squares by level.
Bins, splits, levels, seeds and the ends of the outcome are what the caller brings: they must not come from these rows
(`governance.differential_privacy`).

One person moves these sums by a known length. Its rows fall into one leaf of each tree that it takes part in: trees of
a little bag take half of the persons, by a hash of the person that no other row has a part in, so a person takes part
in about half of the trees; who takes part in more than `most_trees` is left out. Each of at most m rows adds 1 to a
leaf's rows and at most B to the sum of its outcomes, which are cut off at their declared ends and counted from the
middle between these. So with T trees, rows move by m √T and outcomes by m B √T, and with half of rho for each, noise on
a leaf has the standard deviations m √(T/rho) and m B √(T/rho). Averaged over T trees T falls out of the effect's noise.
Squares count once and not by tree, so a tenth of rho is plenty for them.
"""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import scipy.stats

from uplift_spark.errors import ConfigError, DataError
from uplift_spark.forest.binning import apply_bins
from uplift_spark.forest.encode import (
    BinnedRows,
    ForestPlan,
    bin_rows,
    check_summary,
    encode,
    summarise,
)
from uplift_spark.forest.estimate import add_to_leaves, empty_sums, plain_shares
from uplift_spark.forest.forest import Forest
from uplift_spark.forest.kernels import accumulate, leaf_outcome_means, no_shrinkage
from uplift_spark.forest.trees import frozen
from uplift_spark.roles import Roles
from uplift_spark.stats.noise import NOISE_MARGIN, OutcomeEnds, noise_sd, with_integer_noise
from uplift_spark.stats.sampling import halves_of

_LEFT_OUT = 1e-3  # of the persons are at most left out, as they take part in too many trees
_PUBLIC_ROWS = 20_000  # that say which rows a leaf has
_MOST_NOISE = 4.0  # times the other variance: up to it bias is corrected


@dataclass(frozen=True)
class Release:
    """Noisy leaf sums.

    sums         int64 [leaves, K, 2]: rows, and outcomes from the middle of their range in units of 2^-bits
    squares      int64 [K], see `OutcomeEnds.squares`; None of conversions
    ends         of the outcome
    sds          standard deviations of the noise on rows, on outcomes and on squares, in the sums' units
    """

    sums: np.ndarray
    squares: np.ndarray | None
    ends: OutcomeEnds
    sds: tuple[float, float, float]


def unbounded_parts(roles: Roles) -> list[str]:
    """What the roles have whose sums have no bound on what one person adds, in words."""
    wrong = {
        "doses": roles.grid,
        "doubly robust scores": roles.scores,
        "weights": roles.weight,
        "logged propensities": roles.propensity,
        "several outcomes": roles.more_outcomes,
    }
    return [name for name, so in wrong.items() if so]


def check_splits(plan: ForestPlan) -> None:
    """Raise ConfigError for plans whose sums have no bound on what one person adds, or mix levels' sums."""
    names = unbounded_parts(plan.roles)
    names += ["doses"] if plan.reported is not None or plan.edges else []
    names += ["propensities learnt from the features"] if plan.overlap is not None else []
    if names:
        raise ConfigError(f"a forest with {names[0]} has no differentially private sums: train its splits without")


def most_trees(plan: ForestPlan) -> int:
    """Trees that a person takes part in at most; whom the hash gives more is left out."""
    bags = plan.n_trees // plan.bag_size
    return plan.bag_size * int(scipy.stats.binom.ppf(1.0 - _LEFT_OUT, bags, 0.5))


def bounded(rows: BinnedRows, plan: ForestPlan, rows_per_person: int) -> BinnedRows:
    """At most so many rows of each person, chosen by hash, and nobody of more than `most_trees`."""
    bags = plan.n_trees // plan.bag_size
    halves = halves_of(rows.key, np.uint64(plan.seed), bags)
    if bags % 64:
        halves[:, -1] &= np.uint64((1 << (bags % 64)) - 1)
    kept = plan.bag_size * np.bitwise_count(halves).sum(axis=1) <= most_trees(plan)
    order = np.lexsort((rows.unit, rows.key))
    key = rows.key[order]
    first = np.r_[True, key[1:] != key[:-1]] if key.size else np.zeros(0, bool)
    place = np.arange(key.size) - np.maximum.accumulate(np.where(first, np.arange(key.size), 0))
    kept[order] &= place < rows_per_person
    return rows.take(kept)


def exact_sums(
    table: pa.Table, splits: Forest, ends: OutcomeEnds, rows_per_person: int
) -> tuple[ForestPlan, np.ndarray, np.ndarray]:
    """(plan, exact sums int64 [leaves, K, 2], exact sums of squares by level int64 [K]) of a table's rows.

    Raises DataError where a column is bad or a level is unknown to the splits.
    """
    plan, roles = splits.plan, splits.roles
    # With 1.5 two rows would count, and noise be for one and a half.
    if not isinstance(rows_per_person, numbers.Integral) or rows_per_person < 1:
        raise ConfigError(f"rows_per_person is {rows_per_person}: give a whole number, 1 or more")
    check_splits(plan)
    typed = encode(table, roles)
    summary = summarise(typed)
    check_summary(summary, roles)
    if unknown := sorted(set(summary.levels) - set(plan.levels.names)):
        raise DataError(
            f"column {roles.treatment!r} has {unknown[0]!r}, which the splits do not know: they know "
            f"{', '.join(plan.levels.names)}; leave these rows out, or bring splits of that level, too"
        )
    cut = {roles.outcome: ends.from_middle(typed.outcomes[roles.outcome])}
    plan = replace(plan, debias=False, exponents=(0, ends.bits), effective={})
    rows = bounded(bin_rows(replace(typed, outcomes=cut), plan), plan, rows_per_person)
    rows = rows._replace(wy=np.clip(rows.wy, -ends.most, ends.most))
    sums = empty_sums(splits.structure, plan)
    add_to_leaves(sums, rows, splits.structure.routes, plan)
    squares = np.zeros(sums.shape[1], np.int64)
    np.add.at(squares, rows.level, ends.squares(rows.wy[:, 0]))
    return plan, sums[:, :, :2], squares


def private_table(
    public: pa.Table,
    splits: Forest,
    exact: tuple[ForestPlan, np.ndarray, np.ndarray],
    ends: OutcomeEnds,
    budget: tuple[float, float, float],
    rows_per_person: int,
) -> Forest:
    """The forest of these splits with noisy sums.

    public  rows with the features
    exact   `exact_sums` of the private rows, with the same ends and rows per person
    budget  (rho to spend, and the ε and δ that it is)
    """
    plan, sums, squares = exact
    length = rows_per_person * math.sqrt(most_trees(plan))
    sensitivities = (length, length * ends.most, float(rows_per_person * ends.most_square))
    rhos = [budget[0] * part for part in ends.parts]
    noisy = [with_integer_noise(sums[:, :, part], sensitivities[part], rhos[part]) for part in (0, 1)]
    spread = with_integer_noise(squares, sensitivities[2], rhos[2]) if rhos[2] > 0 else None
    sds = [noise_sd(one, rho) if rho > 0 else 0.0 for one, rho in zip(sensitivities, rhos, strict=True)]
    release = Release(np.stack(noisy, axis=2), spread, ends, (sds[0], sds[1], sds[2]))
    forest = noisy_forest(splits, plan, release, budget)
    return corrected(forest, apply_bins(public, plan.bins))


def noisy_forest(splits: Forest, plan: ForestPlan, release: Release, budget: tuple[float, float, float]) -> Forest:
    """The forest that follows from noisy sums; nothing else of the rows enters."""
    rows = _totals(splits, plan, release.sums)
    clear = release.sums[:, :, 0] > NOISE_MARGIN * release.sds[0]
    sums = np.zeros((*release.sums.shape[:2], 3), np.int64)
    sums[:, :, :2] = np.where(clear[:, :, None], release.sums, 0)
    if not (sums[:, :, 0] > 0).any(axis=0).all():
        raise DataError(
            f"the noise of ε = {budget[1]:g} is more than any leaf holds, {NOISE_MARGIN * release.sds[0]:,.0f} rows of "
            "each level in half of the rows: grow larger leaves (`min_leaf`), fewer trees, or take more rows or budget"
        )
    names = plan.levels.names
    facts = {
        "rows": sum(rows),
        "level_rows": dict(zip(names, rows, strict=True)),
        "outcome_range": {plan.roles.outcome: [release.ends.low, release.ends.high]},
        "buckets": splits.facts["buckets"],
        "private": {
            "epsilon": budget[1],
            "delta": budget[2],
            "rho": budget[0],
            "rows_sd": release.sds[0],
            "outcome_sd": math.ldexp(release.sds[1], -release.ends.bits),
            "variance_shares": _variance_shares(release, np.array(rows, np.float64)).tolist(),
        },
    }
    shrinkage = no_shrinkage(len(names))
    shrinkage[4:, 1:] = _usual_effects(splits, sums, release.ends.bits)
    return Forest(plan, splits.structure, sums, facts, None, shrinkage)


def _variance_shares(release: Release, rows: np.ndarray) -> np.ndarray:
    """`OutcomeEnds.variance_shares` of each level, [K], where its mean is that over all leaves."""
    if release.squares is None:
        return np.ones(len(rows))
    n, y = release.sums.sum(axis=0, dtype=np.float64).T
    n = np.maximum(n, 1.0)
    mean = np.clip(np.ldexp(y, -release.ends.bits) / n, -release.ends.half, release.ends.half)
    of_rows = release.sds[0] * math.sqrt(len(release.sums)) / n
    of_outcomes = math.ldexp(release.sds[1], -release.ends.bits) * math.sqrt(len(release.sums)) / n
    sds = (np.hypot(of_outcomes, mean * of_rows), of_rows, release.sds[2])
    return release.ends.variance_shares(np.maximum(rows, 1.0), mean, release.squares.astype(np.float64), sds)


# --------------------------------------------------------------------------------------------------------------------
# Correction for the bias of wide leaves, as in `estimate.correct`: a leaf's mean becomes twice itself less the mean of
# what the forest expects of the leaf's rows. Which rows a leaf has is seen from public ones, so that this costs no
# budget. It costs noise, about 2.4 times its variance; where the noise is most of the error, wide leaves are the
# smaller evil, and the intervals hold their bias.


def corrected(forest: Forest, bins: np.ndarray) -> Forest:
    """The forest corrected for bias by public rows, uint8 [n, p], unless noise is most of its error."""
    bins = bins[:_PUBLIC_ROWS]
    sampling, noise = forest.private_variance(bins)
    if not noise.mean() < _MOST_NOISE * sampling.mean():
        return forest
    plan, n_levels = forest.plan, len(forest.levels)
    routes, values = forest.structure.routes, frozen([plain_shares(forest.sums)])[0]
    nobody, everybody = (np.full((len(bins), 1 + plan.n_trees // 64), one, np.uint64) for one in (0, 2**64 - 1))
    sums = empty_sums(forest.structure, plan)
    for level in range(n_levels):
        levels, outcome_mean = np.full(len(bins), level, np.uint8), np.empty((len(bins), 1))
        leaf_outcome_means(routes, values, frozen((bins, levels, nobody)), plan.bag_size, outcome_mean)
        ones = np.where(np.isnan(outcome_mean[:, 0]), 0, 1)
        rows = (bins, levels, ones, np.rint(np.nan_to_num(outcome_mean)).astype(np.int64))
        arrays = frozen((*rows, np.zeros(len(bins), np.int32), everybody))
        accumulate(routes, arrays, (plan.bag_size, 1, 0), (0, plan.n_trees), False, sums)
    public, n, own = sums[:, :, 0], forest.sums[:, :, 0], forest.sums[:, :, 1]
    smoothed = np.rint(n * (sums[:, :, 1] / np.maximum(public, 1))).astype(np.int64)
    whole = forest.sums.copy()
    whole[:, :, 2] = np.where(public > 0, 2 * own - smoothed, own)
    return replace(forest, plan=replace(plan, debias=True), sums=whole)


def _by_tree(splits: Forest, values: np.ndarray) -> np.ndarray:
    """Sums over each grown tree's leaves, [grown trees, ...]."""
    starts = splits.structure.leaf_start
    grown = np.diff(starts) > 0
    return np.add.reduceat(values, starts[:-1][grown], axis=0)


def _totals(splits: Forest, plan: ForestPlan, sums: np.ndarray) -> list[int]:
    """Rows of each level, by the mean over trees, which hold half of the rows that did not grow them."""
    part = 0.5 * (1.0 - plan.growth_buckets / plan.n_buckets)
    return [max(0, round(float(one) / part)) for one in _by_tree(splits, sums[:, :, 0].astype(float)).mean(axis=0)]


def _usual_effects(splits: Forest, sums: np.ndarray, bits: int) -> np.ndarray:
    """Average effect of each treated level over all rows, and its variance over leaves, [2, K-1]; NaN if unknown."""
    n, y = sums[:, :, 0].astype(float), np.ldexp(sums[:, :, 1].astype(float), -bits)
    with np.errstate(divide="ignore", invalid="ignore"):
        whole = _by_tree(splits, y) / _by_tree(splits, n)
        average = np.nanmean(whole[:, 1:] - whole[:, :1], axis=0)
        means = y / n
        apart, weight = means[:, 1:] - means[:, :1] - average, np.minimum(n[:, 1:], n[:, :1])
        known = np.isfinite(apart)
        variance = np.where(known, weight * apart**2, 0.0).sum(axis=0) / np.where(known, weight, 0.0).sum(axis=0)
    return np.stack([average, variance])
