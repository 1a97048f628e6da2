"""Leaf sums of rows in trees that stand, levels that learn from each other, and what follows."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from uplift_spark.errors import ConfigError, DataError
from uplift_spark.forest import defaults
from uplift_spark.forest.effects import CRITERIA
from uplift_spark.forest.encode import (
    BinnedRows,
    ForestPlan,
    Summary,
    TypedRows,
    bin_rows,
    check_any_rows,
    check_columns,
    check_repeated,
    check_summary,
    encode,
    repeated_rows,
    summarise,
)
from uplift_spark.forest.forest import Forest
from uplift_spark.forest.grow import Baseline
from uplift_spark.forest.kernels import accumulate, leaf_outcome_means, no_shrinkage
from uplift_spark.forest.overlap import few_share, level_events, thin_levels
from uplift_spark.forest.trees import Routes, Structure, frozen
from uplift_spark.roles import LEFT, Levels, Roles
from uplift_spark.stats.sampling import SAMPLE_SALT, halves_of, mix64_all

# --------------------------------------------------------------------------------------------------------------------
# Forests on doubly robust scores: what each unit's outcome would have been under every level.
# A unit's score of a level has the mean of its outcome under that level, whatever decided the level it received, as
# long as that is among the features (Robins, Rotnitzky & Zhao 1994). Stacked, a unit is a row for every level, with
# the score as its outcome: leaf means of a level are then those of all units, not only of those who received it, and a
# forest is grown and estimated on these rows as on those of a trial (the orthogonal forest's argument: Athey & Wager
# 2019; Nie & Wager 2021). A unit's rows are one cluster: they fall into the same bucket and half-sample, so that
# honesty and errors are those of units.

WHOLE = "_whole"  # column with the unit that a row is of
BETWEEN = "\x1f"  # unit and level in the id of a row


def stacked_roles(roles: Roles) -> Roles:
    """Roles of the rows that units with `roles.scores` are stacked to."""
    return replace(roles, scores=None, propensity=None, cluster=roles.cluster or WHOLE)


def stacked(table: pa.Table, roles: Roles) -> pa.Table:
    """One row per unit and level from a table with `roles.scores`, in the columns of `stacked_roles`.

    Raises DataError when scores are neither a map nor a struct, or are missing for some unit.
    """
    check_columns(dict.fromkeys(table.column_names, pa.null()), roles.columns, ())
    scores = table.column(roles.scores).combine_chunks()
    if scores.null_count:
        raise DataError(f"column {roles.scores!r} is null in {scores.null_count} rows: leave these units out")
    if pa.types.is_struct(scores.type):
        names = [scores.type.field(i).name for i in range(scores.type.num_fields)]
        parts = [_level(table, roles, pa.repeat(name, len(table)), pc.struct_field(scores, name)) for name in names]
        return pa.concat_tables(parts)
    if not pa.types.is_map(scores.type):
        raise DataError(f"column {roles.scores!r} has type {scores.type}: give a map or a struct from level to score")
    ends = scores.offsets.to_numpy()
    units = pa.array(np.repeat(np.arange(len(table)), np.diff(ends)))
    every = slice(ends[0], ends[-1])
    return _level(table.take(units), roles, scores.keys[every], scores.items[every])


def _level(table: pa.Table, roles: Roles, level: pa.Array, score: pa.Array) -> pa.Table:
    unit = table.column(roles.unit).cast(pa.string())
    columns = {name: table.column(name) for name in stacked_roles(roles).columns if name in table.column_names}
    columns |= {
        roles.unit: pc.binary_join_element_wise(unit, level.cast(pa.string()), BETWEEN),
        roles.treatment: level,
        roles.outcome: score,
    }
    return pa.table(columns if roles.cluster else {**columns, WHOLE: unit})


def with_roles(forest: Forest, roles: Roles) -> Forest:
    """A forest of stacked rows under the roles of the units they are of, or back."""
    return replace(forest, plan=replace(forest.plan, roles=roles))


# --------------------------------------------------------------------------------------------------------------------
# Ordered levels learn from each other: one response shape, and own effects as far as the data tell them apart.
# A level's effect from its own units is unbiased and noisy; most of what it holds is common to all levels. With c the
# shape of the response over levels, θ(x) the common effect in that direction and D_k(x) = τ_k(x) - c_k θ(x),
#
#     c_k θ(x) + r_k D_k(x),   r_k = 1 - noise of D_k / mean square of D_k, at least 0,
#
# is the empirical Bayes estimate for departures from the shape (Efron & Morris 1973). Both terms are smoothed alike by
# the forest, so where responses have one shape D is pure noise however biased the forest is. The shape is the fixed
# point of regressing the levels' effects on θ; it is itself drawn towards a parabola through the control, a quadratic
# dose response, as far as its noise demands.
#
# Where too few units of a level are near, its average effect over all units stands in (`Forest.effect_arrays`).

SHAPE_ROWS = 4000  # rows the shape is learnt from: averages over them, nothing per row
MIN_LEVEL_ROWS = 100  # of these rows must tell of a level for it to be learnt from
ROUNDS = 20


def share_levels(forest: Forest, bins: np.ndarray) -> Forest:
    """The forest with its `mix` learnt from rows like those it was trained on, bins uint8 [n, p]; n is cut to 4,000."""
    bins, whole = bins[:SHAPE_ROWS], forest
    # Levels are weighed by what their rows show; that these are too few is added afterwards.
    forest = replace(forest, facts={name: fact for name, fact in forest.facts.items() if name != "thin"})
    if forest.plan.reported:
        return replace(whole, level_shrinkage=_spread_of_responses(forest, bins))
    average, covariance = (part[0] for part in forest.averages(bins))
    shrinkage = no_shrinkage(len(forest.levels))
    threads = os.cpu_count() or 1
    effect, error, low = forest.effects_of(bins, threads)
    doses, known = forest.levels.doses, ~np.isnan(effect).any(axis=1)
    if doses is not None and np.ndim(doses) == 1 and len(doses) > 2 and known.sum() >= MIN_LEVEL_ROWS:
        shrinkage = _shared(forest, bins[known], effect[known], covariance)
        effect, error, low = replace(forest, level_shrinkage=shrinkage).effects_of(bins, threads)
    shrinkage[4, 1:] = average
    shrinkage[5, 1:] = np.diag(covariance) + _heterogeneity(np.where(low, np.nan, effect - average), error)
    return replace(whole, level_shrinkage=shrinkage)


def _spread_of_responses(forest: Forest, bins: np.ndarray) -> np.ndarray:
    """Average and covariance of θ over units, [1 + q, q], with the uncertainty of the average."""
    own = np.eye(len(CRITERIA[forest.plan.criterion].basis(forest.plan.levels)))
    average, covariance = (part[0] for part in forest.averages(bins, contrasts=own))
    theta, error, low = forest.effects_of(bins, os.cpu_count() or 1, contrasts=own)
    apart = np.where(low, np.nan, theta - average)
    size = np.nan_to_num(np.sqrt(_heterogeneity(apart, error)))
    whole = apart[~np.isnan(apart).any(axis=1)]
    together = np.corrcoef(whole.T).reshape(len(own), len(own)) if len(whole) >= MIN_LEVEL_ROWS else own
    return np.vstack([average, covariance + np.nan_to_num(together) * np.outer(size, size)])


def _heterogeneity(apart: np.ndarray, error: np.ndarray) -> np.ndarray:
    """Variance of each level's effects over units [K-1] from their distances to the average [n, K-1], NaN where support
    is low; of a level that hardly has any, the largest of the others'. NaN if no level has support."""
    squares = apart**2 - error**2
    known = np.isfinite(squares).sum(axis=0) >= MIN_LEVEL_ROWS
    variance = np.full(known.size, np.nan)
    if known.any():
        squares = np.nanmean(squares[:, known], axis=0)
        variance[:] = max(squares.max(), 0.0)
        variance[known] = np.maximum(squares, 0.0)
    return variance


def _shared(forest: Forest, bins: np.ndarray, effect: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """The `mix` of ordered levels at rows where all their effects [n, K-1] are known; covariance of their averages."""
    doses = np.asarray(forest.levels.doses)
    scale = (doses - doses[0]) / (doses.max() - doses[0])
    weight = forest.sums[:, :, 0].sum(axis=0).astype(float)
    shape, variance = _shape(effect, scale, weight, covariance)
    shrinkage = no_shrinkage(len(doses))
    shrinkage[0] = shape
    shrinkage[2, 1:] = -shape[1:]
    departure, error, _ = replace(forest, level_shrinkage=shrinkage).effects_of(bins)
    if np.isnan(error).all(axis=0).any():  # too few trees to tell noise from signal: every level stands alone
        return no_shrinkage(len(doses))
    own = np.maximum(0.0, 1.0 - np.nanmean(error**2, axis=0) / np.maximum((departure**2).mean(axis=0), 1e-300))
    shrinkage[1, 1:], shrinkage[2, 1:] = own, (1.0 - own) * shape[1:]
    shrinkage[3, 1:] = (1.0 - own) ** 2 * variance[1:]
    return shrinkage


def _common(effect: np.ndarray, shape: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """θ [n] by weighted least squares of the levels' means on `shape`, as in the kernel but with average weights."""
    counts = weight * (shape - (weight @ shape) / weight.sum())
    return np.asarray(effect @ counts[1:] / (counts @ shape))


def _shape(
    effect: np.ndarray, scale: np.ndarray, weight: np.ndarray, covariance: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(shape [K] with control 0, its variance [K]) from effects [n, K-1] and the covariance of their averages."""
    shape, variance = scale, np.zeros(scale.size)
    for _ in range(ROUNDS):
        theta = _common(effect, shape, weight)
        size = float(np.mean(theta**2))
        if size <= 0.0:
            return scale, np.zeros(scale.size)
        means = theta @ effect / theta.size / size
        # The part of the averages' noise that is not along the shape, seen in units of the common effect.
        counts = weight * (shape - (weight @ shape) / weight.sum())
        apart = np.eye(means.size) - np.outer(shape[1:], counts[1:] / (counts @ shape))
        noise = np.diag(apart @ covariance @ apart.T) / size
        smooth, kept = _parabola(means, scale[1:], noise)
        shape, variance = np.r_[0.0, smooth], np.r_[0.0, kept]
    return shape, variance


def _parabola(estimate: np.ndarray, scale: np.ndarray, noise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`estimate` [K-1] drawn to its best parabola through 0 as its noise [K-1] demands, and the variance left."""
    if estimate.size < 3 or not (noise > 0).all():
        return estimate, noise
    design = np.column_stack([scale, scale**2]) / np.sqrt(noise)[:, None]
    hat = design @ np.linalg.pinv(design)
    standard = estimate / np.sqrt(noise)
    fitted = hat @ standard
    misfit = float(((standard - fitted) ** 2).sum())
    kept = max(0.0, 1.0 - (estimate.size - 2) / misfit) if misfit > 0 else 0.0
    share = np.diag(hat) + kept**2 * (1.0 - np.diag(hat))
    return (fitted + kept * (standard - fitted)) * np.sqrt(noise), noise * share


# --------------------------------------------------------------------------------------------------------------------
# The second half of training, which is all of re-estimation: leaf sums of rows for trees that stand, and what
# follows.
# Sums are exact, so they add and subtract to the same bits in any order; `training` and `forest.spark` grow the trees.

Baselines = tuple[Baseline | None, ...]  # per outcome


def sample_limit(rows: int, n_features: int) -> np.uint64:
    """Hash bound below which a unit joins the sample that fixes bins and leaf size; all of them when rows are few."""
    wanted = defaults.sample_rows(n_features)
    return np.uint64(2**64 - 1) if rows <= wanted else np.uint64(int(wanted / rows * 2.0**64))


def sample_mask(unit: np.ndarray, seed: int, limit: np.uint64) -> np.ndarray:
    """Mask of the sample's rows, by hash of the unit, uint64 [n]: bool [n]."""
    return mix64_all(unit, np.uint64(seed), SAMPLE_SALT) <= limit


def sample_of(rows: TypedRows, total: int, seed: int) -> TypedRows:
    """Those of the rows that fix bins and leaf size; the rows themselves where that is all of them."""
    mask = sample_mask(rows.unit, seed, sample_limit(total, len(rows.roles.features)))
    return rows if mask.all() else rows.take(mask)


def binned_sample(sample: TypedRows, plan: ForestPlan, threads: int) -> BinnedRows:
    """The sample's rows in canonical order: floating sums over them must not depend on how it was collected."""
    rows = bin_rows(sample, plan, threads=threads)
    return rows.take(np.argsort(rows.unit, kind="stable"))


def sample_bins(sample: TypedRows, plan: ForestPlan, threads: int = 1) -> np.ndarray:
    """Bins of the sample's rows in the order in which `finished` wants them, uint8 [n, p]."""
    return binned_sample(sample, plan, threads).bins


def empty_sums(structure: Structure, plan: ForestPlan) -> np.ndarray:
    """Zero leaf sums of m outcomes, int64 [leaves, K, 1 + 2m]."""
    return np.zeros((structure.n_leaves, len(plan.levels), 1 + 2 * len(plan.roles.outcomes)), np.int64)


def add_to_leaves(
    sums: np.ndarray, rows: BinnedRows, routes: Routes, plan: ForestPlan, threads: int = 1, corrected: bool = False
) -> None:
    """Add rows to the leaves they honestly estimate, in place. Exact: any order, any split of the rows, same sums."""
    bounds = np.linspace(0, plan.n_trees, threads + 1).astype(int)
    halves = halves_of(rows.key, np.uint64(plan.seed), plan.n_trees // plan.bag_size)
    arrays = frozen((rows.bins, rows.level, rows.w, rows.wy, rows.bucket, halves))
    design = (plan.bag_size, plan.n_buckets, plan.growth_buckets)

    def some_trees(first: int, last: int) -> None:
        accumulate(routes, arrays, design, (first, last), corrected, sums)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(some_trees, bounds[:-1], bounds[1:]))


def plain_shares(sums: np.ndarray) -> np.ndarray:
    """What `correct` needs of the plain sums: Σw_k / Σw and Σwy_k / Σw of every outcome, float64 [leaves, K, 1 + m]."""
    weight = np.maximum(sums[:, :, 0].sum(axis=1), 1)[:, None, None]
    return np.concatenate([sums[:, :, :1], sums[:, :, 1::2]], axis=2) / weight


def correct(rows: BinnedRows, routes: Routes, values: np.ndarray, plan: ForestPlan, threads: int = 1) -> BinnedRows:
    """The rows with their outcomes moved on by what the forest misses of them: y becomes 2y - μ(x, level).

    Leaf means of these are the forest's estimate plus its estimate of its own residuals, one step of boosting
    ("twicing", Tukey 1977; Ghosal & Hooker 2021 for forests): the bias of wide leaves goes down by an order. μ comes
    from the bags that do not hold the row. values is `plain_shares`.
    """
    halves = halves_of(rows.key, np.uint64(plan.seed), plan.n_trees // plan.bag_size)
    outcome_mean = np.empty(rows.wy.shape)
    arrays, values = frozen((rows.bins, rows.level, halves)), frozen([values])[0]

    def some_rows(low: int, high: int) -> None:
        part = tuple(column[low:high] for column in arrays)
        leaf_outcome_means(routes, values, part, plan.bag_size, outcome_mean[low:high])

    bounds = np.linspace(0, rows.key.size, threads + 1).astype(int)
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(some_rows, bounds[:-1], bounds[1:]))
    # A row about which no tree knows anything stays as it is.
    missed = rows.wy - np.rint(rows.w[:, None] * np.where(np.isnan(outcome_mean), 0.0, outcome_mean)).astype(np.int64)
    return rows._replace(wy=rows.wy + np.where(np.isnan(outcome_mean), 0, missed))


def training_facts(
    summary: Summary, statuses: list[dict[str, Any]], structure: Structure, plan: ForestPlan
) -> dict[str, Any]:
    """What training found; DataError if units repeat or no bucket could grow a tree."""
    duplicates = sum(status.get("duplicates", 0) for status in statuses)
    check_repeated(duplicates, plan.roles.unit)
    if structure.nodes.size == 0:
        raise DataError(
            f"no bucket could grow a tree: {statuses[0]['status']} in {len(statuses)} of {plan.n_buckets} buckets"
        )
    ranges = {name: list(bounds) for name, bounds in summary.outcomes.items()}
    facts = {"rows": summary.rows, "level_rows": plan.level_rows(summary.levels), "outcome_range": ranges}
    if plan.overlap is not None:
        facts["overlap"] = plan.overlap.facts(plan.levels.names)
    if thin := thin_outcomes(summary, plan.roles, plan.levels):
        facts["thin"] = thin
    if few := _few_events(summary, plan):
        facts["few"] = few
    return {**facts, "buckets": sorted(statuses, key=lambda status: status["bucket"])}


def thin_outcomes(summary: Summary, roles: Roles, levels: Levels) -> dict[str, dict[str, dict[str, Any]]]:
    """`overlap.thin_levels` of every outcome that has some; none where treatments are doses.

    Delivery, the second outcome of an instrumental forest, is none: that no control is delivered is the design.
    """
    if roles.grid:
        return {}
    rows = {name: summary.levels[name] for name in levels.names}
    outcomes = [(name, summary.ends[name], summary.outcomes[name]) for name in _with_events(roles)]
    thin = {name: thin_levels(rows, ends, bounds, levels.names) for name, ends, bounds in outcomes}
    return {name: levels_of for name, levels_of in thin.items() if levels_of}


def _with_events(roles: Roles) -> tuple[str, ...]:
    return roles.outcomes[:1] if roles.outcome == LEFT else roles.outcomes


def _few_events(summary: Summary, plan: ForestPlan) -> dict[str, dict[str, dict[str, Any]]]:
    """{outcome: {treated level with fewer than MANY_EVENTS, its own or the control's: its share, see `few_share`}}."""
    roles, levels = plan.roles, plan.levels
    if roles.grid:
        return {}
    rows = {name: summary.levels[name] for name in levels.names}
    few: dict[str, dict[str, dict[str, Any]]] = {}
    for outcome in _with_events(roles):
        effective = plan.effective.get(outcome, {})
        counts = level_events(rows, summary.ends[outcome], levels.names)
        events = {name: count * effective.get(name, 1.0) for name, count in counts.items()}
        shares = {name: few_share(min(events[name], events[levels.names[0]])) for name in levels.treated}
        if some := {name: {"share": share} for name, share in shares.items() if share > 0.0}:
            few[outcome] = some
    return few


def _with_usual_variance(forest: Forest, bins: np.ndarray) -> Forest:
    """The forest with the mean variance of its units' effects, for levels with few events."""
    if not (few := forest.facts.get("few", {})):
        return forest
    usual: dict[str, dict[str, dict[str, Any]]] = {}
    for outcome, levels in few.items():
        _, error, _ = forest.of(outcome).effects_of(bins[:SHAPE_ROWS], os.cpu_count() or 1)
        known = {name: error[~np.isnan(error[:, at]), at] for at, name in enumerate(forest.levels.treated)}
        variances = {name: float((known[name] ** 2).mean()) for name in levels if len(known[name])}
        usual[outcome] = {name: {**levels[name], "variance": variance} for name, variance in variances.items()}
    return replace(forest, facts={**forest.facts, "few": usual})


def finished(
    plan: ForestPlan,
    structure: Structure,
    sums: np.ndarray,
    facts: Mapping[str, Any],
    baselines: Baselines,
    bins: np.ndarray,
) -> Forest:
    """The forest of these parts; in each outcome, levels learn from each other at rows like `bins`, uint8 [n, p]."""
    forest = Forest(plan, structure, sums, facts, baselines[0], None, tuple((one, None) for one in baselines[1:]))
    shrinkage, *shrinkages = [share_levels(forest.of(name), bins).level_shrinkage for name in plan.roles.outcomes]
    forest = replace(forest, level_shrinkage=shrinkage, more=tuple(zip(baselines[1:], shrinkages, strict=True)))
    return _with_usual_variance(forest, bins)


def estimate(
    rows: BinnedRows,
    grown: tuple[ForestPlan, Structure, Baselines],
    facts: Mapping[str, Any],
    bins: np.ndarray,
    threads: int,
) -> Forest:
    """The forest of these trees with the leaf sums of `rows`; `bins` are those of the sample (see `finished`)."""
    plan, structure, baselines = grown
    sums, routes = empty_sums(structure, plan), structure.routes
    add_to_leaves(sums, rows, routes, plan, threads)
    if plan.debias:
        rows = correct(rows, routes, plain_shares(sums), plan, threads)
        add_to_leaves(sums, rows, routes, plan, threads, corrected=True)
    return finished(plan, structure, sums, facts, baselines, bins)


def estimate_table(table: pa.Table, forest: Forest) -> Forest:
    """The forest's trees estimated anew from an Arrow table alone, on all cores."""
    if forest.roles.scores:
        roles = forest.roles
        return with_roles(estimate_table(stacked(table, roles), with_roles(forest, stacked_roles(roles))), roles)
    threads = os.cpu_count() or 1
    parts = grown_parts(forest)
    plan, _, baselines = parts
    check_any_rows(table.num_rows)
    typed = encode(table, plan.roles, threads)
    summary = summarise(typed)
    facts = facts_anew(forest, summary)
    planning = sample_bins(sample_of(typed, summary.rows, plan.seed), plan, threads)
    check_repeated(repeated_rows(typed.unit), plan.roles.unit)
    rows = bin_rows(typed, plan, baselines, threads)
    del typed  # before the leaves are summed: it is as large as the frame
    return estimate(rows, parts, facts, planning, threads)


def grown_parts(forest: Forest) -> tuple[ForestPlan, Structure, Baselines]:
    """What `estimate` keeps of a forest: plan, trees, baselines.

    Raises ConfigError for a differentially private forest: sums without noise would undo what it promises.
    """
    if "private" in forest.facts:
        raise ConfigError("a differentially private forest takes no further rows: make a new one with its own budget")
    return forest.plan, forest.structure, (forest.baseline, *(baseline for baseline, _ in forest.more))


def facts_anew(forest: Forest, summary: Summary) -> dict[str, Any]:
    """Facts of the forest estimated from the rows of `summary`; the facts about growing stay.

    Raises DataError when a level that the forest knows has no row left, or another one has come.
    """
    check_summary(summary, forest.roles)
    rows = forest.plan.level_rows(summary.levels)
    known, present = set(forest.plan.levels.names), {name for name, count in rows.items() if count}
    if known != present:
        wrong = (
            f"no row of {', '.join(sorted(known - present))}"
            if known - present
            else f"levels {sorted(present - known)}"
        )
        raise DataError(
            f"column {forest.roles.treatment!r} has {wrong}, so this forest of levels "
            f"{', '.join(forest.plan.levels.names)} cannot be estimated from these rows: train a new one"
        )
    return training_facts(summary, forest.facts["buckets"], forest.structure, forest.plan)
