"""The steps of training as pure functions over typed rows, and the in-memory line through them.

`forest.spark` strings the same functions through Spark; both give the same bytes.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from uplift_spark.errors import ConfigError, hint
from uplift_spark.forest import defaults
from uplift_spark.forest.binning import fit_bins
from uplift_spark.forest.effects import CRITERIA, KNOTS, default_criterion, identified
from uplift_spark.forest.encode import (
    MONOTONE,
    BinnedRows,
    ForestPlan,
    Summary,
    TypedRows,
    bin_rows,
    buckets_of,
    centred,
    check_repeated,
    check_summary,
    encode,
    exponents,
    make_levels,
    repeated_rows,
    summarise,
)
from uplift_spark.forest.estimate import (
    WHOLE,
    Baselines,
    binned_sample,
    estimate,
    sample_of,
    stacked,
    stacked_roles,
    training_facts,
    with_roles,
)
from uplift_spark.forest.forest import Forest
from uplift_spark.forest.grow import Baseline, Limits, fit_baseline, grow_tree
from uplift_spark.forest.overlap import check_level_rows, effective_shares, fit_overlap, thin_sentence
from uplift_spark.forest.trees import Tree, assemble, leaf_word
from uplift_spark.roles import Levels, Roles
from uplift_spark.runtime import ProgressCallback
from uplift_spark.stats.sampling import SAMPLE_SALT, TREE_SALT, growth_rows, mix64, mix64_all
from uplift_spark.stats.tests import Linearity, linearity

SILENCE = 10.0  # seconds without a word of progress, at most, while trees grow
AUTO = (None, "auto")  # criteria that are chosen from the data
BENDS = 0.01  # p-value below which a response to doses is taken for bent: a spline costs variance
BENT = 1.5  # times the slope's signal that arms taken one by one must show to be taken so,
SURE = 3.0  # by this many standard deviations of what chance shows
NO_TREES = ("empty", "duplicate units", "single arm")  # statuses of buckets that grow none


@dataclass(frozen=True)
class Params:
    """What a user may set; None lets `forest.defaults` choose from the data."""

    n_trees: int = 200
    seed: int = 7
    min_leaf: int | None = None
    max_depth: int | None = None
    n_buckets: int | None = None
    growth_buckets: int | None = None
    max_bins: int | None = None
    mtry: int | None = None
    min_gain: float = 0.0
    imbalance: float = 0.2
    min_share: float = 0.1
    criterion: str | None = None
    monotone: str | None = None
    bag_size: int = 4
    centre: bool = True
    debias: bool = True


def make_plan(
    summary: Summary, sample: TypedRows, params: Params, threads: int = 1
) -> tuple[ForestPlan, Baselines, BinnedRows]:
    """Fix everything but the rows: levels, bins, exponents, baselines and, where left open, leaf size and buckets.

    Returns the sample's rows, binned by the plan, too.
    """
    roles = sample.roles
    check_summary(summary, roles)
    _check_params(params)
    levels, reported, edges = make_levels(summary, roles)
    if not edges:
        check_level_rows(summary.levels)
    criterion, reported = _first_criterion(levels, reported, params.criterion)
    draft = ForestPlan(
        roles=roles,
        levels=levels,
        bins=fit_bins(sample.features, roles.features, params.max_bins or defaults.max_bins(summary.rows), threads),
        criterion=criterion,
        seed=params.seed,
        n_trees=-(-params.n_trees // params.bag_size) * params.bag_size,
        bag_size=params.bag_size,
        n_buckets=1,
        growth_buckets=1,
        limits={},
        exponents=exponents(summary, roles),
        weighted_by_propensity=summary.weighted_by_propensity,
        debias=params.debias,
        reported=reported,
        edges=edges,
        monotone=params.monotone,
    )
    rows = binned_sample(sample, draft, threads)
    draft = replace(draft, effective=_effective_events(summary, sample, rows.level, levels.names))
    if reported is None:
        overlap = fit_overlap(
            (rows.bins, rows.level, rows.key), levels.names, defaults.bins_of(draft.bins), params.seed, threads
        )
        if overlap is not None:
            draft = replace(draft, overlap=overlap, exponents=exponents(summary, roles, weighted=True))
            rows = binned_sample(sample, draft, threads)
    baselines = _baselines(rows, draft) if params.centre else (None,) * len(roles.outcomes)
    rows = centred(rows, draft, baselines, threads)
    draft, signal = _with_criterion(rows, draft, summary.rows, params.criterion)
    design = defaults.buckets(summary.rows, signal)
    design = (params.n_buckets or design[0], params.growth_buckets or (1 if params.n_buckets else design[1]))
    if not 0 < design[1] < design[0]:
        raise ConfigError(f"{design[1]} of {design[0]} buckets to grow a tree leave none to estimate it: use fewer")
    smallest, usual = defaults.leaf_sizes(summary.rows, signal, design, defaults.arms_of(draft))
    limits = {
        "min_leaf": params.min_leaf or smallest,
        "usual_leaf": params.min_leaf or usual,
        "max_depth": params.max_depth or defaults.MAX_DEPTH,
        "min_gain": params.min_gain,
        "imbalance": params.imbalance,
        "min_share": params.min_share,
        "mtry": params.mtry or defaults.mtry(len(roles.features)),
    }
    plan = replace(draft, n_buckets=design[0], growth_buckets=design[1], limits=limits)
    return plan, baselines, rows._replace(bucket=buckets_of(rows.key, plan))


def _effective_events(
    summary: Summary, sample: TypedRows, level: np.ndarray, names: tuple[str, ...]
) -> dict[str, dict[str, float]]:
    """`effective` of a plan, by the sample's rows and the codes of their levels in canonical order."""
    if sample.roles.grid:
        return {}
    order = np.argsort(sample.unit, kind="stable")
    shares = {
        name: effective_shares(outcome[order], level, summary.outcomes[name], names)
        for name, outcome in sample.outcomes.items()
    }
    return {name: of_levels for name, of_levels in shares.items() if of_levels}


def _check_params(params: Params) -> None:
    if params.criterion not in (*AUTO, *CRITERIA):
        raise ConfigError(f"criterion {params.criterion!r} is unknown: {hint(str(params.criterion), CRITERIA)}")
    if params.monotone not in (None, *MONOTONE):
        raise ConfigError(f"monotone is {params.monotone!r}: give one of {', '.join(MONOTONE)}, or nothing")


def _first_criterion(levels: Levels, reported: Levels | None, requested: str | None) -> tuple[str, Levels | None]:
    """The criterion before the data are read, and the levels that effects are then reported for; see `ForestPlan`."""
    criterion = default_criterion(levels) if requested in AUTO else str(requested)
    reported = levels if criterion == "product" else reported
    if reported and not identified(CRITERIA[criterion].basis(levels)):
        raise ConfigError(
            f"criterion {criterion} asks for more than the doses of {len(levels)} levels tell: take one_hot"
        )
    return criterion, reported


def _with_criterion(rows: BinnedRows, plan: ForestPlan, total: int, requested: str | None) -> tuple[ForestPlan, float]:
    """The plan with its criterion and the reason for it, and n·h under it.

    Levels that work on different people have no slope in common; splitting by it would not see them. So arms are taken
    one by one where they clearly show far more. A response to doses is a line, unless the sample shows that it bends.
    """
    n = rows.unit.size
    if requested not in AUTO:
        plan = replace(plan, reason="as asked for")  # the words of model files
    elif plan.criterion == "one_hot":
        lacking = "have no doses" if plan.levels.doses is None else "are too few to tell their doses apart"
        plan = replace(plan, reason=f"the levels {lacking}")
    elif plan.criterion == "product":
        plan = replace(plan, reason="the levels have several doses")
    elif plan.reported:
        plan = _line_or_spline(rows, plan)
    pooled = defaults.signal(rows, plan)
    if plan.reason:
        return plan, pooled.of_all(total, n)
    if len(plan.levels) > 2:
        apart = defaults.signal(rows, replace(plan, criterion="one_hot"))
        if apart.estimate - SURE * apart.noise > BENT * max(pooled.estimate, 0.0):
            why = f"arms one by one show a signal of {apart.estimate:.0f}, the dose {pooled.estimate:.0f}"
            return replace(plan, criterion="one_hot", reason=why), apart.of_all(total, n)
    return replace(plan, reason="arms one by one show no far larger signal than the dose"), pooled.of_all(total, n)


def _line_or_spline(rows: BinnedRows, plan: ForestPlan) -> ForestPlan:
    test = bends(rows, plan)
    bent = test.overall < BENDS and len(plan.levels) >= KNOTS
    reason = f"cells of doses miss a straight line by {test.missed[0]:.3g} on average (p = {test.overall:.2g})"
    return replace(plan, criterion="spline" if bent else "slope", reason=reason)


def bends(rows: BinnedRows, plan: ForestPlan, segment: np.ndarray | None = None) -> Linearity:
    """Test that the outcome of rows follows the plan's basis, by segment int64 [n] in 0..S-1 if given.

    Rows are from `bin_rows`, so that outcomes are less their baseline.
    """
    levels, (w_bits, y_bits, *_) = len(plan.levels), plan.exponents
    segments = np.zeros(rows.unit.size, np.int64) if segment is None else segment
    cell, count = segments * levels + rows.level, (int(segments.max(initial=0)) + 1) * levels
    y = np.ldexp(rows.wy[:, 0] / rows.w, w_bits - y_bits)
    n = np.bincount(cell, minlength=count)
    mean = np.bincount(cell, y, count) / np.maximum(n, 1)
    variance = np.bincount(cell, (y - mean[cell]) ** 2, count) / np.maximum(n - 1, 1)
    basis = CRITERIA[plan.criterion].basis(plan.levels)
    units, means, spread = (part.reshape(-1, levels) for part in (n, mean, variance))
    return linearity(units, means, spread, basis)


def _baselines(rows: BinnedRows, plan: ForestPlan) -> Baselines:
    w_bits, *y_bits = plan.exponents
    if plan.overlap is not None and len(plan.levels) > 2:
        # Where a level lacks, the mean over the levels jumps; that of the control alone does not.
        rows = rows.take(rows.level == 0)
    columns = np.ascontiguousarray(rows.bins.T)

    def one(j: int) -> Baseline | None:
        arrays, scale = (rows.key, rows.w, rows.wy[:, j].copy()), math.ldexp(1.0, w_bits - y_bits[j])
        return fit_baseline(columns, arrays, np.uint64(plan.seed), defaults.bins_of(plan.bins), scale)

    return tuple(map(one, range(len(y_bits))))


def grow_bucket(
    rows: BinnedRows,
    plan: ForestPlan,
    bucket: int,
    baselines: Sequence[Baseline | None] = (),
    threads: int = 1,
    share: tuple[int, int] = (0, 1),
) -> tuple[list[Tree], dict[str, Any]]:
    """Grow the trees that start at one bucket from the rows that shape them, and say how it went.

    `share` (i, n) grows every n-th tree only. A bucket that cannot show an effect (empty, single-armed) yields no trees
    and a status; one that only cannot tell units apart (constant) says so and grows what it can; the others go on.
    """
    rows = rows.take(np.argsort(rows.unit, kind="stable"))  # canonical order, and arrays of our own
    bucket_status = _bucket_status(rows, plan, baselines)
    status = {"bucket": bucket, "rows": int(rows.unit.size), "status": bucket_status, "trees": 0}
    if status["status"] == "duplicate units":
        own = rows.bucket[1:] == bucket  # another bucket's rows are counted by that bucket
        status["duplicates"] = int((own & (rows.unit[1:] == rows.unit[:-1])).sum())
    numbers = range(bucket, plan.n_trees, plan.n_buckets)[share[0] :: share[1]]
    if bucket_status in NO_TREES or not numbers:
        return [], status
    rows = _thinned(rows, plan)
    columns = np.ascontiguousarray(rows.bins.T)
    evidence = grow_one(columns, rows, np.arange(rows.unit.size, dtype=np.int32), plan, bucket)[3]

    def tree(index: int) -> Tree:
        design = (plan.bag_size, plan.n_buckets, plan.growth_buckets)
        mine = np.flatnonzero(growth_rows((rows.key, rows.bucket), np.uint64(plan.seed), index, design))
        nodes, sets, leaves, _, _ = grow_one(columns, rows, mine.astype(np.int32), plan, index, evidence)
        return Tree(index, nodes, sets, int(leaves))

    with ThreadPoolExecutor(threads) as pool:
        trees = list(pool.map(tree, numbers))
    return trees, {**status, "trees": len(trees)}


def _thinned(rows: BinnedRows, plan: ForestPlan) -> BinnedRows:
    """At most about `defaults.most_rows` of a bucket's growing rows, by hash of the unit: a huge cluster, or fewer
    buckets than the rows ask for, cannot make a worker grow for hours. Rows left out estimate as before.
    """
    most = defaults.most_rows(plan.growth_buckets)
    if rows.unit.size <= most:
        return rows
    limit = np.uint64(int(most / rows.unit.size * 2.0**64))
    return rows.take(mix64_all(rows.unit, np.uint64(plan.seed), SAMPLE_SALT) <= limit)


def merge_statuses(statuses: list[dict[str, Any]], n_buckets: int) -> list[dict[str, Any]]:
    """One status per bucket from those of its shares; a bucket that sent none was empty."""
    merged = {b: {"bucket": b, "rows": 0, "status": "empty", "trees": 0} for b in range(n_buckets)}
    for status in statuses:
        before = merged[status["bucket"]]
        merged[status["bucket"]] = {**status, "trees": before["trees"] + status["trees"]}
    return list(merged.values())


def _bucket_status(rows: BinnedRows, plan: ForestPlan, baselines: Sequence[Baseline | None]) -> str:
    if rows.unit.size == 0:
        return "empty"
    if np.any(rows.unit[1:] == rows.unit[:-1]):
        return "duplicate units"
    if np.all(rows.level == rows.level[0]):
        return "single arm"
    if np.all(rows.bins == rows.bins[0]):
        return "constant features" if rows.bins[0].any() else "missing features"
    return "constant outcome" if _constant_outcome(rows, plan, baselines) else "ok"


def _constant_outcome(rows: BinnedRows, plan: ForestPlan, baselines: Sequence[Baseline | None]) -> bool:
    for size in (64, 4096, rows.unit.size):  # a few rows nearly always tell, without the way through all the trees
        part = rows.take(slice(size))
        wy = centred(part, plan, baselines[:1], sign=1).wy[:, 0]
        if np.any(wy * part.w[0] != wy[0] * part.w):
            return False
    return True


def grow_one(
    columns: np.ndarray,
    rows: BinnedRows,
    mine: np.ndarray,
    plan: ForestPlan,
    index: int,
    evidence: np.ndarray | None = None,
) -> tuple[Any, ...]:
    """`grow_tree` on the rows `mine` (int32, in canonical order); without evidence it is the bucket's pilot."""
    if mine.size == 0:
        return np.array([leaf_word(0)], np.uint64), np.empty((0, 4), np.uint64), 1, evidence, 0.0
    work = (mine, rows.level[mine], rows.w[mine], rows.wy[mine, 0])
    row = work[2].sum() / mine.size
    limits = Limits(
        float(plan.limits["min_leaf"] * row),
        float(plan.limits["usual_leaf"] * row),
        int(plan.limits["max_depth"]),
        float(plan.limits["min_gain"]),
        float(plan.limits["imbalance"]),
        int(plan.limits["mtry"]),
        float(plan.limits["min_share"]),
    )
    known = np.zeros(len(columns)) if evidence is None else evidence
    seed = np.uint64(mix64(np.uint64(index), np.uint64(plan.seed), TREE_SALT))
    return grow_tree(columns, work, defaults.shape_of(plan), limits, seed, known)


def _grow_all(
    rows: BinnedRows, plan: ForestPlan, baselines: Baselines, threads: int, progress: ProgressCallback
) -> list[tuple[list[Tree], dict]]:
    """`grow_bucket` of every bucket, as many at a time as there are threads."""
    order = np.argsort(rows.bucket, kind="stable")
    starts = np.searchsorted(rows.bucket[order], np.arange(plan.n_buckets + 1))
    within = -(-threads // plan.n_buckets)

    def one(bucket: int) -> tuple[list[Tree], dict]:
        shaping = [(bucket + j) % plan.n_buckets for j in range(plan.growth_buckets)]
        mine = np.concatenate([order[starts[b] : starts[b + 1]] for b in shaping])
        return grow_bucket(rows.take(mine), plan, bucket, baselines, within)

    grown, started, spoken = [], time.monotonic(), time.monotonic()
    with ThreadPoolExecutor(threads) as pool:
        for result in pool.map(one, range(plan.n_buckets)):
            grown.append(result)
            if time.monotonic() > spoken + SILENCE:
                spoken = time.monotonic()
                left = (spoken - started) / len(grown) * (plan.n_buckets - len(grown))
                progress(f"{len(grown)} of {plan.n_buckets} buckets grown, about {left:,.0f} s left")
    return grown


def fit_table(table: pa.Table, roles: Roles, params: Params, progress: ProgressCallback = lambda _: None) -> Forest:
    """Train on an Arrow table in this process, on all its cores."""
    if roles.scores:
        return with_roles(fit_table(stacked(table, roles), stacked_roles(roles), params, progress), roles)
    return fit_rows(encode(table, roles, os.cpu_count() or 1), params, progress)


def fit_rows(typed: TypedRows, params: Params, progress: ProgressCallback = lambda _: None) -> Forest:
    """Train on rows that are encoded already, see `fit_table`."""
    threads = os.cpu_count() or 1
    summary = summarise(typed)
    check_summary(summary, typed.roles)
    if typed.roles.cluster not in (None, WHOLE):  # buckets, which count units that repeat, are those of clusters
        check_repeated(repeated_rows(typed.unit), typed.roles.unit)
    sample = sample_of(typed, summary.rows, params.seed)
    plan, baselines, rows = make_plan(summary, sample, params, threads)
    if plan.overlap is not None:
        progress(plan.overlap.sentence(plan.levels.names))
    planning = rows.bins
    if sample is not typed:
        rows = bin_rows(typed, plan, baselines, threads)
    del typed, sample  # before trees grow: they are as large as the frame
    progress(
        f"growing {plan.n_trees} trees in {plan.n_buckets} buckets of about {summary.rows // plan.n_buckets:,} rows"
    )
    grown = _grow_all(rows, plan, baselines, threads, progress)
    structure = assemble([tree for trees, _ in grown for tree in trees], plan.n_trees)
    facts = training_facts(summary, [status for _, status in grown], structure, plan)
    for thin in facts.get("thin", {}).values():
        progress(thin_sentence(thin))
    progress(f"estimating {structure.n_leaves:,} leaves")
    return estimate(rows, (plan, structure, baselines), facts, planning, threads)


def describe(plan: ForestPlan) -> Mapping[str, Any]:
    """The plan's choices for logs: plain values only."""
    chosen = {
        "criterion": plan.criterion,
        "reason": plan.reason,
        "n_trees": plan.n_trees,
        "n_buckets": plan.n_buckets,
        "seed": plan.seed,
    }
    return {**chosen, **plan.limits, "levels": list(plan.levels.names)}
