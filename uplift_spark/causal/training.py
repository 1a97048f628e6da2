"""The steps of training as pure functions over encoded rows, and the in-memory line through them.

`flow.training` strings the same functions through Spark; both give the same bytes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from uplift_spark.causal import defaults
from uplift_spark.causal.binning import fit_bins
from uplift_spark.causal.criteria import CRITERIA, default_criterion
from uplift_spark.causal.forest import Forest, Structure, Tree, assemble
from uplift_spark.causal.grower import grow_tree
from uplift_spark.causal.hashing import SAMPLE, TREE, mix, mix_all, unit_hashes
from uplift_spark.causal.kernels import accumulate
from uplift_spark.causal.rows import (
    Encoded,
    Plan,
    Summary,
    check_columns,
    check_parts,
    check_summary,
    encode,
    estimation_rows,
    exponents,
    frozen,
    growth_rows,
    make_levels,
    summarise,
)
from uplift_spark.causal.splits import Limits
from uplift_spark.vocabulary import DataError, Roles

Say = Callable[[str], None]


@dataclass(frozen=True)
class Params:
    """What a user may set; None lets `causal.defaults` choose from the data."""

    n_trees: int = 200
    seed: int = 7
    min_leaf: int | None = None
    max_depth: int | None = None
    n_buckets: int | None = None
    max_bins: int | None = None
    mtry: int | None = None
    min_gain: float = 0.0
    imbalance: float = 0.2
    min_share: float = 0.1
    criterion: str | None = None
    bag_size: int = 4


def sample_limit(rows: int, n_features: int) -> np.uint64:
    """Hash bound below which a unit joins the sample that fixes bins and leaf size; all of them when rows are few."""
    wanted = defaults.sample_rows(n_features)
    return np.uint64(2**64 - 1) if rows <= wanted else np.uint64(int(wanted / rows * 2.0**64))


def sampled(batch: pa.Table | pa.RecordBatch, unit: str, seed: int, limit: np.uint64) -> np.ndarray:
    """Mask of the sample's rows, by hash of the unit: bool [n]."""
    return mix_all(unit_hashes(batch.column(unit), unit), np.uint64(seed), SAMPLE) <= limit


def make_plan(summary: Summary, sample: pa.Table, roles: Roles, params: Params) -> Plan:
    """Fix everything but the rows: levels, bins, exponents and, where left open, leaf size, buckets, depth."""
    check_summary(summary, roles)
    levels = make_levels(summary, roles)
    draft = Plan(
        roles=roles,
        levels=levels,
        bins=fit_bins(sample, roles.features, params.max_bins or defaults.max_bins(summary.rows)),
        criterion=params.criterion or default_criterion(levels),
        seed=params.seed,
        n_trees=-(-params.n_trees // params.bag_size) * params.bag_size,
        bag_size=params.bag_size,
        n_buckets=1,
        limits={},
        exponents=exponents(summary, roles),
        weighted_by_propensity=summary.weighted_by_propensity,
    )
    rows = encode(sample, draft)
    # Canonical order: floating sums over the sample must not depend on how it was collected.
    wanted = defaults.wanted_leaf(rows.take(np.argsort(rows.unit)), draft)
    n_buckets = params.n_buckets or defaults.n_buckets(summary.rows, wanted)
    limits = {
        "min_leaf": params.min_leaf or defaults.min_leaf(wanted, summary.rows, n_buckets, len(levels)),
        "max_depth": params.max_depth or defaults.MAX_DEPTH,
        "min_gain": params.min_gain,
        "imbalance": params.imbalance,
        "min_share": params.min_share,
        "mtry": params.mtry or defaults.mtry(len(roles.features)),
    }
    return replace(draft, n_buckets=n_buckets, limits=limits)


def grow_bucket(
    rows: Encoded, plan: Plan, bucket: int, threads: int = 1, share: tuple[int, int] = (0, 1)
) -> tuple[list[Tree], dict[str, Any]]:
    """Grow the trees of one bucket from its rows, and say how it went; `share` (i, n) grows every n-th tree only.

    A bucket that cannot show an effect (empty, single-armed) yields no trees and a status; the others go on.
    """
    rows = rows.take(np.argsort(rows.unit, kind="stable"))  # canonical order, and arrays of our own
    status = {"bucket": bucket, "rows": int(rows.unit.size), "status": _bucket_status(rows), "trees": 0}
    if status["status"] == "duplicate units":
        status["duplicates"] = int((rows.unit[1:] == rows.unit[:-1]).sum())
    if status["status"] not in ("ok", "constant outcome"):
        return [], status
    mine = range(bucket, plan.n_trees, plan.n_buckets)[share[0] :: share[1]]
    with ThreadPoolExecutor(threads) as pool:
        trees = list(pool.map(lambda t: grow_one(rows, plan, t), mine))
    return trees, {**status, "trees": len(trees)}


def merge_statuses(found: list[dict[str, Any]], n_buckets: int) -> list[dict[str, Any]]:
    """One status per bucket from those of its shares; a bucket that sent none was empty."""
    merged = {b: {"bucket": b, "rows": 0, "status": "empty", "trees": 0} for b in range(n_buckets)}
    for status in found:
        before = merged[status["bucket"]]
        merged[status["bucket"]] = {**status, "trees": before["trees"] + status["trees"]}
    return list(merged.values())


def _bucket_status(rows: Encoded) -> str:
    if rows.unit.size == 0:
        return "empty"
    if np.any(rows.unit[1:] == rows.unit[:-1]):
        return "duplicate units"
    if np.all(rows.level == rows.level[0]):
        return "single arm"
    return "constant outcome" if np.all(rows.wy * rows.w[0] == rows.wy[0] * rows.w) else "ok"


def grow_one(rows: Encoded, plan: Plan, index: int) -> Tree:
    """Grow one tree from the rows of its bucket, in canonical order."""
    seed = np.uint64(plan.seed)
    mine = np.flatnonzero(growth_rows(rows.key, seed, index, plan.bag_size, plan.n_buckets))
    work = (rows.bins[mine], rows.level[mine], rows.w[mine], rows.wy[mine])
    if mine.size == 0:
        return Tree(index, np.array([1], np.uint64), np.empty((0, 4), np.uint64), 1)
    scratch = tuple(np.empty_like(column) for column in work)
    n_bins = np.array([b.n_bins for b in plan.bins], np.int64)
    categorical = np.array([b.categorical for b in plan.bins])
    basis = np.ascontiguousarray(CRITERIA[plan.criterion].basis(plan.levels))
    mean_weight = work[2].sum() / mine.size
    limits = Limits(
        float(plan.limits["min_leaf"] * mean_weight),
        int(plan.limits["max_depth"]),
        float(plan.limits["min_gain"]),
        float(plan.limits["imbalance"]),
        int(plan.limits["mtry"]),
        float(plan.limits["min_share"]),
    )
    tree_seed = np.uint64(mix(np.uint64(index), seed, TREE))
    nodes, sets, leaves = grow_tree(work, scratch, (basis, n_bins, categorical), limits, tree_seed)
    return Tree(index, nodes, sets, int(leaves))


def empty_sums(structure: Structure, plan: Plan) -> np.ndarray:
    """Zero leaf sums, int64 [leaves, K, 3]."""
    return np.zeros((structure.n_leaves, len(plan.levels), 3), np.int64)


def add_rows(sums: np.ndarray, rows: Encoded, structure: Structure, plan: Plan, threads: int = 1) -> None:
    """Add rows to the leaves they honestly estimate, in place. Exact: any order, any split of the rows, same sums."""
    bounds = np.linspace(0, plan.n_trees, threads + 1).astype(int)
    fixed = Structure(*frozen(structure))
    rows = Encoded(*frozen(rows))

    def some_trees(first: int, last: int) -> None:
        for low in range(0, rows.key.size, 1 << 16):
            part = rows.take(slice(low, low + (1 << 16)))
            seed = np.uint64(plan.seed)
            mask = estimation_rows(part.key, part.bucket, seed, plan.bag_size, plan.n_buckets, first, last)
            accumulate(fixed, part.sums, mask, first, last, sums)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(some_trees, bounds[:-1], bounds[1:]))


def finish(plan: Plan, structure: Structure, sums: np.ndarray, summary: Summary, statuses: list[dict]) -> Forest:
    """Put the forest together; DataError if units repeat or no bucket could grow a tree."""
    duplicates = sum(status.get("duplicates", 0) for status in statuses)
    if duplicates:
        raise DataError(f"column {plan.roles.unit!r} repeats a unit in {duplicates} rows: keep one row per unit")
    if structure.nodes.size == 0:
        raise DataError(
            f"no bucket could grow a tree: {statuses[0]['status']} in {len(statuses)} of {plan.n_buckets} buckets"
        )
    facts = {"rows": summary.rows, "level_rows": dict(summary.levels), "outcome_range": list(summary.outcome)}
    return Forest(plan, structure, sums, {**facts, "buckets": sorted(statuses, key=lambda s: s["bucket"])})


def fit_table(table: pa.Table, roles: Roles, params: Params, say: Say = lambda _: None) -> Forest:
    """Train on an Arrow table in this process, on all its cores."""
    kinds = {f.name: f.type for f in table.schema}
    check_columns(kinds, roles.columns, roles.features)
    check_parts(kinds, roles)
    threads = os.cpu_count() or 1
    summary = summarise(table, roles)
    check_summary(summary, roles)
    limit = sample_limit(summary.rows, len(roles.features))
    sample = table.filter(pa.array(sampled(table, roles.unit, params.seed, limit)))
    plan = make_plan(summary, sample, roles, params)
    rows = encode(table, plan)
    say(f"growing {plan.n_trees} trees in {plan.n_buckets} buckets of about {summary.rows // plan.n_buckets:,} rows")
    order = np.argsort(rows.bucket, kind="stable")
    ends = np.searchsorted(rows.bucket[order], np.arange(plan.n_buckets + 1))
    grown = [grow_bucket(rows.take(order[ends[b] : ends[b + 1]]), plan, b, threads) for b in range(plan.n_buckets)]
    structure = assemble([tree for trees, _ in grown for tree in trees], plan.n_trees)
    say(f"estimating {structure.n_leaves:,} leaves")
    sums = empty_sums(structure, plan)
    add_rows(sums, rows, structure, plan, threads)
    return finish(plan, structure, sums, summary, [status for _, status in grown])


def describe(plan: Plan) -> Mapping[str, Any]:
    """The plan's choices for logs: plain values only."""
    chosen = {"criterion": plan.criterion, "n_trees": plan.n_trees, "n_buckets": plan.n_buckets, "seed": plan.seed}
    return {**chosen, **plan.limits, "levels": list(plan.levels.names)}
