"""The second half of training, which is all of re-estimation: leaf sums of rows for trees that stand, and what follows.

Sums are exact, so they add and subtract to the same bits in any order; `training` and `flow.training` grow the trees.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from uplift_spark.causal import defaults
from uplift_spark.causal.forest import Forest
from uplift_spark.causal.hashing import SAMPLE, halves_of, mix_all, unit_hashes
from uplift_spark.causal.kernels import accumulate, expected_outcomes
from uplift_spark.causal.levels import share_levels
from uplift_spark.causal.nuisance import Baseline
from uplift_spark.causal.routing import Routes
from uplift_spark.causal.rows import Encoded, Plan, Summary, check_summary, encode, summarise
from uplift_spark.causal.stacking import as_given, stacked, stacked_roles
from uplift_spark.causal.structure import Structure, frozen
from uplift_spark.vocabulary import DataError

Baselines = tuple[Baseline | None, ...]  # per outcome


def sample_limit(rows: int, n_features: int) -> np.uint64:
    """Hash bound below which a unit joins the sample that fixes bins and leaf size; all of them when rows are few."""
    wanted = defaults.sample_rows(n_features)
    return np.uint64(2**64 - 1) if rows <= wanted else np.uint64(int(wanted / rows * 2.0**64))


def sampled(batch: pa.Table | pa.RecordBatch, unit: str, seed: int, limit: np.uint64) -> np.ndarray:
    """Mask of the sample's rows, by hash of the unit: bool [n]."""
    return mix_all(unit_hashes(batch.column(unit), unit), np.uint64(seed), SAMPLE) <= limit


def encoded_sample(sample: pa.Table, plan: Plan, threads: int) -> Encoded:
    """The sample's rows in canonical order: floating sums over them must not depend on how it was collected."""
    rows = encode(sample, plan, threads=threads)
    return rows.take(np.argsort(rows.unit, kind="stable"))


def sample_bins(sample: pa.Table, plan: Plan, threads: int = 1) -> np.ndarray:
    """Bins of the sample's rows in the order in which `finished` wants them, uint8 [n, p]."""
    return encoded_sample(sample, plan, threads).bins


def empty_sums(structure: Structure, plan: Plan) -> np.ndarray:
    """Zero leaf sums of m outcomes, int64 [leaves, K, 1 + 2m]."""
    return np.zeros((structure.n_leaves, len(plan.levels), 1 + 2 * len(plan.roles.outcomes)), np.int64)


def add_rows(
    sums: np.ndarray, rows: Encoded, routes: Routes, plan: Plan, threads: int = 1, corrected: bool = False
) -> None:
    """Add rows to the leaves they honestly estimate, in place. Exact: any order, any split of the rows, same sums."""
    bounds = np.linspace(0, plan.n_trees, threads + 1).astype(int)
    halves = halves_of(rows.key, np.uint64(plan.seed), plan.n_trees // plan.bag_size)
    given = frozen((rows.bins, rows.level, rows.w, rows.wy, rows.bucket, halves))
    design = (plan.bag_size, plan.n_buckets, plan.growth_buckets)

    def some_trees(first: int, last: int) -> None:
        accumulate(routes, given, design, (first, last), corrected, sums)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(some_trees, bounds[:-1], bounds[1:]))


def plain_shares(sums: np.ndarray) -> np.ndarray:
    """What `correct` needs of the plain sums: Σw_k / Σw and Σwy_k / Σw of every outcome, float64 [leaves, K, 1 + m]."""
    weight = np.maximum(sums[:, :, 0].sum(axis=1), 1)[:, None, None]
    return np.concatenate([sums[:, :, :1], sums[:, :, 1::2]], axis=2) / weight


def correct(rows: Encoded, routes: Routes, values: np.ndarray, plan: Plan, threads: int = 1) -> Encoded:
    """The rows with their outcomes moved on by what the forest misses of them: y becomes 2y - μ(x, level).

    Leaf means of these are the forest's estimate plus its estimate of its own residuals, one step of boosting
    ("twicing", Tukey 1977; Ghosal & Hooker 2021 for forests): the bias of wide leaves goes down by an order. μ comes
    from the bags that do not hold the row. values is `plain_shares`.
    """
    halves = halves_of(rows.key, np.uint64(plan.seed), plan.n_trees // plan.bag_size)
    expected = np.empty(rows.wy.shape)
    given, values = frozen((rows.bins, rows.level, halves)), frozen([values])[0]

    def some_rows(low: int, high: int) -> None:
        part = tuple(column[low:high] for column in given)
        expected_outcomes(routes, values, part, plan.bag_size, expected[low:high])

    bounds = np.linspace(0, rows.key.size, threads + 1).astype(int)
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(some_rows, bounds[:-1], bounds[1:]))
    # A row about which no tree knows anything stays as it is.
    missed = rows.wy - np.rint(rows.w[:, None] * np.where(np.isnan(expected), 0.0, expected)).astype(np.int64)
    return rows._replace(wy=rows.wy + np.where(np.isnan(expected), 0, missed))


def facts_of(summary: Summary, statuses: list[dict[str, Any]], structure: Structure, plan: Plan) -> dict[str, Any]:
    """What training found; DataError if units repeat or no bucket could grow a tree."""
    duplicates = sum(status.get("duplicates", 0) for status in statuses)
    if duplicates:
        raise DataError(f"column {plan.roles.unit!r} repeats a unit in {duplicates} rows: keep one row per unit")
    if structure.nodes.size == 0:
        raise DataError(
            f"no bucket could grow a tree: {statuses[0]['status']} in {len(statuses)} of {plan.n_buckets} buckets"
        )
    ranges = {name: list(bounds) for name, bounds in summary.outcomes.items()}
    facts = {"rows": summary.rows, "level_rows": plan.level_rows(summary.levels), "outcome_range": ranges}
    return {**facts, "buckets": sorted(statuses, key=lambda status: status["bucket"])}


def finished(
    plan: Plan, structure: Structure, sums: np.ndarray, facts: Mapping[str, Any], baselines: Baselines, bins: np.ndarray
) -> Forest:
    """The forest of these parts; in each outcome, levels learn from each other at rows like `bins`, uint8 [n, p]."""
    forest = Forest(plan, structure, sums, facts, baselines[0], None, tuple((one, None) for one in baselines[1:]))
    mix, *mixes = [share_levels(forest.of(name), bins).mix for name in plan.roles.outcomes]
    return replace(forest, mix=mix, more=tuple(zip(baselines[1:], mixes, strict=True)))


def estimate(
    rows: Encoded, grown: tuple[Plan, Structure, Baselines], facts: Mapping[str, Any], bins: np.ndarray, threads: int
) -> Forest:
    """The forest of these trees with the leaf sums of `rows`; `bins` are those of the sample (see `finished`)."""
    plan, structure, baselines = grown
    sums, routes = empty_sums(structure, plan), structure.routes
    add_rows(sums, rows, routes, plan, threads)
    if plan.debias:
        rows = correct(rows, routes, plain_shares(sums), plan, threads)
        add_rows(sums, rows, routes, plan, threads, corrected=True)
    return finished(plan, structure, sums, facts, baselines, bins)


def estimate_table(table: pa.Table, forest: Forest) -> Forest:
    """The forest's trees estimated anew from an Arrow table alone, on all cores."""
    if forest.roles.scores:
        roles = forest.roles
        return as_given(estimate_table(stacked(table, roles), as_given(forest, stacked_roles(roles))), roles)
    threads = os.cpu_count() or 1
    parts = grown_parts(forest)
    plan, _, baselines = parts
    summary = summarise(table, plan.roles)
    facts = facts_anew(forest, summary)
    limit = sample_limit(summary.rows, len(plan.bins))
    sample = table.filter(pa.array(sampled(table, plan.roles.unit, plan.seed, limit)))
    rows = encode(table, plan, baselines, threads)
    return estimate(rows, parts, facts, sample_bins(sample, plan, threads), threads)


def grown_parts(forest: Forest) -> tuple[Plan, Structure, Baselines]:
    """What `estimate` keeps of a forest: plan, trees, baselines."""
    return forest.plan, forest.structure, (forest.baseline, *(baseline for baseline, _ in forest.more))


def facts_anew(forest: Forest, summary: Summary) -> dict[str, Any]:
    """Facts of the forest estimated from the rows of `summary`; what is told of growing stays.

    Raises DataError when a level that the forest knows has no row left, or another one has come.
    """
    check_summary(summary, forest.roles)
    rows = forest.plan.level_rows(summary.levels)
    known, found = set(forest.plan.levels.names), {name for name, count in rows.items() if count}
    if known != found:
        wrong = f"no row of {', '.join(sorted(known - found))}" if known - found else f"levels {sorted(found - known)}"
        raise DataError(
            f"column {forest.roles.treatment!r} has {wrong}, so this forest of levels "
            f"{', '.join(forest.plan.levels.names)} cannot be estimated from these rows: train a new one"
        )
    return facts_of(summary, forest.facts["buckets"], forest.structure, forest.plan)
